"""However the policy is spread over ranks, it takes the steps that one process takes."""

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.device_mesh import DeviceMesh
from transformers import AutoModelForCausalLM

from learner import distributed, tiny
from learner.distributed import Ranks
from learner.policy import tensor_parallel

PROGRAM = Path(__file__).with_name("scale_program.py")
TOLERANCE = 5e-6  # of weights after three steps of lr 1e-3, float32 sums in another order


def load_program() -> ModuleType:
    spec = importlib.util.spec_from_file_location("scale_program", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def torchrun(ranks: int, directory: Path, out: Path, *cases: str) -> str:
    """Run the program on gloo ranks; returns what it wrote to stderr if it failed."""
    command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    done = subprocess.run(
        [sys.executable, *command, *map(str, (PROGRAM, directory, out, *cases))],
        env={**os.environ, "PYTHONPATH": str(PROGRAM.parents[2]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    return done.stderr if done.returncode else ""


def flat(row: dict[str, Any], path: str = "") -> dict[str, float]:
    """Every number of a row by its path."""
    found: dict[str, float] = {}
    for name, value in row.items():
        found |= flat(value, f"{path}{name}.") if isinstance(value, dict) else {f"{path}{name}": value or 0.0}
    return found


def assert_alike(found: Path, truth: Path) -> None:
    rows, expected_rows = (json.loads((folder / "rows.json").read_text()) for folder in (found, truth))
    for row, expected in zip(rows, expected_rows, strict=True):
        assert flat(row) == pytest.approx(flat(expected), rel=1e-4, abs=1e-6)
    weights, expected_weights = (load_file(folder / "weights.safetensors") for folder in (found, truth))
    assert set(weights) == set(expected_weights)
    for name, tensor in expected_weights.items():
        torch.testing.assert_close(weights[name], tensor, rtol=0, atol=TOLERANCE)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder with norms of single heads, of which it has four."""
    target = tmp_path_factory.mktemp("qwen3") / "model"
    tiny.build(target, architecture="qwen3", hidden_size=128, layers=2)
    return target


SPREAD = {  # options on several ranks → options of the one process that is the truth
    "lora_rank=4": "lora_rank=4",
    "lora_rank=1,activation_checkpointing=true,reshard=false": "lora_rank=1",
    "tensor_parallel=2": "",
    "tensor_parallel=2,activation_checkpointing=true": "",
}


@pytest.mark.parametrize("world", [pytest.param(2, marks=pytest.mark.slow), 4])
def test_however_ranks_share_the_policy_they_take_the_steps_of_one_process(
    world: int, ranks: Ranks, directory: Path, tmp_path: Path
) -> None:
    assert torchrun(world, directory, tmp_path / "many", *SPREAD) == ""
    program = load_program()
    for alone in set(SPREAD.values()):
        program.train(ranks, directory, tmp_path / "one" / f"with {alone}", program.model_config(alone))
    for options, alone in SPREAD.items():
        assert_alike(tmp_path / "many" / options, tmp_path / "one" / f"with {alone}")


def test_slices_that_cannot_be_equal_are_refused(directory: Path) -> None:
    network = AutoModelForCausalLM.from_pretrained(directory)
    with pytest.raises(
        ValueError, match=r"tensor_parallel=3 with a qwen3 model: must divide its num_attention_heads=4"
    ):
        tensor_parallel.split(network, cast(DeviceMesh, Slices(3)))


@pytest.mark.parametrize(
    ("plan", "reason"),
    [
        (None, "transformers has no plan for it"),
        (
            {"layers.*.mlp.experts": "moe_tp_experts"},
            "its layers need moe_tp_experts, of which there is only colwise, ",
        ),
    ],
)
def test_an_architecture_that_cannot_be_sliced_is_refused(
    plan: dict[str, str] | None, reason: str, directory: Path
) -> None:
    network = AutoModelForCausalLM.from_pretrained(directory)
    network.config.base_model_tp_plan = plan
    with pytest.raises(
        ValueError, match=f"tensor_parallel=2 with a qwen3 model: {reason}.*use policy.tensor_parallel=1"
    ):
        tensor_parallel.split(network, cast(DeviceMesh, Slices(2)))


@dataclass
class Slices:
    """As much of a mesh as the refusals look at."""

    count: int

    def size(self) -> int:
        return self.count


def test_places_of_more_processes_than_there_are_are_refused(ranks: Ranks) -> None:
    with pytest.raises(ValueError, match=r"policy\.tensor_parallel=2 with 1 ranks: must divide them; .* on a multiple"):
        distributed.arrange(ranks.device, 2)
