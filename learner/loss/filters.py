"""Which rollouts of a batch are trained at all. Pure functions to a mask [S], True where a rollout stays.

A filter changes the batch: what it takes out is in no denominator and costs no forward pass. (A correction, see
`learner.loss.corrections`, rejects what is in the batch, and leaves the denominators alone.) Legend: S rollouts.
"""

from typing import Any, TypeAlias

import numpy as np

from learner.loss.advantages import Floats, Ints

Mask: TypeAlias = np.ndarray[Any, np.dtype[np.bool_]]  # [S]


def singletons(groups: Ints) -> Mask:
    """Groups of two at least: the advantage of one rollout alone is undefined."""
    place, sizes = np.unique(groups, return_inverse=True, return_counts=True)[1:]
    return np.asarray(sizes[place] > 1)


def zero_variance(rewards: Floats, groups: Ints) -> Mask:
    """Groups whose rewards differ: equal ones have no advantage. DAPO (Yu et al. 2025), §3.2; ScaleRL (2025).

    Fails with a KL term or an entropy bonus that should hold on solved prompts too: they do not see them any more.
    """
    place = np.unique(groups, return_inverse=True)[1]
    lowest = np.full(place.max(initial=-1) + 1, np.inf)
    highest = -lowest
    np.minimum.at(lowest, place, rewards)
    np.maximum.at(highest, place, rewards)
    return np.asarray((lowest < highest)[place])


def complete(truncated: Mask) -> Mask:
    """Completions that ended by themselves: the reward of a truncated one says little. DAPO (Yu et al. 2025), §3.4.

    Truncated ones still count in their group's baseline. Fails by letting lengths grow: nothing speaks against it.
    """
    return ~truncated
