"""The reference policy: loaded only when needed, frozen, replaced whole."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from learner import batch, optimizer
from learner.batch import TrainingSequence
from learner.config import LearnerRoot, LossConfig, OptimizerConfig
from learner.distributed import Ranks
from learner.policy import model
from learner.policy.config import ModelConfig
from learner.policy.model import full_state
from learner.policy.reference import load_reference, replace
from learner.step import train_step

Build = Callable[[str, bool], Path]


def config_of(directory: Path, **loss: object) -> LearnerRoot:
    return LearnerRoot(model=str(directory), loss=LossConfig(**loss))  # type: ignore[arg-type]


def test_without_a_kl_term_no_reference_is_loaded(ranks: Ranks, model_directory: Build) -> None:
    assert load_reference(config_of(model_directory("llama", True)), ranks) is None


def test_a_reference_that_is_not_there_is_named_with_its_option(ranks: Ranks, model_directory: Build) -> None:
    config = config_of(model_directory("llama", True), kl_coefficient=0.1, kl_reference="nowhere")
    with pytest.raises(ValueError, match=r"loss\.kl_reference.*nowhere.*no config\.json"):
        load_reference(config, ranks)


@pytest.mark.parametrize("tied", [True, False])
def test_the_policy_moves_and_the_reference_stays_until_it_is_replaced(
    ranks: Ranks, model_directory: Build, make_sequences: Callable[..., list[TrainingSequence]], tied: bool
) -> None:
    directory = model_directory("llama", tied)
    config = config_of(directory, kl_coefficient=0.1)
    policy, reference = model.load(directory, ranks, ModelConfig(logprob_chunk=16)), load_reference(config, ranks)
    assert reference is not None
    first = {name: tensor.clone() for name, tensor in full_state(reference)}
    steps = optimizer.build(policy, OptimizerConfig(lr=1e-2, warmup_steps=0))
    micro_batches = batch.share(
        make_sequences([4, 6]), budget=100, cost=policy.cost, rank=0, world=1, device=ranks.device
    )
    train_step(policy, steps, [micro_batches], config.loss, temperature=1.0, reference=reference)
    assert all(torch.equal(tensor, first[name]) for name, tensor in full_state(reference))
    assert not any(parameter.requires_grad for parameter in reference.parameters())

    replace(reference, policy)
    moved = {name: tensor.clone() for name, tensor in full_state(policy)}
    assert all(torch.equal(tensor, moved[name]) for name, tensor in full_state(reference))
    result = train_step(policy, steps, [micro_batches], config.loss, temperature=1.0, reference=reference)
    assert result.described["reference_kl"] == pytest.approx(0, abs=1e-6)  # the forward pass, too, sees the new weights
