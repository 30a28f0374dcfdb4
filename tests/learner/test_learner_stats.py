"""What is reported of a step, against NumPy truths."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from learner.stats import COLUMNS, describe, effective_share

CAP = 2.0


def tokens_of(log_ratios: list[float], sequences: list[int], staleness: list[int] | None = None) -> torch.Tensor:
    tokens = torch.zeros(len(log_ratios), COLUMNS, dtype=torch.float64)
    tokens[:, 0] = torch.tensor(log_ratios)
    tokens[:, 1] = torch.arange(len(log_ratios))
    tokens[:, 2] = torch.arange(len(log_ratios)) % 2
    tokens[:, 3] = torch.tensor(sequences)
    tokens[:, 4] = torch.tensor(staleness or [0] * len(log_ratios))
    return tokens


def slow_share(weights: list[float]) -> float:
    return sum(weights) ** 2 / (len(weights) * sum(weight**2 for weight in weights))


@given(rows=st.lists(st.tuples(st.floats(-3, 3), st.integers(0, 5), st.integers(0, 2)), min_size=1, max_size=40))
def test_every_figure_is_its_formula(rows: list[tuple[float, int, int]]) -> None:
    logs, owners, lags = ([row[column] for row in rows] for column in range(3))
    found = describe(tokens_of(logs, owners, lags), truncation=CAP)  # type: ignore[arg-type]
    array = np.array(logs)
    ratios = np.exp(array)
    sums = {owner: sum(x for x, o in zip(logs, owners, strict=True) if o == owner) for owner in owners}
    k3 = ratios - 1 - array
    fresh = np.array(lags) == 0
    expected = {
        "entropy": np.arange(len(rows)).mean(),
        "clip_fraction": (np.arange(len(rows)) % 2).mean(),
        "kl_k1": -array.mean(),
        "kl_k3": k3.mean(),
        "ess": slow_share([math.exp(total) for total in sums.values()]),
        "ess_truncated": slow_share([min(r, CAP) for r in ratios.tolist()]),
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-6, abs=1e-7), name
    assert found["kl_k3_lag0"] == (pytest.approx(k3[fresh].mean(), rel=1e-6, abs=1e-7) if fresh.any() else None)
    quantiles = np.quantile(ratios, [0, 0.5, 0.99, 1])
    assert found["ratio"] == pytest.approx(dict(zip(("min", "p50", "p99", "max"), quantiles, strict=True)), rel=1e-6)


def test_equal_policies_have_no_divergence_and_a_full_sample() -> None:
    found = describe(tokens_of([0.0] * 6, [0, 0, 1, 1, 2, 2]), truncation=CAP)
    assert found["kl_k1"] == found["kl_k3"] == 0
    assert found["ess"] == found["ess_truncated"] == 1


def test_k3_is_the_divergence_of_sampler_and_policy() -> None:
    sampler, policy = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.3, 0.5])
    drawn = np.random.default_rng(0).choice(3, size=200_000, p=sampler)
    logs = np.log(policy / sampler)[drawn]
    found = describe(tokens_of(logs.tolist(), [0] * len(logs)), truncation=CAP)
    truth = float((sampler * np.log(sampler / policy)).sum())  # KL(μ‖π)
    assert found["kl_k1"] == pytest.approx(truth, abs=5e-3)
    assert found["kl_k3"] == pytest.approx(truth, abs=5e-3)


@given(drift=st.floats(-300, 300))
def test_a_drift_that_all_sequences_share_does_not_hide_the_one_that_outweighs(drift: float) -> None:
    logs = [drift, drift, drift, drift + 10]
    found = describe(tokens_of(logs, [0, 1, 2, 3]), truncation=CAP)
    assert found["ess"] == pytest.approx(slow_share([1, 1, 1, math.exp(10)]), rel=1e-6)


def test_extreme_ratios_give_finite_figures() -> None:
    found = describe(tokens_of([-1e4, 1e4, 0.0], [0, 1, 1]), truncation=CAP)
    ratio = found.pop("ratio")
    assert isinstance(ratio, dict)
    assert all(math.isfinite(float(str(value))) for value in (*found.values(), *ratio.values()))


@given(weights=st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=20))
def test_an_effective_share_lies_between_one_of_n_and_all(weights: list[float]) -> None:
    share = effective_share(torch.tensor(weights, dtype=torch.float64))
    assert 1 / len(weights) - 1e-9 <= share <= 1 + 1e-9
