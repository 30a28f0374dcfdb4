"""How much of a version changes in a step, on real training runs, and what its delta comes to, for some learning rates.

Two runs, both by the learner's own code: GRPO on the quickstart's task from its cold start, and supervised training
of a Qwen3-shaped decoder of 9M parameters. Each trains some steps at a rate, with AdamW in float32, and the last
step's versions are compared as they would be published.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer

from learner import batch, distributed, optimizer, tiny
from learner.config import OptimizerConfig
from learner.credit import credit, minibatches
from learner.distributed import Ranks
from learner.loss.config import LossConfig
from learner.optimizer import Optimizer
from learner.policy import model
from learner.policy.config import ModelConfig
from learner.policy.model import Policy, full_state
from learner.sft import __main__ as sft
from learner.sft.config import SftConfig
from learner.sft.data import training_sequences
from learner.step import train_step
from protocol import delta
from protocol.messages import GroupBatch
from protocol.weights import LEAST_SHARD
from tests.bench.staleness_run import STATS, Actor, Run
from tests.bench.weights_codecs import CODECS, Words, entropy_bytes

RATES = (1e-6, 1e-5, 1e-4)
LOOKED_AT = 3  # last steps of a run, of which figures are means


def words(policy: Policy, dtype: torch.dtype) -> Words:
    """The policy's weights as they would be published, [W] uint16; tied ones once."""
    state = {name: tensor for name, tensor in full_state(policy) if name != "lm_head.weight"}
    return np.concatenate([tensor.to(dtype).reshape(-1).view(torch.int16).numpy() for tensor in state.values()]).view(
        np.uint16
    )


def grpo(checkpoint: Path, ranks: Ranks, lr: float) -> Iterator[Policy]:
    """The quickstart's run at a learning rate, a step a turn."""
    run = Run(
        row="ppo_behaviour", loss={}, staleness=0, lr=lr, warmup_steps=0, seed=0, steps=0, groups=8, group_size=8,
        digits=2, max_tokens=48,
    )  # fmt: skip
    policy = model.load(checkpoint, ranks, ModelConfig())
    steps = optimizer.build(policy, OptimizerConfig(lr=lr, warmup_steps=0))
    actor, loss = Actor(checkpoint, policy.network.config, run), LossConfig()
    version = 0
    while True:
        yield policy
        actor.sampler.load(dict(full_state(policy)))
        groups = GroupBatch(policy_version=version, groups=actor.groups(version, version), stats=STATS)
        parts = minibatches(credit(groups, loss, longest=run.max_tokens).sequences, loss, longest=run.max_tokens)
        packed = [
            batch.share(part, budget=2048, cost=policy.cost, rank=0, world=1, device=ranks.device) for part in parts
        ]
        train_step(policy, steps, packed, loss, temperature=1.0)
        version += 1


class Supervised:
    """A Qwen3-shaped decoder that was trained some steps at a high rate, from which runs at other rates start."""

    def __init__(self, directory: Path, ranks: Ranks, steps: int) -> None:
        self.directory, self.ranks = directory, ranks
        tiny.build(directory, architecture="qwen3", hidden_size=384, layers=4)
        self.policy = model.load(directory, ranks, ModelConfig())
        self.config = SftConfig(batch_size=32)
        self.examples, _ = sft.data(self.config, AutoTokenizer.from_pretrained(directory))
        warm = optimizer.build(self.policy, OptimizerConfig(lr=1e-3, warmup_steps=10))
        for _ in range(steps):
            self.step(warm)
        self.start = {name: tensor.clone() for name, tensor in self.policy.state_dict().items()}

    def step(self, steps: Optimizer) -> None:
        """One update."""
        drawn = [next(self.examples) for _ in range(self.config.batch_size)]
        packed = batch.share(
            training_sequences(drawn), budget=2048, cost=self.policy.cost, rank=0, world=1, device=self.ranks.device
        )
        sft.update(self.policy, steps, packed, sft.LIKELIHOOD, temperature=1.0)

    def run(self, lr: float) -> Iterator[Policy]:
        """Training at a rate, a step a turn."""
        self.policy.load_state_dict(self.start)
        steps = optimizer.build(self.policy, OptimizerConfig(lr=lr, warmup_steps=0))
        while True:
            yield self.policy
            self.step(steps)


