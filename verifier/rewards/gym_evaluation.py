"""Scorers of reasoning-gym that evaluate the answer as Python, and what is done so that they never run any.

Four `eval` the answer to see whether it is a list; that never earns the most, so they read literals instead. Five hand
it to sympy's `parse_expr`, which is `eval` behind a tokenizer: they get numbers, operators and a few names, nothing
that could name a function of Python's. A test reads the installed package and fails when there are others.
"""

import ast
import re
from types import ModuleType

from verifier.rewards.score import BadAnswer

LITERALS = {"binary_matrix", "n_queens", "spiral_matrix", "string_insertion"}

_NAMES = {
    *("sin", "cos", "tan", "cot", "sec", "csc", "asin", "acos", "atan", "sinh", "cosh", "tanh", "asinh", "acosh"),
    *("atanh", "exp", "log", "ln", "sqrt", "abs", "Abs", "pi"),
}
FORMULAS: dict[str, set[str]] = {  # family → names of more than one letter that it may use
    "countdown": set(),
    "puzzle24": set(),
    "intermediate_integration": _NAMES,
    "polynomial_multiplication": _NAMES,
    "simple_integration": _NAMES,
}
_ARITHMETIC = {"countdown", "puzzle24"}
_FORMULA = re.compile(r"(?:\s|[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?|\.[0-9]+|[A-Za-z]+|[-+*/^(),])*")
_WORD = re.compile(r"[A-Za-z]+")


def disarm(family: str, module: ModuleType) -> None:
    """In the scorer's module, `eval` means a literal from now on."""
    if family in LITERALS:
        module.eval = ast.literal_eval  # type: ignore[attr-defined]


def refuse_code(family: str, answer: str) -> None:
    """Raises `BadAnswer` if the scorer of `family` would evaluate `answer` and it is more than a formula."""
    if family not in FORMULAS:
        return
    if not _FORMULA.fullmatch(answer):
        raise BadAnswer(f"not a formula: {answer[:80]!r}")
    for word in _WORD.findall(answer):
        if word in FORMULAS[family] or (len(word) == 1 and (family not in _ARITHMETIC or word in "eE")):
            continue
        raise BadAnswer(f"not a formula: it names {word[:40]!r}")
