"""Doubles around the stream: task sources, completions, and a random world of actors, verifiers and a learner."""

import copy
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from learner.broker.config import StreamConfig
from learner.broker.stream import Stream
from protocol.messages import Lease, Rollout, RolloutDone, Task, Verdict, VerifyDone, VerifyJob, VersionSpan


class NumberedTasks:
    """A task for every index up to `end`; with an `epoch_size` the same ones come again, every other time backwards."""

    def __init__(self, end: int | None = None, epoch_size: int = 0) -> None:
        self.end = end
        self.epoch_size = epoch_size

    def task_id(self, index: int) -> str | None:
        if self.end is not None and index >= self.end:
            return None
        epoch, place = divmod(index, self.epoch_size) if self.epoch_size else (0, index)
        return str(self.epoch_size - 1 - place if epoch % 2 else place)

    def task(self, index: int) -> Task | None:
        task_id = self.task_id(index)
        return None if task_id is None else Task(task_id=task_id, prompt="p", reward="format", reference="")


def fingerprint(version: int) -> str:
    return f"f{version}"


def rollout(lease: Lease, sample: int, versions: list[int]) -> RolloutDone:
    """A completion with one token of each version."""
    return RolloutDone(
        lease_id=lease.lease_id,
        rollout=Rollout(
            group_id=lease.group_id,
            sample_index=sample,
            prompt_ids=np.array([1], dtype=np.int32),
            token_ids=np.zeros(len(versions), dtype=np.int32),
            behaviour_logprobs=np.zeros(len(versions), dtype=np.float32),
            version_spans=tuple(VersionSpan(version=v, tokens=1, fingerprint=fingerprint(v)) for v in versions),
            finish_reason="stop",
            text="t",
        ),
    )


def verdict(reward: float | None = 1.0) -> Verdict:
    return Verdict(reward=reward, parts={}, reason="", seconds=0.0)


def judged(job: VerifyJob, reward: float | None = 1.0) -> VerifyDone:
    return VerifyDone(job_id=job.job_id, group_id=job.group_id, sample_index=job.sample_index, verdict=verdict(reward))


def new_stream(size: int | None = None, **options: float | str) -> Stream:
    stream = Stream(NumberedTasks(size), StreamConfig(**options), seed=0)  # type: ignore[arg-type]
    stream.published(0, fingerprint(0))
    return stream


def finish(stream: Stream, lease: Lease, *rewards: float | None) -> None:
    """Deliver all samples of a lease and judge them: by `rewards` in order, or all with 1."""
    for sample in lease.sample_indexes:
        stream.rollout_done(rollout(lease, sample, [lease.min_version]))
    left = list(rewards)
    while job := stream.assign("v", 1000):
        stream.verify_done(judged(job, left.pop(0) if rewards else 1.0))


def train(stream: Stream) -> list[int]:
    """Consume the batch that is there; its groups."""
    groups = stream.batch(stream.version)
    assert groups is not None
    version, ids = stream.version + 1, [group.group_id for group in groups]
    stream.published(version, fingerprint(version))
    stream.consumed(version, ids)
    return ids


def equal_rewards(rewards: Sequence[float | None]) -> bool:
    """Whether those of a group that are not void are all the same."""
    return len({reward for reward in rewards if reward is not None}) == 1


