"""The policy against transformers' own forward pass, on four architectures, and what loading refuses."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from learner import batch, model, optimizer
from learner.batch import TrainingSequence
from learner.config import LossConfig, OptimizerConfig
from learner.distributed import Ranks
from learner.model import full_state
from learner.step import train_step

CASES = [("llama", True), ("llama", False), ("qwen2", True), ("qwen3", False)]
Build = Callable[[str, bool], Path]
Make = Callable[..., list[TrainingSequence]]


@pytest.mark.parametrize(("architecture", "tied"), CASES)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_equal_each_sequence_alone_through_transformers(
    architecture: str, tied: bool, temperature: float, ranks: Ranks, model_directory: Build, make_sequences: Make
) -> None:
    directory = model_directory(architecture, tied)
    policy = model.load(directory, ranks, param_dtype="float32", chunk=7)
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
    state = dict(full_state(model.load(directory, ranks, param_dtype="float32", chunk=8)))
    plain = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).state_dict()
    assert list(state) == list(plain)
    assert "lm_head.weight" in state
    for name, tensor in state.items():
        assert torch.equal(tensor, plain[name]), name


@pytest.mark.parametrize(("architecture", "tied"), [("qwen2", True), ("llama", False), ("qwen3", False)])
def test_ten_steps_move_every_weight_and_keep_the_tie(
    architecture: str, tied: bool, ranks: Ranks, model_directory: Build, make_sequences: Make
) -> None:
    policy = model.load(model_directory(architecture, tied), ranks, param_dtype="float32", chunk=16)
    steps = optimizer.build(policy, OptimizerConfig(lr=1e-3, warmup_steps=2))
    before = {name: tensor.clone() for name, tensor in full_state(policy)}
    micro_batches = batch.share(
        make_sequences([8, 5, 11, 3]), budget=30, cost=policy.cost, rank=0, world=1, device=ranks.device
    )
    results = [train_step(policy, steps, micro_batches, LossConfig(), temperature=1.0) for _ in range(10)]
    assert all(result.applied for result in results)
    after = dict(full_state(policy))
    assert [name for name in before if torch.equal(before[name], after[name])] == []
    assert torch.equal(after["lm_head.weight"], after["model.embed_tokens.weight"]) == tied


def test_bfloat16_compute_stays_near_float32_and_keeps_float32_masters(
    ranks: Ranks, model_directory: Build, make_sequences: Make
) -> None:
    directory, sequences = model_directory("llama", True), make_sequences([5, 9])
    exact = model.load(directory, ranks, param_dtype="float32", chunk=16)
    coarse = model.load(directory, ranks, param_dtype="bfloat16", chunk=16)
    micro_batch = batch.assemble(sequences, ranks.device)
    logprobs = coarse(micro_batch, 1.0)[0]
    assert logprobs.dtype == torch.float32
    torch.testing.assert_close(logprobs, exact(micro_batch, 1.0)[0], atol=0.2, rtol=0)
    assert all(tensor.dtype == torch.float32 for _, tensor in full_state(coarse))


def copy_of(source: Path, target: Path) -> Path:
    return Path(shutil.copytree(source, target))


def test_a_directory_that_is_no_checkpoint_is_named(ranks: Ranks, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model=.*nowhere: must be a directory .* no config\.json"):
        model.load(tmp_path / "nowhere", ranks, param_dtype="float32", chunk=8)


def test_a_checkpoint_that_lacks_a_weight_is_refused(ranks: Ranks, model_directory: Build, tmp_path: Path) -> None:
    directory = copy_of(model_directory("llama", True), tmp_path / "m")
    weights = load_file(directory / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks weights \(model\.layers\.1\.mlp\.up_proj\.weight\)"):
        model.load(directory, ranks, param_dtype="float32", chunk=8)


def test_a_weight_of_the_wrong_shape_is_refused(ranks: Ranks, model_directory: Build, tmp_path: Path) -> None:
    directory = copy_of(model_directory("llama", True), tmp_path / "m")
    weights = load_file(directory / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"][:3].clone()
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="cannot be loaded as an HF causal language model"):
        model.load(directory, ranks, param_dtype="float32", chunk=8)
