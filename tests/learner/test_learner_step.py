"""The step: its gradient does not depend on how the batch is cut, and equals the plain formula on whole logits."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from learner import batch, optimizer, step
from learner.batch import MicroBatch, TrainingSequence
from learner.config import LossConfig, OptimizerConfig
from learner.credit import credit, minibatches
from learner.distributed import Ranks
from learner.optimizer import Optimizer, Outcome
from learner.policy import model
from learner.policy.config import ModelConfig
from learner.policy.cost import CostModel
from learner.policy.model import Policy, full_state
from learner.step import StepResult, train_step
from protocol.messages import GroupBatch

CPU = torch.device("cpu")
COST = CostModel(linear=1.0, quadratic=0.0)
GRADIENT_TOLERANCE = 1e-6  # of the largest gradient; float32 sums in another order
WEIGHT_TOLERANCE = 5e-6  # after three steps of lr 1e-3
EPS = 1e-5  # large enough that AdamW does not blow the rounding of a vanishing gradient up to a whole step
LOSS = LossConfig(proximal="behaviour", corrections=[])
LOSSES = {
    "ppo_clip": LOSS,
    "decoupled_ppo": LossConfig(name="decoupled_ppo", proximal="loglinear", corrections=["tis_sequence", "veto"]),
    "gspo": LossConfig(name="gspo", aggregation="seq_mean_token_mean", gspo_low=0.3, gspo_high=0.4),
    "m2po": LossConfig(name="m2po", corrections=["opsm"], aggregation="prompt_mean"),
    "topr": LossConfig(name="topr", corrections=["k3_band"], k3_bound=10.0, entropy_bonus=0.01),
}

Build = Callable[[str, bool], Path]
MakeBatch = Callable[..., GroupBatch]


@dataclasses.dataclass(slots=True)
class Recorder(Optimizer):
    """Keeps the gradient instead of using it."""

    gradient: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)

    def step(self, scale: float = 1.0) -> Outcome:
        for name, parameter in self.policy.named_parameters():
            assert parameter.grad is not None
            self.gradient[name] = parameter.grad.full_tensor().clone()  # type: ignore[attr-defined]
        self.inner.zero_grad()
        return Outcome(1.0, 1.0, "")


def trained_sequences(received: GroupBatch, config: LossConfig) -> list[TrainingSequence]:
    """What one update trains of a batch."""
    (sequences,) = minibatches(credit(received, config, longest=12).sequences, config, longest=12)
    return sequences


def packed(received: GroupBatch, config: LossConfig, budget: int = 10_000) -> list[list[MicroBatch]]:
    parts = minibatches(credit(received, config, longest=12).sequences, config, longest=12)
    return [batch.share(part, budget=budget, cost=COST, rank=0, world=1, device=CPU) for part in parts]


def recorded(
    policy: Policy, micro_batches: list[MicroBatch], config: LossConfig
) -> tuple[dict[str, torch.Tensor], StepResult]:
    inner = optimizer.build(policy, OptimizerConfig()).inner
    recorder = Recorder(policy, OptimizerConfig(), inner)
    result = train_step(policy, recorder, [micro_batches], config, temperature=0.8)
    return recorder.gradient, result


def assert_same_gradient(found: dict[str, torch.Tensor], truth: dict[str, torch.Tensor]) -> None:
    scale = max(float(gradient.abs().max()) for gradient in truth.values())
    for name, gradient in truth.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=GRADIENT_TOLERANCE * max(scale, 1))


def numbers(described: Any, path: str = "") -> dict[str, float]:
    """Every number in nested figures, by its path."""
    if isinstance(described, dict):
        return {
            key: value for name, inner in described.items() for key, value in numbers(inner, f"{path}.{name}").items()
        }
    return {path: described}


@pytest.fixture(scope="module")
def policy(ranks: Ranks, model_directory: Build) -> Policy:
    return model.load(model_directory("llama", True), ranks, ModelConfig(logprob_chunk=16))


@pytest.fixture
def fresh_policy(ranks: Ranks, model_directory: Build) -> Policy:
    return model.load(model_directory("llama", True), ranks, ModelConfig(logprob_chunk=16))


@pytest.mark.parametrize("name", sorted(LOSSES))
@settings(max_examples=6)
@given(owners=st.lists(st.integers(0, 4), min_size=12, max_size=12), seed=st.integers(0, 3))
def test_any_partition_into_micro_batches_gives_the_same_gradient(
    policy: Policy, make_batch: MakeBatch, name: str, owners: list[int], seed: int
) -> None:
    config = LOSSES[name]
    sequences = trained_sequences(make_batch(3, 4, seed=seed), config)
    whole, expected = recorded(policy, [batch.assemble(sequences, CPU)], config)
    parts: dict[int, list[TrainingSequence]] = {}
    for owner, sequence in zip(owners, sequences, strict=False):
        parts.setdefault(owner, []).append(sequence)
    micro_batches = [batch.assemble(rows, CPU) for rows in parts.values()]
    idle = batch.idle(sequences[0], CPU)
    found, result = recorded(policy, [*micro_batches, idle], config)
    assert_same_gradient(found, whole)
    assert result.loss == pytest.approx(expected.loss, rel=1e-5, abs=1e-6)
    assert numbers(result.described) == pytest.approx(numbers(expected.described), rel=1e-4, abs=1e-6)


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
    sequences = trained_sequences(make_batch(3, 4, seed=7), config)
    found, result = recorded(policy, [batch.assemble(sequences, CPU)], config)
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
    anchored = {"proximal": "recompute", "corrections": ["tis_token"]} if name == "ppo_clip" else {}
    config = LossConfig(name=name, minibatches=2, **anchored)  # type: ignore[arg-type]
    weights = []
    for budget in (1, 50, 10_000):
        trained = model.load(model_directory("llama", True), ranks, ModelConfig(logprob_chunk=16))
        steps = optimizer.build(trained, OptimizerConfig(lr=1e-3, warmup_steps=0, eps=EPS))
        for seed in range(3):
            train_step(trained, steps, packed(make_batch(3, 4, seed=seed), config, budget), config, temperature=1.0)
        weights.append({name: tensor.clone() for name, tensor in full_state(trained)})
    for other in weights[1:]:
        for key, tensor in weights[0].items():
            torch.testing.assert_close(other[key], tensor, rtol=0, atol=WEIGHT_TOLERANCE)


def test_several_minibatches_keep_the_anchor_of_the_batch_start(
    fresh_policy: Policy, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """p of every minibatch is the policy before the first update, not the one that the updates before have made."""
    config = LossConfig(proximal="recompute", minibatches=3)
    whole = packed(make_batch(3, 4, seed=1), config)
    with torch.no_grad():
        before = [fresh_policy(part[0], 1.0)[0] for part in whole]
    anchors: list[torch.Tensor] = []
    current: list[torch.Tensor] = []
    plain = step.token_loss

    def spy(tokens: Any, config: LossConfig) -> Any:
        anchors.append(tokens.proximal_logprobs)
        current.append(tokens.learner_logprobs.detach())
        return plain(tokens, config)

    monkeypatch.setattr(step, "token_loss", spy)
    steps = optimizer.build(fresh_policy, OptimizerConfig(lr=1e-2, warmup_steps=0))
    result = train_step(fresh_policy, steps, whole, config, temperature=1.0)
    assert result.updates == len(whole) > 1
    for anchor, start in zip(anchors, before, strict=True):
        torch.testing.assert_close(anchor, start)
    assert (current[-1] - anchors[-1]).abs().max() > 1e-3


def weights_of(policy: Policy) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in full_state(policy)}


def assert_unchanged(policy: Policy, before: dict[str, torch.Tensor]) -> None:
    assert all(torch.equal(tensor, before[name]) for name, tensor in full_state(policy))


@pytest.mark.parametrize("budget", [1, 10_000])
def test_a_loss_that_is_not_finite_skips_the_update_and_names_its_groups(
    fresh_policy: Policy, make_batch: MakeBatch, budget: int
) -> None:
    received = make_batch(3, 4, seed=2)
    steps = optimizer.build(fresh_policy, OptimizerConfig(lr=1e-2, warmup_steps=0))
    train_step(fresh_policy, steps, packed(received, LOSS), LOSS, temperature=1.0)  # there are moments now
    before = weights_of(fresh_policy)
    (parts,) = packed(received, LOSS, budget)
    group = int(parts[-1].group_index[0])
    for part in parts:
        part.advantages[part.group_index == group] = math.nan
    result = train_step(fresh_policy, steps, [parts], LOSS, temperature=1.0)
    assert result.skipped == {"not_finite": 1}
    assert result.culprits == (group,)
    assert_unchanged(fresh_policy, before)
    assert not train_step(fresh_policy, steps, packed(received, LOSS), LOSS, temperature=1.0).skipped  # and goes on


def test_a_gradient_that_overflows_behind_a_finite_loss_names_the_groups_of_its_micro_batch(
    fresh_policy: Policy, make_batch: MakeBatch
) -> None:
    (parts,) = packed(make_batch(3, 4, seed=2), LOSS, 1)
    before = weights_of(fresh_policy)
    parts[0].token_weights.fill_(3e38)
    steps = optimizer.build(fresh_policy, OptimizerConfig())
    result = train_step(fresh_policy, steps, [parts], LossConfig(corrections=[]), temperature=1.0)
    assert result.skipped == {"not_finite": 1}
    assert result.culprits == (int(parts[0].group_index[0]),)
    assert_unchanged(fresh_policy, before)


def test_a_batch_that_is_rejected_altogether_is_a_counted_step_without_update(
    fresh_policy: Policy, make_batch: MakeBatch
) -> None:
    config = LossConfig(name="cispo", corrections=["k3_band"], k3_bound=0.0)
    received = make_batch(3, 4, seed=3)
    steps = optimizer.build(fresh_policy, OptimizerConfig(lr=1e-2, warmup_steps=0))
    train_step(fresh_policy, steps, packed(received, LOSS), LOSS, temperature=1.0)  # its momentum must not act below
    before = weights_of(fresh_policy)
    result = train_step(fresh_policy, steps, packed(received, config), config, temperature=1.0)
    assert (result.skipped, result.lr, result.culprits) == ({"no_signal": 1}, 0.0, ())
    assert result.described["mask_fraction"] == 1.0
    assert_unchanged(fresh_policy, before)


def test_a_batch_of_which_the_filters_leave_nothing_makes_no_update(
    fresh_policy: Policy, make_batch: MakeBatch
) -> None:
    before = weights_of(fresh_policy)
    steps = optimizer.build(fresh_policy, OptimizerConfig())
    result = train_step(fresh_policy, steps, [], LOSS, temperature=1.0)
    assert (result.updates, result.skipped) == (0, {})
    assert result.described["ess"] is None
    assert_unchanged(fresh_policy, before)


def test_the_step_shrinks_with_the_effective_sample_size(fresh_policy: Policy, make_batch: MakeBatch) -> None:
    config = LossConfig(name="cispo", corrections=[], ess_lr=True)
    steps = optimizer.build(fresh_policy, OptimizerConfig(lr=1e-3, warmup_steps=0))
    result = train_step(fresh_policy, steps, packed(make_batch(3, 4, seed=5), config), config, temperature=1.0)
    ess = result.described["ess"]
    assert isinstance(ess, float)
    assert 0 < ess < 1
    assert result.lr == pytest.approx(1e-3 * math.sqrt(ess))


@pytest.mark.parametrize("estimator", ["k3", "k2"])
def test_the_reference_pulls_the_policy_back(
    ranks: Ranks, model_directory: Build, make_batch: MakeBatch, estimator: str
) -> None:
    """With a policy away from its reference and no advantage, steps on the KL alone lessen it."""
    config = LossConfig(kl_coefficient=1.0, kl_estimator=estimator, corrections=[], filters=[])
    trained, reference = (
        model.load(model_directory("llama", True), ranks, ModelConfig(logprob_chunk=16)) for _ in range(2)
    )
    with torch.no_grad():
        trained.network.model.layers[0].mlp.down_proj.weight.mul_(3)
    (parts,) = packed(make_batch(3, 4, seed=1), config)
    (scored,) = [
        dataclasses.replace(
            part, behaviour_logprobs=trained(part, 1.0)[0].detach(), advantages=torch.zeros_like(part.advantages)
        )
        for part in parts
    ]
    steps = optimizer.build(trained, OptimizerConfig(lr=1e-3, warmup_steps=0))
    kl = []
    for _ in range(6):
        result = train_step(trained, steps, [[scored]], config, temperature=1.0, reference=reference)
        kl.append(result.described["reference_kl"])
    assert isinstance(kl[0], float)
    assert kl[0] > 1e-3
    assert kl[-1] < 0.8 * kl[0]


def test_the_kl_of_the_reward_is_the_sum_of_log_ratios_of_each_rollout(
    policy: Policy, ranks: Ranks, model_directory: Build, make_sequences: Callable[..., list[TrainingSequence]]
) -> None:
    reference = model.load(model_directory("qwen2", True), ranks, ModelConfig(logprob_chunk=16))
    sequences = make_sequences([3, 1, 5])
    micro_batches = batch.share(sequences, budget=9, cost=policy.cost, rank=0, world=1, device=CPU)
    found = step.reference_kl(policy, reference, micro_batches, 3, 1.0)
    for sequence in sequences:
        alone = batch.assemble([sequence], CPU)
        truth = float((policy(alone, 1.0)[0] - reference(alone, 1.0)[0]).detach().sum())
        assert found[sequence.index] == pytest.approx(truth, abs=1e-4)


def test_sequences_carry_advantage_weight_and_staleness_of_their_rollout(make_batch: MakeBatch) -> None:
    received = make_batch(2, 3, seed=4, version=5)
    config = LossConfig(advantage="dr_grpo", filters=[])
    sequences = trained_sequences(received, config)
    tokens = sum(len(sequence.token_ids) for sequence in sequences)
    scored = [(group, item) for group in received.groups for item in group.scored]
    for index, (sequence, (group, item)) in enumerate(zip(sequences, scored, strict=True)):
        rewards = [float(other.verdict.reward or 0) for other in group.scored]
        assert (sequence.index, sequence.group) == (index, group.group_id)
        assert sequence.advantage == pytest.approx(float(item.verdict.reward or 0) - np.mean(rewards))
        assert sequence.token_weight == pytest.approx(1 / tokens)
        spans = [5 - span.version for span in item.rollout.version_spans for _ in range(span.tokens)]
        assert sequence.staleness.tolist() == spans
