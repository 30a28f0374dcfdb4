"""One run at forced staleness k: the batch that version v trains was sampled by version max(0, v − k).

Sampler and learner take turns in one process on one thread. The learner is the project's own, from the scored groups to
the optimizer; tasks and rewards are those of the quickstart. As a worker (`tests.bench.workers`) it answers a `Run`:

    python -m tests.bench.staleness_run CHECKPOINT
"""

import math
import statistics
import sys
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer

from learner import addition, batch, distributed, optimizer
from learner.broker.config import TaskConfig
from learner.broker.tasks import open_tasks
from learner.config import OptimizerConfig
from learner.credit import credit, minibatches
from learner.distributed import Ranks
from learner.evaluation import held_out_problems
from learner.loss.config import LossConfig
from learner.policy import model
from learner.policy.config import ModelConfig
from learner.policy.model import full_state
from learner.step import train_step
from protocol.messages import GroupBatch, Rollout, RolloutGroup, ScoredRollout, StreamStats, Task, Verdict, VersionSpan
from tests.bench.llama_sampler import Completion, LlamaSampler
from tests.bench.workers import serve
from verifier.rewards.expression import parse
from verifier.worker import judge

WINDOW = 10  # steps over which rewards are averaged
COLLAPSE = 0.1  # a reward so far below the best one is a collapse
TOKENS_PER_MICRO_BATCH = 1024  # no result depends on it; a small one pads less and stays in the processor's cache
EVALUATED, AT_ONCE = 512, 128  # held-out problems put to the last weights, and how many of them together
SERIES = (
    *("loss", "grad_norm", "entropy", "clip_fraction", "mask_fraction"),
    *("kl_k1", "kl_k3", "ess", "ess_truncated"),
)
STATS = StreamStats(
    generated_tokens=0, rollouts=0, verdicts=0, void_verdicts=0, groups_dropped={}, actors=0, verifiers=0
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """All that decides what a run from a given checkpoint does."""

    row: str  # name of the loss in the table
    loss: dict[str, Any]  # overrides of LossConfig
    staleness: int
    lr: float
    warmup_steps: int
    seed: int
    steps: int
    groups: int
    group_size: int
    digits: int
    max_tokens: int


class Actor:
    """What an actor and a verifier do: rollouts of the weights it holds, with their verdicts."""

    def __init__(self, checkpoint: Path, network_config: Any, run: Run) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        self.sampler = LlamaSampler(network_config, end=self.tokenizer.eos_token_id)
        self.tasks = open_tasks(TaskConfig(digits=run.digits), run.seed)
        self.generator = torch.Generator().manual_seed(run.seed)
        self.run = run

    def groups(self, step: int, version: int) -> tuple[RolloutGroup, ...]:
        """The groups of a step, sampled by the weights held, which are of `version`."""
        first = step * self.run.groups
        tasks = {index: self._task(index) for index in range(first, first + self.run.groups)}
        sampled = iter(self._sample([task.prompt for task in tasks.values()], self.run.group_size))
        return tuple(
            RolloutGroup(
                group_id=index,
                lease_version=version,
                task=task,
                scored=tuple(
                    self._scored(task, index, sample, version, next(sampled)) for sample in range(self.run.group_size)
                ),
            )
            for index, task in tasks.items()
        )

    def held_out_reward(self) -> float:
        """Mean reward of the weights held on problems that training never sees."""
        rewards: list[float] = []
        problems = held_out_problems(EVALUATED, self.run.digits, self.run.seed)
        like = self._task(0)
        for start in range(0, EVALUATED, AT_ONCE):
            part = problems[start : start + AT_ONCE]
            sampled = self._sample([addition.prompt(a, b) for a, b in part], 1)
            for (a, b), completion in zip(part, sampled, strict=True):
                verdict = self._verdict(like.reward, str(a + b), like.metadata, self._text(completion))
                rewards.append(known(verdict))
        return statistics.fmean(rewards)

    def _task(self, index: int) -> Task:
        task = self.tasks.task(index)
        assert task is not None, "addition is endless"
        return task

    def _sample(self, prompts: Sequence[str], group_size: int) -> list[Completion]:
        ids = [self.tokenizer(prompt)["input_ids"] for prompt in prompts]
        return self.sampler.sample(ids, group_size, max_tokens=self.run.max_tokens, generator=self.generator)

    def _text(self, completion: Completion) -> str:
        text: str = self.tokenizer.decode(completion.token_ids, skip_special_tokens=True)
        return text

    def _scored(self, task: Task, group: int, sample: int, version: int, completion: Completion) -> ScoredRollout:
        rollout = Rollout(
            group_id=group,
            sample_index=sample,
            prompt_ids=np.array(self.tokenizer(task.prompt)["input_ids"], dtype=np.int32),
            token_ids=completion.token_ids,
            behaviour_logprobs=completion.logprobs,
            version_spans=(VersionSpan(version=version, tokens=len(completion.token_ids), fingerprint=""),),
            finish_reason="stop" if completion.ended else "length",
            text=self._text(completion),
        )
        verdict = self._verdict(task.reward, task.reference, task.metadata, rollout.text)
        return ScoredRollout(rollout=rollout, verdict=verdict)

    def _verdict(self, reward: str, reference: str, metadata: dict[str, Any], text: str) -> Verdict:
        parts: dict[str, float] = {}
        for name in (expression := parse(reward)).names:
            value, _, reason = judge(name, text, reference, metadata)
            if value is None:
                raise RuntimeError(f"reward {name} of {text!r} is void: {reason}")
            parts[name] = value
        return Verdict(reward=expression.value(parts), parts=parts, reason="", seconds=0.0)


def train(run: Run, checkpoint: Path, ranks: Ranks) -> dict[str, Any]:
    """The run from `checkpoint` to its last step: what each step was, and what came of it."""
    loss = LossConfig(**run.loss)
    policy = model.load(checkpoint, ranks, ModelConfig())
    steps = optimizer.build(policy, OptimizerConfig(lr=run.lr, warmup_steps=run.warmup_steps))
    actor = Actor(checkpoint, policy.network.config, run)
    held: deque[dict[str, torch.Tensor]] = deque(maxlen=run.staleness + 1)  # the last of so many versions
    series: dict[str, list[float]] = {name: [] for name in ("reward", *SERIES)}
    skipped: Counter[str] = Counter()  # updates that changed nothing, by reason
    seconds, busy = {"sample": 0.0, "train": 0.0}, time.process_time()
    for version in range(run.steps):
        began = time.perf_counter()
        held.append({name: tensor.clone() for name, tensor in full_state(policy)})
        actor.sampler.load(held[0])
        groups = GroupBatch(
            policy_version=version, groups=actor.groups(version, max(0, version - run.staleness)), stats=STATS
        )
        sampled = time.perf_counter()
        credited = credit(groups, loss, longest=run.max_tokens)
        packed = [
            batch.share(part, budget=TOKENS_PER_MICRO_BATCH, cost=policy.cost, rank=0, world=1, device=ranks.device)
            for part in minibatches(credited.sequences, loss, longest=run.max_tokens)
        ]
        result = train_step(policy, steps, packed, loss, temperature=1.0)
        seconds["sample"] += sampled - began
        seconds["train"] += time.perf_counter() - sampled
        rewards = [known(item.verdict) for group in groups.groups for item in group.scored]
        row = {"reward": statistics.fmean(rewards)} | result.row()
        for name, values in series.items():
            values.append(math.nan if row[name] is None else float(row[name]))
        for reason, count in result.skipped.items():
            skipped[reason] += count
    seconds["processor"] = time.process_time() - busy  # less than the others' sum where others use the core too
    actor.sampler.load(dict(full_state(policy)))
    seconds["total"] = seconds["sample"] + seconds["train"]
    return outcome(series["reward"], actor.held_out_reward(), skipped) | {
        "ess_mean": mean_of_known(series["ess"]),
        "kl_k3_mean": mean_of_known(series["kl_k3"]),
        "mask_fraction_mean": mean_of_known(series["mask_fraction"]),
        "seconds_per_step": {name: storable(value / run.steps) for name, value in seconds.items()},
        "series": {name: [storable(value) for value in values] for name, values in series.items()},
    }


def known(verdict: Verdict) -> float:
    """The reward of a verdict that is not void."""
    assert verdict.reward is not None
    return verdict.reward


def mean_of_known(values: Sequence[float]) -> float | None:
    """Mean of the steps that trained anything."""
    kept = [value for value in values if math.isfinite(value)]
    return storable(statistics.fmean(kept)) if kept else None


def outcome(rewards: Sequence[float], held_out: float, skipped: Counter[str]) -> dict[str, Any]:
    """What came of a run from the reward of each step and that of its last weights on held-out problems.

    `best_reward` is the best mean of `WINDOW` steps in a row: a single batch is too noisy. The last batches were
    sampled k versions before the last weights, so a collapse shows in one reward or in the other.
    """
    window = min(WINDOW, len(rewards))
    means = [statistics.fmean(rewards[start : start + window]) for start in range(len(rewards) - window + 1)]
    best, final = max(means), means[-1]
    return {
        "final_reward": final,
        "best_reward": best,
        "held_out_reward": held_out,
        "skipped_updates": dict(skipped),
        "collapsed": min(final, held_out) < best - COLLAPSE or skipped["not_finite"] > 0,
    }


def storable(value: float) -> float | None:
    """Five digits of a number; JSON knows no other than finite ones."""
    return float(f"{value:.5g}") if math.isfinite(value) else None


def main(checkpoint: Path) -> None:
    """Answer runs until there are no more."""
    torch.set_num_threads(1)
    ranks = distributed.start("cpu", wait_seconds=600)
    serve(lambda request: train(Run(**request), checkpoint, ranks))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
