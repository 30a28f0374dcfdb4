"""Reward `repetition`: the share of n-grams that are new (Yeo et al. 2025, "Demystifying Long CoT", appendix)."""

import re
from collections.abc import Mapping
from typing import Any

from verifier.rewards.parameters import Parameters
from verifier.rewards.score import BadTask, Score

# a word, or one character of a script that puts no spaces between words, or one sign
PIECE = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\u0e00-\u0e7f]|[^\W\d_]+|[0-9]+|[^\w\s]|_")

_PRIME = 2**61 - 1
_BASE = 0x5DEECE66D2B79F


def repetition_reward(text: str, reference: str, metadata: Mapping[str, Any]) -> Score:
    """1 when no n-gram of words comes twice, 0 when hardly one is new, in 0..1; 1 for a text shorter than n.

    `metadata["repetition"]` may hold `n` (20: a passage said again; 3 or 4 also finds phrases) and `allowed` (0), the
    share of repeated n-grams that costs nothing; beyond it the score falls linearly to 0 at `most` (1). Reads no
    `reference`. Numbers and signs count as words, so a sum worked out digit by digit may need a larger n.
    """
    options = Parameters.of(metadata, "repetition", ("n", "allowed", "most"))
    n = options.whole("n", 20, least=1, most=1000)
    allowed, most = options.number("allowed", 0.0, most=1.0), options.number("most", 1.0, most=1.0)
    if allowed >= most:
        raise BadTask(f"metadata.repetition: allowed={allowed:g} must be below most={most:g}")
    share = repeated_share(PIECE.findall(text.casefold()), n)
    score = 1.0 - min(1.0, max(0.0, share - allowed) / (most - allowed))
    return Score(score, f"{share:.0%} of the {n}-grams are repeated")


def repeated_share(pieces: list[str], n: int) -> float:
    """The share of the n-grams of `pieces` that came before, in 0..1, in time and memory that n does not change.

    n-grams are told apart by a rolling hash (Karp & Rabin 1987); a collision could only count one as repeated.
    """
    numbers: dict[str, int] = {}
    codes = [numbers.setdefault(piece, len(numbers)) + 1 for piece in pieces]
    total = len(codes) - n + 1
    if total <= 0:
        return 0.0
    leaving = pow(_BASE, n, _PRIME)
    rolling, seen = 0, set()
    for place, code in enumerate(codes):
        rolling = (rolling * _BASE + code) % _PRIME
        if place >= n:
            rolling = (rolling - codes[place - n] * leaving) % _PRIME
        if place >= n - 1:
            seen.add(rolling)
    return 1.0 - len(seen) / total
