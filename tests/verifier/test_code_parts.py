"""The parts of reward `code` that are pure: which code a text commits to, what is equal, what a reference may say."""

from typing import Any

import pytest

from protocol import reference as references
from verifier.rewards.code_cases import Calls, Stdio, UnitTests, read
from verifier.rewards.committed_code import MOST_CHARACTERS, committed_code
from verifier.rewards.equality import same_text, same_value
from verifier.rewards.score import BadAnswer, BadTask


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("```python\nx = 1\n```", "x = 1\n"),
        ("```\nx = 1\n```\n", "x = 1\n"),
        ("so:\n```py\nx = 1\n```\nand then\n```python\nx = 2\n```\nis it.", "x = 2\n"),
        ("<think>```python\nx = 0\n```</think>```python\nx = 1\n```", "x = 1\n"),
        ("<think>a</think><answer>x = 1</answer>", "x = 1"),
        ("<answer>\n```python\nx = 1\n```\n</answer>", "x = 1\n"),
        ("```python\nx = 0\n```<answer>x = 1</answer>", "x = 1"),
        ("```python\ns = '```'\n```", "s = '```'\n"),
        ("  ```python\n  x = 1\n  ```", "  x = 1\n"),
    ],
)
def test_a_completion_commits_to_code(text: str, code: str) -> None:
    assert committed_code(text) == code


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no code"),
        ("x = 1", "no code"),
        ("```python\nx = 1", "no code"),
        ("<think>```python\nx = 1\n```", "thinking is not closed"),
        ("<think>```python\nx = 1\n```</think>", "no code"),
        ("<answer>x = 1</answer><answer>x = 2</answer>", "one pair"),
        ("```python\n\n```", "empty"),
        ("```python\n" + "x" * MOST_CHARACTERS + "\n```", "characters"),
    ],
)
def test_a_completion_without_code_has_none(text: str, why: str) -> None:
    with pytest.raises(BadAnswer, match=why):
        committed_code(text)


def test_a_bare_completion_is_all_code() -> None:
    assert committed_code("    return 1\n", bare=True) == "    return 1\n"


@pytest.mark.parametrize(
    ("given", "expected", "tolerance", "same"),
    [
        ("3\n", "3", 0, True),
        ("3  \n\n\n", "3\n", 0, True),
        (" 3", "3", 0, False),
        ("1 2\n3", "1 2\n3\n", 0, True),
        ("1\n\n2", "1\n2", 0, False),
        ("3.0", "3", 0, False),
        ("3.0", "3", 1e-6, True),
        ("0.3333333", "0.33333333", 1e-6, True),
        ("0.333", "0.33333333", 1e-6, False),
        ("a 1.0", "a 1", 1e-6, True),
        ("b 1.0", "a 1", 1e-6, False),
        ("nan", "nan", 1e-6, True),
        ("nan", "1", 1e-6, False),
        ("inf", "1e999", 1e-6, False),
        ("1 2", "1", 1e-6, False),
        ("", "3", 0, False),
        ("9" * 5000, "9" * 4999 + "8", 1e-6, False),
    ],
)
def test_printed_output_is_compared_line_by_line(given: str, expected: str, tolerance: float, same: bool) -> None:
    assert same_text(given, expected, tolerance) is same


NAN = float("nan")


@pytest.mark.parametrize(
    ("given", "expected", "same"),
    [
        (3, 3, True),
        (3, 4, False),
        (True, 1, False),
        (1, True, False),
        (True, True, True),
        ("3", 3, False),
        (3.0, 3, True),
        (3, 3.0, True),
        (0.1 + 0.2, 0.3, True),
        (0.31, 0.3, False),
        (NAN, NAN, True),
        (NAN, 1.0, False),
        (1.0, NAN, False),
        (float("inf"), float("inf"), True),
        (10**400, 1.0, False),
        ([1, 2], (1, 2), True),
        ((1, (2, 3)), [1, [2, 3]], True),
        ([1, 2], [2, 1], False),
        ([1], [1, 2], False),
        ({"a": [1.0]}, {"a": (1,)}, True),
        ({"a": 1}, {"a": 1, "b": 2}, False),
        ({1, 2}, {2, 1}, True),
        ({1, 2}, [1, 2], False),
        (None, None, True),
        (None, 0, False),
        (0, None, False),
        ("a", "a", True),
        (b"a", "a", False),
        ("nan", NAN, False),
        ([3], 3, False),
    ],
)
def test_values_are_compared_as_data(given: Any, expected: Any, same: bool) -> None:
    assert same_value(given, expected) is same


def test_a_reference_is_read_whatever_its_kind() -> None:
    stdio = read(references.dump({"kind": "stdio", "cases": [{"stdin": "", "stdout": "1"}]}))
    assert isinstance(stdio, Stdio)
    calls = read(
        references.dump({"kind": "calls", "entry": "S().f", "cases": [{"arguments": [(1, 2)], "returns": {1: 2}}]})
    )
    assert isinstance(calls, Calls)
    assert (calls.cases[0].arguments, calls.cases[0].returns) == ([(1, 2)], {1: 2})
    tests = read(references.dump({"kind": "tests", "entry": "f", "tests": ["assert f() == 1"]}))
    assert isinstance(tests, UnitTests)


@pytest.mark.parametrize(
    ("reference", "why"),
    [
        ({"kind": "tests", "entry": "f", "tests": []}, "at least one case"),
        ({"kind": "tests", "entry": "f", "tests": [1]}, "at least one case"),
        ({"kind": "tests", "entry": "f(", "tests": ["x"]}, "must be a name"),
        ({"kind": "tests", "entry": 5, "tests": ["x"]}, "entry=5"),
        ({"kind": "calls", "entry": "f", "cases": [{"arguments": "x", "returns": 1}]}, "arguments='x'"),
        ({"kind": "calls", "entry": "f", "cases": [{"returns": 1}]}, "arguments"),
        ({"kind": "magic", "cases": [1]}, "kind stdio, calls or tests"),
        ([], "kind stdio, calls or tests"),
    ],
)
def test_a_bad_reference_names_its_culprit(reference: Any, why: str) -> None:
    with pytest.raises(BadTask, match=why):
        read(references.dump(reference))
