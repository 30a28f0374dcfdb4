"""Shaped rewards: what the learner adds to the verdicts, which themselves are never overwritten. Legend: S rollouts."""

import numpy as np

from learner.loss.advantages import Floats, Ints
from learner.loss.filters import Mask


def soft_overlong(lengths: Ints, *, longest: int, buffer: int) -> Floats:
    """0 up to longest − buffer tokens, then falling linearly to −1 at `longest`, [S]. DAPO (Yu et al. 2025), eq. 13.

    Fails where good answers need the room: the penalty cannot tell thought from padding.
    """
    return np.clip((longest - buffer - lengths) / buffer, -1.0, 0.0)


def truncated_penalty(truncated: Mask, penalty: float) -> Floats:
    """−penalty for each truncated completion, else 0, [S]."""
    return np.where(truncated, -penalty, 0.0)


def reference_kl(log_ratio_sums: Floats, coefficient: float) -> Floats:
    """−β Σ_t log π/π_ref, [S] from the sums [S]: k1 in the reward has the right gradient (Tang & Munos 2025).

    Fails by variance: a long completion's sum is noise around a small mean.
    """
    return -coefficient * log_ratio_sums
