"""Losses and corrections against slow float64 truths, written from the papers: values, and gradients by differences."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from learner.config import LossConfig
from learner.losses import TokenInputs, cispo, objective, ppo_clip, ratio, tis_token
from learner.step import masked_sum

LOW, HIGH, DUAL, CAP, TIS = 0.2, 0.28, 3.0, 5.0, 2.0
STEP = 1e-6
LOGPROB = st.floats(-8.0, 0.0)
TOKENS = st.lists(st.tuples(LOGPROB, LOGPROB, LOGPROB, st.floats(-2, 2)), min_size=1, max_size=12)


def slow_ratio(numerator: float, denominator: float) -> float:
    return math.exp(min(20.0, max(-20.0, numerator - denominator)))


def slow_ppo(current: float, proximal: float, advantage: float, dual: float) -> float:
    """PPO eq. 7 with DAPO's bounds; Ye et al. 2020, eq. 2: max(·, c·A) for negative advantages."""
    r = slow_ratio(current, proximal)
    value = min(r * advantage, min(max(r, 1 - LOW), 1 + HIGH) * advantage)
    return max(value, dual * advantage) if advantage < 0 and dual > 0 else value


def slow_cispo(current: float, frozen: float, behaviour: float, advantage: float) -> float:
    """MiniMax-M1 eq. 4: sg(min(r, c)) · A · log π. `frozen` is π inside the stop-gradient."""
    return min(slow_ratio(frozen, behaviour), CAP) * advantage * current


def inputs_of(tokens: list[tuple[float, float, float, float]]) -> TokenInputs:
    current, behaviour, proximal, advantages = torch.tensor(tokens, dtype=torch.float64).unbind(-1)
    return TokenInputs(current.clone().requires_grad_(), behaviour, proximal, advantages)


def gradient_of(value: torch.Tensor, inputs: TokenInputs) -> torch.Tensor:
    (gradient,) = torch.autograd.grad(value.sum(), inputs.learner_logprobs)
    return gradient


def near_a_kink(current: float, proximal: float) -> bool:
    r = slow_ratio(current, proximal)
    return any(abs(r - edge) < 1e-4 for edge in (1 - LOW, 1 + HIGH, DUAL, math.exp(20), math.exp(-20)))


@pytest.mark.parametrize("dual", [0.0, DUAL])
@given(tokens=TOKENS)
def test_ppo_clip_is_the_formula_in_value_and_gradient(
    dual: float, tokens: list[tuple[float, float, float, float]]
) -> None:
    inputs = inputs_of(tokens)
    found = ppo_clip(inputs, low=LOW, high=HIGH, dual=dual)
    gradient = gradient_of(found.value, inputs)
    for place, (current, _, proximal, advantage) in enumerate(tokens):
        assert found.value[place].item() == pytest.approx(slow_ppo(current, proximal, advantage, dual), rel=1e-9)
        if not near_a_kink(current, proximal):
            above, below = (slow_ppo(current + d, proximal, advantage, dual) for d in (STEP, -STEP))
            difference = (above - below) / (2 * STEP)
            assert gradient[place].item() == pytest.approx(difference, rel=1e-4, abs=1e-6)
            if advantage != 0:
                assert bool(found.bounded[place]) == (difference == 0)


@given(tokens=TOKENS)
def test_cispo_is_the_formula_in_value_and_gradient(tokens: list[tuple[float, float, float, float]]) -> None:
    inputs = inputs_of(tokens)
    found = cispo(inputs, cap=CAP)
    gradient = gradient_of(found.value, inputs)
    for place, (current, behaviour, _, advantage) in enumerate(tokens):
        expected = slow_cispo(current, current, behaviour, advantage)
        assert found.value[place].item() == pytest.approx(expected, rel=1e-9, abs=1e-12)
        above, below = (slow_cispo(current + d, current, behaviour, advantage) for d in (STEP, -STEP))
        assert gradient[place].item() == pytest.approx((above - below) / (2 * STEP), rel=1e-4, abs=1e-5)
        assert bool(found.bounded[place]) == (slow_ratio(current, behaviour) > CAP)


