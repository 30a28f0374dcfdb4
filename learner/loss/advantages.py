"""Group-relative advantages: how much better a rollout did than others. Pure functions of a whole batch.

Legend: S rollouts in groups; R rewards [S] float64, `groups` [S] the group of each, `lengths` [S] its completion
tokens. Every group has two rollouts at least: one alone has nothing to be compared with (`filters.singletons`).
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

Floats: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]
Ints: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]

EPSILON = 1e-6  # added to every standard deviation


def grpo(rewards: Floats, groups: Ints, lengths: Ints) -> Floats:
    """(R − mean_g) / (std_g + 1e-6), ddof 1. DeepSeekMath (Shao et al. 2024), §4.1; R1.

    Fails softly: dividing by the deviation favours groups that are nearly all right or nearly all wrong.
    """
    centred, place = _centred(rewards, groups)
    variance = np.bincount(place, weights=centred**2) / (np.bincount(place) - 1)
    return _array(centred / (np.sqrt(variance)[place] + EPSILON))


def dr_grpo(rewards: Floats, groups: Ints, lengths: Ints) -> Floats:
    """R − mean_g: no favour for easy or hard prompts. Dr. GRPO (Liu et al. 2025), §3.

    Fails with rewards of very different scales among tasks: the largest scale rules.
    """
    return _centred(rewards, groups)[0]


def rloo(rewards: Floats, groups: Ints, lengths: Ints) -> Floats:
    """G/(G − 1) · (R − mean_g): each reward minus the mean of the others. RLOO (Ahmadian et al. 2024), eq. 8.

    Unbiased; fails as `dr_grpo` does.
    """
    centred, place = _centred(rewards, groups)
    size = np.bincount(place)[place]
    return _array(size / (size - 1) * centred)


def batch_std(rewards: Floats, groups: Ints, lengths: Ints) -> Floats:
    """(R − mean_g) / std of the batch's centred rewards. ScaleRL (Khatri et al. 2025); Lite PPO (Liu et al. 2025).

    The filters went before: only rollouts that survived them count. Fails in small batches, whose deviation is noise.
    """
    centred, _ = _centred(rewards, groups)
    return _array(centred / (centred.std() + EPSILON))


def reinforce_pp(rewards: Floats, groups: Ints, lengths: Ints) -> Floats:
    """R whitened over all tokens of the batch, no group baseline. REINFORCE++ (Hu 2025), eq. 6.

    Fails with prompts of unequal difficulty: an easy prompt's wrong answer is punished less than a hard one's.
    """
    return _whitened(rewards, lengths)


def reinforce_pp_baseline(rewards: Floats, groups: Ints, lengths: Ints) -> Floats:
    """R − mean_g, whitened over all tokens of the batch. REINFORCE++-baseline (Hu 2025), eq. 8.

    Fails as `batch_std` does.
    """
    return _whitened(_centred(rewards, groups)[0], lengths)


def opo(rewards: Floats, groups: Ints, lengths: Ints) -> Floats:
    """R − Σ len·R / Σ len over the group: the baseline of least variance when gradients grow with length.

    OPO (Hao et al. 2025), eq. 7. Fails when length and reward go together: the mean advantage of a group is not 0.
    """
    place = np.unique(groups, return_inverse=True)[1]
    baseline = np.bincount(place, weights=lengths * rewards) / np.bincount(place, weights=lengths)
    return _array(rewards - baseline[place])


ADVANTAGES: dict[str, Callable[[Floats, Ints, Ints], Floats]] = {
    "grpo": grpo,
    "dr_grpo": dr_grpo,
    "rloo": rloo,
    "batch_std": batch_std,
    "reinforce_pp": reinforce_pp,
    "reinforce_pp_baseline": reinforce_pp_baseline,
    "opo": opo,
}


def advantages(name: str, rewards: Floats, groups: Ints, lengths: Ints) -> Floats:
    """The advantage [S] of each rollout by the estimator `name`. Raises `ValueError` for a group of one."""
    names, sizes = np.unique(groups, return_counts=True)
    if (sizes < 2).any():
        raise ValueError(f"group {names[sizes < 2][0]} has one rollout: it has no relative advantage")
    return ADVANTAGES[name](rewards, groups, lengths)


def _centred(rewards: Floats, groups: Ints) -> tuple[Floats, Ints]:
    """R − mean_g [S], and the place of each rollout's group among the groups [S]."""
    place = np.unique(groups, return_inverse=True)[1]
    means = np.bincount(place, weights=rewards) / np.bincount(place)
    return _array(rewards - means[place]), place


def _whitened(values: Floats, lengths: Ints) -> Floats:
    """Values minus their mean, over their deviation; each counts once for each of its tokens."""
    mean = np.average(values, weights=lengths)
    deviation = np.sqrt(np.average((values - mean) ** 2, weights=lengths))
    return _array((values - mean) / (deviation + EPSILON))


def _array(values: Any) -> Floats:
    return np.asarray(values, dtype=np.float64)
