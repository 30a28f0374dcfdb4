"""Rewards `exact_match` and `token_f1` against SQuAD's own evaluation, written out again here."""

import re
import string
from collections import Counter
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from verifier.rewards.score import BadAnswer, BadTask
from verifier.rewards.search import exact_match_reward, f1, normalised, token_f1_reward


def squad_normalise(text: str) -> str:
    """`normalize_answer` of SQuAD's evaluate-v1.1.py."""
    lowered = "".join(character for character in text.lower() if character not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", lowered).split())


def squad_f1(prediction: str, truth: str) -> float:
    """`f1_score` of SQuAD's evaluate-v1.1.py."""
    found, expected = squad_normalise(prediction).split(), squad_normalise(truth).split()
    same = sum((Counter(found) & Counter(expected)).values())
    if same == 0:
        return 0
    precision, recall = same / len(found), same / len(expected)
    return 2 * precision * recall / (precision + recall)


def scores(answer: str, reference: str, *others: str) -> tuple[float, float]:
    metadata = {"search": {"answers": list(others)}} if others else {}
    text = f"<answer>{answer}</answer>"
    return exact_match_reward(text, reference, metadata).value, token_f1_reward(text, reference, metadata).value


@pytest.mark.parametrize(
    ("answer", "reference", "exact", "f1"),
    [
        ("Paris", "Paris", 1, 1),
        ("the Paris.", "paris", 1, 1),
        ("  PARIS! ", "Paris", 1, 1),
        ("An apple", "apple", 1, 1),
        ("U.S.A.", "USA", 1, 1),
        ("Rome", "Paris", 0, 0),
        ("Paris, France", "Paris", 0, 2 / 3),
        ("in the city of Paris", "Paris", 0, 2 / 5),
        ("Barack Obama", "Barack Hussein Obama", 0, 4 / 5),
        ("Paris or Rome or Berlin or Madrid", "Paris", 0, 2 / 8),
        ("Paris Paris Paris", "Paris", 0, 1 / 2),
        ("yes", "Yes", 1, 1),
        ("yes, they are", "yes", 0, 0),
        ("yes no", "no", 0, 0),
        ("The The", "The The", 1, 1),
        ("1,000", "1000", 1, 1),
    ],
)
def test_answers_are_compared_as_squad_does(answer: str, reference: str, exact: float, f1: float) -> None:
    assert scores(answer, reference) == (exact, pytest.approx(f1))


def test_each_name_of_the_answer_is_as_right() -> None:
    assert scores("NYC", "New York City", "NYC", "New York") == (1, 1)
    assert scores("York", "New York City", "NYC", "New York") == (0, pytest.approx(2 / 3))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Paris",
        "it is Paris",
        "<think><answer>Paris</answer></think>",
        "<answer>Paris",
        "<think>Paris</think> Paris",
    ],
)
def test_who_names_the_answer_without_committing_gets_nothing(text: str) -> None:
    for reward in (exact_match_reward, token_f1_reward):
        with pytest.raises(BadAnswer):
            reward(text, "Paris", {})


@pytest.mark.parametrize(
    ("reference", "metadata", "culprit"),
    [
        ("", {}, "no words: ''"),
        ("Paris", {"search": {"answers": ["Paris", ""]}}, "answers"),
        ("Paris", {"search": {"answers": "Paris"}}, "must be a list of texts"),
        ("Paris", {"search": ["Paris"]}, "metadata.search must be an object"),
    ],
)
def test_a_bad_task_is_void(reference: str, metadata: dict[str, Any], culprit: str) -> None:
    with pytest.raises(BadTask, match=culprit):
        exact_match_reward("<answer>x</answer>", reference, metadata)


phrases = st.text(alphabet="abthen. ,'!-", max_size=25)


@given(phrases, phrases)
def test_both_are_squads_where_words_are_left(prediction: str, truth: str) -> None:
    assume(squad_normalise(prediction) and squad_normalise(truth))
    assert " ".join(normalised(prediction)) == squad_normalise(prediction)
    assert f1(normalised(truth), normalised(prediction)) == pytest.approx(squad_f1(prediction, truth))


@given(phrases, phrases)
def test_f1_is_symmetric_and_1_for_the_same_words_only(one: str, other: str) -> None:
    left, right = normalised(one), normalised(other)
    assert f1(left, right) == f1(right, left)
    assert (f1(left, right) == 1.0) == (Counter(left) == Counter(right) and bool(left))
