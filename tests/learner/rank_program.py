"""Run by torchrun in the test of ranks: three steps on one or more ranks, then rank 0 writes losses and weights.

usage: rank_program.py MODEL BATCHES OUT CASE…, where BATCHES is a folder of messages, one file a step.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from learner import batch, distributed, exchange, optimizer
from learner.config import LossConfig, OptimizerConfig
from learner.credit import credit, minibatches
from learner.distributed import Ranks
from learner.policy import model
from learner.policy.config import ModelConfig
from learner.policy.model import full_state
from learner.step import train_step
from protocol.codec import decode
from protocol.messages import GroupBatch, Message

OVERRIDES = {
    "ppo_clip": LossConfig(corrections=[], proximal="behaviour", filters=[]),
    "cispo": LossConfig(name="cispo", corrections=[], filters=[]),
    "m2po": LossConfig(name="m2po", corrections=["opsm"], aggregation="prompt_mean", ess_lr=True),
    "gspo": LossConfig(name="gspo", aggregation="seq_mean_token_mean", gspo_low=0.2, gspo_high=0.3, minibatches=2),
}


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
    loss = OVERRIDES[name]
    policy = model.load(directory, ranks, ModelConfig(logprob_chunk=16))
    steps = optimizer.build(policy, OptimizerConfig(lr=1e-3, warmup_steps=0, eps=1e-5))
    rows, groups, idle = [], [], 0
    for path in sorted(batches.glob("*.msg")):
        received = exchange.broadcast(read(path) if ranks.first else None, ranks.device)
        assert isinstance(received, GroupBatch)
        groups.append([group.group_id for group in received.groups])
        parts = minibatches(credit(received, loss, longest=12).sequences, loss, longest=12)
        packed = [
            batch.share(
                part, budget=int(budget), cost=policy.cost, rank=ranks.rank, world=ranks.world, device=ranks.device
            )
            for part in parts
        ]
        idle += sum(not micro_batch.loss_mask.any() for part in packed for micro_batch in part)
        rows.append(train_step(policy, steps, packed, loss, temperature=1.0).row())
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
