"""Weights of tokens against the means that the papers write."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner.loss.aggregation import AGGREGATIONS, token_weights

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


def columns(sizes: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([length for length, _ in sizes]), np.array([group for _, group in sizes])


@pytest.mark.parametrize("name", sorted(AGGREGATIONS))
@given(sizes=SIZES, seed=st.integers(0, 99))
def test_token_weights_sum_to_the_mean_of_the_paper(name: str, sizes: list[tuple[int, int]], seed: int) -> None:
    random = np.random.default_rng(seed)
    sequences = [(random.normal(size=length).tolist(), group) for length, group in sizes]
    weights = token_weights(name, *columns(sizes), LONGEST)
    total = sum(weight * sum(values) for weight, (values, _) in zip(weights, sequences, strict=True))
    assert total == pytest.approx(slow_loss(name, sequences), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", sorted(AGGREGATIONS))
@given(sizes=SIZES)
def test_the_weights_of_all_tokens_sum_to_one_but_for_the_constant_length(
    name: str, sizes: list[tuple[int, int]]
) -> None:
    lengths, groups = columns(sizes)
    total = (lengths * token_weights(name, lengths, groups, LONGEST)).sum()
    expected = lengths.mean() / LONGEST if name == "seq_mean_token_sum_norm" else 1.0
    assert total == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", sorted(AGGREGATIONS))
@given(sizes=SIZES, seed=st.integers(0, 99))
def test_the_order_of_sequences_changes_no_weight(name: str, sizes: list[tuple[int, int]], seed: int) -> None:
    lengths, groups = columns(sizes)
    order = np.random.default_rng(seed).permutation(len(sizes))
    shuffled = token_weights(name, lengths[order], groups[order], LONGEST)
    np.testing.assert_allclose(shuffled, token_weights(name, lengths, groups, LONGEST)[order], rtol=1e-12)


@given(sizes=SIZES)
def test_every_group_has_the_same_share_in_a_mean_over_prompts(sizes: list[tuple[int, int]]) -> None:
    lengths, groups = columns(sizes)
    shares = lengths * token_weights("prompt_mean", lengths, groups, LONGEST)
    for group in set(groups):
        assert shares[groups == group].sum() == pytest.approx(1 / len(set(groups)))


@pytest.mark.parametrize("name", sorted(AGGREGATIONS))
@pytest.mark.parametrize("lengths", [[0, 3, 2], [0, 0, 4], [0, 0, 0]])
def test_a_sequence_without_trained_tokens_has_a_finite_weight_and_leaves_the_others_theirs(
    name: str, lengths: list[int]
) -> None:
    weights = token_weights(name, np.array(lengths), np.array([5, 5, 9]), LONGEST)
    assert np.isfinite(weights).all()
    total = (np.array(lengths) * weights).sum()
    whole = {"token_mean": 1.0, "seq_mean_token_mean": sum(map(bool, lengths)) / 3}
    whole["prompt_mean"] = (bool(lengths[0] + lengths[1]) + bool(lengths[2])) / 2
    whole["seq_mean_token_sum_norm"] = sum(lengths) / 3 / LONGEST
    assert total == pytest.approx(whole[name] if any(lengths) else 0.0)
