"""Reward `length`: soft overlong. DAPO (Yu et al. 2025), eq. 13, moved from −1..0 to 0..1."""

import re
from collections.abc import Mapping
from typing import Any

from verifier.rewards.parameters import Parameters
from verifier.rewards.score import BadTask, Score

UNITS = ("characters", "words", "lines")
_WORD = re.compile(r"\S+")


def length_reward(text: str, reference: str, metadata: Mapping[str, Any]) -> Score:
    """1 up to `longest − buffer`, then falling linearly to 0 at `longest`, in 0..1.

    `metadata["length"]` holds `longest`, and may hold `buffer` (a quarter of it), `unit` (`characters`, `words` or
    `lines`; `characters`) and `shortest` (0), below which the score is 0. Reads no `reference`.

    A verifier sees no tokens: to shape by tokens use the learner's `loss.overlong_buffer`.
    """
    options = Parameters.of(metadata, "length", ("longest", "buffer", "unit", "shortest"))
    longest = options.whole("longest", least=1)
    buffer, shortest = options.whole("buffer", longest // 4), options.whole("shortest", 0)
    if buffer > longest or shortest > longest - buffer:
        raise BadTask(f"metadata.length: shortest={shortest}, buffer={buffer} do not fit into longest={longest}")
    unit = options.choice("unit", "characters", UNITS)
    length = _length(text, unit)
    reason = f"{length} {unit} of {longest}"
    if length < shortest:
        return Score(0.0, f"{reason}, at least {shortest}")
    if length <= longest - buffer:
        return Score(1.0, reason)
    return Score(max(0.0, (longest - length) / buffer) if buffer else 0.0, reason)


def _length(text: str, unit: str) -> int:
    if unit == "characters":
        return len(text)
    if unit == "lines":
        return len(text.splitlines())
    return sum(1 for _ in _WORD.finditer(text))
