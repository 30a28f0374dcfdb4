"""Advantages against slow truths, written from the papers group by group, and what must hold for any of them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.loss.advantages import ADVANTAGES, Floats, Ints, advantages

NAMES = sorted(ADVANTAGES)
WITH_GROUP_BASELINE = [name for name in NAMES if name != "reinforce_pp"]
SCALED_BY_DEVIATION = ("grpo", "batch_std", "reinforce_pp", "reinforce_pp_baseline")
WHITENED = ("reinforce_pp", "reinforce_pp_baseline")


@st.composite
def rollouts(draw: st.DrawFn, kinds: tuple[str, ...] = ("binary", "real", "equal")) -> tuple[Floats, Ints, Ints]:
    """Rewards, groups and lengths [S] of groups of two or more, in any order."""
    sizes = draw(st.lists(st.integers(2, 6), min_size=1, max_size=4))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count, kind = sum(sizes), draw(st.sampled_from(kinds))
    names = random.choice(10**6, len(sizes), replace=False)
    order = random.permutation(count)
    rewards = {"binary": random.integers(0, 2, count), "real": random.normal(size=count), "equal": np.full(count, 0.3)}
    return rewards[kind].astype(np.float64), np.repeat(names, sizes)[order], random.integers(1, 50, count)


def slow_advantages(name: str, rewards: Floats, groups: Ints, lengths: Ints) -> list[float]:
    """The estimator as its paper writes it, one rollout after the other."""
    values = []
    for place, (reward, group) in enumerate(zip(rewards, groups, strict=True)):
        members = [other for other in range(len(rewards)) if groups[other] == group]
        scores = [rewards[other] for other in members]
        mean = sum(scores) / len(scores)
        if name == "grpo":  # DeepSeekMath §4.1.2, the sample deviation
            values.append((reward - mean) / (np.std(scores, ddof=1) + 1e-6))
        elif name in ("dr_grpo", "batch_std", "reinforce_pp_baseline"):  # the last two go on below
            values.append(reward - mean)
        elif name == "rloo":  # Ahmadian et al. 2024: the baseline is the mean of the others
            others = [rewards[other] for other in members if other != place]
            values.append(reward - sum(others) / len(others))
        elif name == "opo":  # Hao et al. 2025: the baseline is the mean weighted by length
            tokens = sum(lengths[other] for other in members)
            values.append(reward - sum(lengths[other] * rewards[other] for other in members) / tokens)
        else:
            values.append(reward)
    if name == "batch_std":
        deviation = np.std(values)
        return [value / (deviation + 1e-6) for value in values]
    if name in WHITENED:  # Hu 2025: over all tokens of the batch
        tokens = [value for value, length in zip(values, lengths, strict=True) for _ in range(length)]
        return [(value - np.mean(tokens)) / (np.std(tokens) + 1e-6) for value in values]
    return values


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=30)
@given(batch=rollouts())
def test_an_advantage_is_the_formula_of_its_paper(name: str, batch: tuple[Floats, Ints, Ints]) -> None:
    found = advantages(name, *batch)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, slow_advantages(name, *batch), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=30)
@given(batch=rollouts(), shift=st.floats(-100, 100))
def test_a_constant_on_all_rewards_changes_no_advantage(
    name: str, batch: tuple[Floats, Ints, Ints], shift: float
) -> None:
    rewards, groups, lengths = batch
    moved = advantages(name, rewards + shift, groups, lengths)
    np.testing.assert_allclose(moved, advantages(name, *batch), atol=1e-6)


@pytest.mark.parametrize("name", WITH_GROUP_BASELINE)
@settings(max_examples=30)
@given(batch=rollouts())
def test_a_constant_on_the_rewards_of_one_group_changes_no_advantage_behind_a_group_baseline(
    name: str, batch: tuple[Floats, Ints, Ints]
) -> None:
    rewards, groups, lengths = batch
    moved = advantages(name, rewards + np.where(groups == groups[0], 5.0, 0.0), groups, lengths)
    np.testing.assert_allclose(moved, advantages(name, *batch), atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=30)
@given(batch=rollouts(("binary", "real")), scale=st.floats(0.5, 50))
def test_the_scale_of_rewards_goes_into_the_advantages_unless_these_are_divided_by_a_deviation(
    name: str, batch: tuple[Floats, Ints, Ints], scale: float
) -> None:
    rewards, groups, lengths = batch
    expected = advantages(name, *batch) * (1 if name in SCALED_BY_DEVIATION else scale)
    found = advantages(name, scale * rewards, groups, lengths)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6)  # 1e-6 is added to deviations


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=30)
@given(batch=rollouts(), seed=st.integers(0, 99))
def test_the_order_of_rollouts_changes_no_advantage(name: str, batch: tuple[Floats, Ints, Ints], seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(batch[0]))
    shuffled = advantages(name, *(values[order] for values in batch))
    np.testing.assert_allclose(shuffled, advantages(name, *batch)[order], rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("name", NAMES)
@given(reward=st.floats(-100, 100), size=st.integers(2, 9))
def test_equal_rewards_have_no_advantage(name: str, reward: float, size: int) -> None:
    found = advantages(name, np.full(size, reward), np.zeros(size, dtype=np.int64), np.arange(1, size + 1))
    np.testing.assert_allclose(found, 0, atol=1e-6)


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "rloo", "batch_std"])
@given(batch=rollouts())
def test_advantages_of_a_group_cancel_out_behind_its_mean(name: str, batch: tuple[Floats, Ints, Ints]) -> None:
    found = advantages(name, *batch)
    for group in np.unique(batch[1]):
        assert abs(found[batch[1] == group].sum()) < 1e-6


@pytest.mark.parametrize("name", WHITENED)
@given(batch=rollouts(("real",)))
def test_whitened_advantages_have_mean_0_and_deviation_1_over_tokens(
    name: str, batch: tuple[Floats, Ints, Ints]
) -> None:
    tokens = np.repeat(advantages(name, *batch), batch[2])
    assert tokens.mean() == pytest.approx(0, abs=1e-7)
    if len(np.unique(tokens)) > 1:
        assert tokens.std() == pytest.approx(1, abs=1e-4)


@given(batch=rollouts(("real",)))
def test_batch_std_has_deviation_1_over_rollouts(batch: tuple[Floats, Ints, Ints]) -> None:
    assert advantages("batch_std", *batch).std() == pytest.approx(1, abs=1e-3)


@given(batch=rollouts(("real",)))
def test_grpo_has_sample_deviation_1_in_each_group(batch: tuple[Floats, Ints, Ints]) -> None:
    found = advantages("grpo", *batch)
    for group in np.unique(batch[1]):
        assert np.std(found[batch[1] == group], ddof=1) == pytest.approx(1, abs=1e-2)


@settings(max_examples=30)
@given(batch=rollouts(("real",)), step=st.sampled_from([-0.3, -0.01, 0.01, 0.3]))
def test_no_other_baseline_has_less_variance_weighted_by_length_than_that_of_opo(
    batch: tuple[Floats, Ints, Ints], step: float
) -> None:
    found = advantages("opo", *batch)
    for group in np.unique(batch[1]):
        inside = batch[1] == group
        lengths = batch[2][inside]
        assert (lengths * found[inside] ** 2).sum() < (lengths * (found[inside] + step) ** 2).sum()


@pytest.mark.parametrize("name", NAMES)
def test_a_group_of_one_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="group 8 has one rollout: it has no relative advantage"):
        advantages(name, np.array([1.0, 0.0, 1.0]), np.array([4, 8, 4]), np.array([1, 2, 3]))
