"""Calling hostile functions by value, as a library: what comes back, and every way in which nothing does."""

from collections.abc import Iterator

import pytest

from verifier.sandbox.calls import Functions, NoAnswer, Raised, Suite, try_out
from verifier.sandbox.link import Link
from verifier.sandbox.program import Limits
from verifier.sandbox.sandbox import Sandbox
from verifier.sandbox.values import Unsendable

SOURCE = """
class Solution:
    def __init__(self): self.calls = 0
    def twice(self, x):
        self.calls += 1
        return [x, x, self.calls]
total = 0
def add(x, y=1):
    global total
    total += x
    print("noise", total)
    return {"sum": x + y, "total": total}
def fails(): raise KeyError("missing")
def loops():
    while True: pass
def ends():
    import os
    os._exit(0)
def thing(): return add
def large(): return "x" * (9 * 2**20)
"""


@pytest.fixture(scope="module")
def link() -> Iterator[Link]:
    with Sandbox() as sandbox:
        yield sandbox.link()


@pytest.fixture
def functions(link: Link) -> Iterator[Functions]:
    with Functions(link, SOURCE, Limits()) as functions:
        yield functions


def test_a_function_is_called_again_and_again_in_one_process(functions: Functions) -> None:
    assert functions.call("add", [1], {"y": 2}, 5.0) == {"sum": 3, "total": 1}
    assert functions.call("add", [5], {}, 5.0) == {"sum": 6, "total": 6}
    assert not functions.lost


def test_a_method_is_called_on_an_object_of_its_own(functions: Functions) -> None:
    for _ in range(2):
        assert functions.call("Solution().twice", [(1, 2)], {}, 5.0) == [(1, 2), (1, 2), 1]


@pytest.mark.parametrize(
    ("name", "why", "lost"),
    [
        ("fails", "raised KeyError: 'missing'", False),
        ("nothing", "raised NameError: name 'nothing' is not defined", False),
        ("thing", "raised Unsendable: a function cannot be handed over", False),
        ("loops", "timeout after 0.3 s", True),
        ("ends", r"the process ended \(exit\)", True),
        ("large", "more than", True),
    ],
)
def test_no_answer_says_why_and_whether_the_process_is_lost(
    functions: Functions, name: str, why: str, lost: bool
) -> None:
    with pytest.raises(NoAnswer, match=why):
        functions.call(name, [], {}, 0.3 if name == "loops" else 10.0)
    assert functions.lost is lost


def test_a_raised_exception_names_its_type(functions: Functions) -> None:
    with pytest.raises(Raised) as caught:
        functions.call("fails", [], {}, 5.0)
    assert caught.value.kind == "KeyError"


def test_an_argument_that_is_no_value_is_refused_here(functions: Functions) -> None:
    with pytest.raises(Unsendable):
        functions.call("add", [object()], {}, 5.0)


def test_source_that_does_not_load_ends_with_its_last_words(link: Link) -> None:
    with Functions(link, "def f(:", Limits()) as functions, pytest.raises(NoAnswer, match="SyntaxError"):
        functions.call("f", [], {}, 5.0)


@pytest.mark.parametrize(
    ("solution", "tests", "failures"),
    [
        ("def f(x): return x + 1", ["assert f(1) == 2", "assert candidate(2) == 3"], ["", ""]),
        ("def f(x): return x + 1", ["assert f(1) == 3", "assert f(2) == 3"], ["AssertionError: ", ""]),
        ("def f(x): raise ValueError('no')", ["try:\n    f(1)\n    assert False\nexcept ValueError: pass"], [""]),
        ("import os\ndef f(x): os._exit(0)", ["try: f(1)\nexcept Exception: pass"], ["CandidateGone"]),
        ("def f(x): return x", ["try: f(1)\nexcept: pass\n1/0"], ["ZeroDivisionError"]),
        ("import os\ndef f(x): os._exit(0)", ["try: f(1)\nexcept BaseException: pass"], ["the code under test said"]),
        ("def f(x): return helper(x)", ["assert helper(1) == 10 and f(1) == 10"], [""]),
        ("def f(x): return x", ["def check(candidate):\n    assert candidate([1, (2, 3)]) == [1, (2, 3)]"], [""]),
        ("def f(x): return x", ["this is no Python"], ["SyntaxError"]),
        ("def f(x): return x", ["import sys; sys.exit(0)"], ["SystemExit"]),
    ],
)
def test_tests_pass_or_say_why_not(link: Link, solution: str, tests: list[str], failures: list[str]) -> None:
    prompt = "def helper(x): return 10 * x\n\ndef f(x):\n    '''As asked.'''\n"
    trial = try_out(link, prompt + solution, Suite(prompt=prompt, entry="f", tests=tests), Limits())
    assert len(trial.failures) == len(failures)
    assert all(
        why.startswith(wanted) and bool(why) == bool(wanted)
        for why, wanted in zip(trial.failures, failures, strict=True)
    )


def test_tests_that_never_end_are_ended(link: Link) -> None:
    tests = Suite(prompt="", entry="f", tests=["assert f() == 1", "while True: pass"])
    trial = try_out(link, "def f(): return 1", tests, Limits(cpu_seconds=0.2))
    assert trial.failures == ["the tests ended by cpu"] * 2
