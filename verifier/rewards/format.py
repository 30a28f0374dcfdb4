"""Reward `format`: whether the completion has the form that was asked for (DeepSeek-R1, Guo et al. 2025, 2.2.2)."""

import re
from collections.abc import Mapping
from typing import Any

from verifier.rewards.answer import BOX, CLOSE, OPEN, THINK, THOUGHT, boxed
from verifier.rewards.parameters import Parameters
from verifier.rewards.score import BadAnswer, Score

STYLES = ("strict", "lenient", "boxed")
_CONTROL = re.compile(r"<\|[^|<>\s]{1,40}\|>|\[/?INST\]|<</?SYS>>|</?s>|<(?:start|end)_of_turn>")


def format_reward(text: str, reference: str, metadata: Mapping[str, Any]) -> Score:
    """1 for the form, else `BadAnswer`: `<think>…</think><answer>…</answer>`, each tag once, in order, not empty.

    `metadata["format"]` may hold
    - `style`: `strict` (the default: nothing but white space around and between the pairs, and no control token of a
      chat template anywhere), `lenient` (text may stand there), or `boxed` (instead of the answer tags one
      `\\boxed{}`, closed and not empty, in what follows the thinking);
    - `opened`: True when the prompt ends with `<think>`, so that the completion must not open the thinking again.

    Reads no `reference`.
    """
    options = Parameters.of(metadata, "format", ("style", "opened"))
    style = options.choice("style", "strict", STYLES)
    if options.truth("opened", False):
        if THINK in text:
            raise BadAnswer(f"{THINK} again, which the prompt has opened")
        text = THINK + text
    if style == "boxed":
        return _boxed(text)
    before, thinking, between, answer, after = _split(text, (THINK, THOUGHT, OPEN, CLOSE))
    if not thinking.strip() or not answer.strip():
        raise BadAnswer("a pair of tags is empty")
    if style == "strict":
        if before.strip() or between.strip() or after.strip():
            raise BadAnswer("there is text outside the tags")
        if control := _CONTROL.search(text):
            raise BadAnswer(f"a control token of a chat template: {control[0]}")
    return Score(1.0, "as asked")


def _boxed(text: str) -> Score:
    _, thinking, rest = _split(text, (THINK, THOUGHT))
    if not thinking.strip():
        raise BadAnswer("the thinking is empty")
    if OPEN in rest or CLOSE in rest:
        raise BadAnswer("answer tags, where a box is asked for")
    found = boxed(rest)
    if len(found) != 1:
        raise BadAnswer(f"{BOX}}} occurs {len(found)} times")
    if not found[0]:
        raise BadAnswer("the box is empty")
    return Score(1.0, "as asked")


def _split(text: str, tags: tuple[str, ...]) -> list[str]:
    """What stands before, between and after the tags. Raises `BadAnswer` unless each occurs once, in this order."""
    for tag in tags:
        if (found := text.count(tag)) != 1:
            raise BadAnswer(f"{tag} occurs {found} times")
    pieces, rest = [], text
    for tag in tags:
        piece, found_tag, rest = rest.partition(tag)
        if not found_tag:
            raise BadAnswer("the tags are in the wrong order")
        pieces.append(piece)
    return [*pieces, rest]
