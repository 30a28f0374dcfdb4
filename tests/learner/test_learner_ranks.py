"""One process, two and four gloo ranks train alike."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from learner.distributed import Ranks
from protocol.codec import encode
from protocol.messages import GroupBatch

TOLERANCE = 5e-6  # of weights after three steps of lr 1e-3, float32 sums in another order; losses 1e-6
PROGRAM = Path(__file__).with_name("rank_program.py")


def write(path: Path, message: GroupBatch) -> None:
    frames = [bytes(frame) for frame in encode(message)]
    path.write_bytes(b"".join(frames))
    path.with_suffix(".json").write_text(json.dumps([len(frame) for frame in frames]))


def load_program() -> ModuleType:
    spec = importlib.util.spec_from_file_location("rank_program", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read_reports(folder: Path, world: int) -> list[dict[str, Any]]:
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(world)]


def flat(row: dict[str, Any], path: str = "") -> dict[str, float]:
    """Every number of a row by its path."""
    found: dict[str, float] = {}
    for name, value in row.items():
        found |= flat(value, f"{path}{name}.") if isinstance(value, dict) else {f"{path}{name}": value or 0.0}
    return found


# Of 3 groups of 3 two ranks get 5 and 4 sequences: with one a micro-batch, the second rank idles once a step.
CASES = ("10000:ppo_clip", "1:cispo", "40:m2po", "30:gspo")


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_train_as_one_process_does(
    world: int,
    ranks: Ranks,
    model_directory: Callable[[str, bool], Path],
    make_batch: Callable[..., GroupBatch],
    tmp_path: Path,
) -> None:
    batches = tmp_path / "batches"
    batches.mkdir()
    for step in range(3):
        write(batches / f"{step}.msg", make_batch(3, 3, seed=step))
    directory = model_directory("llama", True)
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"]
    done = subprocess.run(
        [sys.executable, *torchrun, *map(str, (PROGRAM, directory, batches, tmp_path / "many", *CASES))],
        env={**os.environ, "PYTHONPATH": str(PROGRAM.parents[2]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for case in CASES:
        load_program().train(ranks, directory, batches, tmp_path / "one" / case, case)
        (alone,) = read_reports(tmp_path / "one" / case, 1)
        reports = read_reports(tmp_path / "many" / case, world)
        assert alone["idle"] == 0
        if case == "1:cispo":
            assert sum(report["idle"] for report in reports) == 3 * (-9 % world)  # what is missing in the last round
        assert all(report["groups"] == alone["groups"] for report in reports)  # every rank heard the same batches
        assert all(report["rows"] == reports[0]["rows"] for report in reports)  # and says the same of the steps
        for found, truth in zip(reports[0]["rows"], alone["rows"], strict=True):
            assert flat(found) == pytest.approx(flat(truth), rel=1e-4, abs=1e-6)
        weights, expected = (load_file(tmp_path / place / case / "weights.safetensors") for place in ("many", "one"))
        assert set(weights) == set(expected)
        for name, tensor in expected.items():
            torch.testing.assert_close(weights[name], tensor, rtol=0, atol=TOLERANCE)
