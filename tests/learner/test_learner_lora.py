"""LoRA: adapters learn, the checkpoint beside them rests, and what leaves the learner is one plain model."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from learner import batch, export, optimizer
from learner.batch import MicroBatch, TrainingSequence
from learner.checkpoint.checkpoints import Checkpoints
from learner.checkpoint.progress import Progress
from learner.config import OptimizerConfig
from learner.distributed import Ranks, whole
from learner.optimizer import Optimizer
from learner.policy import model
from learner.policy.config import ModelConfig
from learner.policy.model import Policy, full_state

CASES = [("llama", True), ("llama", False), ("qwen2", True), ("qwen3", False)]
Build = Callable[[str, bool], Path]
Make = Callable[..., list[TrainingSequence]]


def adapted(directory: Path, ranks: Ranks, **options: object) -> Policy:
    chosen: dict[str, object] = {"lora_rank": 4, "logprob_chunk": 16} | options
    return model.load(directory, ranks, ModelConfig(**chosen))  # type: ignore[arg-type]


def train(policy: Policy, micro_batches: list[MicroBatch], count: int) -> Optimizer:
    steps = optimizer.build(policy, OptimizerConfig(lr=1e-2, warmup_steps=0))
    for _ in range(count):
        for micro_batch in micro_batches:
            loss = -(policy(micro_batch, 1.0)[0] * micro_batch.token_weights).sum()
            loss.backward()  # type: ignore[no-untyped-call]
        steps.step()
    return steps


def state_of(policy: Policy) -> dict[str, torch.Tensor]:
    """The weights as the policy itself holds them."""
    return {name: whole(tensor).clone() for name, tensor in policy.network.named_parameters()}


@pytest.mark.parametrize(("architecture", "tied"), CASES)
def test_before_the_first_step_the_merged_weights_are_the_checkpoints(
    architecture: str, tied: bool, ranks: Ranks, model_directory: Build
) -> None:
    directory = model_directory(architecture, tied)
    state = dict(full_state(adapted(directory, ranks)))
    plain = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).state_dict()
    assert list(state) == list(plain)
    for name, tensor in state.items():
        assert torch.equal(tensor, plain[name]), name


@pytest.mark.parametrize(("architecture", "tied"), CASES)
def test_after_steps_transformers_reads_the_same_policy_from_the_merged_checkpoint(
    architecture: str, tied: bool, ranks: Ranks, model_directory: Build, make_sequences: Make, tmp_path: Path
) -> None:
    directory = model_directory(architecture, tied)
    policy = adapted(directory, ranks)
    sequences = make_sequences([8, 5, 11, 3])
    micro_batch = batch.assemble(sequences, ranks.device)
    before = policy(micro_batch, 1.0)[0].detach()
    train(policy, [micro_batch], 3)
    export.write_hf(tmp_path / "merged", full_state(policy), policy.network.config, directory)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    with torch.no_grad():
        logits = torch.cat(  # [N, V]
            [
                plain(torch.tensor([[*one.prompt_ids, *one.token_ids]])).logits[0, len(one.prompt_ids) - 1 : -1]
                for one in sequences
            ]
        )
    truth = logits.log_softmax(-1)[range(len(logits)), micro_batch.targets]
    logprobs = policy(micro_batch, 1.0)[0].detach()
    torch.testing.assert_close(logprobs, truth, atol=1e-5, rtol=0)
    assert (logprobs - before).abs().max() > 1e-2  # and the steps were no trifle


def test_steps_move_every_adapter_and_not_a_bit_of_anything_else(
    ranks: Ranks, model_directory: Build, make_sequences: Make
) -> None:
    policy = adapted(model_directory("qwen2", True), ranks)
    before = state_of(policy)
    train(
        policy,
        batch.share(make_sequences([8, 5]), budget=30, cost=policy.cost, rank=0, world=1, device=ranks.device),
        3,
    )
    after = state_of(policy)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if ".lora_" in name}
    assert len(moved) == 2 * 2 * 7  # A and B, two layers, seven linear layers in each


def test_publishing_does_not_touch_what_is_trained(ranks: Ranks, model_directory: Build, make_sequences: Make) -> None:
    policy = adapted(model_directory("llama", True), ranks)
    train(policy, [batch.assemble(make_sequences([8, 5]), ranks.device)], 2)
    before, published = state_of(policy), dict(full_state(policy))
    again = dict(full_state(policy))
    assert all(torch.equal(published[name], again[name]) for name in published)
    assert all(torch.equal(before[name], tensor) for name, tensor in state_of(policy).items())


def test_merged_weights_are_the_base_and_the_scaled_product_of_the_adapter(
    ranks: Ranks, model_directory: Build, make_sequences: Make
) -> None:
    directory = model_directory("llama", True)
    policy = adapted(directory, ranks, lora_rank=2, lora_alpha=3.0, lora_targets=["q_proj"])
    train(policy, [batch.assemble(make_sequences([8, 5]), ranks.device)], 2)
    found, own = dict(full_state(policy)), state_of(policy)
    plain = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).state_dict()
    name = "model.layers.1.self_attn.q_proj"
    down, up = own[f"{name}.lora_A.default.weight"], own[f"{name}.lora_B.default.weight"]
    truth = plain[f"{name}.weight"].double() + 1.5 * up.double() @ down.double()
    torch.testing.assert_close(found[f"{name}.weight"].double(), truth, atol=1e-7, rtol=0)
    changed = {name for name in plain if not torch.equal(plain[name], found[name])}
    assert changed == {f"model.layers.{layer}.self_attn.q_proj.weight" for layer in range(2)}


def test_the_optimizer_remembers_adapters_alone(ranks: Ranks, model_directory: Build, make_sequences: Make) -> None:
    policy = adapted(model_directory("llama", True), ranks)
    steps = train(policy, [batch.assemble(make_sequences([8, 5]), ranks.device)], 1)
    moments = sum(state["exp_avg"].numel() for state in steps.inner.state.values())
    # the rank times inputs and outputs: four attention layers of 64, 64 and three of the MLP of 64, 256, in two layers
    assert moments == 2 * 4 * (4 * (64 + 64) + 3 * (64 + 256))


def test_adapters_start_alike_in_every_process_whatever_it_drew_before(ranks: Ranks, model_directory: Build) -> None:
    states = []
    with torch.random.fork_rng(devices=[]):
        for seed in (1, 2):
            torch.manual_seed(seed)
            states.append(state_of(adapted(model_directory("llama", True), ranks)))
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
    assert all(tensor.any() for name, tensor in states[0].items() if ".lora_A." in name)


def test_frozen_layers_and_adapters_compute_by_the_faster_product(ranks: Ranks, model_directory: Build) -> None:
    policy = adapted(model_directory("llama", True), ranks)
    linear = [module for module in policy.modules() if isinstance(module, nn.Linear)]
    assert len(linear) == 2 * 7 * 3 + 1
    assert not any(type(module) is nn.Linear for module in linear)


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens", "query"])
def test_a_target_that_is_no_linear_layer_of_the_decoder_is_refused(
    target: str, ranks: Ranks, model_directory: Build
) -> None:
    with pytest.raises(
        ValueError, match=f"lora_targets: '{target}' names no .* there are down_proj, .*, or all-linear"
    ):
        adapted(model_directory("llama", False), ranks, lora_targets=["q_proj", target])


def test_adapters_train_with_bfloat16_compute_and_float32_masters(
    ranks: Ranks, model_directory: Build, make_sequences: Make
) -> None:
    policy = adapted(model_directory("llama", True), ranks, param_dtype="bfloat16", activation_checkpointing=True)
    train(policy, [batch.assemble(make_sequences([8, 5]), ranks.device)], 2)
    assert all(tensor.dtype == torch.float32 for tensor in dict(full_state(policy)).values())


@pytest.fixture
def saved(ranks: Ranks, model_directory: Build, make_sequences: Make, tmp_path: Path) -> tuple[Checkpoints, Policy]:
    """A training checkpoint of adapters after some steps, and their policy."""
    directory = model_directory("llama", True)
    policy = adapted(directory, ranks)
    steps = train(policy, [batch.assemble(make_sequences([8, 5]), ranks.device)], 2)
    checkpoints = Checkpoints(tmp_path / "checkpoints", ranks, directory, keep=1, write_seconds=60)
    checkpoints.save(policy, steps, Progress(policy_version=2, optimizer_steps=2))
    checkpoints.finish()
    return checkpoints, policy


@pytest.mark.parametrize("dtype", ["", "bfloat16"])
def test_a_training_checkpoint_of_adapters_is_exported_as_the_model_that_was_published(
    dtype: str, saved: tuple[Checkpoints, Policy], tmp_path: Path
) -> None:
    checkpoints, policy = saved
    export.export(checkpoints.directory / "step_00000002", tmp_path / "out", dtype)
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    truth = {name: tensor.to(getattr(torch, dtype or "float32")) for name, tensor in full_state(policy)}
    assert set(found) == set(truth)
    assert [name for name in truth if not torch.equal(found[name], truth[name])] == []


def restored(saved: tuple[Checkpoints, Policy], ranks: Ranks, directory: Path, **options: object) -> Policy:
    policy = adapted(directory, ranks, **options)
    path = saved[0].latest()
    assert path is not None
    saved[0].restore(policy, optimizer.build(policy, OptimizerConfig()), path)
    return policy


def test_a_run_is_taken_up_with_its_adapters(
    saved: tuple[Checkpoints, Policy], ranks: Ranks, model_directory: Build
) -> None:
    again = dict(full_state(restored(saved, ranks, model_directory("llama", True))))
    assert all(torch.equal(again[name], tensor) for name, tensor in full_state(saved[1]))


def test_a_run_is_not_taken_up_with_another_scale_of_its_adapters(
    saved: tuple[Checkpoints, Policy], ranks: Ranks, model_directory: Build
) -> None:
    policy = restored(saved, ranks, model_directory("llama", True), lora_alpha=16.0)
    with pytest.raises(ValueError, match=r"policy\.lora_alpha: adapters count 4 times, but were trained to count 8"):
        next(full_state(policy))


def test_a_run_is_not_taken_up_with_another_rank(
    saved: tuple[Checkpoints, Policy], ranks: Ranks, model_directory: Build
) -> None:
    with pytest.raises(ValueError, match=r"is a checkpoint of another model: .*lora_A"):
        restored(saved, ranks, model_directory("llama", True), lora_rank=2)
