"""Reflective words and the vote of a group, counted by hand."""

import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner.reflection import WORDS, reflective_words
from learner.votes import majority_right, stated_answer


def test_words_are_counted_whole_in_any_case_and_on_average() -> None:
    found = reflective_words(["Wait, wait. Let me check: waiter, checks, but not butter.", "However", ""])
    assert found == dict.fromkeys(WORDS, 0.0) | {
        "wait": pytest.approx(2 / 3),
        "check": pytest.approx(1 / 3),
        "but": pytest.approx(1 / 3),
        "however": pytest.approx(1 / 3),
    }


def test_no_text_has_no_words() -> None:
    assert reflective_words([]) == dict.fromkeys(WORDS, 0.0)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>1</think><answer> 4 2\n</answer>", "42"),
        ("<answer>1</answer> no: <answer>2</answer>", "2"),
        (r"it is \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"<answer>\boxed{7}</answer>", r"\boxed{7}"),
        ("42", None),
        ("<answer></answer>", None),
        (r"\boxed{4", None),
    ],
)
def test_the_stated_answer_is_the_last_one(text: str, answer: str | None) -> None:
    assert stated_answer(text) == answer


def says(answer: int) -> str:
    return f"<answer>{answer}</answer>"


@pytest.mark.parametrize(
    ("group", "chance"),
    [
        ([(says(1), True), (says(2), False), (says(3), False)], 1 / 3),
        ([(says(1), True), (says(1), True), (says(2), False)], 1.0),
        ([("one half", True), ("0.5", True), (says(2), False)], 1.0),
        ([(says(1), True), (says(2), False), (says(2), False)], 0.0),
        ([(says(1), True), (says(2), False), ("no answer", False), ("none either", False)], 0.5),
        ([("nothing", False)], 0.0),
        ([], 0.0),
    ],
)
def test_most_rollouts_decide_and_those_without_an_answer_do_not_vote(
    group: list[tuple[str, bool]], chance: float
) -> None:
    assert majority_right(group) == pytest.approx(chance)


@given(answers=st.lists(st.integers(0, 3), max_size=7))
def test_the_vote_is_that_of_an_election_counted_by_hand(answers: list[int]) -> None:
    """Answer 0 is the right one."""
    ballots = Counter(answers)
    winners = [answer for answer in ballots if all(ballots[answer] >= count for count in ballots.values())]
    truth = winners.count(0) / len(winners) if winners else 0.0
    assert majority_right([(says(answer), answer == 0) for answer in answers]) == pytest.approx(truth)


def test_the_order_of_a_group_does_not_matter() -> None:
    group = [(says(1), True), (says(2), False), (says(2), False), (says(1), True), ("", False)]
    assert {majority_right(each) for each in itertools.permutations(group)} == {0.5}
