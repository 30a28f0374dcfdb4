"""The learner's loop: receive → advantage → pack → loss → step → publish.

It waits in one place, for a batch (`Link.next_batch`, with a deadline), and for nobody when it publishes. Rank 0 speaks
to the broker; the other ranks hear of a batch, or of the end, by one broadcast.
"""

import logging
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from learner import batch, checkpoint, exchange, metrics
from learner.config import LearnerRoot
from learner.distributed import Ranks
from learner.link import Link
from learner.model import Policy, full_state
from learner.optimizer import Optimizer
from learner.record import Record, describe
from learner.step import StepResult, train_step, training_sequences
from learner.weights import snapshot
from protocol.messages import Goodbye, GroupBatch, RunSpec

log = logging.getLogger("learner")


@dataclass(slots=True)
class Totals:
    """Counted since the run began."""

    trained_tokens: int = 0
    groups_trained: int = 0
    generated_tokens: int = 0
    verdicts: int = 0


@dataclass(slots=True)
class Learner:
    """One rank of the learner. `link` and `record` are there on rank 0 alone."""

    config: LearnerRoot
    run: RunSpec
    ranks: Ranks
    policy: Policy
    optimizer: Optimizer
    link: Link | None
    record: Record | None
    policy_version: int = 0
    totals: Totals = field(default_factory=Totals)
    rewards: deque[float] = field(default_factory=deque)
    clock: dict[str, float] = field(default_factory=dict)  # seconds of each phase of this step
    began: float = field(default_factory=time.monotonic)

    def train(self) -> str:
        """Train until a limit is reached or the tasks end; returns why it stopped. Raises `ProtocolError`."""
        self.publish()
        while not (reason := self.stop_reason()):
            self.clock = {}
            received = self.receive()
            if isinstance(received, Goodbye):
                reason = received.reason
                break
            micro_batches = self.prepare(received)
            result = self.step(micro_batches)
            self.publish()
            self.tell(received, result)
        self.save(Path(self.config.run.dir) / "checkpoint")
        if self.record:
            self.record.summary(reason, time.monotonic() - self.began)
        return reason

    def stop_reason(self) -> str:
        """Why no further step is due, or an empty text."""
        config = self.config.learner
        if self.policy_version >= config.steps:
            return f"{config.steps} steps are done"
        if config.target_reward and len(self.rewards) == config.target_window:
            mean = sum(self.rewards) / len(self.rewards)
            if mean >= config.target_reward:
                return f"the mean reward of {config.target_window} steps reached {mean:.3f}"
        return ""

    def receive(self) -> GroupBatch | Goodbye:
        """The batch that this version consumes, on every rank, or the end of the run."""
        with self.timed("receive"):
            wait = self.config.learner.batch_wait_seconds
            heard = self.link.next_batch(self.policy_version, wait) if self.link else None
            shared = exchange.broadcast(heard, self.ranks.device)
        assert isinstance(shared, GroupBatch | Goodbye)
        return shared

    def prepare(self, received: GroupBatch) -> list[batch.MicroBatch]:
        """Advantages and token weights of the whole batch, then this rank's micro-batches."""
        with self.timed("prepare"):
            sequences = training_sequences(received, self.config.loss, self.run.sampling.max_tokens)
            return batch.share(
                sequences,
                budget=self.config.learner.tokens_per_micro_batch,
                cost=self.policy.cost,
                rank=self.ranks.rank,
                world=self.ranks.world,
                device=self.ranks.device,
            )

    def step(self, micro_batches: list[batch.MicroBatch]) -> StepResult:
        """One optimizer step."""
        with self.timed("train"):
            temperature = self.run.sampling.temperature
            result = train_step(self.policy, self.optimizer, micro_batches, self.config.loss, temperature=temperature)
        self.policy_version += 1
        return result

    def publish(self) -> None:
        """Offer the weights of this version; the copy is the only part for which the next step waits."""
        with self.timed("publish"):
            name = self.config.learner.publish_dtype
            dtype = getattr(torch, name) if name else None
            state = full_state(self.policy)
            if self.link:
                self.link.publish(snapshot(self.policy_version, state, dtype))
            else:
                deque(state, maxlen=0)  # takes part in the gathering

    def tell(self, trained: GroupBatch, result: StepResult) -> None:
        """Report the step to the broker, the run's files and Prometheus."""
        described = describe(trained)
        self.rewards.append(described["reward_mean"])
        if len(self.rewards) > self.config.learner.target_window:
            self.rewards.popleft()
        if self.link is None or self.record is None:
            return
        self.link.consumed(self.policy_version, tuple(group.group_id for group in trained.groups))
        row = self.row(trained, described, result)
        self.record.step(row)
        self.record.samples(self.policy_version, trained)
        metrics.show(row, trained, self.policy_version, result.applied)
        self.link.show(
            reward=row["reward_mean"],
            trained_tokens_per_second=row["trained_tokens_per_second"],
            steps=self.config.learner.steps,
        )
        if not result.applied:
            log.error("step %d: the gradient is not finite, the weights stay as they were", self.policy_version)
        log.info(
            "step %d: reward %.3f, length %.1f, staleness ≤ %d, %.2f s",
            *(
                self.policy_version,
                row["reward_mean"],
                row["length_mean"],
                row["staleness_max"],
                row["seconds"]["total"],
            ),
        )

    def row(self, trained: GroupBatch, described: dict[str, Any], result: StepResult) -> dict[str, Any]:
        """The step's line of metrics.jsonl."""
        tokens = sum(len(item.rollout.token_ids) for group in trained.groups for item in group.scored)
        stats = trained.stats
        seconds = max(sum(self.clock.values()), 1e-9)
        row = {
            "step": self.policy_version,
            "policy_version": self.policy_version,
            "time_s": time.monotonic() - self.began,
            **described,
            **result.row(),
            "generated_tokens": stats.generated_tokens,
            "trained_tokens": self.totals.trained_tokens + tokens,
            "generated_tokens_per_second": (stats.generated_tokens - self.totals.generated_tokens) / seconds,
            "trained_tokens_per_second": tokens / seconds,
            "verdicts_per_second": (stats.verdicts - self.totals.verdicts) / seconds,
            "groups_trained": self.totals.groups_trained + len(trained.groups),
            "groups_dropped": stats.groups_dropped,
            "actors": stats.actors,
            "verifiers": stats.verifiers,
            "seconds": {**self.clock, "total": seconds},
        }
        self.totals = Totals(
            trained_tokens=row["trained_tokens"],
            groups_trained=row["groups_trained"],
            generated_tokens=stats.generated_tokens,
            verdicts=stats.verdicts,
        )
        return row

    def save(self, directory: Path) -> None:
        """Write an HF checkpoint of the present weights. Collective."""
        state = full_state(self.policy)
        if self.ranks.first:
            checkpoint.save(directory, state, self.policy.network.config, Path(self.config.model))
            log.info("checkpoint of version %d in %s", self.policy_version, directory)
        else:
            deque(state, maxlen=0)  # takes part in the gathering

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Write down how long a phase took."""
        start = time.perf_counter()
        yield
        self.clock[phase] = time.perf_counter() - start
        metrics.STEP_SECONDS.labels(phase).observe(self.clock[phase])