@given(tokens=TOKENS)
def test_tis_token_caps_the_weight_and_passes_no_gradient_to_the_policy(
    tokens: list[tuple[float, float, float, float]],
) -> None:
    inputs = inputs_of(tokens)
    weight, capped = tis_token(inputs, cap=TIS)
    expected = [min(slow_ratio(proximal, behaviour), TIS) for _, behaviour, proximal, _ in tokens]
    np.testing.assert_allclose(weight.numpy(), expected, rtol=1e-9)
    assert not weight.requires_grad
    assert [bool(flag) for flag in capped] == [slow_ratio(p, b) > TIS for _, b, p, _ in tokens]


@given(tokens=TOKENS)
def test_the_correction_multiplies_value_and_gradient_of_the_objective(
    tokens: list[tuple[float, float, float, float]],
) -> None:
    inputs = inputs_of(tokens)
    corrected = objective(inputs, LossConfig(name="ppo_clip", correction="tis_token"))
    plain = objective(inputs, LossConfig(name="ppo_clip", correction="none"))
    weight, _ = tis_token(inputs, cap=TIS)
    torch.testing.assert_close(corrected.value, weight * plain.value)
    torch.testing.assert_close(gradient_of(corrected.value, inputs), weight * gradient_of(plain.value, inputs))


LOSSES = {
    "ppo_clip": LossConfig(name="ppo_clip", correction="none"),
    "ppo_clip_behaviour": LossConfig(name="ppo_clip", correction="none", proximal="behaviour"),
    "ppo_clip_tis": LossConfig(name="ppo_clip", correction="tis_token"),
    "cispo": LossConfig(name="cispo", correction="none"),
}


@pytest.mark.parametrize("name", sorted(LOSSES))
@pytest.mark.parametrize("log_ratio", [-100.0, -20.0, 0.0, 20.0, 100.0])
@pytest.mark.parametrize("advantage", [-1.0, 0.0, 1.0])
def test_extreme_ratios_give_finite_values_and_gradients(name: str, log_ratio: float, advantage: float) -> None:
    behaviour = torch.full((3,), -1.0)
    current = (behaviour + log_ratio).requires_grad_()
    inputs = TokenInputs(current, behaviour, behaviour, torch.full((3,), advantage))
    value = objective(inputs, LOSSES[name]).value
    assert value.isfinite().all()
    assert gradient_of(value, inputs).isfinite().all()


def test_a_policy_at_its_anchor_gets_the_policy_gradient_and_no_bound() -> None:
    logprobs = torch.tensor([-0.5, -3.0], requires_grad=True)
    advantages = torch.tensor([2.0, -1.5])
    inputs = TokenInputs(logprobs, logprobs.detach(), logprobs.detach(), advantages)
    for config in LOSSES.values():
        found = objective(inputs, config)
        torch.testing.assert_close(gradient_of(found.value, inputs), advantages)
        assert not found.bounded.any()


@pytest.mark.parametrize("name", sorted(LOSSES))
@pytest.mark.parametrize("tokens", [1, 5])
def test_a_fully_masked_sequence_has_no_loss_and_no_gradient(name: str, tokens: int) -> None:
    behaviour = torch.full((tokens,), -1e30)
    current = torch.full((tokens,), -2.0, requires_grad=True)
    inputs = TokenInputs(current, behaviour, behaviour, torch.ones(tokens))
    value = objective(inputs, LOSSES[name]).value
    loss = masked_sum(-value, torch.zeros(tokens, dtype=torch.bool))
    (gradient,) = torch.autograd.grad(loss, current)
    assert loss.item() == 0
    assert (gradient == 0).all()


def test_a_masked_nan_neither_counts_nor_gets_a_gradient() -> None:
    values = torch.tensor([1.0, float("nan"), float("inf"), 2.0], requires_grad=True)
    total = masked_sum(values, torch.tensor([True, False, False, True]))
    (gradient,) = torch.autograd.grad(total, values)
    assert total.item() == 3
    assert gradient.tolist() == [1, 0, 0, 1]


@given(difference=st.floats(-1e4, 1e4))
def test_a_ratio_is_never_beyond_its_bounds(difference: float) -> None:
    found = ratio(torch.tensor([difference], dtype=torch.float64), torch.zeros(1, dtype=torch.float64)).item()
    assert math.exp(-20) * (1 - 1e-12) <= found <= math.exp(20) * (1 + 1e-12)
