"""The learner's loop: receive → advantage → pack → loss → step → publish.

A batch makes one step, and one policy version, of as many optimizer updates as it has minibatches. The loop waits in
one place, for a batch (`Link.next_batch`, with a deadline), and for nobody when it publishes. Rank 0 speaks to the
broker; the other ranks hear of a batch, or of the end, by one broadcast.
"""

import logging
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from learner import batch, exchange, metrics
from learner.batch import MicroBatch, TrainingSequence
from learner.checkpoint.checkpoints import Checkpoints
from learner.checkpoint.progress import Progress, Totals
from learner.config import LearnerConfig, LearnerRoot
from learner.credit import Credited, credit, minibatches, untrained_sequences
from learner.distributed import Ranks
from learner.export import write_hf
from learner.group_ranges import merged
from learner.link import Link
from learner.optimizer import Optimizer
from learner.policy import reference
from learner.policy.model import Policy, full_state
from learner.policy.peak import peak_flops
from learner.publish.publisher import Publisher
from learner.record import Record, describe
from learner.step import StepResult, reference_kl, train_step
from protocol.errors import ProtocolError
from protocol.messages import Goodbye, GroupBatch, GroupRange, RunSpec

log = logging.getLogger("learner")


@dataclass(slots=True)
class Learner:
    """One rank of the learner. `link` and `record` are there on rank 0 alone; `restored` is where it goes on."""

    config: LearnerRoot
    run: RunSpec
    ranks: Ranks
    policy: Policy
    optimizer: Optimizer
    reference: Policy | None  # of the KL term
    link: Link | None
    record: Record | None
    publisher: Publisher
    checkpoints: Checkpoints
    restored: Progress
    policy_version: int = field(init=False)
    consumed: tuple[GroupRange, ...] = field(init=False)
    totals: Totals = field(init=False)
    rewards: deque[float] = field(init=False)
    clock: dict[str, float] = field(default_factory=dict)  # seconds of each phase of this step
    began: float = field(init=False)

    def __post_init__(self) -> None:
        self.policy_version, self.consumed = self.restored.policy_version, self.restored.consumed
        self.totals = self.restored.totals
        self.rewards = deque(self.restored.rewards, maxlen=self.config.learner.target_window)
        self.began = time.monotonic() - self.restored.seconds

    def train(self) -> str:
        """Train until a limit is reached or the tasks end; returns why it stopped.

        Raises `ProtocolError` when the run ended before that, a signal or the broker's end among the causes; what is
        trained is in a checkpoint then, if checkpoints are written at all.
        """
        if self.link:
            self.checkpoints.written = self.link.checkpointed
            every = self.config.checkpoint.every
            self.link.resume(self.policy_version, self.consumed, checkpoints=every > 0, counted=self.totals.counted())
        self.publish()
        while not (reason := stop_reason(self.config.learner, self.policy_version, self.rewards)):
            self.clock = {}
            received = self.receive()
            if isinstance(received, Goodbye) and not received.finished:
                self.leave_early(received.reason)
            if isinstance(received, Goodbye):
                reason = received.reason
                break
            credited = self.credit(received)
            result = self.step(self.pack(credited))
            self.publish()
            self.tell(received, credited, result)
            self.checkpoint(self.config.checkpoint.every)
        self.checkpoint(1)
        self.save(Path(self.config.run.dir) / "checkpoint")
        self.checkpoints.finish()
        if self.record:
            self.record.summary(reason, time.monotonic() - self.began)
        return reason

    def leave_early(self, reason: str) -> NoReturn:
        """Keep what is trained and raise `ProtocolError`. Collective."""
        if self.config.checkpoint.every and self.policy_version:
            self.checkpoint(1)
            self.checkpoints.finish()
            reason = f"{reason}; {self.checkpoints.newest} steps are in a checkpoint"
        raise ProtocolError(reason)

    def receive(self) -> GroupBatch | Goodbye:
        """The batch that this version consumes, on every rank, or the end of the run, good or bad."""
        with self.timed("receive"):
            shared = exchange.broadcast(self.hear(), self.ranks.device)
        assert isinstance(shared, GroupBatch | Goodbye)
        return shared

    def hear(self) -> GroupBatch | Goodbye | None:
        """On rank 0 what the broker says; a line that is down is an early end of the run, for all ranks."""
        if self.link is None:
            return None
        try:
            return self.link.next_batch(self.policy_version, self.config.learner.batch_wait_seconds)
        except ProtocolError as error:
            return Goodbye(reason=str(error)[:4096], finished=False)

    def credit(self, received: GroupBatch) -> Credited:
        """The sequences that are trained, each with its advantage."""
        with self.timed("credit"):
            longest, distance = self.run.sampling.max_tokens, None
            if self.config.loss.kl_in_reward and self.reference is not None:
                sequences = untrained_sequences(received)
                scored, temperature = self.share(sequences), self.run.sampling.temperature
                distance = reference_kl(self.policy, self.reference, scored, len(sequences), temperature)
            return credit(received, self.config.loss, longest=longest, reference_kl=distance)

    def pack(self, credited: Credited) -> list[list[MicroBatch]]:
        """The minibatches, each as the micro-batches of this rank."""
        with self.timed("pack"):
            parts = minibatches(credited.sequences, self.config.loss, longest=self.run.sampling.max_tokens)
            return [self.share(part) for part in parts]

    def share(self, sequences: list[TrainingSequence]) -> list[MicroBatch]:
        """This rank's share of some sequences."""
        budget, ranks = self.config.learner.tokens_per_micro_batch, self.ranks
        return batch.share(
            sequences,
            budget=budget,
            cost=self.policy.cost,
            rank=ranks.rank,
            world=ranks.world,
            device=ranks.device,
        )

    def step(self, packed: list[list[MicroBatch]]) -> StepResult:
        """The optimizer updates of one batch."""
        with self.timed("train"):
            loss, temperature = self.config.loss, self.run.sampling.temperature
            result = train_step(
                self.policy, self.optimizer, packed, loss, temperature=temperature, reference=self.reference
            )
        self.policy_version += 1
        if self.reference is not None and loss.kl_replace_every and self.policy_version % loss.kl_replace_every == 0:
            reference.replace(self.reference, self.policy)
        return result

    def publish(self) -> None:
        """Offer the weights of this version; the copy is the only part for which the next step waits."""
        with self.timed("publish"):
            self.publisher.publish(self.policy_version)

    def tell(self, received: GroupBatch, credited: Credited, result: StepResult) -> None:
        """Report the step to the broker, the run's files and Prometheus."""
        described = describe(received)
        group_ids = tuple(group.group_id for group in received.groups)
        self.consumed = merged(self.consumed, group_ids)
        self.rewards.append(described["reward_mean"])
        if self.link is None or self.record is None:
            return
        self.link.consumed(self.policy_version, group_ids)
        row = self.row(received, described, credited, result)
        self.record.step(row)
        self.record.samples(self.policy_version, received)
        metrics.show(row, received, credited, result)
        self.link.show(
            reward=row["reward_mean"],
            trained_tokens_per_second=row["trained_tokens_per_second"],
            steps=self.config.learner.steps,
        )
        if result.skipped:
            why = ", ".join(f"{count} {reason}" for reason, count in result.skipped.items())
            groups = f"; not finite because of groups {list(result.culprits)}" if result.culprits else ""
            log.warning("step %d: updates skipped (%s)%s", self.policy_version, why, groups)
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

    def row(
        self, received: GroupBatch, described: dict[str, Any], credited: Credited, result: StepResult
    ) -> dict[str, Any]:
        """The step's line of metrics.jsonl."""
        stats, before = received.stats, self.totals
        seconds = max(sum(self.clock.values()), 1e-9)
        rollouts = [item.rollout for group in received.groups for item in group.scored]
        totals = Totals(
            trained_tokens=before.trained_tokens + credited.tokens,
            groups_trained=before.groups_trained + len(received.groups) - sum(credited.groups_filtered.values()),
            groups_filtered=dict(Counter(before.groups_filtered) + Counter(credited.groups_filtered)),
            groups_dropped=dict(stats.groups_dropped),
            consumed_tokens=before.consumed_tokens + sum(len(rollout.token_ids) for rollout in rollouts),
            consumed_rollouts=before.consumed_rollouts + len(rollouts),
            generated_tokens=stats.generated_tokens,
            generated_rollouts=stats.rollouts,
            verdicts=stats.verdicts,
            void_verdicts=stats.void_verdicts,
        )
        self.totals = totals
        flop = sum(self.policy.cost.of(len(one.prompt_ids) + len(one.token_ids)) for one in credited.sequences)
        consumed_mean = totals.consumed_tokens / max(totals.consumed_rollouts, 1)
        generated_mean = totals.generated_tokens / max(totals.generated_rollouts, 1)
        return {
            "step": self.policy_version,
            "policy_version": self.policy_version,
            "time_s": time.monotonic() - self.began,
            **described,
            **result.row(),
            "generated_tokens": totals.generated_tokens,
            "trained_tokens": totals.trained_tokens,
            "generated_tokens_per_second": (totals.generated_tokens - before.generated_tokens) / seconds,
            "trained_tokens_per_second": credited.tokens / seconds,
            "trained_flop": flop,
            "mfu": flop / (self.clock["train"] * self.peak_flops),
            "verdicts_per_second": (totals.verdicts - before.verdicts) / seconds,
            "length_bias": consumed_mean / generated_mean if generated_mean else None,
            "groups_trained": totals.groups_trained,
            "groups_dropped": dict(Counter(totals.groups_dropped) + Counter(totals.groups_filtered)),
            "zero_variance_by_prompt": credited.zero_variance_by_prompt,
            "rollouts_filtered": credited.rollouts_filtered,
            "actors": stats.actors,
            "verifiers": stats.verifiers,
            "weights": self.publisher.row(),
            "seconds": {**self.clock, "total": seconds},
        }

    @property
    def peak_flops(self) -> float:
        """FLOP a second of all ranks' devices at best."""
        return dist.get_world_size() * peak_flops(self.ranks.device, getattr(torch, self.config.policy.param_dtype))

    def checkpoint(self, every: int) -> None:
        """Save a training checkpoint when this version is one of `every` (0: none is) and has none. Collective."""
        version = self.policy_version
        if not every or version % every or version == self.checkpoints.newest:
            return
        with self.timed("checkpoint"):
            progress = Progress(
                policy_version=version,
                optimizer_steps=self.optimizer.steps,
                consumed=self.consumed,
                totals=self.totals,
                rewards=tuple(self.rewards),
                seconds=time.monotonic() - self.began,
            )
            self.checkpoints.save(self.policy, self.optimizer, progress)

    def save(self, directory: Path) -> None:
        """Write an HF checkpoint of the present weights. Collective."""
        state = full_state(self.policy)
        if self.ranks.first:
            write_hf(directory, state, self.policy.network.config, Path(self.config.model))
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


def stop_reason(config: LearnerConfig, policy_version: int, rewards: Sequence[float]) -> str:
    """Why no further step is due after `policy_version` with these `rewards` of the last steps, or an empty text."""
    if policy_version >= config.steps:
        return f"{config.steps} steps are done"
    if config.target_reward and len(rewards) == config.target_window:
        mean = sum(rewards) / len(rewards)
        if mean >= config.target_reward:
            return f"the mean reward of {config.target_window} steps reached {mean:.3f}"
    return ""
