"""The policy against transformers' own forward pass, on four architectures, and what loading refuses."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from learner import batch, optimizer
from learner.batch import MicroBatch, TrainingSequence
from learner.config import LossConfig, OptimizerConfig
from learner.distributed import Ranks, whole
from learner.optimizer import Optimizer
from learner.policy import model
from learner.policy.config import ModelConfig
from learner.policy.cost import CostModel
from learner.policy.model import Policy, full_state
from learner.step import train_step

COST = CostModel(linear=1.0, quadratic=0.0)
CASES = [("llama", True), ("llama", False), ("qwen2", True), ("qwen3", False)]
Build = Callable[[str, bool], Path]
Make = Callable[..., list[TrainingSequence]]


def loaded(directory: Path, ranks: Ranks, **options: Any) -> Policy:
    return model.load(directory, ranks, ModelConfig(logprob_chunk=16, **options))


@pytest.mark.parametrize(("architecture", "tied"), CASES)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_equal_each_sequence_alone_through_transformers(
    architecture: str, tied: bool, temperature: float, ranks: Ranks, model_directory: Build, make_sequences: Make
) -> None:
    directory = model_directory(architecture, tied)
    policy = model.load(directory, ranks, ModelConfig(logprob_chunk=7))
    plain = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    sequences = make_sequences([5, 17, 1, 9])  # of different lengths: padding must not change anything
    micro_batch = batch.assemble(sequences, ranks.device)
    logprobs, entropies = policy(micro_batch, temperature)
    start = 0
    for sequence in sequences:
        ids = torch.tensor([[*sequence.prompt_ids, *sequence.token_ids]], dtype=torch.int64)
        with torch.no_grad():
            logits = plain(ids).logits[0, len(sequence.prompt_ids) - 1 : -1] / temperature  # [T, V]
        truth = logits.log_softmax(-1)
        piece = slice(start, start + len(sequence.token_ids))
        torch.testing.assert_close(
            logprobs[piece], truth[range(len(logits)), sequence.token_ids.tolist()], atol=1e-5, rtol=0
        )
        torch.testing.assert_close(entropies[piece], -(truth.exp() * truth).sum(-1), atol=1e-5, rtol=0)
        start = piece.stop


@pytest.mark.parametrize(("architecture", "tied"), CASES)
def test_full_state_has_the_names_and_values_of_transformers(
    architecture: str, tied: bool, ranks: Ranks, model_directory: Build
) -> None:
    directory = model_directory(architecture, tied)
    state = dict(full_state(model.load(directory, ranks, ModelConfig(logprob_chunk=8))))
    plain = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).state_dict()
    assert list(state) == list(plain)
    assert "lm_head.weight" in state
    for name, tensor in state.items():
        assert torch.equal(tensor, plain[name]), name


@pytest.mark.parametrize(("architecture", "tied"), [("qwen2", True), ("llama", False), ("qwen3", False)])
def test_ten_steps_move_every_weight_and_keep_the_tie(
    architecture: str, tied: bool, ranks: Ranks, model_directory: Build, make_sequences: Make
) -> None:
    policy = model.load(model_directory(architecture, tied), ranks, ModelConfig(logprob_chunk=16))
    steps = optimizer.build(policy, OptimizerConfig(lr=1e-3, warmup_steps=2))
    before = {name: tensor.clone() for name, tensor in full_state(policy)}
    micro_batches = batch.share(
        make_sequences([8, 5, 11, 3]), budget=30, cost=policy.cost, rank=0, world=1, device=ranks.device
    )
    results = [train_step(policy, steps, [micro_batches], LossConfig(), temperature=1.0) for _ in range(10)]
    assert not any(result.skipped for result in results)
    after = dict(full_state(policy))
    assert [name for name in before if torch.equal(before[name], after[name])] == []
    assert torch.equal(after["lm_head.weight"], after["model.embed_tokens.weight"]) == tied


def test_bfloat16_compute_stays_near_float32_and_keeps_float32_masters(
    ranks: Ranks, model_directory: Build, make_sequences: Make
) -> None:
    directory, sequences = model_directory("llama", True), make_sequences([5, 9])
    exact = model.load(directory, ranks, ModelConfig(logprob_chunk=16))
    coarse = model.load(directory, ranks, ModelConfig(param_dtype="bfloat16", logprob_chunk=16))
    micro_batch = batch.assemble(sequences, ranks.device)
    logprobs = coarse(micro_batch, 1.0)[0]
    assert logprobs.dtype == torch.float32
    torch.testing.assert_close(logprobs, exact(micro_batch, 1.0)[0], atol=0.2, rtol=0)
    assert all(tensor.dtype == torch.float32 for _, tensor in full_state(coarse))


def train(policy: Policy, micro_batches: list[MicroBatch], steps: Optimizer) -> float:
    """One step towards the targets; returns its loss."""
    total = 0.0
    for micro_batch in micro_batches:
        loss = -(policy(micro_batch, 1.0)[0] * micro_batch.token_weights).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach())
    steps.step()
    return total


def test_a_bfloat16_step_has_nearly_the_gradient_of_a_float32_step(
    ranks: Ranks, model_directory: Build, make_sequences: Make
) -> None:
    micro_batches = batch.share(
        make_sequences([8, 5, 11, 3]), budget=30, cost=COST, rank=0, world=1, device=ranks.device
    )
    losses, moments = [], []
    for dtype in ("float32", "bfloat16"):
        policy = loaded(model_directory("llama", True), ranks, param_dtype=dtype)
        steps = optimizer.build(policy, OptimizerConfig(lr=1e-3, warmup_steps=0, max_grad_norm=1e9))
        losses.append(train(policy, micro_batches, steps))
        moments.append(torch.cat([whole(state["exp_avg"]).flatten() for state in steps.inner.state.values()]))
    assert losses[1] == pytest.approx(losses[0], rel=0.01)
    assert float(moments[1].norm()) == pytest.approx(float(moments[0].norm()), rel=0.02)
    assert not torch.equal(*moments)  # it was another computation
    assert torch.cosine_similarity(*moments, dim=0) > 0.999


@pytest.mark.parametrize("options", [{"activation_checkpointing": True}, {"reshard": False}], ids=str)
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_what_saves_memory_changes_no_bit_of_three_steps(
    options: dict[str, bool], architecture: str, ranks: Ranks, model_directory: Build, make_sequences: Make
) -> None:
    micro_batches = batch.share(
        make_sequences([8, 5, 11, 3]), budget=30, cost=COST, rank=0, world=1, device=ranks.device
    )
    losses, states = [], []
    for chosen in ({}, options):
        policy = loaded(model_directory(architecture, True), ranks, **chosen)
        steps = optimizer.build(policy, OptimizerConfig(lr=1e-3, warmup_steps=0))
        losses.append([train(policy, micro_batches, steps) for _ in range(3)])
        states.append(dict(full_state(policy)))
    assert losses[0] == losses[1]
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def test_activation_checkpointing_keeps_less_than_a_tenth_for_the_backward_pass(
    ranks: Ranks, model_directory: Build, make_sequences: Make
) -> None:
    micro_batch = batch.assemble(make_sequences([400, 400]), ranks.device)  # more to keep than the weights
    kept = []
    for chosen in (False, True):
        policy = loaded(model_directory("llama", True), ranks, activation_checkpointing=chosen)
        kept.append(bytes_kept(policy, micro_batch))
    assert kept[1] < kept[0] / 10


def bytes_kept(policy: Policy, micro_batch: MicroBatch) -> int:
    """What a forward pass keeps for the backward pass, weights included."""
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        results = policy(micro_batch, 1.0)  # held, or the next tensor might have its address
    assert len(results) == 2
    return sum(kept.values())


def test_dropout_of_the_checkpoint_is_off_while_it_trains_and_the_log_says_so(
    ranks: Ranks,
    model_directory: Build,
    make_sequences: Make,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    source = model_directory("llama", True)
    directory = copy_of(source, tmp_path / "m")
    described = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(described | {"attention_dropout": 0.5}))
    micro_batch = batch.assemble(make_sequences([8, 5]), ranks.device)
    with caplog.at_level("INFO", logger="learner"):
        policy = loaded(directory, ranks, activation_checkpointing=True)
    assert "attention_dropout=0.5 of the checkpoint is set to 0" in caplog.text
    assert torch.equal(policy(micro_batch, 1.0)[0], loaded(source, ranks)(micro_batch, 1.0)[0])
    assert torch.equal(loaded(directory, ranks)(micro_batch, 1.0)[0], loaded(source, ranks)(micro_batch, 1.0)[0])


def test_offload_to_the_cpu_is_refused_where_everything_is_there(ranks: Ranks, model_directory: Build) -> None:
    with pytest.raises(ValueError, match=r"policy\.cpu_offload=true on the device cpu: .* use cpu_offload=false"):
        loaded(model_directory("llama", True), ranks, cpu_offload=True)


@pytest.mark.slow  # the compiler takes most of a minute
@pytest.mark.filterwarnings("ignore")  # torch's compiler warns of its own imports
def test_compiled_layers_take_the_same_steps(
    ranks: Ranks, model_directory: Build, make_sequences: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(torch._dynamo.config, "disable", False)  # as it may have been when torch read the environment
    torch._dynamo.utils.counters.clear()
    losses: list[float] = []
    states = []
    for compiled in (False, True):
        policy = loaded(model_directory("llama", True), ranks, compile=compiled)
        steps = optimizer.build(policy, OptimizerConfig(lr=1e-3, warmup_steps=0, eps=1e-5))
        for lengths in ([8, 5, 11], [7, 3], [20, 9, 4]):  # of different shapes
            micro_batches = batch.share(
                make_sequences(lengths), budget=50, cost=policy.cost, rank=0, world=1, device=ranks.device
            )
            losses.append(train(policy, micro_batches, steps))
        states.append(dict(full_state(policy)))
    assert torch._dynamo.utils.counters["frames"]["ok"] > 0
    assert losses[:3] == pytest.approx(losses[3:], abs=1e-5)
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name], tensor, atol=5e-6, rtol=0)


def copy_of(source: Path, target: Path) -> Path:
    return Path(shutil.copytree(source, target))


def test_a_directory_that_is_no_checkpoint_is_named(ranks: Ranks, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model=.*nowhere: must be a directory .* no config\.json"):
        model.load(tmp_path / "nowhere", ranks, ModelConfig(logprob_chunk=8))


def test_a_checkpoint_that_lacks_a_weight_is_refused(ranks: Ranks, model_directory: Build, tmp_path: Path) -> None:
    directory = copy_of(model_directory("llama", True), tmp_path / "m")
    weights = load_file(directory / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks weights \(model\.layers\.1\.mlp\.up_proj\.weight\)"):
        model.load(directory, ranks, ModelConfig(logprob_chunk=8))


def test_a_weight_of_the_wrong_shape_is_refused(ranks: Ranks, model_directory: Build, tmp_path: Path) -> None:
    directory = copy_of(model_directory("llama", True), tmp_path / "m")
    weights = load_file(directory / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"][:3].clone()
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="cannot be loaded as an HF causal language model"):
        model.load(directory, ranks, ModelConfig(logprob_chunk=8))
