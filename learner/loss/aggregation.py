"""How token losses become one number: the weight of each token in a sum over the whole batch.

Weights are computed from the lengths of all sequences of a step, before these are cut into micro-batches, so that no
result depends on micro-batches, their order, or the number of ranks. Tokens are counted before any rejection. What has
no token at all (a sequence that is masked altogether) weighs nothing, and its weight is finite.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

Weights: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]
Lengths: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]  # [S] completion tokens of each sequence
Groups: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]  # [S] group of each sequence


def token_mean(lengths: Lengths, groups: Groups, longest: int) -> Weights:
    """1 / all tokens: every token counts the same. DAPO (Yu et al. 2025), §3.3."""
    return np.full(len(lengths), 1.0 / max(lengths.sum(), 1))


def seq_mean_token_mean(lengths: Lengths, groups: Groups, longest: int) -> Weights:
    """1 / (S · length): every sequence counts the same, tokens of long ones less. GRPO, GSPO."""
    return 1.0 / (len(lengths) * np.maximum(lengths, 1))


def seq_mean_token_sum_norm(lengths: Lengths, groups: Groups, longest: int) -> Weights:
    """1 / (S · L_max), L_max the longest completion allowed: no length bias. Dr. GRPO (Liu et al. 2025)."""
    return np.full(len(lengths), 1.0 / (len(lengths) * longest))


def prompt_mean(lengths: Lengths, groups: Groups, longest: int) -> Weights:
    """1 / (prompts · tokens of the group): token mean inside a group, then mean over groups. ScaleRL (2025)."""
    names, place = np.unique(groups, return_inverse=True)
    return 1.0 / (len(names) * np.maximum(np.bincount(place, weights=lengths), 1)[place])


AGGREGATIONS: dict[str, Callable[[Lengths, Groups, int], Weights]] = {
    "token_mean": token_mean,
    "seq_mean_token_mean": seq_mean_token_mean,
    "seq_mean_token_sum_norm": seq_mean_token_sum_norm,
    "prompt_mean": prompt_mean,
}


def token_weights(name: str, lengths: Lengths, groups: Groups, longest: int) -> Weights:
    """The weight [S] of each token of each sequence by the rule `name`; `longest` is the completion limit L_max."""
    return AGGREGATIONS[name](lengths, groups, longest)
