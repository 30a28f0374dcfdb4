"""Warm-up, clipping, and a gradient that is not finite."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from learner import optimizer
from learner.config import OptimizerConfig
from learner.distributed import Ranks
from learner.policy import model
from learner.policy.config import ModelConfig
from learner.policy.model import Policy, full_state

Build = Callable[[str, bool], Path]


@pytest.fixture
def policy(ranks: Ranks, model_directory: Build) -> Policy:
    return model.load(model_directory("llama", True), ranks, ModelConfig(logprob_chunk=16))


def give_gradients(policy: Policy, value: float) -> None:
    for parameter in policy.parameters():
        parameter.grad = torch.full_like(parameter, value)


def state_of(policy: Policy) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in full_state(policy)}


def test_the_learning_rate_warms_up_by_a_line_and_stays(policy: Policy) -> None:
    steps = optimizer.build(policy, OptimizerConfig(lr=0.4, warmup_steps=4))
    rates = []
    for _ in range(6):
        rates.append(steps.lr)
        give_gradients(policy, 1e-3)
        steps.step()
        assert {group["lr"] for group in steps.inner.param_groups} == {rates[-1]}  # what was said is what was used
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.4])


def test_without_warm_up_the_first_step_has_the_full_rate(policy: Policy) -> None:
    assert optimizer.build(policy, OptimizerConfig(lr=0.4, warmup_steps=0)).lr == 0.4


def test_a_decaying_rate_falls_by_a_line_to_its_last_step_and_is_zero_after_it(policy: Policy) -> None:
    steps = optimizer.build(policy, OptimizerConfig(lr=0.4, warmup_steps=0), decay_steps=4)
    rates = []
    for _ in range(6):
        rates.append(steps.lr)
        steps.step()
    assert rates == pytest.approx([0.4, 0.3, 0.2, 0.1, 0.0, 0.0])


def test_an_update_is_made_at_the_scale_that_was_asked(policy: Policy) -> None:
    steps = optimizer.build(policy, OptimizerConfig(lr=0.4, warmup_steps=0))
    give_gradients(policy, 1e-3)
    outcome = steps.step(0.25)
    assert outcome.lr == pytest.approx(0.1)
    assert {group["lr"] for group in steps.inner.param_groups} == {outcome.lr}


def test_a_gradient_of_zero_makes_no_step_of_momentum_alone(policy: Policy) -> None:
    steps = optimizer.build(policy, OptimizerConfig(lr=1e-2, warmup_steps=0))
    give_gradients(policy, 1.0)
    steps.step()
    weights = state_of(policy)
    give_gradients(policy, 0.0)
    outcome = steps.step()
    assert (outcome.skipped, outcome.broken, outcome.lr) == ("no_signal", False, 0.0)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in state_of(policy).items())


def test_a_large_gradient_is_scaled_to_the_bound_and_its_norm_reported(policy: Policy) -> None:
    steps = optimizer.build(policy, OptimizerConfig(lr=1e-3, warmup_steps=0, max_grad_norm=0.5))
    give_gradients(policy, 2.0)
    count = sum(parameter.numel() for parameter in policy.parameters())
    assert steps.step().norm == pytest.approx(2.0 * math.sqrt(count), rel=1e-5)
    squares = sum(float((moments["exp_avg"].full_tensor() ** 2).sum()) for moments in steps.inner.state.values())
    assert math.sqrt(squares) == pytest.approx(0.1 * 0.5, rel=1e-4)  # (1 − β1) · the clipped gradient


def test_gradients_are_cleared_by_a_step(policy: Policy) -> None:
    steps = optimizer.build(policy, OptimizerConfig())
    give_gradients(policy, 1.0)
    steps.step()
    assert all(parameter.grad is None for parameter in policy.parameters())


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_leaves_weights_and_moments_untouched(policy: Policy, poison: float) -> None:
    steps = optimizer.build(policy, OptimizerConfig(lr=1e-2, warmup_steps=0))
    give_gradients(policy, 1.0)
    steps.step()
    weights = state_of(policy)
    moments = [
        {name: (value.full_tensor() if value.dim() else value).clone() for name, value in state.items()}
        for state in steps.inner.state.values()
    ]
    give_gradients(policy, 1.0)
    first = next(policy.parameters())
    assert first.grad is not None
    first.grad.to_local()[0, 0] = poison  # type: ignore[attr-defined]
    assert steps.step().skipped == "not_finite"
    assert all(torch.equal(tensor, weights[name]) for name, tensor in state_of(policy).items())
    for before, after in zip(moments, steps.inner.state.values(), strict=True):
        for name, value in before.items():
            now = after[name].full_tensor() if after[name].dim() else after[name]
            assert torch.equal(now, value), name
    give_gradients(policy, 1.0)
    assert not steps.step().skipped  # and training goes on
