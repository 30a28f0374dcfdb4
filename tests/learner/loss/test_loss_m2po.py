"""M2PO's bound on the second moment against a brute force that takes the largest out until what is left is calm."""

from dataclasses import replace

import draws
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.loss.compose import token_loss
from learner.loss.config import LossConfig
from learner.loss.tokens import Tokens
from learner.loss.weighted import at_risk, second_moment_bound

TIED = st.sampled_from([0.0, 0.25, -0.25, 0.5, 1.0, -1.0, 1.5, 3.0, 20.0, -20.0, 100.0, -100.0])  # exact in binary
THRESHOLDS = (0.0625, 0.25, 0.5, 1.0, 2.0, 133.0, 400.0, 1e9)


def kept_squares(log_ratios: list[float], threshold: float) -> list[float]:
    """What stays: the largest squares go, with their equals, until the mean is at most the threshold."""
    kept = [min(20.0, abs(value)) ** 2 for value in log_ratios]
    while kept and sum(kept) / len(kept) > threshold:
        largest = max(kept)
        kept = [square for square in kept if square != largest]
    return kept


def staying(log_ratios: list[float], bound: float) -> list[float]:
    squares = [min(20.0, abs(value)) ** 2 for value in log_ratios]
    return [square for square in squares if square <= bound]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(log_ratios=st.lists(TIED, max_size=12), threshold=st.sampled_from(THRESHOLDS))
def test_the_bound_keeps_what_brute_force_keeps_however_many_are_equal(
    dtype: torch.dtype, log_ratios: list[float], threshold: float
) -> None:
    bound = second_moment_bound(torch.tensor(log_ratios, dtype=dtype), threshold)
    assert staying(log_ratios, bound) == kept_squares(log_ratios, threshold)


@given(seed=st.integers(0, 2**32 - 1), count=st.integers(0, 200), threshold=st.sampled_from((0.04, 1e-4, 3.0)))
def test_the_bound_of_random_ratios_is_that_of_brute_force(seed: int, count: int, threshold: float) -> None:
    random = np.random.default_rng(seed)
    log_ratios = (random.normal(size=count) * random.exponential(size=count)).tolist()
    bound = second_moment_bound(torch.tensor(log_ratios, dtype=torch.float64), threshold)
    assert staying(log_ratios, bound) == kept_squares(log_ratios, threshold)


def test_nothing_stays_where_the_smallest_is_too_large_and_nothing_goes_where_all_is_calm() -> None:
    assert second_moment_bound(torch.tensor([0.5, -0.3]), 0.04) < 0
    assert second_moment_bound(torch.tensor([0.2, -0.1, 0.0]), 0.04) == pytest.approx(0.04)


def test_without_a_token_at_risk_there_is_nothing_to_bound() -> None:
    assert second_moment_bound(torch.tensor([]), 0.04) < 0


def test_one_of_equal_squares_is_not_kept_without_the_others() -> None:
    """Of [0, 1, 1] at 1/2 the first two have the mean 1/2; a bound of 1 would keep all three, with the mean 2/3."""
    assert second_moment_bound(torch.tensor([0.0, 1.0, -1.0]), 0.5) == 0


@given(advantage=st.sampled_from([-1.0, 0.0, 1.0]), log_rho=st.sampled_from([-0.5, 0.0, 0.5]))
def test_a_token_is_at_risk_where_a_step_goes_on_away_from_the_sampler(advantage: float, log_rho: float) -> None:
    found = at_risk(torch.tensor([log_rho]), torch.tensor([advantage])).item()
    assert found == (advantage * log_rho > 0)  # raised already and to be raised, or lowered and to be lowered


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@settings(max_examples=60)
@given(data=st.data(), threshold=st.sampled_from((0.01, 0.04, 2.0, 133.0, 1e9)))
def test_the_tokens_that_lose_their_gradient_are_those_that_brute_force_takes_out(
    dtype: torch.dtype, data: st.DataObject, threshold: float
) -> None:
    tokens: Tokens = data.draw(draws.batches(dtype, ("numerics", "little", "extreme")))
    log_rho = (tokens.learner_logprobs - tokens.behaviour_logprobs).detach()
    risky = at_risk(log_rho, tokens.advantages) & tokens.loss_mask
    bound = second_moment_bound(log_rho[risky], threshold)
    outside = token_loss(replace(tokens, m2_bound=bound), LossConfig(name="m2po", corrections=[])).bounded
    assert not (outside & ~risky).any()
    squares = (log_rho[risky].double().clamp(-20, 20) ** 2).tolist()
    kept = kept_squares(log_rho[risky].double().tolist(), threshold)
    assert [not flag for flag in outside[risky].tolist()] == [square in kept for square in squares]


@pytest.mark.parametrize(("threshold", "masked"), [(1e9, []), (1.0, [0, 1]), (1e-4, [0, 1, 2])])
def test_ratios_beyond_the_clamp_count_as_if_they_stood_at_it(threshold: float, masked: list[int]) -> None:
    log_rho = torch.tensor([100.0, 20.0, 0.125])
    bound = second_moment_bound(log_rho, threshold)
    tokens = replace(
        draws.tokens_of(np.random.default_rng(0), [3], ["none"], ["all"], dtype=torch.float32),
        learner_logprobs=torch.full((3,), -1.0),
        behaviour_logprobs=-1.0 - log_rho,
        advantages=torch.ones(3),
        m2_bound=bound,
    )
    outside = token_loss(tokens, LossConfig(name="m2po", corrections=[])).bounded
    assert outside.nonzero()[:, 0].tolist() == masked
