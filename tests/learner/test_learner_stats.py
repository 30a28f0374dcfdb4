"""What is reported of a step, against NumPy truths."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from learner.stats import BUCKETS, COLUMNS, TokenStats, bucket_name, describe, effective_share

CAP = 2.0


def tokens_of(log_ratios: list[float], sequences: list[int], staleness: list[int] | None = None) -> TokenStats:
    count = len(log_ratios)
    tokens = {name: torch.zeros(count, dtype=torch.float64) for name in COLUMNS}
    places = torch.arange(count, dtype=torch.float64)
    tokens["log_ratio"] = torch.tensor(log_ratios, dtype=torch.float64)
    tokens["entropy"] = places
    tokens["bounded"] = places % 2
    tokens["weight"] = (places % 3 > 0).double()
    tokens["advantage"] = places % 5 - 2
    tokens["kl"] = places / 10
    tokens["sequence"] = torch.tensor(sequences, dtype=torch.float64)
    tokens["staleness"] = torch.tensor(staleness or [0] * count, dtype=torch.float64)
    return tokens


def slow_mean(values: np.ndarray) -> float | None:  # type: ignore[type-arg]
    return values.mean() if len(values) else None


def slow_bucket(lag: int) -> str:
    for name in ("0", "1", "2", "3-4", "5-8", "9-16", "17-32"):
        if lag <= int(name.split("-")[-1]):
            return name
    return "33+"


def slow_share(weights: list[float]) -> float:
    return sum(weights) ** 2 / (len(weights) * sum(weight**2 for weight in weights))


@given(rows=st.lists(st.tuples(st.floats(-3, 3), st.integers(0, 5), st.integers(0, 70)), min_size=1, max_size=40))
def test_every_figure_is_its_formula(rows: list[tuple[float, int, int]]) -> None:
    logs, owners, lags = ([row[column] for row in rows] for column in range(3))
    found = describe(tokens_of(logs, owners, lags), truncation=CAP)  # type: ignore[arg-type]
    array = np.array(logs)
    ratios = np.exp(array)
    sums = {owner: sum(x for x, o in zip(logs, owners, strict=True) if o == owner) for owner in owners}
    k3 = ratios - 1 - array
    fresh = np.array(lags) == 0
    places = np.arange(len(rows))
    bounded, rejected, sign = places % 2, places % 3 == 0, places % 5 - 2
    expected = {
        "entropy": np.arange(len(rows)).mean(),
        "reference_kl": (places / 10).mean(),
        "clip_fraction": bounded.mean(),
        "clip_fraction_positive": slow_mean(bounded[sign > 0]),
        "clip_fraction_negative": slow_mean(bounded[sign < 0]),
        "mask_fraction": rejected.mean(),
        "mask_fraction_positive": slow_mean(rejected[sign > 0]),
        "mask_fraction_negative": slow_mean(rejected[sign < 0]),
        "chi2": ((ratios - 1) ** 2).mean(),
        "kl_k3_lag0": slow_mean(k3[fresh]),
        "kl_k3_stale": slow_mean(k3[~fresh]),
        "kl_k1": -array.mean(),
        "kl_k3": k3.mean(),
        "ess": slow_share([math.exp(total) for total in sums.values()]),
        "ess_truncated": slow_share([min(r, CAP) for r in ratios.tolist()]),
    }
    for name, value in expected.items():
        assert found[name] == (None if value is None else pytest.approx(value, rel=1e-6, abs=1e-7)), name
    quantiles = np.quantile(ratios, [0, 0.5, 0.99, 1])
    assert found["ratio"] == pytest.approx(dict(zip(("min", "p50", "p99", "max"), quantiles, strict=True)), rel=1e-6)

    for bucket, figures in found["by_staleness"].items():  # type: ignore[attr-defined]
        chosen = np.array([slow_bucket(lag) == bucket for lag in lags])
        assert figures["tokens"] == chosen.sum() > 0
        assert figures["kl_k3"] == pytest.approx(k3[chosen].mean(), rel=1e-6, abs=1e-7)
        assert figures["ess"] == pytest.approx(slow_share(ratios[chosen].tolist()))
        assert figures["mask_fraction"] == pytest.approx(rejected[chosen].mean())
    assert set(found["by_staleness"]) == {slow_bucket(lag) for lag in lags}  # type: ignore[call-overload]


def test_buckets_of_staleness_are_named_by_their_ends() -> None:
    assert [bucket_name(place) for place in range(len(BUCKETS))] == [
        "0",
        "1",
        "2",
        "3-4",
        "5-8",
        "9-16",
        "17-32",
        "33+",
    ]


def test_without_tokens_there_are_no_figures() -> None:
    found = describe(tokens_of([], []), truncation=CAP)
    assert found.pop("by_staleness") == {}
    assert all(value is None for value in found.values())


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
    flat = [found]
    while flat:
        for value in flat.pop().values():
            if isinstance(value, dict):
                flat.append(value)
            else:
                assert value is None or math.isfinite(float(str(value)))


@given(weights=st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=20))
def test_an_effective_share_lies_between_one_of_n_and_all(weights: list[float]) -> None:
    share = effective_share(torch.tensor(weights, dtype=torch.float64))
    assert 1 / len(weights) - 1e-9 <= share <= 1 + 1e-9
