"""The stream of groups, as a state machine without sockets and without a clock.

    task ─ grant ─► leased ─ rollout_done ─► verifying ─ verdict ─► ready ─ batch ─► handed out ─ consumed ─► gone
                    ▲  │                      ▲  │
                    └──┘ actor lost, overdue  └──┘ verifier lost, void

Every lease ends once: its group is consumed, or dropped with a counted reason. Each public method is one event; it
changes the state by its arguments alone (time comes in as `now`), so that a journal of the calls replays to the same
state. Nothing here waits: who waits for what is `waiting_for`.
"""

import heapq
import itertools
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from learner.broker.admission import in_time, limit
from learner.broker.config import StreamConfig
from learner.broker.groups import Group, Sample, SampleState, sample_seeds
from learner.broker.retirement import Retirement
from learner.group_ranges import count
from protocol.messages import (
    GroupRange,
    Lease,
    LeaseFailed,
    RolloutDone,
    RolloutGroup,
    StreamStats,
    Task,
    VerifyDone,
    VerifyJob,
)


class InvalidEvent(Exception):
    """A peer reported what cannot be; the stream is unchanged. `field` names what is wrong."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


class Tasks(Protocol):
    """A deterministic stream of tasks by index."""

    @property
    def epoch_size(self) -> int:
        """Indexes after which the same tasks come again, in whatever order; 0: they never do."""

    def task_id(self, index: int) -> str | None:
        """The id of the task at `index`, or None past the end; in no time, even where the task takes some to make."""

    def task(self, index: int) -> Task | None:
        """The task at `index`, or None past the end."""


@dataclass(slots=True)
class RunningLease:
    """A lease that an actor holds."""

    lease_id: int
    actor: str
    group_id: int
    samples: set[int]  # those that have not arrived
    overdue_at: float


@dataclass(slots=True)
class RunningJob:
    """A verify job that a verifier holds."""

    job_id: int
    verifier: str
    group_id: int
    sample: int


class Stream:
    """All groups between the task source and the learner. `actor` and `verifier` are peer names."""

    def __init__(self, tasks: Tasks, config: StreamConfig, seed: int, retirement: Retirement | None = None) -> None:
        self.tasks = tasks
        self.config = config
        self.seed = seed
        self.retirement = retirement or Retirement()
        self.version = 0  # the learner's
        self.fingerprints: dict[int, str] = {}  # of every published version
        self.groups: dict[int, Group] = {}  # live ones, in lease order
        self.leases: dict[int, RunningLease] = {}
        self.jobs: dict[int, RunningJob] = {}
        self.exhausted = ""  # why no further task will be leased, in words; empty while one may be
        self.granted = 0  # groups leased since the start and not dropped
        self.consumed_groups = 0
        self.dropped: Counter[str] = Counter()
        self.drops_in_a_row = 0  # groups dropped since one was last finished
        self.resampled = 0  # groups dropped as zero_variance since a batch was last consumed
        self.counts: Counter[str] = Counter()  # generated_tokens, rollouts, verdicts, void_verdicts, duplicates,
        # resample_limit_reached (groups), tasks_skipped (indexes of retired tasks)
        self._next_task = 0
        self._spent: deque[GroupRange] = deque()  # groups ahead of `_next_task` that were consumed before a restart
        self._next_lease = 0
        self._next_job = 0
        self._unleased: list[int] = []  # heap of group ids with samples that came back
        self._unverified: deque[tuple[int, int]] = deque()  # (group, sample)
        self._handed_out: tuple[int, tuple[int, ...]] | None = None  # (version, groups) of the batch being trained

    # ------------------------------------------------------------ restart

    def resume(self, policy_version: int, consumed: Sequence[GroupRange]) -> None:
        """The learner goes on at `policy_version` from a checkpoint; groups that it has `consumed` never come again.

        They count as granted and consumed, and nothing else is live, so that both rules of admission stand where they
        stood. What was leased or dropped but not consumed is a hole in the ranges: it is leased anew, first of all.
        """
        if self.fingerprints or self.version:
            raise InvalidEvent("policy_version", f"{policy_version} comes too late: the stream has begun")
        groups, steps_take = count(consumed), policy_version * self.config.groups_per_step
        if groups != steps_take:
            raise InvalidEvent(
                "consumed",
                f"holds {groups} groups, {policy_version} steps of {self.config.groups_per_step} take {steps_take}: "
                "stream.groups_per_step must stay as it was when the checkpoint was written",
            )
        self.version = policy_version
        self.granted = self.consumed_groups = groups
        self._spent = deque(consumed)

    # ------------------------------------------------------------ weights

    def published(self, version: int, fingerprint: str) -> None:
        """The learner offers weights of `version`."""
        known = self.fingerprints.setdefault(version, fingerprint)
        if known != fingerprint:
            raise InvalidEvent(
                "fingerprint", f"version {version} is {known}, not {fingerprint}: two learners in one run?"
            )

    # ------------------------------------------------------------ leases

    def grant(self, actor: str, capacity: int, now: float) -> Lease | None:
        """One more lease for `actor`, who holds at most `capacity` rollouts; oldest group first. None: not now.

        A group larger than `capacity` is granted to an actor that holds nothing, else it could never be sampled.
        """
        held = self.samples_held(actor)
        room = capacity - held
        if room <= 0 or (room < self.config.group_size and held > 0):
            return None
        group = self._returned_group() or self._fresh_group()
        if group is None:
            return None
        lease = Lease(
            lease_id=self._next_lease,
            group_id=group.group_id,
            task=group.task,
            sample_indexes=group.pending,
            seeds=tuple(group.seeds[index] for index in group.pending),
            min_version=group.lease_version,
            deadline_seconds=self.config.lease_seconds,
        )
        self._next_lease += 1
        self.leases[lease.lease_id] = RunningLease(
            lease.lease_id, actor, group.group_id, set(lease.sample_indexes), now + self.config.lease_seconds
        )
        group.leases += 1
        group.lease_ids.add(lease.lease_id)
        for index in lease.sample_indexes:
            group.samples[index].state = SampleState.LEASED
        return lease

    def _returned_group(self) -> Group | None:
        while self._unleased:
            group = self.groups.get(heapq.heappop(self._unleased))
            if group is not None and group.pending:
                return group
        return None

    def _fresh_group(self) -> Group | None:
        if self.exhausted or not self.fingerprints or not self._may_grant():
            return None
        passed_over, group_id = self._next_index()
        size = self.config.group_size
        if group_id is None:
            rate = f"{100 * self.retirement.pass_rate:g} %"
            self.exhausted = f"all tasks are retired: each was solved in at least {rate} of its rollouts"
            return None
        task = self.tasks.task(group_id)
        if task is None:
            self.exhausted = "the tasks have ended"
            return None
        seeds = sample_seeds(self.seed, group_id, size)
        group = Group(group_id, task, self.version, seeds, [Sample() for _ in range(size)])
        self.groups[group_id] = group
        self.counts["tasks_skipped"] += passed_over
        self._next_task = group_id + 1
        while self._spent and self._spent[0].last < group_id:
            self._spent.popleft()
        self.granted += 1
        return group

    def _next_index(self) -> tuple[int, int | None]:
        """The next index that was not consumed before a restart and whose task is not retired, and how many retired
        ones come before it. None when a whole epoch holds none.

        What is passed over is counted only with the group that comes of it, so that a journal may leave out the calls
        that granted nothing.
        """
        retired, indexes = self.retirement.retired, self._unspent()
        if not retired:
            return 0, next(indexes)
        assert self.tasks.epoch_size, "only tasks that come again retire"
        last_spent = self._spent[-1].last if self._spent else -1
        end = max(self._next_task, last_spent + 1) + 2 * self.tasks.epoch_size - 1  # behind it was a whole epoch
        for passed_over, index in enumerate(indexes):
            if index >= end:
                break
            if self.tasks.task_id(index) not in retired:
                return passed_over, index
        return 0, None

    def _unspent(self) -> Iterator[int]:
        """The indexes from the next one on that were not consumed before a restart, without end."""
        index = self._next_task
        for spent in self._spent:
            yield from range(index, spent.first)
            index = max(index, spent.last + 1)
        yield from itertools.count(index)

    def _may_grant(self) -> bool:
        return self.granted < self.admission_limit

    def rollout_done(self, message: RolloutDone) -> None:
        """A completion has arrived; it goes on to verification. A second copy of it is counted and forgotten."""
        rollout = message.rollout
        for index, span in enumerate(rollout.version_spans):
            known = self.fingerprints.get(span.version)
            if known != span.fingerprint:
                raise InvalidEvent(
                    f"rollout.version_spans[{index}].fingerprint",
                    f"{span.fingerprint} is not version {span.version}, which is {known or 'not published'}",
                )
        group = self.groups.get(rollout.group_id)
        if group is None:
            self.counts["duplicates"] += 1
            return
        if rollout.sample_index >= len(group.samples):
            raise InvalidEvent("rollout.sample_index", f"{rollout.sample_index} in a group of {len(group.samples)}")
        if rollout.version_spans[0].version < group.lease_version:
            begin = rollout.version_spans[0].version
            raise InvalidEvent("rollout.version_spans", f"begin at {begin}, the lease asks for {group.lease_version}")
        sample = group.samples[rollout.sample_index]
        if sample.state not in (SampleState.LEASED, SampleState.PENDING):
            self.counts["duplicates"] += 1
            return
        for lease_id in tuple(group.lease_ids):  # an overdue lease may deliver after its samples were leased again
            self._fulfil(self.leases[lease_id], rollout.sample_index)
        sample.rollout = rollout
        sample.state = SampleState.VERIFYING
        self._unverified.append((group.group_id, rollout.sample_index))
        self.counts["rollouts"] += 1
        self.counts["generated_tokens"] += len(rollout.token_ids)

    def _fulfil(self, lease: RunningLease, sample: int) -> None:
        lease.samples.discard(sample)
        if not lease.samples:
            self._end_lease(lease)

    def _end_lease(self, lease: RunningLease) -> None:
        del self.leases[lease.lease_id]
        self.groups[lease.group_id].lease_ids.discard(lease.lease_id)

    def lease_failed(self, message: LeaseFailed) -> None:
        """No actor can fulfil this lease: its group is dropped."""
        if lease := self.leases.get(message.lease_id):
            self._drop(self.groups[lease.group_id], message.reason)

    def overdue(self, now: float) -> list[RunningLease]:
        """Ends the leases whose time is up; their missing samples go back to the stream."""
        late = [lease for lease in self.leases.values() if lease.overdue_at <= now]
        for lease in late:
            self._give_back(lease, "lease_expired")
        return late

    def actor_lost(self, actor: str) -> list[RunningLease]:
        """Ends the leases of an actor that is gone."""
        lost = [lease for lease in self.leases.values() if lease.actor == actor]
        for lease in lost:
            self._give_back(lease, "actors_lost")
        return lost

    def _give_back(self, lease: RunningLease, reason: str) -> None:
        if lease.lease_id not in self.leases:  # its group was dropped with another of its leases, just before
            return
        self._end_lease(lease)
        group = self.groups[lease.group_id]
        for index in lease.samples:
            if group.samples[index].state is SampleState.LEASED:
                group.samples[index].state = SampleState.PENDING
        if group.leases >= self.config.lease_attempts:
            self._drop(group, reason)
        elif group.pending:
            heapq.heappush(self._unleased, group.group_id)

    # ------------------------------------------------------------ verification

    def assign(self, verifier: str, capacity: int) -> VerifyJob | None:
        """The next job for `verifier`, who holds at most `capacity` jobs. None: not now."""
        if self.jobs_held(verifier) >= capacity:
            return None
        while self._unverified:
            group_id, index = self._unverified.popleft()
            group = self.groups.get(group_id)
            if group is None or group.samples[index].state is not SampleState.VERIFYING:
                continue
            rollout = group.samples[index].rollout
            assert rollout is not None, "a sample is verifying only after its rollout arrived"
            job = VerifyJob(
                job_id=self._next_job,
                text=rollout.text,
                reward=group.task.reward,
                reference=group.task.reference,
                metadata=group.task.metadata,
                deadline_seconds=self.config.verify_seconds,
            )
            self._next_job += 1
            self.jobs[job.job_id] = RunningJob(job.job_id, verifier, group_id, index)
            return job
        return None

    def verify_done(self, message: VerifyDone) -> None:
        """A verdict has arrived. Void ones are tried again, then the sample is dropped; they never train as 0."""
        job = self.jobs.pop(message.job_id, None)
        group = self.groups.get(job.group_id) if job else None
        if job is None or group is None or group.samples[job.sample].state is not SampleState.VERIFYING:
            self.counts["duplicates"] += 1
            return
        sample, verdict = group.samples[job.sample], message.verdict
        self.counts["verdicts"] += 1
        if verdict.void:
            self.counts["void_verdicts"] += 1
            sample.checks += 1
            if sample.checks < self.config.verify_attempts:
                self._unverified.append((job.group_id, job.sample))
                return
        sample.verdict = verdict
        sample.state = SampleState.VOID if verdict.void else SampleState.SCORED
        if group.finished:
            self._finish(group)

    def _finish(self, group: Group) -> None:
        """The last verdict of a group has arrived: it waits for its batch, or makes room for another."""
        rewards = group.rewards
        self.retirement.finished(group.task.task_id, rewards)
        if len(rewards) < 2:
            self._drop(group, "void")
            return
        if self.config.zero_variance == "resample" and min(rewards) == max(rewards):
            self._resample(group)
        self.drops_in_a_row = 0  # whatever its rewards, all that makes a group works

    def _resample(self, group: Group) -> None:
        """Make room for another group, as long as the batch in the making has lost fewer than the limit."""
        if self.resampled < self.config.resample_limit:
            self.resampled += 1
            self._drop(group, "zero_variance")
        else:
            self.counts["resample_limit_reached"] += 1

    def verifier_lost(self, verifier: str) -> list[RunningJob]:
        """The jobs of a verifier that is gone are sent again, first of all."""
        lost = [job for job in self.jobs.values() if job.verifier == verifier]
        for job in reversed(lost):
            del self.jobs[job.job_id]
            self._unverified.appendleft((job.group_id, job.sample))
        return lost

    # ------------------------------------------------------------ batches

    def batch(self, policy_version: int) -> tuple[RolloutGroup, ...] | None:
        """The groups that `policy_version` consumes, oldest lease first; None while they are not there.

        Asked again for a version that was handed out but not consumed, it gives the same groups again.
        """
        if policy_version != self.version:
            raise InvalidEvent("policy_version", f"the learner asks for {policy_version} but stands at {self.version}")
        if self._handed_out is None:
            chosen = [group for group in self.groups.values() if group.finished][: self.config.groups_per_step]
            if len(chosen) < self.config.groups_per_step or not self._in_time_without(chosen):
                return None
            self._handed_out = (policy_version, tuple(group.group_id for group in chosen))
        return tuple(self.groups[group_id].as_message() for group_id in self._handed_out[1])

    def _in_time_without(self, chosen: Sequence[Group]) -> bool:
        """Whether the groups that a batch of `chosen` leaves behind can still be consumed in time."""
        taken = {group.group_id for group in chosen}
        return in_time(
            (group.lease_version for group in self.groups.values() if group.group_id not in taken),
            version=self.version,
            max_staleness=self.config.max_staleness,
            groups_per_step=self.config.groups_per_step,
        )

    def consumed(self, policy_version: int, group_ids: Sequence[int]) -> None:
        """The learner trained the batch and stands at `policy_version` now."""
        if self._handed_out is None or self._handed_out[1] != tuple(group_ids):
            raise InvalidEvent("group_ids", "are not the groups that were handed out last")
        if policy_version != self.version + 1:
            raise InvalidEvent("policy_version", f"must follow {self.version}, got {policy_version}")
        for group_id in group_ids:
            del self.groups[group_id]
        self.consumed_groups += len(group_ids)
        self.version = policy_version
        self.resampled = 0
        self._handed_out = None

    def _drop(self, group: Group, reason: str) -> None:
        for lease_id in group.lease_ids:
            del self.leases[lease_id]
        del self.groups[group.group_id]
        self.granted -= 1
        self.dropped[reason] += 1
        self.drops_in_a_row += 1

    @property
    def dry(self) -> bool:
        """Whether the tasks have ended (`exhausted` says how) and what is left can never fill a batch."""
        return bool(self.exhausted) and len(self.groups) < self.config.groups_per_step

    def close(self) -> None:
        """The run is over: what is still under way is dropped, and counted."""
        for group in list(self.groups.values()):
            self._drop(group, "run_ended")

    # ------------------------------------------------------------ what is going on

    def samples_held(self, actor: str) -> int:
        """Rollouts that `actor` owes."""
        return sum(len(lease.samples) for lease in self.leases.values() if lease.actor == actor)

    def jobs_held(self, verifier: str) -> int:
        """Verdicts that `verifier` owes."""
        return sum(job.verifier == verifier for job in self.jobs.values())

    @property
    def ready(self) -> int:
        """Finished groups that wait for the learner."""
        return sum(group.finished for group in self.groups.values())

    @property
    def verify_queued(self) -> int:
        """Rollouts that wait for a verifier with room."""
        return len(self._unverified)

    @property
    def admission_limit(self) -> int:
        """Groups that may have been leased by now."""
        return limit(
            version=self.version,
            max_staleness=self.config.max_staleness,
            groups_per_step=self.config.groups_per_step,
        )

    @property
    def waiting_for(self) -> str:
        """What the stream waits for, in words."""
        if not self.fingerprints:
            return "the learner to publish its first weights"
        if self._handed_out:
            return f"the learner to train step {self.version + 1}"
        if self._unverified:
            return f"verifiers ({len(self._unverified)} rollouts queued)"
        if self.jobs and not self.leases:
            return f"{len(self.jobs)} verdicts"
        if self.leases:
            return f"{sum(len(lease.samples) for lease in self.leases.values())} rollouts of {len(self.leases)} leases"
        if self._may_grant() and not self.exhausted:
            return "actors with room"
        return "the learner to ask for a batch"

    def stats(self, *, actors: int, verifiers: int) -> StreamStats:
        """The counts since the start."""
        return StreamStats(
            generated_tokens=self.counts["generated_tokens"],
            rollouts=self.counts["rollouts"],
            verdicts=self.counts["verdicts"],
            void_verdicts=self.counts["void_verdicts"],
            groups_dropped=dict(self.dropped),
            actors=actors,
            verifiers=verifiers,
        )
