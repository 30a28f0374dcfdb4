"""A training checkpoint brings back every bit, on any number of ranks, and is whole or not there."""

import importlib.util
import json
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from learner import metrics
from learner.checkpoint import files as checkpoint_files
from learner.checkpoint import tensors as checkpoint_tensors
from learner.checkpoint.checkpoints import Checkpoints
from learner.checkpoint.progress import Progress, Totals, as_json, from_json
from learner.distributed import Ranks
from learner.optimizer import Optimizer
from learner.policy.model import Policy
from protocol.messages import GroupRange

Build = Callable[[str, bool], Path]
PROGRAM = Path(__file__).with_name("checkpoint_program.py")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(PROGRAM.parents[2]), "OMP_NUM_THREADS": "1"}
TOLERANCE = 5e-6  # of weights after some steps of lr 1e-3 on another number of ranks; losses 1e-6


@pytest.fixture(scope="module")
def program() -> ModuleType:
    spec = importlib.util.spec_from_file_location("checkpoint_program", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


Made = tuple[Policy, Optimizer, Checkpoints]


@pytest.fixture
def make(ranks: Ranks, model_directory: Build, program: ModuleType, tmp_path: Path) -> Callable[..., Made]:
    """A fresh policy and optimizer, and the checkpoints in the test's directory."""

    def build(architecture: str = "llama", *, tied: bool = True, keep: int = 2) -> Made:
        source = model_directory(architecture, tied)
        return (*program.build(source, ranks), program.checkpoints(tmp_path / "checkpoints", ranks, source, keep))

    return build


def equal(found: dict[str, torch.Tensor], truth: dict[str, torch.Tensor]) -> bool:
    return found.keys() == truth.keys() and all(torch.equal(found[name], truth[name]) for name in truth)


@pytest.mark.parametrize(("architecture", "tied"), [("llama", True), ("qwen2", False)])
def test_a_run_that_is_taken_up_again_goes_on_bit_for_bit_as_one_that_never_stopped(
    architecture: str, tied: bool, make: Callable[..., Made], ranks: Ranks, program: ModuleType
) -> None:
    policy, steps, checkpoints = make(architecture, tied=tied)
    program.train(policy, steps, ranks, range(2))
    torch.manual_seed(5)
    progress = Progress(
        policy_version=2, optimizer_steps=2, consumed=(GroupRange(first=0, last=7),), rewards=(0.1, 0.2)
    )
    checkpoints.save(policy, steps, progress)
    straight = (program.train(policy, steps, ranks, range(2, 5)), torch.rand(5))
    truth = program.held(policy, steps)
    checkpoints.finish()

    policy, steps, checkpoints = make(architecture, tied=tied)
    torch.manual_seed(6)
    newest = checkpoints.latest()
    assert newest is not None
    assert checkpoints.restore(policy, steps, newest) == progress
    rows, random = program.train(policy, steps, ranks, range(2, 5)), torch.rand(5)
    assert rows == straight[0]
    assert torch.equal(random, straight[1])
    assert equal(program.held(policy, steps), truth)


def test_a_run_whose_steps_were_all_skipped_goes_on_without_moments(
    make: Callable[..., Made], ranks: Ranks, program: ModuleType
) -> None:
    policy, steps, checkpoints = make()
    next(policy.parameters()).grad = torch.full_like(next(policy.parameters()), float("nan"))
    steps.step()
    checkpoints.save(policy, steps, Progress(policy_version=1, optimizer_steps=1))
    assert not steps.inner.state
    straight = program.train(policy, steps, ranks, range(1, 3))
    truth = program.held(policy, steps)
    checkpoints.finish()
    policy, steps, checkpoints = make()
    checkpoints.restore(policy, steps, checkpoint_files.path_of(checkpoints.directory, 1))
    assert program.train(policy, steps, ranks, range(1, 3)) == straight
    assert equal(program.held(policy, steps), truth)


def test_other_numbers_of_ranks_take_a_run_up(
    make: Callable[..., Made], ranks: Ranks, program: ModuleType, model_directory: Build, tmp_path: Path
) -> None:
    policy, steps, checkpoints = make()
    program.train(policy, steps, ranks, range(2))
    checkpoints.save(policy, steps, Progress(policy_version=2, optimizer_steps=2))
    checkpoints.finish()
    saved = program.held(policy, steps)
    straight = program.train(policy, steps, ranks, range(2, 6))
    out = tmp_path / "two"
    out.mkdir()
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*torchrun, *map(str, (PROGRAM, "reshard", model_directory("llama", True), checkpoints.directory, out))],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, second = (torch.load(out / f"rank{rank}.pt") for rank in (0, 1))
    # One rank's checkpoint on two: the same numbers, and then the same training but for the order of sums.
    assert equal(first["restored"], saved)
    assert equal(second["restored"], saved)
    assert first["next"] + first["after"][0] == [pytest.approx(row, rel=1e-4, abs=1e-6) for row in straight]
    # Two ranks' checkpoint on two: bit for bit, each with its own random numbers.
    for rank in (first, second):
        assert rank["after again"][0] == rank["after"][0]
        assert torch.equal(rank["after again"][1], rank["after"][1])
        assert equal(rank["last again"], rank["last"])
        assert rank["odd"]
    assert not torch.equal(first["after"][1], second["after"][1])
    # Two ranks' checkpoint on one.
    policy, steps, _ = make()
    other = program.checkpoints(out / "checkpoints", ranks, model_directory("llama", True))
    newest = other.latest()
    assert newest is not None
    other.restore(policy, steps, newest)
    assert equal(program.held(policy, steps), first["saved"])
    assert program.train(policy, steps, ranks, range(4, 6)) == [
        pytest.approx(row, rel=1e-4, abs=1e-6) for row in first["after"][0]
    ]
    for name, tensor in program.held(policy, steps).items():
        torch.testing.assert_close(tensor, first["last"][name], rtol=1e-4, atol=TOLERANCE)


