"""Shaped rewards and filters against one rollout after the other."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner.loss.filters import complete, singletons, zero_variance
from learner.loss.rewards import reference_kl, soft_overlong, truncated_penalty

SCORES = st.lists(st.tuples(st.integers(-3, 3), st.sampled_from([0.0, 0.5, 1.0])), max_size=20)  # group, reward


def columns(scores: list[tuple[int, float]]) -> tuple[np.ndarray, np.ndarray]:
    groups = np.array([group for group, _ in scores], dtype=np.int64)
    return groups, np.array([reward for _, reward in scores], dtype=np.float64)


@given(scores=SCORES)
def test_singletons_are_the_rollouts_that_are_alone_in_their_group(scores: list[tuple[int, float]]) -> None:
    groups, _ = columns(scores)
    expected = [sum(other == group for other, _ in scores) > 1 for group, _ in scores]
    assert singletons(groups).tolist() == expected


@given(scores=SCORES)
def test_a_group_has_no_variance_when_all_its_rewards_are_the_same(scores: list[tuple[int, float]]) -> None:
    groups, rewards = columns(scores)
    expected = [len({reward for other, reward in scores if other == group}) > 1 for group, _ in scores]
    assert zero_variance(rewards, groups).tolist() == expected


@given(reward=st.floats(-1e6, 1e6), size=st.integers(2, 9))
def test_equal_rewards_are_equal_without_rounding(reward: float, size: int) -> None:
    assert not zero_variance(np.full(size, reward), np.full(size, 4)).any()


@given(truncated=st.lists(st.booleans(), max_size=9))
def test_complete_rollouts_are_those_that_were_not_cut(truncated: list[bool]) -> None:
    assert complete(np.array(truncated, dtype=bool)).tolist() == [not cut for cut in truncated]


def slow_overlong(length: int, longest: int, buffer: int) -> float:
    """DAPO, eq. 13."""
    if length <= longest - buffer:
        return 0.0
    return (longest - buffer - length) / buffer if length <= longest else -1.0


@given(data=st.data(), longest=st.integers(2, 100))
def test_the_soft_overlong_penalty_is_the_formula_of_dapo(data: st.DataObject, longest: int) -> None:
    buffer = data.draw(st.integers(1, longest))
    lengths = np.arange(longest + 5)
    found = soft_overlong(lengths, longest=longest, buffer=buffer)
    expected = [slow_overlong(length, longest, buffer) for length in lengths.tolist()]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_the_penalty_of_dapo_by_its_own_numbers() -> None:
    lengths = np.array([1, 16384, 18432, 20480, 30000])
    found = soft_overlong(lengths, longest=20480, buffer=4096)
    assert found.tolist() == [0, 0, -0.5, -1, -1]


@given(truncated=st.lists(st.booleans(), max_size=9), penalty=st.floats(0, 10))
def test_only_truncated_completions_pay_the_penalty(truncated: list[bool], penalty: float) -> None:
    found = truncated_penalty(np.array(truncated, dtype=bool), penalty)
    assert found.tolist() == [-penalty if cut else 0.0 for cut in truncated]


def test_a_completion_that_the_policy_likes_more_than_the_reference_pays_for_it() -> None:
    assert reference_kl(np.array([2.0, -1.0, 0.0]), 0.5).tolist() == pytest.approx([-1.0, 0.5, 0.0])
