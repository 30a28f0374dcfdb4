"""No trick gets the reward of a task that is not solved; after each the next honest solution gets it."""

from typing import Any

import pytest
from boxes import Box
from forgeries import CALLS, FUNCTIONS, PROGRAMS, RIGHT, RIGHT_PROGRAM, STDIO, TESTS

from protocol import reference as references
from verifier.rewards.code import code_reward
from verifier.sandbox.access import access


@pytest.fixture(autouse=True)
def granted(sandboxed: Box) -> None:
    access.grant(sandboxed.link)
    access.allow(60.0)


def score(source: str, task: dict[str, Any], **metadata: Any) -> float:
    text = f"<think>easy</think>\n```python\n{source}\n```\n"
    return code_reward(text, references.dump(task), {"seconds": 0.1, "cases": "fraction", **metadata}).value


@pytest.mark.parametrize("name", FUNCTIONS)
def test_tests_are_not_forged(name: str) -> None:
    assert score(FUNCTIONS[name], TESTS) == 0.0
    assert score(RIGHT, TESTS) == 1.0


@pytest.mark.parametrize("name", FUNCTIONS)
def test_calls_are_not_forged(name: str) -> None:
    """Only what was asked is answered; the second case at the latest is not to be guessed."""
    assert score(FUNCTIONS[name], CALLS, cases="all") == 0.0
    assert score(RIGHT, CALLS) == 1.0


@pytest.mark.parametrize("name", PROGRAMS)
def test_output_is_not_forged(name: str) -> None:
    assert score(PROGRAMS[name], STDIO) == 0.0
    assert score(RIGHT_PROGRAM, STDIO) == 1.0