def test_a_kill_in_the_middle_of_a_write_leaves_the_checkpoint_before_it(
    make: Callable[..., Made], ranks: Ranks, program: ModuleType, model_directory: Build, tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoints"
    command = [sys.executable, *map(str, (PROGRAM, "die", model_directory("llama", True), folder))]
    with subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as learner:
        assert learner.stdout is not None
        assert "half" in learner.stdout.readline()
        learner.kill()
    assert sorted(path.name for path in folder.iterdir()) == ["step_00000001", "step_00000002.partial"]
    policy, steps, checkpoints = make()
    newest = checkpoints.latest()
    assert newest == folder / "step_00000001"
    assert list(folder.iterdir()) == [newest], "the torn one is swept away"
    assert checkpoints.restore(policy, steps, newest).policy_version == 1
    truth, others, _ = make()
    program.train(truth, others, ranks, range(1))
    assert equal(program.held(policy, steps), program.held(truth, others))


def test_the_newest_are_kept(make: Callable[..., Made], ranks: Ranks, program: ModuleType) -> None:
    policy, steps, checkpoints = make(keep=3)
    assert checkpoints.latest() is None
    for version in range(1, 6):
        program.train(policy, steps, ranks, range(1))
        checkpoints.save(policy, steps, Progress(policy_version=version, optimizer_steps=version))
    checkpoints.finish()
    assert sorted(path.name for path in checkpoints.directory.iterdir()) == [f"step_{n:08d}" for n in (3, 4, 5)]
    assert checkpoints.latest() == checkpoints.directory / "step_00000005"


def test_a_checkpoint_has_all_that_an_export_needs_and_its_files_are_safetensors(
    make: Callable[..., Made], ranks: Ranks, program: ModuleType
) -> None:
    policy, steps, checkpoints = make()
    program.train(policy, steps, ranks, range(1))
    checkpoints.save(policy, steps, Progress(policy_version=1, optimizer_steps=1))
    checkpoints.finish()
    (path,) = checkpoints.directory.iterdir()
    files = {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()}
    assert {"progress.json", "hf/config.json", "hf/tokenizer.json", "hf/generation_config.json"} <= files
    listed = json.loads((path / "progress.json").read_text())["files"]
    assert listed.keys() == files - {"progress.json"}
    stored = load_file(path / "shard-00001.safetensors")
    names = [name for name, _ in policy.named_parameters()]
    moments = [f"optimizer.state.{name}.{moment}" for name in names for moment in ("step", "exp_avg", "exp_avg_sq")]
    assert stored.keys() == {*(f"policy.{name}" for name in names), *moments, "random.0.cpu"}, "tied weights are one"


def test_training_goes_on_while_a_checkpoint_is_written_and_the_next_save_waits_for_it(
    make: Callable[..., Made],
    ranks: Ranks,
    program: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    write = checkpoint_tensors.write

    def slow(*arguments: Any) -> None:
        begun.set()
        assert go_on.wait(20)
        write(*arguments)

    monkeypatch.setattr(checkpoint_tensors, "write", slow)
    caplog.set_level("INFO", "learner")
    waits = metrics.CHECKPOINT_WAITS._value.get()
    policy, steps, checkpoints = make()
    program.train(policy, steps, ranks, range(1))
    truth = program.held(policy, steps)
    checkpoints.save(policy, steps, Progress(policy_version=1, optimizer_steps=1))
    assert begun.wait(20)
    program.train(policy, steps, ranks, range(1, 3))
    assert checkpoints.latest() is None
    assert "waiting until" not in caplog.text
    threading.Timer(0.2, go_on.set).start()
    checkpoints.save(policy, steps, Progress(policy_version=3, optimizer_steps=3))
    assert f"waiting until {checkpoints.directory}/step_00000001 is written" in caplog.text
    checkpoints.finish()
    assert metrics.CHECKPOINT_WAITS._value.get() > waits
    policy, steps, checkpoints = make()
    checkpoints.restore(policy, steps, checkpoints.directory / "step_00000001")
    assert equal(program.held(policy, steps), truth)


def test_a_write_that_failed_is_raised_by_the_next_call_with_its_path(make: Callable[..., Made]) -> None:
    policy, steps, checkpoints = make()
    checkpoints.directory.write_text("a file where the directory should be")
    checkpoints.save(policy, steps, Progress(policy_version=1, optimizer_steps=1))
    sentence = r"checkpoints/step_00000001: could not be written: .*Not a directory"
    with pytest.raises(OSError, match=sentence):
        checkpoints.save(policy, steps, Progress(policy_version=2, optimizer_steps=2))
    checkpoints.save(policy, steps, Progress(policy_version=1, optimizer_steps=1))
    with pytest.raises(OSError, match=sentence):
        checkpoints.finish()


def test_a_full_disk_ends_the_learner_with_the_path_and_leaves_the_checkpoint_before(
    make: Callable[..., Made], program: ModuleType, ranks: Ranks
) -> None:
    policy, steps, checkpoints = make()
    program.train(policy, steps, ranks, range(1))
    checkpoints.save(policy, steps, Progress(policy_version=1, optimizer_steps=1))
    checkpoints.finish()
    truth = program.held(policy, steps)
    program.train(policy, steps, ranks, range(1, 2))
    room = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, room[1]))
    try:
        checkpoints.save(policy, steps, Progress(policy_version=2, optimizer_steps=2))
        with pytest.raises(OSError, match=r"step_00000002: could not be written: .*[Ff]ile too large"):
            checkpoints.finish()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, room)
    assert checkpoints.latest() == checkpoints.directory / "step_00000001"
    policy, steps, checkpoints = make()
    assert [path.name for path in checkpoints.directory.iterdir()] == ["step_00000001"]
    checkpoints.restore(policy, steps, checkpoints.directory / "step_00000001")
    assert equal(program.held(policy, steps), truth)
    checkpoints.save(policy, steps, Progress(policy_version=2, optimizer_steps=2))
    checkpoints.finish()
    assert checkpoints.latest() == checkpoints.directory / "step_00000002"


