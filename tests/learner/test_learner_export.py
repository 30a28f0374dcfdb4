"""A checkpoint loads in transformers as it was, and appears whole or not at all."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from learner import export, model
from learner.distributed import Ranks
from learner.model import Policy, full_state

Build = Callable[[str, bool], Path]


def changed_policy(directory: Path, ranks: Ranks) -> Policy:
    """A policy that differs from the checkpoint in `directory`."""
    policy = model.load(directory, ranks, param_dtype="float32", chunk=8)
    random = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in policy.parameters():
            local = parameter.to_local()  # type: ignore[attr-defined]
            local.add_(0.1 * torch.randn(local.shape, generator=random))
    return policy


@pytest.mark.parametrize(("architecture", "tied"), [("llama", True), ("llama", False), ("qwen2", True)])
def test_transformers_loads_a_checkpoint_with_equal_logits(
    architecture: str, tied: bool, ranks: Ranks, model_directory: Build, tmp_path: Path
) -> None:
    source = model_directory(architecture, tied)
    policy = changed_policy(source, ranks)
    export.write_hf(tmp_path / "checkpoint", full_state(policy), policy.network.config, source)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint")
    state = plain.state_dict()
    for name, tensor in full_state(policy):
        assert torch.equal(state[name], tensor), name
    assert ("lm_head.weight" in load_file(tmp_path / "checkpoint" / "model.safetensors")) != tied
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "checkpoint")
    ids = torch.tensor([tokenizer("33+59=<think>")["input_ids"]])
    reference = AutoModelForCausalLM.from_pretrained(source)
    reference.load_state_dict(dict(full_state(policy)))
    with torch.no_grad():
        assert torch.equal(plain(ids).logits, reference(ids).logits)
    assert tokenizer.decode(ids[0]) == "33+59=<think>"
    assert plain.generation_config.eos_token_id == tokenizer.eos_token_id


@pytest.fixture
def saved(ranks: Ranks, model_directory: Build, tmp_path: Path) -> tuple[Path, Policy, Path]:
    """A saved checkpoint, its policy, and the model it came from."""
    source = model_directory("llama", True)
    policy = model.load(source, ranks, param_dtype="float32", chunk=8)
    export.write_hf(tmp_path / "checkpoint", full_state(policy), policy.network.config, source)
    return tmp_path / "checkpoint", policy, source


def test_a_crash_while_writing_leaves_the_old_checkpoint(saved: tuple[Path, Policy, Path]) -> None:
    directory, policy, source = saved
    before = {file.name: file.read_bytes() for file in directory.iterdir()}

    def crash() -> Iterator[tuple[str, torch.Tensor]]:
        yield next(full_state(policy))
        raise ConnectionError("a rank died")

    with pytest.raises(ConnectionError):
        export.write_hf(directory, crash(), policy.network.config, source)
    assert {file.name: file.read_bytes() for file in directory.iterdir()} == before


def test_a_crash_between_the_renames_leaves_a_whole_checkpoint_beside(
    saved: tuple[Path, Policy, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, policy, source = saved
    before = {file.name: file.read_bytes() for file in directory.iterdir()}
    rename = Path.rename

    def crash(path: Path, target: Path) -> Path:
        if path.name.endswith(".partial"):
            raise OSError("the power went")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", crash)
    with pytest.raises(OSError, match="the power went"):
        export.write_hf(directory, full_state(policy), policy.network.config, source)
    old = directory.with_name("checkpoint.old")
    assert {file.name: file.read_bytes() for file in old.iterdir()} == before


def test_a_new_checkpoint_replaces_the_old_and_leaves_nothing_beside(saved: tuple[Path, Policy, Path]) -> None:
    directory, policy, source = saved
    (directory / "stale.txt").write_text("of the old one")
    export.write_hf(directory, full_state(policy), policy.network.config, source)
    assert [path.name for path in directory.parent.iterdir()] == ["checkpoint"]
    assert not (directory / "stale.txt").exists()
    assert json.loads((directory / "config.json").read_text())["dtype"] == "float32"
