"""A learner whose batches are drawn from a seed, for the tests of training checkpoints.

Run by torchrun on two ranks:    checkpoint_program.py reshard MODEL CHECKPOINTS OUT
takes up the newest of CHECKPOINTS, and writes what it then holds and how it goes on to OUT/*.pt, then a checkpoint of
its own to OUT/checkpoints.

Run alone:                       checkpoint_program.py die MODEL CHECKPOINTS
saves version 1, then stops for ever in the middle of a file of version 2, when it says so.
"""

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.tensor import Shard, distribute_tensor

from learner import batch, distributed, optimizer
from learner.batch import TrainingSequence
from learner.checkpoint import shards as checkpoint_shards
from learner.checkpoint import tensors as checkpoint_tensors
from learner.checkpoint.checkpoints import Checkpoints
from learner.checkpoint.progress import Progress
from learner.config import LossConfig, OptimizerConfig
from learner.distributed import Ranks
from learner.optimizer import Optimizer
from learner.policy import model
from learner.policy.config import ModelConfig
from learner.policy.model import Policy, full_state
from learner.step import train_step

LOSS = LossConfig(corrections=[], proximal="behaviour")
OPTIMIZER = OptimizerConfig(lr=1e-3, warmup_steps=3, eps=1e-5)


def build(directory: Path, ranks: Ranks) -> tuple[Policy, Optimizer]:
    """Policy and optimizer of a run that has not begun."""
    policy = model.load(directory, ranks, ModelConfig(logprob_chunk=16))
    return policy, optimizer.build(policy, OPTIMIZER)


def checkpoints(directory: Path, ranks: Ranks, source: Path, keep: int = 2) -> Checkpoints:
    return Checkpoints(directory, ranks, source, keep=keep, write_seconds=60)


def sequences(step: int) -> list[TrainingSequence]:
    """The batch of a step: the same one however often and wherever it is drawn."""
    random = np.random.default_rng(step)
    lengths = random.integers(2, 12, 6)
    return [
        TrainingSequence(
            prompt_ids=random.integers(0, 21, 4).astype(np.int32),
            token_ids=random.integers(0, 21, length).astype(np.int32),
            behaviour_logprobs=-random.exponential(2.0, length).astype(np.float32),
            staleness=np.zeros(length, dtype=np.int32),
            advantage=float(random.normal()),
            token_weight=1.0 / float(lengths.sum()),
            index=index,
            group=index // 2,
        )
        for index, length in enumerate(lengths)
    ]


def train(policy: Policy, steps: Optimizer, ranks: Ranks, versions: range) -> list[tuple[float, float, float]]:
    """One step from each of `versions`: loss, gradient norm and learning rate."""
    rows = []
    for version in versions:
        own = batch.share(
            sequences(version), budget=100, cost=policy.cost, rank=ranks.rank, world=ranks.world, device=ranks.device
        )
        result = train_step(policy, steps, [own], LOSS, temperature=1.0)
        rows.append((result.loss, result.grad_norm, result.lr))
    return rows


def held(policy: Policy, steps: Optimizer) -> dict[str, torch.Tensor]:
    """Whole weights and moments by name, as they are now. Collective."""
    state = {name: tensor.clone() for name, tensor in full_state(policy)}
    for name, parameter in policy.named_parameters():
        for moment, value in steps.inner.state[parameter].items():
            whole = value.full_tensor() if hasattr(value, "full_tensor") else value
            state[f"{name}/{moment}"] = whole.clone()
    return state


def odd_shapes_come_back(ranks: Ranks, directory: Path) -> bool:
    """Whether tensors that the ranks cannot share evenly, some of which leave a rank with nothing, do."""
    group = dist.new_group(backend="gloo")
    whole = {f"rows {rows}": torch.rand(rows, 3, generator=torch.Generator().manual_seed(rows)) for rows in (1, 2, 5)}
    shared = {name: distribute_tensor(tensor, ranks.mesh, [Shard(0)]) for name, tensor in whole.items()}
    checkpoint_tensors.write(directory, shared, group)
    found = {name: torch.zeros_like(tensor) for name, tensor in shared.items()}
    load(found, storage_reader=HuggingFaceStorageReader(str(directory)), process_group=group)
    return all(torch.equal(found[name].full_tensor(), whole[name]) for name in whole)  # type: ignore[attr-defined]


def reshard(ranks: Ranks, directory: Path, taken: Path, out: Path) -> None:
    policy, steps = build(directory, ranks)
    old = checkpoints(taken, ranks, directory)
    newest = old.latest()
    assert newest is not None
    version = old.restore(policy, steps, newest).policy_version
    results: dict[str, Any] = {"restored": held(policy, steps)}
    results["next"] = train(policy, steps, ranks, range(version, version + 2))
    own = checkpoints(out / "checkpoints", ranks, directory)
    torch.rand(3 + ranks.rank)  # the ranks' generators part here
    own.save(policy, steps, Progress(policy_version=version + 2, optimizer_steps=steps.steps))
    results["saved"] = held(policy, steps)
    results["after"] = (train(policy, steps, ranks, range(version + 2, version + 4)), torch.rand(3))
    results["last"] = held(policy, steps)
    own.finish()
    policy, steps = build(directory, ranks)
    torch.manual_seed(99 + ranks.rank)
    newest = own.latest()
    assert newest is not None
    own.restore(policy, steps, newest)
    results["after again"] = (train(policy, steps, ranks, range(version + 2, version + 4)), torch.rand(3))
    results["last again"] = held(policy, steps)
    results["odd"] = odd_shapes_come_back(ranks, out / "odd")
    torch.save(results, out / f"rank{ranks.rank}.pt")


def die(ranks: Ranks, directory: Path, out: Path) -> None:
    policy, steps = build(directory, ranks)
    own = checkpoints(out, ranks, directory)
    train(policy, steps, ranks, range(1))
    own.save(policy, steps, Progress(policy_version=1, optimizer_steps=1))
    own.finish()

    def half(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
        whole = safetensors.torch.save(tensors, metadata)
        path.write_bytes(whole[: len(whole) // 2])
        print("half of a file is written", flush=True)
        time.sleep(1000)

    checkpoint_shards.save_file = half
    train(policy, steps, ranks, range(1, 2))
    own.save(policy, steps, Progress(policy_version=2, optimizer_steps=2))
    own.finish()


def main(what: str, *paths: str) -> None:
    torch.set_num_threads(1)
    ranks = distributed.start("cpu", wait_seconds=60)
    {"reshard": reshard, "die": die}[what](ranks, *map(Path, paths))
    distributed.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
