"""No answer is ever run as Python, whatever a scorer of reasoning-gym would like to do with it."""

import ast
import importlib.util
import sys
from pathlib import Path

import pytest

from protocol import reference as references
from verifier.rewards.gym import gym_reward
from verifier.rewards.gym_evaluation import FORMULAS, LITERALS, refuse_code
from verifier.rewards.score import BadAnswer

EVALUATORS = {"eval", "exec", "parse_expr", "sympify", "__import__"}
HARMLESS = {  # module → why
    "algorithmic.number_sorting": "evaluates the entry's own answer",
    "arithmetic.basic_arithmetic": "evaluates a question that it made",
    "arithmetic.bitwise_arithmetic": "evaluates a question that it made",
    "arithmetic.gsm_symbolic.generators_00_49": "evaluates fractions that it made",
    "arithmetic.gsm_symbolic.generators_50_99": "evaluates fractions that it made",
    "code.codeio": "executes code that the package ships, to make questions",
    "logic.propositional_logic": "its parse_expr is a parser of its own",
}


def called(node: ast.AST) -> str:
    return ast.unparse(node.func) if isinstance(node, ast.Call) else ""


def test_every_module_that_evaluates_is_known() -> None:
    spec = importlib.util.find_spec("reasoning_gym")
    assert spec
    assert spec.origin
    root = Path(spec.origin).parent
    found = set()
    for path in root.rglob("*.py"):
        calls = {called(node) for node in ast.walk(ast.parse(path.read_text()))}
        if any(call.rpartition(".")[2] in EVALUATORS for call in calls):
            found.add(".".join(path.relative_to(root).with_suffix("").parts))
    ours = {name for name in found if name.rpartition(".")[2] in LITERALS | FORMULAS.keys()}
    assert len(ours) == len(LITERALS) + len(FORMULAS)
    assert found - ours == HARMLESS.keys()


CODE = [
    "__import__('sys').modules.update(pwned=1)",
    "[__import__('sys').modules.update(pwned=1)]",
    "exec(chr(112)+chr(119))",
    "eval(chr(49))",
    "(1).__class__",
    "1 .real",
    "x.a",
    "lambda: 1",
    "[c for c in (1,)]",
    "print(1)",
    "open(0)",
    "getattr(1, 2)",
    "x = 1",
    "'a'",
    "\\x41",
    "f(1)()",
    "Symbol(x)",
    "ｅval(1)",
    "1;2",
]


@pytest.mark.parametrize("family", sorted(FORMULAS))
@pytest.mark.parametrize("code", CODE)
def test_what_is_more_than_a_formula_is_refused(family: str, code: str) -> None:
    if code == "f(1)()" and family not in ("countdown", "puzzle24"):
        return  # single letters are symbols there, which cannot be called
    with pytest.raises(BadAnswer, match="not a formula"):
        refuse_code(family, code)


@pytest.mark.parametrize(
    ("family", "formula"),
    [
        ("countdown", "(3 + 5) * 2 / 4 - 1.5"),
        ("puzzle24", "8/(3-8/3)"),
        ("simple_integration", "3*x**2/2 + sin(x) + C"),
        ("intermediate_integration", "x*exp(x) - exp(x) + log(x)**2 + C"),
        ("polynomial_multiplication", "6*x**2 + 5*x*y - 4"),
    ],
)
def test_formulas_pass(family: str, formula: str) -> None:
    refuse_code(family, formula)


@pytest.mark.parametrize("family", sorted(LITERALS | FORMULAS.keys()))
def test_a_scorer_does_not_run_the_answer(family: str) -> None:
    from reasoning_gym.factory import create_dataset

    entry = create_dataset(family, size=1, seed=1)[0]
    for code in CODE:
        try:
            score = gym_reward(f"<answer>{code}</answer>", references.dump(entry), {"family": family})
        except BadAnswer:
            continue
        assert score.value == 0.0
    assert "pwned" not in sys.modules
