"""Run by torchrun in the test of ranks: three steps on one or more ranks, then rank 0 writes losses and weights.

usage: rank_program.py MODEL BATCHES OUT CASE…, where BATCHES is a folder of messages, one file a step.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from learner import batch, distributed, exchange, model, optimizer
from learner.config import LossConfig, OptimizerConfig
from learner.distributed import Ranks
from learner.model import full_state
from learner.step import train_step, training_sequences
from protocol.codec import decode
from protocol.messages import GroupBatch, Message


def read(path: Path) -> Message:
    data, frames, start = path.read_bytes(), [], 0
    lengths = json.loads(path.with_suffix(".json").read_text())
    for length in lengths:
        frames.append(data[start : start + length])
        start += length
    return decode(frames)


def train(ranks: Ranks, directory: Path, batches: Path, out: Path, case: str) -> None:
    """Three steps of a case BUDGET:LOSS; every rank writes what it saw to `out`, rank 0 the weights too."""
    budget, name = case.split(":")
    loss = LossConfig(name=name, correction="none", proximal="behaviour")
    policy = model.load(directory, ranks, param_dtype="float32", chunk=16)
    steps = optimizer.build(policy, OptimizerConfig(lr=1e-3, warmup_steps=0, eps=1e-5))
    rows, groups, idle = [], [], 0
    for path in sorted(batches.glob("*.msg")):
        received = exchange.broadcast(read(path) if ranks.first else None, ranks.device)
        assert isinstance(received, GroupBatch)
        groups.append([group.group_id for group in received.groups])
        sequences = training_sequences(received, loss, longest=12)
        micro_batches = batch.share(
            sequences, budget=int(budget), cost=policy.cost, rank=ranks.rank, world=ranks.world, device=ranks.device
        )
        idle += sum(not micro_batch.loss_mask.any() for micro_batch in micro_batches)
        rows.append(train_step(policy, steps, micro_batches, loss, temperature=1.0).row())
    out.mkdir(parents=True, exist_ok=True)
    (out / f"rank{ranks.rank}.json").write_text(json.dumps({"rows": rows, "idle": idle, "groups": groups}))
    state = dict(full_state(policy))
    if ranks.first:
        save_file({name: tensor.clone() for name, tensor in state.items()}, out / "weights.safetensors")


def main(directory: str, batches: str, out: str, *cases: str) -> None:
    torch.set_num_threads(1)
    ranks = distributed.start("cpu", wait_seconds=60)
    for case in cases:
        train(ranks, Path(directory), Path(batches), Path(out) / case, case)
    distributed.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
