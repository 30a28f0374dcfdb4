"""Advantages and aggregations against slow truths, written from the papers."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner.advantage import ADVANTAGES, group_advantages
from learner.aggregation import AGGREGATIONS, token_weights

REWARDS = st.lists(st.floats(-2, 2), min_size=2, max_size=12)


def slow_advantages(name: str, rewards: list[float]) -> list[float]:
    count = len(rewards)
    mean = sum(rewards) / count
    if name == "grpo":  # DeepSeekMath §4.1.2: (r_i − mean(r)) / std(r); the sample deviation
        deviation = math.sqrt(sum((reward - mean) ** 2 for reward in rewards) / (count - 1))
        return [(reward - mean) / (deviation + 1e-6) for reward in rewards]
    if name == "dr_grpo":  # Dr. GRPO §3: r_i − mean(r)
        return [reward - mean for reward in rewards]
    others = [(sum(rewards) - reward) / (count - 1) for reward in rewards]  # RLOO eq. 9: the mean of the others
    return [reward - other for reward, other in zip(rewards, others, strict=True)]


@pytest.mark.parametrize("name", sorted(ADVANTAGES))
@given(rewards=REWARDS)
def test_an_advantage_is_the_formula_of_its_paper(name: str, rewards: list[float]) -> None:
    found = group_advantages(name, np.array(rewards))
    np.testing.assert_allclose(found, slow_advantages(name, rewards), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", sorted(ADVANTAGES))
@given(reward=st.floats(-1e3, 1e3), size=st.integers(2, 9))
def test_equal_rewards_have_no_advantage(name: str, reward: float, size: int) -> None:
    np.testing.assert_allclose(group_advantages(name, np.full(size, reward)), 0, atol=1e-6)


@pytest.mark.parametrize("name", sorted(ADVANTAGES))
@given(rewards=REWARDS)
def test_advantages_of_a_group_cancel_out(name: str, rewards: list[float]) -> None:
    assert abs(group_advantages(name, np.array(rewards)).sum()) < 1e-6


def test_a_group_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match="a group of 1 rollouts has no relative advantage"):
        group_advantages("grpo", np.array([1.0]))


LONGEST = 40
SIZES = st.lists(st.tuples(st.integers(1, LONGEST), st.integers(0, 3)), min_size=1, max_size=20)


def slow_loss(name: str, sequences: list[tuple[list[float], int]]) -> float:
    """The aggregated value of sequences (token values, group), as the papers write it."""
    tokens = [value for values, _ in sequences for value in values]
    if name == "token_mean":
        return sum(tokens) / len(tokens)
    if name == "seq_mean_token_mean":
        return sum(sum(values) / len(values) for values, _ in sequences) / len(sequences)
    if name == "seq_mean_token_sum_norm":
        return sum(sum(values) / LONGEST for values, _ in sequences) / len(sequences)
    means = []
    for group in {group for _, group in sequences}:
        inside = [value for values, owner in sequences for value in values if owner == group]
        means.append(sum(inside) / len(inside))
    return sum(means) / len(means)


@pytest.mark.parametrize("name", sorted(AGGREGATIONS))
@given(sizes=SIZES, seed=st.integers(0, 99))
def test_token_weights_sum_to_the_mean_of_the_paper(name: str, sizes: list[tuple[int, int]], seed: int) -> None:
    random = np.random.default_rng(seed)
    sequences = [(random.normal(size=length).tolist(), group) for length, group in sizes]
    lengths, groups = np.array([length for length, _ in sizes]), np.array([group for _, group in sizes])
    weights = token_weights(name, lengths, groups, LONGEST)
    total = sum(weight * sum(values) for weight, (values, _) in zip(weights, sequences, strict=True))
    assert total == pytest.approx(slow_loss(name, sequences), rel=1e-9, abs=1e-12)
