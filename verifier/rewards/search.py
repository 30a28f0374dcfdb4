"""Rewards `exact_match` and `token_f1`: short answers, as the question-answering field compares them.

Normalised and counted as SQuAD's evaluation does (Rajpurkar et al. 2016), with HotpotQA's rule for yes and no (Yang et
al. 2018); the same exact match is the reward of Search-R1 (Jin et al. 2025).
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from verifier.rewards.answer import committed_answer
from verifier.rewards.parameters import Parameters
from verifier.rewards.score import BadTask, Score

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_CLOSED = {"yes", "no", "noanswer"}  # answers that part of a sentence is not half right for


def exact_match_reward(text: str, reference: str, metadata: Mapping[str, Any]) -> Score:
    """1 if the answer is the reference or one of its other names, normalised, else 0.

    `metadata["search"]` may hold `answers`, further texts that are as right as `reference`.
    """
    return _best(text, reference, metadata, lambda expected, found: float(expected == found))


def token_f1_reward(text: str, reference: str, metadata: Mapping[str, Any]) -> Score:
    """The harmonic mean of precision and recall of the answer's words, normalised, in 0..1; the best over all answers.

    Longer answers lose precision, so naming everything does not pay. `metadata` as for `exact_match`.
    """
    return _best(text, reference, metadata, f1)


def _best(
    text: str, reference: str, metadata: Mapping[str, Any], compared: Callable[[list[str], list[str]], float]
) -> Score:
    answers = [reference, *Parameters.of(metadata, "search", ("answers",)).texts("answers")]
    expected = [normalised(answer) for answer in answers]
    if not all(expected):
        raise BadTask(f"an answer of the task has no words: {answers[expected.index([])]!r}")
    answer = committed_answer(text)
    found = normalised(answer)
    score, best = max((compared(one, found), -place) for place, one in enumerate(expected))
    if score == 1.0:
        return Score(1.0, f"equal to {answers[-best][:80]!r}")
    return Score(score, f"{score:.2f}: {answer[:80]!r}")


def normalised(answer: str) -> list[str]:
    """The words of `answer` in lower case, without punctuation and articles; with them where nothing else is left."""
    lowered = answer.lower().translate(_PUNCTUATION)
    return _ARTICLES.sub(" ", lowered).split() or lowered.split() or answer.split()


def f1(expected: list[str], found: list[str]) -> float:
    """2PR / (P + R) over the multisets of words; 0 where one is a yes or a no and the other is not the same."""
    if expected != found and (" ".join(expected) in _CLOSED or " ".join(found) in _CLOSED):
        return 0.0
    common = (Counter(expected) & Counter(found)).total()
    return 2 * common / (len(expected) + len(found)) if common else 0.0
