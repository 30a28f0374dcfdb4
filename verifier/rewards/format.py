"""Reward `format`: the R1-Zero template (DeepSeek-R1, Guo et al. 2025, section 2.2.2)."""

from collections.abc import Mapping
from typing import Any

from verifier.rewards.answer import CLOSE, OPEN, THINK, THOUGHT
from verifier.rewards.score import BadAnswer, Score


def format_reward(text: str, reference: str, metadata: Mapping[str, Any]) -> Score:
    """1 for exactly `<think>…</think><answer>…</answer>`, else `BadAnswer`.

    Each tag once, in this order, something in each pair, and nothing but white space around and between the pairs.
    Reads neither `reference` nor `metadata`.
    """
    places = []
    for tag in (THINK, THOUGHT, OPEN, CLOSE):
        if (found := text.count(tag)) != 1:
            raise BadAnswer(f"{tag} occurs {found} times")
        places.append(text.index(tag))
    if places != sorted(places):
        raise BadAnswer("the tags are in the wrong order")
    before, thinking, between, answer, after = (
        text[: places[0]],
        text[places[0] + len(THINK) : places[1]],
        text[places[1] + len(THOUGHT) : places[2]],
        text[places[2] + len(OPEN) : places[3]],
        text[places[3] + len(CLOSE) :],
    )
    if before.strip() or between.strip() or after.strip():
        raise BadAnswer("there is text outside the tags")
    if not thinking.strip() or not answer.strip():
        raise BadAnswer("a pair of tags is empty")
    return Score(1.0, "as asked")
