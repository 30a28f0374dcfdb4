"""Group-relative advantages: how much better a rollout did than the others of its group. Pure functions of rewards."""

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

Rewards: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]

EPSILON = 1e-6  # added to the standard deviation


def grpo(rewards: Rewards) -> Rewards:
    """(R − mean) / (std + 1e-6) with ddof 1, of the rewards [G] of one group. DeepSeekMath (Shao et al. 2024), §4.1.

    Fails softly: dividing by the deviation favours groups that are nearly all right or nearly all wrong.
    """
    advantages: Rewards = (rewards - rewards.mean()) / (rewards.std(ddof=1) + EPSILON)
    return advantages


def dr_grpo(rewards: Rewards) -> Rewards:
    """R − mean, rewards [G]: no bias towards easy or hard prompts. Dr. GRPO (Liu et al. 2025)."""
    advantages: Rewards = rewards - rewards.mean()
    return advantages


def rloo(rewards: Rewards) -> Rewards:
    """G/(G − 1) · (R − mean): each reward minus the mean of the others, rewards [G]. RLOO (Ahmadian et al. 2024)."""
    advantages: Rewards = len(rewards) / (len(rewards) - 1) * (rewards - rewards.mean())
    return advantages


ADVANTAGES: dict[str, Callable[[Rewards], Rewards]] = {"grpo": grpo, "dr_grpo": dr_grpo, "rloo": rloo}


def group_advantages(name: str, rewards: Rewards) -> Rewards:
    """The advantage [G] of each rollout of one group by the estimator `name`; a group needs two rollouts at least."""
    if len(rewards) < 2:
        raise ValueError(f"a group of {len(rewards)} rollouts has no relative advantage")
    return ADVANTAGES[name](rewards)