def test_a_write_without_end_is_given_up_with_its_path(
    make: Callable[..., Made], monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    monkeypatch.setattr(checkpoint_tensors, "write", lambda *_: go_on.wait(20))
    policy, steps, checkpoints = make()
    checkpoints.write_seconds = 0.1
    checkpoints.save(policy, steps, Progress(policy_version=1))
    with pytest.raises(OSError, match=r"step_00000001: is not written after 0 s"):
        checkpoints.finish()
    go_on.set()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def change(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


SHARD = "shard-00001.safetensors"
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a truncated file": (lambda path: cut(path / SHARD), rf"{SHARD}: has \d+ bytes, \d+ were written; remove .*step_"),
    "a missing file": (lambda path: (path / "hf" / "config.json").unlink(), r"hf/config.json: is missing"),
    "garbled progress": (lambda path: cut(path / "progress.json"), r"progress.json: is not JSON"),
    "no progress": (lambda path: (path / "progress.json").unlink(), r"step_00000001: is no training checkpoint"),
    "a later format": (lambda path: change(path / "progress.json", format=3), r"format 3, this version reads 2"),
    "no list of files": (lambda path: change(path / "progress.json", files={}), r"field 'files' must list"),
    "a wrong field": (lambda path: change(path / "progress.json", consumed=[[3, 1]]), r"field 'consumed' must hold"),
    "a field of another type": (lambda path: change(path / "progress.json", seconds="1"), r"field 'seconds' must be"),
    "a damaged header": (
        lambda path: (path / SHARD).write_bytes(b"\xff" * (path / SHARD).stat().st_size),
        r"step_00000001: a safetensors file is damaged",
    ),
}


@pytest.mark.parametrize("damage", sorted(DAMAGES))
def test_a_damaged_checkpoint_is_refused_with_what_is_wrong(damage: str, make: Callable[..., Made]) -> None:
    policy, steps, checkpoints = make()
    checkpoints.save(policy, steps, Progress(policy_version=1, optimizer_steps=1))
    checkpoints.finish()
    path = checkpoint_files.path_of(checkpoints.directory, 1)
    harm, sentence = DAMAGES[damage]
    harm(path)
    with pytest.raises(ValueError, match=sentence):
        checkpoints.restore(policy, steps, path)


def test_a_checkpoint_of_another_model_is_refused(make: Callable[..., Made]) -> None:
    policy, steps, checkpoints = make("llama", tied=True)
    checkpoints.save(policy, steps, Progress(policy_version=1, optimizer_steps=1))
    checkpoints.finish()
    other, others, checkpoints = make("llama", tied=False)
    with pytest.raises(ValueError, match=r"of another model: policy.network.lm_head.weight is not in it, the model's"):
        checkpoints.restore(other, others, checkpoint_files.path_of(checkpoints.directory, 1))


def test_progress_is_the_same_after_a_turn_as_json() -> None:
    progress = Progress(
        policy_version=7,
        optimizer_steps=6,
        consumed=(GroupRange(first=0, last=4), GroupRange(first=9, last=9)),
        totals=Totals(trained_tokens=1, groups_trained=2, generated_tokens=3, verdicts=4),
        rewards=(0.1, 1 / 3),
        seconds=1.5,
    )
    assert from_json(json.loads(json.dumps(as_json(progress)))) == progress
