"""The step: its gradient does not depend on how the batch is cut, and equals the plain formula on whole logits."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from learner import batch, model, optimizer
from learner.batch import TrainingSequence
from learner.config import LossConfig, OptimizerConfig
from learner.distributed import Ranks
from learner.model import Policy, full_state
from learner.optimizer import Optimizer
from learner.step import StepResult, train_step, training_sequences
from protocol.messages import GroupBatch

GRADIENT_TOLERANCE = 1e-6  # of the largest gradient; float32 sums in another order
WEIGHT_TOLERANCE = 5e-6  # after three steps of lr 1e-3
EPS = 1e-5  # large enough that AdamW does not blow the rounding of a vanishing gradient up to a whole step
LOSS = LossConfig(proximal="behaviour", correction="none")

Build = Callable[[str, bool], Path]
MakeBatch = Callable[..., GroupBatch]


@dataclasses.dataclass(slots=True)
class Recorder(Optimizer):
    """Keeps the gradient instead of using it."""

    gradient: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)

    def step(self) -> float:
        for name, parameter in self.policy.named_parameters():
            assert parameter.grad is not None
            self.gradient[name] = parameter.grad.full_tensor().clone()  # type: ignore[attr-defined]
        self.inner.zero_grad()
        return 1.0


def recorded(
    policy: Policy, micro_batches: list[batch.MicroBatch], config: LossConfig
) -> tuple[dict[str, torch.Tensor], StepResult]:
    inner = optimizer.build(policy, OptimizerConfig()).inner
    recorder = Recorder(policy, OptimizerConfig(), inner)
    result = train_step(policy, recorder, micro_batches, config, temperature=0.8)
    return recorder.gradient, result


def assert_same_gradient(found: dict[str, torch.Tensor], truth: dict[str, torch.Tensor]) -> None:
    scale = max(float(gradient.abs().max()) for gradient in truth.values())
    for name, gradient in truth.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=GRADIENT_TOLERANCE * max(scale, 1))


@pytest.fixture(scope="module")
def policy(ranks: Ranks, model_directory: Build) -> Policy:
    return model.load(model_directory("llama", True), ranks, param_dtype="float32", chunk=16)


@settings(max_examples=15)
@given(owners=st.lists(st.integers(0, 4), min_size=12, max_size=12), seed=st.integers(0, 3))
def test_any_partition_into_micro_batches_gives_the_same_gradient(
    policy: Policy, make_batch: MakeBatch, owners: list[int], seed: int
) -> None:
    sequences = training_sequences(make_batch(3, 4, seed=seed), LOSS, longest=12)
    whole, expected = recorded(policy, [batch.assemble(sequences, torch.device("cpu"))], LOSS)
    parts: dict[int, list[TrainingSequence]] = {}
    for owner, sequence in zip(owners, sequences, strict=True):
        parts.setdefault(owner, []).append(sequence)
    micro_batches = [batch.assemble(rows, torch.device("cpu")) for rows in parts.values()]
    idle = batch.idle(sequences[0], torch.device("cpu"))
    found, result = recorded(policy, [*micro_batches, idle], LOSS)
    assert_same_gradient(found, whole)
    assert result.loss == pytest.approx(expected.loss, abs=1e-6)
    for name, value in expected.described.items():
        assert result.described[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


def slow_gradient(
    directory: Path, sequences: list[TrainingSequence], config: LossConfig
) -> tuple[float, dict[str, torch.Tensor]]:
    """PPO with DAPO's clip and token weights, sequence by sequence, on the whole logits of transformers in float64."""
    network = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float64)
    loss = torch.zeros((), dtype=torch.float64)
    for sequence in sequences:
        ids = torch.tensor([[*sequence.prompt_ids, *sequence.token_ids]], dtype=torch.int64)
        logits = network(ids).logits[0, len(sequence.prompt_ids) - 1 : -1] / 0.8
        current = logits.log_softmax(-1)[range(len(sequence.token_ids)), sequence.token_ids.tolist()]
        r = (current - torch.tensor(sequence.behaviour_logprobs, dtype=torch.float64)).exp()
        a = sequence.advantage
        value = torch.minimum(r * a, r.clamp(1 - config.clip_low, 1 + config.clip_high) * a)
        if a < 0:
            value = torch.maximum(value, torch.tensor(config.dual_clip * a, dtype=torch.float64))
        loss = loss - sequence.token_weight * value.sum()
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.item(), {name: parameter.grad for name, parameter in network.named_parameters()}


@pytest.mark.parametrize("aggregation", ["token_mean", "prompt_mean"])
def test_the_step_equals_the_plain_formula_on_whole_logits(
    policy: Policy, model_directory: Build, make_batch: MakeBatch, aggregation: str
) -> None:
    config = dataclasses.replace(LOSS, aggregation=aggregation)
    sequences = training_sequences(make_batch(3, 4, seed=7), config, longest=12)
    found, result = recorded(policy, [batch.assemble(sequences, torch.device("cpu"))], config)
    loss, truth = slow_gradient(model_directory("llama", True), sequences, config)
    assert result.loss == pytest.approx(loss, rel=1e-4, abs=1e-6)
    by_name = {name.removeprefix("network."): gradient.double() for name, gradient in found.items()}
    assert set(by_name) == set(truth)
    scale = max(float(gradient.abs().max()) for gradient in truth.values())
    for name, gradient in truth.items():
        torch.testing.assert_close(by_name[name], gradient, rtol=1e-3, atol=1e-5 * scale)


@pytest.mark.parametrize("name", ["ppo_clip", "cispo"])
def test_micro_batch_budgets_give_the_same_weights_after_three_steps(
    ranks: Ranks, model_directory: Build, make_batch: MakeBatch, name: str
) -> None:
    config = LossConfig(name=name, correction="tis_token" if name == "ppo_clip" else "none")
    weights = []
    for budget in (1, 50, 10_000):
        trained = model.load(model_directory("llama", True), ranks, param_dtype="float32", chunk=16)
        steps = optimizer.build(trained, OptimizerConfig(lr=1e-3, warmup_steps=0, eps=EPS))
        for seed in range(3):
            sequences = training_sequences(make_batch(3, 4, seed=seed), config, longest=12)
            micro_batches = batch.share(
                sequences, budget=budget, cost=trained.cost, rank=0, world=1, device=ranks.device
            )
            train_step(trained, steps, micro_batches, config, temperature=1.0)
        weights.append({name: tensor.clone() for name, tensor in full_state(trained)})
    for other in weights[1:]:
        for key, tensor in weights[0].items():
            torch.testing.assert_close(other[key], tensor, rtol=0, atol=WEIGHT_TOLERANCE)


def test_sequences_carry_advantage_weight_and_staleness_of_their_rollout(make_batch: MakeBatch) -> None:
    received = make_batch(2, 3, seed=4, version=5)
    sequences = training_sequences(received, LossConfig(advantage="dr_grpo"), longest=12)
    tokens = sum(len(sequence.token_ids) for sequence in sequences)
    scored = [(group, item) for group in received.groups for item in group.scored]
    for index, (sequence, (group, item)) in enumerate(zip(sequences, scored, strict=True)):
        rewards = [float(other.verdict.reward or 0) for other in group.scored]
        assert sequence.index == index
        assert sequence.advantage == pytest.approx(float(item.verdict.reward or 0) - np.mean(rewards))
        assert sequence.token_weight == pytest.approx(1 / tokens)
        spans = [5 - span.version for span in item.rollout.version_spans for _ in range(span.tokens)]
        assert sequence.staleness.tolist() == spans