@dataclass
class World:
    """Random latencies, deaths and voids around a stream; what happened to each sample is written down."""

    stream: Stream
    chance: random.Random
    death_rate: float
    void_rate: float
    equal_rate: float = 0.0  # share of groups whose samples all get the same reward
    actors: dict[str, list[Lease]] = field(default_factory=dict)
    verifiers: dict[str, list[VerifyJob]] = field(default_factory=dict)
    trained: list[int] = field(default_factory=list)
    oldest: int = 0
    most_resampled: int = 0  # for one batch
    resampled: int = 0  # when the last batch was consumed
    equal_trained: int = 0  # groups
    newest: int = -1  # group leased last
    now: float = 0.0

    def __post_init__(self) -> None:
        self.stream.published(self.stream.version, fingerprint(self.stream.version))
        self.actors = {f"a{index}": [] for index in range(3)}
        self.verifiers = {f"v{index}": [] for index in range(2)}

    def run(self, steps: int) -> None:
        """Turn until the learner has made its steps, or the stream is dry, or nothing moves."""
        for _ in range(20_000):
            if self.stream.version >= steps or self.stream.dry:
                return
            self.turn()

    def turn(self) -> None:
        """A little time passes, and each role does something or nothing."""
        self.now += self.chance.random()
        self.stream.overdue(self.now)
        for name in list(self.actors):
            self.act(name)
        for name in list(self.verifiers):
            self.verify(name)
        self.learn()

    def act(self, name: str) -> None:
        held = self.actors[name]
        if self.chance.random() < self.death_rate:
            self.stream.actor_lost(name)
            del self.actors[name]
            self.actors[f"a{self.chance.random()}"] = []
            return
        while lease := self.stream.grant(name, 8, self.now):
            held.append(lease)
            if lease.group_id > self.newest:  # else it is leased again
                self.newest = lease.group_id
                assert lease.task.task_id not in self.stream.retirement.retired
        for lease in list(held):
            for sample in lease.sample_indexes:
                if self.chance.random() < 0.3:
                    newest = max(self.stream.fingerprints.known)
                    first = self.chance.choice(range(lease.min_version, newest + 1))
                    self.stream.rollout_done(rollout(lease, sample, list(range(first, newest + 1))))
            if self.chance.random() < 0.2:
                held.remove(lease)

    def verify(self, name: str) -> None:
        held = self.verifiers[name]
        while job := self.stream.assign(name, 5):
            held.append(job)
        if self.chance.random() < self.death_rate:
            self.stream.verifier_lost(name)
            held.clear()
        while held and self.chance.random() < 0.7:
            job = held.pop(self.chance.randrange(len(held)))
            reward = None if self.chance.random() < self.void_rate else self.reward(job)
            self.stream.verify_done(judged(job, reward))

    def reward(self, job: VerifyJob) -> float:
        """Of a group that is not equal every other sample passes."""
        dice = random.Random(job.group_id)
        return float(dice.random() < 0.7 if dice.random() < self.equal_rate else job.sample_index % 2)

    def learn(self) -> None:
        version = self.stream.version
        groups = self.stream.batch(version)
        if groups is None or self.chance.random() < 0.5:
            return
        assert len(groups) == self.stream.config.groups_per_step
        ids = [group.group_id for group in groups]
        assert ids == sorted(ids)
        for group in groups:
            self.equal_trained += equal_rewards([scored.verdict.reward for scored in group.scored])
            assert len({scored.rollout.sample_index for scored in group.scored}) == len(group.scored) >= 2
            for scored in group.scored:
                self.oldest = max(self.oldest, version - int(scored.rollout.token_versions.min()))
        resampled = self.stream.dropped["zero_variance"]
        self.most_resampled = max(self.most_resampled, resampled - self.resampled)
        self.resampled = resampled
        self.trained += ids
        self.stream.published(version + 1, fingerprint(version + 1))
        self.stream.consumed(version + 1, ids)


def pictured(stream: Stream) -> dict[str, Any]:
    """All of a stream that outlives its process, comparable, and as it is now."""
    state = asdict(stream.state())
    state["counts"] = {name: count for name, count in state["counts"].items() if count}
    return {
        "state": state,
        "groups": {
            group.group_id: (
                group.task,
                group.lease_version,
                group.seeds,
                group.leases,
                sorted(group.lease_ids),
                [
                    (each.state, each.checks, each.verdict, each.rollout and each.rollout.token_versions.tolist())
                    for each in group.samples
                ],
            )
            for group in stream.groups.values()
        },
        "leases": {
            each.lease_id: (each.actor, each.group.group_id, sorted(each.samples))
            for each in stream.leases.running.values()
        },
        "batches": dict(stream.batches),
        "fingerprints": dict(stream.fingerprints.known),
        "ready": list(stream._ready),
        "retired": (set(stream.retirement.retired), copy.deepcopy(stream.retirement.histories)),
    }
