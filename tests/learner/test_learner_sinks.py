"""TensorBoard's and Weights & Biases' files hold what metrics.jsonl holds, and are there only if asked for."""

import json
import math
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from learner import sinks
from learner.config import LearnerRoot, RunConfig, SinksConfig, check
from learner.record import Record
from learner.sinks import numbers, open_sinks

ROW: dict[str, Any] = {
    "step": 1,
    "reward_mean": 0.5,
    "reference_kl": None,
    "chi2": math.inf,
    "parts": {"accuracy": 0.25},
    "by_staleness": {"2": {"kl_k3": 0.125}},
    "zero_variance_by_prompt": {16: 3},
    "stopped": True,
    "text": "no number",
}
NUMBERS = {
    "step": 1.0,
    "reward_mean": 0.5,
    "parts/accuracy": 0.25,
    "by_staleness/2/kl_k3": 0.125,
    "zero_variance_by_prompt/16": 3.0,
}


def config(directory: Path, **options: Any) -> LearnerRoot:
    """A run with these sinks."""
    return LearnerRoot(model="m", run=RunConfig(name="sunk", dir=str(directory)), sinks=SinksConfig(**options))


def row(step: int, reward: float) -> dict[str, Any]:
    """A step with another reward."""
    return ROW | {"step": step, "reward_mean": reward}


def test_numbers_are_named_by_their_paths_and_nothing_else_is_one() -> None:
    assert numbers(ROW) == NUMBERS


def test_nothing_is_written_unless_it_is_asked_for(tmp_path: Path) -> None:
    with open_sinks(config(tmp_path), 0) as found:
        assert found == ()
    assert list(tmp_path.iterdir()) == []


def test_neither_package_is_imported_unless_it_is_asked_for(tmp_path: Path) -> None:
    program = "import sys, learner.__main__; print([name for name in ('tensorboard', 'wandb') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "[]\n"


def test_the_record_tells_every_sink_what_it_writes(tmp_path: Path) -> None:
    told: list[Any] = []

    class Listener:
        step = staticmethod(told.append)

    Record(tmp_path, samples_per_step=0, sinks=(Listener(), Listener())).step(row(1, 0.5))
    assert told == [row(1, 0.5)] * 2


@pytest.mark.parametrize(
    ("option", "package"), [({"tensorboard": True}, "tensorboard"), ({"wandb": "offline"}, "wandb")]
)
def test_a_package_that_is_missing_is_named_with_the_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: dict[str, Any], package: str
) -> None:
    def missing(name: str) -> str:
        raise sinks.PackageNotFoundError(name)

    monkeypatch.setattr(sinks, "version", missing)
    with (
        pytest.raises(ValueError, match=rf"sinks\.{package}: {package} is not installed; .*'offbeat\[{package}\]'"),
        open_sinks(config(tmp_path, **option), 0),
    ):
        pass


def test_an_unknown_mode_of_wandb_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"sinks\.wandb=maybe: must be one of off, offline, online"):
        check(config(tmp_path, wandb="maybe"))


@pytest.mark.filterwarnings("ignore")  # of the package's own
def test_tensorboard_holds_the_steps_and_a_resumed_run_replaces_those_that_came_again(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for version, steps in ((0, (1, 2, 3)), (2, (3, 4))):
        with open_sinks(config(tmp_path, tensorboard=True), version) as (sink,):
            for step in steps:
                sink.step(row(step, step + version / 10))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    first = {name: events.Scalars(name)[0].value for name in events.Tags()["scalars"]}
    assert first == NUMBERS | {"reward_mean": 1.0}
    found = [(each.step, each.value) for each in events.Scalars("reward_mean")]
    assert found == [(1, 1.0), (2, 2.0), (3, pytest.approx(3.2)), (4, pytest.approx(4.2))]


def test_wandb_offline_holds_the_steps_under_one_id_and_no_path_of_a_key(tmp_path: Path) -> None:
    program = f"""
from pathlib import Path
from learner.sinks import open_sinks
from tests.learner.test_learner_sinks import config, row
with open_sinks(config(Path({str(tmp_path)!r}), wandb="offline"), 0) as (sink,):
    for step in (1, 2):
        sink.step(row(step, step / 10))
"""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    (file,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    known = json.loads((tmp_path / "wandb.json").read_text())["id"]
    assert file.name == f"run-{known}.wandb"
    history, told = contents(file)
    assert [{name: each[name] for name in NUMBERS} for each in history] == [
        NUMBERS | {"step": step, "reward_mean": step / 10} for step in (1, 2)
    ]
    assert told["run"]["name"] == "sunk"
    assert "optimizer" in told
    assert "security" not in told


def contents(file: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The history and the configuration in an offline file of Weights & Biases."""
    from wandb.proto import wandb_internal_pb2

    history, told = [], {}
    for data in records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            history.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
        for item in record.run.config.update:
            told[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
    return history, told


def records(data: bytes) -> Iterator[bytes]:
    """Of a LevelDB log behind a header of 7 bytes: blocks of 32 KiB, in which a record's pieces lie one after another.

    Each piece has a checksum (4 bytes), its length (2) and its type: 1 all, 2 the first, 3 or 4 the last.
    """
    place, whole = 7, b""
    while len(data) - place >= 7:
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield whole
            whole = b""
