"""An HF checkpoint, written or exported, loads in transformers as it was, and appears whole or not at all."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from learner import export, optimizer
from learner.checkpoint.checkpoints import Checkpoints
from learner.checkpoint.progress import Progress
from learner.config import OptimizerConfig
from learner.distributed import Ranks
from learner.policy import model
from learner.policy.config import ModelConfig
from learner.policy.model import Policy, full_state

Build = Callable[[str, bool], Path]


def changed_policy(directory: Path, ranks: Ranks, seed: int = 3) -> Policy:
    """A policy that differs from the checkpoint in `directory`."""
    policy = model.load(directory, ranks, ModelConfig(logprob_chunk=8))
    random = torch.Generator().manual_seed(seed)
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
    policy = model.load(source, ranks, ModelConfig(logprob_chunk=8))
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


@pytest.fixture
def run(ranks: Ranks, model_directory: Build, tmp_path: Path) -> Callable[..., tuple[Path, list[Policy]]]:
    """Makes a run's directory with training checkpoints of some versions, of a changed policy each."""

    def make(architecture: str = "llama", *, tied: bool = True, versions: int = 1) -> tuple[Path, list[Policy]]:
        source = model_directory(architecture, tied)
        checkpoints = Checkpoints(tmp_path / "run" / "checkpoints", ranks, source, keep=9, write_seconds=60)
        policies = []
        for version in range(1, versions + 1):
            policy = changed_policy(source, ranks, seed=version)
            steps = optimizer.build(policy, OptimizerConfig())
            checkpoints.save(policy, steps, Progress(policy_version=version))
            policies.append(policy)
        checkpoints.finish()
        return tmp_path / "run", policies

    return make


@pytest.mark.parametrize(("architecture", "tied"), [("llama", True), ("llama", False), ("qwen2", True)])
def test_an_exported_checkpoint_loads_in_transformers_with_equal_weights(
    architecture: str, tied: bool, run: Callable[..., tuple[Path, list[Policy]]], tmp_path: Path
) -> None:
    directory, (policy,) = run(architecture, tied=tied)
    taken = export.export(directory / "checkpoints" / "step_00000001", tmp_path / "hf", "")
    assert taken == directory / "checkpoints" / "step_00000001"
    plain, loading = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    state = plain.state_dict()
    for name, tensor in full_state(policy):
        assert torch.equal(state[name], tensor), name
    assert (plain.lm_head.weight is plain.model.embed_tokens.weight) == tied
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert tokenizer.decode(tokenizer("33+59=<think>")["input_ids"]) == "33+59=<think>"
    assert plain.generation_config.eos_token_id == tokenizer.eos_token_id


def test_of_a_run_the_newest_checkpoint_is_exported_in_the_dtype_that_is_asked_for(
    run: Callable[..., tuple[Path, list[Policy]]], tmp_path: Path
) -> None:
    directory, policies = run(versions=3)
    out = tmp_path / "hf"
    command = [sys.executable, "-m", "learner.export", str(directory), str(out), "--dtype", "bfloat16"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{directory}/checkpoints/step_00000003 → {out}\n"
    stored = load_file(out / "model.safetensors")
    for name, tensor in full_state(policies[-1]):
        if name != "lm_head.weight":
            assert torch.equal(stored[name], tensor.to(torch.bfloat16)), name
    assert AutoModelForCausalLM.from_pretrained(out).dtype == torch.bfloat16


def unfinished(path: Path) -> Path:
    (path / "checkpoints" / "step_00000001").rename(path / "checkpoints" / "step_00000001.partial")
    return path


def cut(path: Path) -> Path:
    (shard,) = (path / "checkpoints" / "step_00000001").glob("*.safetensors")
    shard.write_bytes(shard.read_bytes()[:-100])
    return path


def another(path: Path) -> Path:
    (path / "checkpoints" / "step_00000001" / "progress.json").write_text('{"policy_version": 3}')
    return path


REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "no directory": (lambda path: path / "nothing", "run/nothing: is no directory"),
    "an empty directory": (lambda path: path.parent, "holds no whole training checkpoint"),
    "a checkpoint that was not finished": (unfinished, "run: holds no whole training checkpoint"),
    "a truncated file": (cut, "bytes, "),
    "something else": (another, "progress.json: format None, this version reads 2"),
    "an HF checkpoint": (lambda path: path.parent / "model", "model: is an HF checkpoint already"),
}


@pytest.mark.parametrize("case", sorted(REFUSED))
def test_what_is_no_training_checkpoint_is_refused_in_a_sentence(
    case: str, run: Callable[..., tuple[Path, list[Policy]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, _ = run()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"")
    break_it, sentence = REFUSED[case]
    monkeypatch.setattr("sys.argv", ["export", str(break_it(directory)), str(tmp_path / "hf")])
    with pytest.raises(SystemExit) as refusal:
        export.main()
    assert str(refusal.value).startswith("export: ")
    assert sentence in str(refusal.value)
    assert not (tmp_path / "hf").exists()


def test_what_stands_where_the_export_should_go_is_left_alone(
    run: Callable[..., tuple[Path, list[Policy]]], tmp_path: Path
) -> None:
    directory, _ = run()
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="hf: is there already; choose another place"):
        export.export(directory, tmp_path / "hf", "")
    assert (tmp_path / "hf" / "notes.txt").read_text() == "mine"
    (tmp_path / "hf" / "notes.txt").unlink()
    export.export(directory, tmp_path / "hf", "")
    assert (tmp_path / "hf" / "config.json").exists()
