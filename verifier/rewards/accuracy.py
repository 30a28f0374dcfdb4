"""Reward `accuracy`: whether the committed answer equals the reference; `metadata.accuracy` says in what sense."""

import logging
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from functools import cache, lru_cache
from typing import Any, TypeAlias

from verifier.rewards.answer import committed_answer
from verifier.rewards.score import BadAnswer, BadTask, Score, blamed_on_answer, blamed_on_task

MAX_ANSWER_CHARACTERS = 1000  # longer ones are equal to their reference letter by letter, or wrong

Equals: TypeAlias = Callable[[str], bool]
"""Whether an answer equals the reference that this was made from. Raises `BadAnswer` for what cannot be compared."""

_NUMBER = re.compile(r"[+-]?(([0-9]{1,3}(,[0-9]{3})+|[0-9]+)(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,3})?")


def accuracy_reward(text: str, reference: str, metadata: Mapping[str, Any]) -> Score:
    """1 if the answer equals `reference`, 0 if not; `BadAnswer` if there is none to compare.

    `metadata["accuracy"]` is one of
    - `math` (the default): the same mathematical object, by math-verify; `(x+1)^2` equals `x^2+2x+1`;
    - `numeric`: the same number, exactly; `1,000`, `1e3` and `1000.0` are one number;
    - `exact`: the same text, white space at both ends aside.

    In every sense an answer that is the reference letter by letter is right, and is not looked at further.
    """
    sense = metadata.get("accuracy", "math")
    if not isinstance(sense, str) or sense not in _SENSES:
        raise BadTask(f"metadata.accuracy={sense!r}: must be one of {', '.join(_SENSES)}")
    if not reference.strip():
        raise BadTask("the reference is empty")
    equals = _SENSES[sense](reference.strip())  # first of all: a bad task is void whatever the text says
    answer = committed_answer(text)
    if answer == reference.strip():
        return Score(1.0, "the reference")
    if len(answer) > MAX_ANSWER_CHARACTERS:
        raise BadAnswer(f"the answer has {len(answer)} characters, more than {MAX_ANSWER_CHARACTERS} are not read")
    return Score(1.0, "equal") if equals(answer) else Score(0.0, f"wrong: {answer[:80]!r}")


def _exact(reference: str) -> Equals:
    return lambda answer: answer == reference


def _numeric(reference: str) -> Equals:
    expected = _number(reference)
    if expected is None:
        raise BadTask(f"the reference {reference[:80]!r} is not a number")

    def equals(answer: str) -> bool:
        if (number := _number(answer)) is None:
            raise BadAnswer(f"not a number: {answer[:80]!r}")
        return number == expected

    return equals


def _number(text: str) -> Decimal | None:
    """The number that `text` writes in ASCII digits. Decimals compare exactly, whatever their size."""
    if not _NUMBER.fullmatch(text):
        return None
    return Decimal(text.replace(",", ""))


# ---------------------------------------------------------------- math-verify


def load() -> None:
    """Import math-verify and fill its tables: 1 s, which no check should pay for."""
    _math("x")("(x+1)/2")


def _math(reference: str) -> Equals:
    """Its own time-outs return a silent False and need SIGALRM: they are off, the pool's deadline holds instead."""
    expected = _expected(reference)

    def equals(answer: str) -> bool:
        with blamed_on_answer():
            if not (found := _parsed(answer)):
                raise BadAnswer(f"not mathematics: {answer[:80]!r}")
            return bool(_library().verify(expected, found, timeout_seconds=None, raise_on_error=True))

    return equals


@lru_cache(maxsize=1024)
def _expected(reference: str) -> list[Any]:
    with blamed_on_task(f"the reference {reference[:80]!r} cannot be parsed"):
        expected = _parsed(reference)
    if not expected:
        raise BadTask(f"the reference {reference[:80]!r} is not mathematics")
    return expected


def _parsed(formula: str) -> list[Any]:
    r"""`formula` as the content of one `\boxed{}`, so that nothing less than the whole of it is read."""
    library = _library()
    bare = formula.strip().removesuffix("%").removesuffix("\\").strip().strip("$").strip()
    extraction = [library.LatexExtractionConfig(boxed_match_priority=0)]
    parsed: list[Any] = library.parse(
        f"\\boxed{{{bare}}}",
        extraction_config=extraction,
        fallback_mode="no_fallback",
        extraction_mode="first_match",
        parsing_timeout=None,
        raise_on_error=True,
    )
    return parsed


@cache
def _library() -> Any:
    """math-verify, which imports sympy: never in the service's process."""
    import math_verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # warns that its time-outs are off
    return math_verify


_SENSES: dict[str, Callable[[str], Equals]] = {"math": _math, "exact": _exact, "numeric": _numeric}
