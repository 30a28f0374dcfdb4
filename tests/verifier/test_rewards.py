"""Rewards as pure functions: tables of texts and what they are worth."""

from typing import Any

import pytest

from verifier.rewards.accuracy import accuracy_reward
from verifier.rewards.answer import committed_answer
from verifier.rewards.score import BadAnswer, BadTask, blamed_on_answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>x</think><answer>92</answer>", "92"),
        ("<answer> 92\n</answer>", "92"),
        ("so <answer>92</answer> it is 93", "92"),
        ("<think>is it <answer>91</answer>?</think><answer>92</answer>", "92"),
        ("<think>a</think>b</think><answer>92</answer>", "92"),
        ("the sum is \\boxed{92}.", "92"),
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("<think>\\boxed{91}</think> \\boxed{92}", "92"),
        ("\\boxed{91} but <answer>92</answer>", "92"),
        ("<answer>\\boxed{92}</answer>", "\\boxed{92}"),
    ],
)
def test_an_answer_is_what_the_completion_commits_to(text: str, answer: str) -> None:
    assert committed_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no answer"),
        ("92", "no answer"),
        ("the answer is 92", "no answer"),
        ("<think>92</think>", "no answer"),
        ("<think><answer>92</answer></think>", "no answer"),
        ("<think>so <answer>92</answer>", "thinking is not closed"),
        ("<answer>91</answer><answer>92</answer>", "one pair"),
        ("<answer>92", "one pair"),
        ("92</answer>", "one pair"),
        ("<answer><answer>92</answer></answer>", "one pair"),
        ("<answer>91<answer>92</answer>", "one pair"),
        ("</answer>92<answer>", "wrong way round"),
        ("<answer></answer>", "empty"),
        ("<answer> \n </answer>", "empty"),
        ("<ANSWER>92</ANSWER>", "no answer"),
        ("\\boxed{91} or \\boxed{92}", "more than one"),
        ("\\boxed{\\frac{1}{2}", "not closed"),
        ("\\boxed{}", "empty"),
    ],
)
def test_a_completion_that_does_not_commit_has_no_answer(text: str, why: str) -> None:
    with pytest.raises(BadAnswer, match=why):
        committed_answer(text)


def accuracy(answer: str, reference: str, **metadata: Any) -> float:
    return accuracy_reward(f"<answer>{answer}</answer>", reference, metadata).value


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("92", "92", True),
        ("092", "92", True),
        ("92.0", "92", True),
        ("+92", "92", True),
        ("-92", "92", False),
        ("93", "92", False),
        ("1,000", "1000", True),
        ("1000", "1,000", True),
        ("1e3", "1000", True),
        (".5", "0.5", True),
        ("5.", "5", True),
        ("9007199254740993", "9007199254740992", False),
        ("1" + "0" * 400, "1" + "0" * 399 + "1", False),
    ],
)
def test_numeric_accuracy_compares_numbers_exactly(answer: str, reference: str, right: bool) -> None:
    assert accuracy(answer, reference, accuracy="numeric") == right


@pytest.mark.parametrize(
    "answer",
    ["9 2", "92 or 93", "ninety", "92 apples", "0x5c", "९२", "nan", "inf", "1,00", "1e99999", "e3", ".", "90+2", "9_2"],
)
def test_what_is_not_one_number_is_no_numeric_answer(answer: str) -> None:
    with pytest.raises(BadAnswer, match="not a number"):
        accuracy(answer, "92", accuracy="numeric")


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("Paris", "Paris", True),
        (" Paris ", "Paris\n", True),
        ("paris", "Paris", False),
        ("Paris, Rome", "Paris", False),
    ],
)
def test_exact_accuracy_compares_texts(answer: str, reference: str, right: bool) -> None:
    assert accuracy(answer, reference, accuracy="exact") == right


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("5", "5"),
        ("0.5", "\\frac{1}{2}"),
        ("\\frac12", "1/2"),
        ("x^2+2x+1", "(x+1)^2"),
        ("1+x", "x+1"),
        ("x=5", "5"),
        ("5,6", "\\{5,6\\}"),
        ("1,000", "1000"),
        ("$5$", "5"),
        ("\\boxed{5}", "5"),
        ("10/2", "5"),
        ("50\\%", "50\\%"),
        ("50", "50\\%"),
        ("(1,2)", "(1,2)"),
        ("5 \\text{ units}", "5"),
    ],
)
def test_math_accuracy_takes_what_is_mathematically_equal(answer: str, reference: str) -> None:
    assert accuracy(answer, reference) == 1.0


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("6", "5"),
        ("5 or 6", "5"),
        ("6 or 5", "5"),
        ("5, 6", "5"),
        ("6, 5", "5"),
        ("5 6", "5"),
        ("5$ and $6", "5"),
        ("{5,6}", "5"),
        ("4 < 5", "5"),
        ("5x", "5"),
        ("(2,1)", "(1,2)"),
        ("5.1", "5"),
        ("the answer is 5", "5"),
        ("x", "5"),
    ],
)
def test_math_accuracy_refuses_the_wrong_and_the_undecided(answer: str, reference: str) -> None:
    assert accuracy(answer, reference) == 0.0


@pytest.mark.parametrize(
    "answer", ["} 5 {", "5} \\boxed{6", "6} \\boxed{5", "(" * 40 + "1", "\\frac{", "\\begin{matrix}"]
)
def test_what_is_no_mathematics_is_no_answer(answer: str) -> None:
    with pytest.raises(BadAnswer):
        accuracy(answer, "5")


def test_long_answers_are_not_read_unless_they_are_the_reference() -> None:
    with pytest.raises(BadAnswer, match="1001 characters"):
        accuracy("1" * 1001, "5")
    assert accuracy("1" * 5000, "1" * 5000, accuracy="numeric") == 1.0


def test_what_a_checker_raises_on_the_answer_is_the_answers_fault() -> None:
    for error in (RecursionError("deep"), SystemExit(0), AttributeError("None")):
        with pytest.raises(BadAnswer, match=type(error).__name__), blamed_on_answer():
            raise error
    with pytest.raises(MemoryError), blamed_on_answer():
        raise MemoryError


@pytest.mark.parametrize(
    ("reference", "metadata", "culprit"),
    [
        ("", {}, "the reference is empty"),
        ("many", {"accuracy": "numeric"}, "'many' is not a number"),
        ("} {", {}, "'} {' is not mathematics"),
        ("5", {"accuracy": "fuzzy"}, "metadata.accuracy='fuzzy'"),
        ("5", {"accuracy": ["math"]}, "metadata.accuracy"),
    ],
)
def test_a_bad_task_is_not_the_completions_fault(reference: str, metadata: dict[str, Any], culprit: str) -> None:
    with pytest.raises(BadTask, match=culprit):
        accuracy_reward("<answer>6</answer>", reference, metadata)