def compare(policies: Iterator[Policy], dtype: torch.dtype, steps: int) -> list[tuple[Words, Words]]:
    """The versions around each of the last steps, before and after."""
    pairs, last = [], None
    for number, policy in enumerate(policies):
        now = words(policy, dtype).copy() if number >= steps - LOOKED_AT else None
        if last is not None and now is not None:
            pairs.append((last, now))
        last = now
        if number == steps:
            return pairs
    raise AssertionError("a run has no end of its own")


def figures(pairs: list[tuple[Words, Words]]) -> dict[str, Any]:
    """What changed, and what each code makes of it."""
    old, new = pairs[-1]
    length = LEAST_SHARD // 2
    shards = [(old[begin : begin + length], new[begin : begin + length]) for begin in range(0, len(old), length)]
    row: dict[str, Any] = {
        "changed_fraction": statistics.fmean(float((before != after).mean()) for before, after in pairs),
        "ratio": statistics.fmean(sum(map(delta_bytes, split(pair, length))) / pair[0].nbytes for pair in pairs),
        "unit_steps": unit_steps(old, new),
        "entropy_ratio": entropy_bytes(old, new) / old.nbytes,
        "codes": {},
    }
    for name, codec in CODECS.items():
        codec(*shards[0])
        began = time.perf_counter()
        nbytes = sum(codec(*shard) for shard in shards)
        row["codes"][name] = {
            "ratio": nbytes / old.nbytes,
            "gigabytes_per_second": old.nbytes / (time.perf_counter() - began) / 1e9,
        }
    row["apply_gigabytes_per_second"] = apply_rate(shards)
    return row


def split(pair: tuple[Words, Words], length: int) -> Iterator[tuple[Words, Words]]:
    """A pair in shards."""
    for begin in range(0, len(pair[0]), length):
        yield pair[0][begin : begin + length], pair[1][begin : begin + length]


def delta_bytes(shard: tuple[Words, Words]) -> int:
    """The size of a shard's delta."""
    return CODECS["gaps + steps, zstd (ours)"](*shard)


def unit_steps(old: Words, new: Words) -> float:
    """Share of the changed words that moved by one unit in the last place."""
    moved = (new - old)[old != new].view(np.int16)
    return float((np.abs(moved.astype(np.int32)) == 1).mean()) if len(moved) else 0.0


def apply_rate(shards: list[tuple[Words, Words]]) -> float:
    """Gigabytes of a version a second that a receiver brings up to date."""
    coded = [delta.encode(old.view(np.uint8), new.view(np.uint8)) for old, new in shards]
    held = [old.view(np.uint8).copy() for old, _ in shards]
    began = time.perf_counter()
    for shard, code in zip(held, coded, strict=True):
        if len(code):
            delta.apply(shard, code)
    seconds = time.perf_counter() - began
    for shard, (_, new) in zip(held, shards, strict=True):
        assert np.array_equal(shard.view(np.uint16), new), "lossless"
    return sum(len(shard) for shard in held) / seconds / 1e9


def measure(cold_start: Path, work: Path, steps: int, warm: int) -> list[dict[str, Any]]:
    """Every run at every rate, a row each; float32 too, at the middle rate."""
    torch.set_num_threads(2)
    ranks = distributed.start("cpu", wait_seconds=600)
    rows: list[dict[str, Any]] = []
    supervised = Supervised(work / "qwen3", ranks, warm)
    runs: dict[str, Callable[[float], Iterator[Policy]]] = {
        "GRPO, Llama 0.8M": lambda lr: grpo(cold_start, ranks, lr),
        "supervised, Qwen3 9M": supervised.run,
    }
    for name, run in runs.items():
        for lr, dtype in [*((lr, "bfloat16") for lr in RATES), (1e-5, "float32")]:
            pairs = compare(run(lr), getattr(torch, dtype), steps)
            row = {"run": name, "lr": lr, "dtype": dtype, **figures(pairs)}
            rows.append(row)
            print(
                f"{name:22} lr {lr:7g} {dtype:9} changed {row['changed_fraction']:.4f}  delta {row['ratio']:.4f} "
                f"(entropy {row['entropy_ratio']:.4f})  by one unit {row['unit_steps']:.2f}",
                flush=True,
            )
            for code, found in row["codes"].items():
                print(f"    {code:28} {found['ratio']:.4f}  {found['gigabytes_per_second']:6.2f} GB/s", flush=True)
    distributed.stop()
    return rows
