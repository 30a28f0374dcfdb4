"""The stream of groups, as a state machine without sockets, without files and without a clock.

    task ─ grant ─► leased ─ rollout_done ─► verifying ─ verdict ─► ready ─ batch ─► handed out ─ consumed ─► trained
                    ▲  │                      ▲  │                                                              │
                    └──┘ actor lost, overdue  └──┘ verifier lost, void                        checkpointed ─► gone

Every lease ends once: its group is consumed, or dropped with a counted reason. Each public method is one event; it
changes the state by its arguments alone (time comes in as `now`) and notes in `changes` what a journal has to write.
A trained group is kept in the journal until a checkpoint of the learner holds it: a learner that goes on from an older
checkpoint gets the same batches again, version by version (`restore`). Nothing here waits: who waits for what is
`waiting_for`.
"""

import bisect
import heapq
import re
from collections import Counter, deque
from collections.abc import Collection, Sequence

from learner.broker.admission import in_time, limit
from learner.broker.changes import Changes, Saved, State
from learner.broker.config import StreamConfig
from learner.broker.cursor import Cursor, Tasks
from learner.broker.errors import InvalidEvent
from learner.broker.fingerprints import Fingerprints
from learner.broker.groups import Group, Sample, SampleState, sample_seeds
from learner.broker.jobs import Jobs, RunningJob
from learner.broker.leases import Leases, RunningLease
from learner.broker.retirement import Retirement
from learner.group_ranges import count, holds
from protocol.messages import (
    GroupRange,
    Lease,
    LeaseFailed,
    RolloutDone,
    RolloutGroup,
    StreamStats,
    VerifyDone,
    VerifyJob,
)

SKIPPED = 2**20  # more leases and jobs than the turns give away that a power failure may take from a journal
NAME = re.compile(r"[A-Za-z_]\w*")  # of a reward, in an expression
COUNTED = ("generated_tokens", "rollouts", "verdicts", "void_verdicts")


class Stream:
    """All groups between the task source and the learner. `actor` and `verifier` are peer names."""

    def __init__(self, tasks: Tasks, config: StreamConfig, seed: int, retirement: Retirement | None = None) -> None:
        self.config = config
        self.seed = seed
        self.retirement = retirement or Retirement()
        self.cursor = Cursor(tasks, self.retirement)
        self.changes = Changes()
        self.version = 0  # the learner's
        self.furthest = 0  # the highest that it has reached
        self.retains = False  # what it consumes is kept until a checkpoint holds it
        self.retained_from = 0  # oldest version whose batch is kept
        self.fingerprints = Fingerprints(self.changes)
        self.groups: dict[int, Group] = {}  # live ones, in lease order
        self.leases = Leases(self.changes)
        self.jobs = Jobs(self.changes)
        self.batches: dict[int, tuple[int, ...]] = {}  # version → groups: handed out, or trained and in no checkpoint
        self.granted = 0  # groups leased since the start and not dropped
        self.consumed_groups = 0
        self.dropped: Counter[str] = Counter()
        self.drops_in_a_row = 0  # groups dropped since one was last finished
        self.resampled = 0  # groups dropped as zero_variance since a batch was last consumed
        self.counts: Counter[str] = Counter()  # generated_tokens, rollouts, verdicts, void_verdicts, duplicates,
        # resample_limit_reached (groups), tasks_skipped (indexes of retired tasks), late_groups (`straggler=train`)
        self._unleased: list[int] = []  # heap of group ids with samples that came back
        self._ready: list[int] = []  # finished groups that are in no batch, in lease order
        self._batch_may_be = False  # something came that a batch may have waited for

    # ------------------------------------------------------------ restart

    def resume(
        self,
        policy_version: int,
        consumed: Sequence[GroupRange],
        *,
        checkpoints: bool = False,
        counted: StreamStats | None = None,
    ) -> bool:
        """The learner begins at `policy_version`, where it has trained `consumed`; False: `restore` this version first.

        A stream that has not begun takes the learner's word: the groups count as granted and consumed, nothing else is
        live, so that both rules of admission stand where they stood. What was leased or dropped but not consumed is a
        hole in the ranges: it is leased anew, first of all.
        """
        groups, steps_take = count(consumed), policy_version * self.config.groups_per_step
        if groups != steps_take:
            raise InvalidEvent(
                "consumed",
                f"holds {groups} groups, {policy_version} steps of {self.config.groups_per_step} take {steps_take}: "
                "stream.groups_per_step must stay as it was when the checkpoint was written",
            )
        if not self._begun and policy_version:
            self.version = self.furthest = self.retained_from = policy_version
            self.granted = self.consumed_groups = groups
            self.cursor.spent = deque(consumed)
            if counted:
                self.dropped.update(counted.groups_dropped)
                self.counts.update({name: getattr(counted, name) for name in COUNTED})
        handed_out = self.batches.get(self.version)
        if policy_version == self.version + 1 and handed_out and all(holds(consumed, each) for each in handed_out):
            self.consumed(policy_version, handed_out)  # its word was lost with this process
        elif not self.retained_from <= policy_version <= self.version:
            raise InvalidEvent(
                "policy_version",
                f"the learner begins at {policy_version}, the broker's journal has what versions {self.retained_from} "
                f"to {self.version} consume: go on from a checkpoint of those (checkpoint.resume=true), or remove "
                "journal.sqlite* in the run's directory to lease anew what that checkpoint does not hold",
            )
        self.retains = checkpoints
        self.fingerprints.allow_others()
        self.checkpointed(policy_version)
        return policy_version == self.version

    @property
    def _begun(self) -> bool:
        return bool(self.cursor.next_index or self.version or self.cursor.spent)

    def restore(self, saved: Saved, now: float, policy_version: int | None = None) -> None:
        """Be what a journal holds; at `policy_version`, if the learner went back to an older checkpoint.

        Then what it consumed since is handed out again, in the same batches, and nothing new is leased until it stands
        again where it stood. Leases get their whole time again; jobs that this process does not know are sent again.
        """
        state = saved.state
        version = state.version if policy_version is None else policy_version
        self.changes.clear()
        self.changes.state = policy_version is not None
        self.version, self.furthest = version, state.furthest
        self.retains, self.retained_from = state.retains, state.retained_from
        self.granted = state.granted
        self.consumed_groups = state.consumed_groups - (state.version - version) * self.config.groups_per_step
        self.drops_in_a_row, self.resampled = state.drops_in_a_row, state.resampled
        self.dropped, self.counts = Counter(state.dropped), Counter(state.counts)
        self.leases.next_id, self.jobs.next_id = state.next_lease, state.next_job
        self.cursor.next_index, self.cursor.exhausted = state.next_task, state.exhausted
        self.cursor.spent = deque(saved.ranges)
        self.fingerprints.restore(saved.fingerprints)
        self.batches = dict(saved.batches)
        self.retirement.restore(saved.histories)
        trained = {group for before, ids in saved.batches.items() if before < version for group in ids}
        self.groups = {group.group_id: group for group in saved.groups if group.group_id not in trained}
        self.leases.restore(saved.leases, self.groups, now + self.config.lease_seconds)
        in_a_batch = {group for ids in self.batches.values() for group in ids}
        self._ready = [
            each.group_id for each in self.groups.values() if each.finished and each.group_id not in in_a_batch
        ]
        self._unleased = [group.group_id for group in self.groups.values() if group.pending]
        self.jobs.restore(
            (group.group_id, index)
            for group in self.groups.values()
            for index, sample in enumerate(group.samples)
            if sample.state is SampleState.VERIFYING
        )
        self._batch_may_be = True

    def skip_numbers(self) -> None:
        """Nothing new gets the number of a lease or a job that peers know of, but which the journal lost."""
        self.leases.next_id += SKIPPED
        self.jobs.next_id += SKIPPED
        self.changes.state = True

    def state(self) -> State:
        """The numbers that a journal keeps."""
        return State(
            version=self.version,
            furthest=self.furthest,
            retains=self.retains,
            retained_from=self.retained_from,
            granted=self.granted,
            consumed_groups=self.consumed_groups,
            next_task=self.cursor.next_index,
            next_lease=self.leases.next_id,
            next_job=self.jobs.next_id,
            drops_in_a_row=self.drops_in_a_row,
            resampled=self.resampled,
            exhausted=self.exhausted,
            dropped=dict(self.dropped),
            counts=dict(self.counts),
            spent=[[each.first, each.last] for each in self.cursor.spent],
        )

    # ------------------------------------------------------------ weights

    def published(self, version: int, fingerprint: str) -> None:
        """The learner offers weights of `version`."""
        self.fingerprints.publish(version, fingerprint)

    def _forget_versions(self) -> None:
        """Of the fingerprints, keep those that a rollout of a live group may still name."""
        oldest = min((group.lease_version for group in self.groups.values()), default=self.version)
        self.fingerprints.forget_before(oldest)

    # ------------------------------------------------------------ leases

    def grant(self, actor: str, capacity: int, now: float) -> Lease | None:
        """One more lease for `actor`, who holds at most `capacity` rollouts; oldest group first. None: not now.

        A group larger than `capacity` is granted to an actor that holds nothing, else it could never be sampled.
        """
        if not self.has_room(actor, capacity):
            return None
        group = self._returned_group() or self._fresh_group()
        if group is None:
            return None
        lease = self.leases.open(actor, group, now + self.config.lease_seconds)
        return Lease(
            lease_id=lease.lease_id,
            group_id=group.group_id,
            task=group.task,
            sample_indexes=lease.leased,
            seeds=tuple(group.seeds[index] for index in lease.leased),
            min_version=group.lease_version,
            deadline_seconds=self.config.lease_seconds,
        )

    def has_room(self, actor: str, capacity: int) -> bool:
        """Whether `actor`, who holds at most `capacity` rollouts, may get one more lease."""
        owed = self.leases.owed(actor)
        return capacity - owed >= self.config.group_size or capacity > owed == 0

    def _returned_group(self) -> Group | None:
        while self._unleased:
            group = self.groups.get(heapq.heappop(self._unleased))
            if group is not None and group.pending:
                return group
        return None

    @property
    def leasable(self) -> bool:
        """Whether an actor with room would get a lease."""
        return bool(self._unleased) or (bool(self.fingerprints) and not self.exhausted and self._may_grant())

    def _fresh_group(self) -> Group | None:
        if self.exhausted or not self.fingerprints or not self._may_grant():
            return None
        found = self.cursor.advance()
        if found is None:
            self.changes.state = True
            return None
        group_id, task, passed_over = found
        seeds = sample_seeds(self.seed, group_id, self.config.group_size)
        group = Group(group_id, task, self.version, seeds, [Sample() for _ in seeds])
        self.groups[group_id] = group
        self.counts["tasks_skipped"] += passed_over
        self.granted += 1
        return group

    def _may_grant(self) -> bool:
        """Nothing new while the learner makes steps anew: the batches up to `furthest` are those that they were."""
        return self.granted < self.admission_limit and self.version >= self.furthest

    def rollout_done(self, message: RolloutDone) -> None:
        """A completion has arrived; it goes on to verification. A second copy of it is counted and forgotten."""
        rollout = message.rollout
        self.fingerprints.check(rollout.version_spans)
        group = self.groups.get(rollout.group_id)
        if group is None:
            self._duplicate()
            return
        if rollout.sample_index >= len(group.samples):
            raise InvalidEvent("rollout.sample_index", f"{rollout.sample_index} in a group of {len(group.samples)}")
        if rollout.version_spans[0].version < group.lease_version:
            begin = rollout.version_spans[0].version
            raise InvalidEvent("rollout.version_spans", f"begin at {begin}, the lease asks for {group.lease_version}")
        sample = group.samples[rollout.sample_index]
        if sample.state not in (SampleState.LEASED, SampleState.PENDING):
            self._duplicate()
            return
        self.leases.deliver(group, rollout.sample_index)
        sample.rollout = rollout
        sample.state = SampleState.VERIFYING
        self.jobs.put(group.group_id, rollout.sample_index)
        self.changes.samples.add((group.group_id, rollout.sample_index))
        self.changes.state = True
        self.counts["rollouts"] += 1
        self.counts["generated_tokens"] += len(rollout.token_ids)

    def _duplicate(self) -> None:
        self.counts["duplicates"] += 1
        self.changes.state = True

    def lease_failed(self, message: LeaseFailed) -> None:
        """No actor can fulfil this lease: its group is dropped."""
        if lease := self.leases.running.get(message.lease_id):
            self._drop(lease.group, message.reason)

    def overdue(self, now: float) -> list[RunningLease]:
        """Ends the leases whose time is up; their missing samples go back to the stream."""
        late = self.leases.overdue(now)
        for lease in late:
            self._give_back(lease, "lease_expired")
        return late

    def renew(self, actor: str, holds: Sequence[int], now: float) -> list[RunningLease]:
        """An actor came back: what it `holds` gets its whole time, what it was leased and does not know goes back."""
        self.leases.renew(actor, holds, now + self.config.lease_seconds)
        return self.actor_lost(actor, set(holds))

    def actor_lost(self, actor: str, kept: Collection[int] = ()) -> list[RunningLease]:
        """Ends the leases of an actor that is gone, but for those that are `kept`."""
        lost = [lease for lease in self.leases.of(actor) if lease.lease_id not in kept]
        for lease in lost:
            self._give_back(lease, "actors_lost")
        return lost

    def _give_back(self, lease: RunningLease, reason: str) -> None:
        if lease.lease_id not in self.leases.running:  # its group was dropped with another of its leases, just before
            return
        self.leases.give_back(lease)
        if lease.group.leases >= self.config.lease_attempts:
            self._drop(lease.group, reason)
        elif lease.group.pending:
            heapq.heappush(self._unleased, lease.group.group_id)

    # ------------------------------------------------------------ verification

    def assign(self, verifier: str, capacity: int) -> VerifyJob | None:
        """The next job for `verifier`, who holds at most `capacity` jobs. None: not now."""
        if self.jobs.held(verifier) >= capacity:
            return None
        for group_id, index in self.jobs.waiting():
            group = self.groups.get(group_id)
            if group is None or group.samples[index].state is not SampleState.VERIFYING:
                continue
            rollout = group.samples[index].rollout
            assert rollout is not None, "a sample is verifying only after its rollout arrived"
            return VerifyJob(
                job_id=self.jobs.open(verifier, group_id, index).job_id,
                group_id=group_id,
                sample_index=index,
                text=rollout.text,
                reward=group.task.reward,
                reference=group.task.reference,
                metadata=group.task.metadata,
                deadline_seconds=self.config.verify_seconds,
            )
        return None

    def verify_done(self, message: VerifyDone) -> None:
        """A verdict has arrived. Void ones are tried again, then the sample is dropped; they never train as 0."""
        if job := self.jobs.running.get(message.job_id):
            if (job.group_id, job.sample) != (message.group_id, message.sample_index):
                raise InvalidEvent("job_id", f"{job.job_id} is sample {job.sample} of group {job.group_id}")
            self.jobs.end(job)
        group = self.groups.get(message.group_id)
        if group is not None and message.sample_index >= len(group.samples):
            raise InvalidEvent("sample_index", f"{message.sample_index} in a group of {len(group.samples)}")
        if group is None or group.samples[message.sample_index].state is not SampleState.VERIFYING:
            self._duplicate()
            return
        sample, verdict = group.samples[message.sample_index], message.verdict
        self.changes.samples.add((group.group_id, message.sample_index))
        self.changes.state = True
        self.counts["verdicts"] += 1
        if verdict.void:
            self.counts["void_verdicts"] += 1
            sample.checks += 1
            if sample.checks < self.config.verify_attempts:
                self.jobs.put(group.group_id, message.sample_index)
                return
        sample.verdict = verdict
        sample.state = SampleState.VOID if verdict.void else SampleState.SCORED
        if group.finished:
            self._finish(group)

    def checks_of(self, job: RunningJob) -> int:
        """Rewards that a job has to compute at most, one after the other: the names in its expression."""
        group = self.groups.get(job.group_id)
        return max(1, len(NAME.findall(group.task.reward))) if group else 1

    def _finish(self, group: Group) -> None:
        """The last verdict of a group has arrived: it waits for its batch, or makes room for another."""
        rewards = group.rewards
        if self.retirement.pass_rate:
            self.retirement.finished(group.task.task_id, rewards)
            self.changes.tasks.add(group.task.task_id)
        if len(rewards) < 2:
            self._drop(group, "void")
            return
        if self.config.zero_variance == "resample" and min(rewards) == max(rewards) and self._resampled(group):
            self.drops_in_a_row = 0  # whatever its rewards, all that makes a group works
            return
        self.drops_in_a_row = 0
        place = bisect.bisect(self._ready, group.group_id)
        self._ready.insert(place, group.group_id)
        if place < self.config.groups_per_step:  # else it is not in the next batch, and what that waits for remains
            self._batch_may_be = True

    def _resampled(self, group: Group) -> bool:
        """Make room for another group, as long as the batch in the making has lost fewer than the limit."""
        if self.resampled >= self.config.resample_limit:
            self.counts["resample_limit_reached"] += 1
            return False
        self.resampled += 1
        self._drop(group, "zero_variance")
        return True

    def verifier_lost(self, verifier: str) -> list[RunningJob]:
        """The jobs of a verifier that is gone are sent again, first of all."""
        return self.jobs.give_back(verifier)

    # ------------------------------------------------------------ batches

    def batch(self, policy_version: int) -> tuple[RolloutGroup, ...] | None:
        """The groups that `policy_version` consumes, oldest lease first; None while they are not there.

        Asked again for a version that was handed out but not consumed, it gives the same groups again.
        """
        if policy_version != self.version:
            raise InvalidEvent("policy_version", f"the learner asks for {policy_version} but stands at {self.version}")
        if policy_version not in self.batches:
            if not self._batch_may_be or (chosen := self._choose()) is None:
                return None
            self.batches[policy_version] = chosen
            self.changes.batches.add(policy_version)
            del self._ready[: len(chosen)]
        return tuple(self.groups[group_id].as_message() for group_id in self.batches[policy_version])

    def _choose(self) -> tuple[int, ...] | None:
        """The finished groups of the oldest leases, if what they leave behind allows it."""
        chosen = self._ready[: self.config.groups_per_step]
        self._batch_may_be = False  # until something comes
        if len(chosen) < self.config.groups_per_step:
            return None
        if self.config.straggler == "drop":
            self._drop_stragglers(chosen)
        elif self.config.straggler == "wait" and not self._in_time(self._left(chosen)):
            return None
        return tuple(chosen)

    def _left(self, chosen: Sequence[int]) -> list[Group]:
        taken = set(chosen)
        return [group for group in self.groups.values() if group.group_id not in taken]

    def _in_time(self, left: Sequence[Group]) -> bool:
        """Whether the groups that a batch leaves behind can all be consumed in time."""
        return in_time(
            (group.lease_version for group in left),
            version=self.version,
            max_staleness=self.config.max_staleness,
            groups_per_step=self.config.groups_per_step,
        )

    def _drop_stragglers(self, chosen: Sequence[int]) -> None:
        """Until the rest can be consumed in time, drop the oldest of the groups that are not finished."""
        left = self._left(chosen)
        while not self._in_time(left):
            straggler = next(group for group in left if not group.finished)
            left.remove(straggler)
            self._drop(straggler, "straggler")

    def consumed(self, policy_version: int, group_ids: Sequence[int]) -> None:
        """The learner trained the batch and stands at `policy_version` now. Told again, it changes nothing."""
        trained = tuple(group_ids)
        if policy_version <= self.version and self.batches.get(policy_version - 1, trained) == trained:
            self._duplicate()
            return
        if self.batches.get(self.version) != trained:
            raise InvalidEvent("group_ids", "are not the groups that were handed out last")
        if policy_version != self.version + 1:
            raise InvalidEvent("policy_version", f"must follow {self.version}, got {policy_version}")
        latest = self.version - self.config.max_staleness
        for group_id in group_ids:
            group = self.changes.trained[group_id] = self.groups.pop(group_id)
            self.counts["late_groups"] += group.lease_version < latest
        self.consumed_groups += len(group_ids)
        self.version = policy_version
        self.furthest = max(self.furthest, policy_version)
        self.resampled = 0
        self._batch_may_be = True
        self.changes.state = True
        if not self.retains:
            self.checkpointed(policy_version)
        self._forget_versions()

    def checkpointed(self, policy_version: int) -> None:
        """A checkpoint holds what was trained before `policy_version`: nobody asks for it again."""
        if policy_version > self.version:
            raise InvalidEvent(
                "policy_version", f"{policy_version} is ahead of the stream, which stands at {self.version}"
            )
        for version in [version for version in self.batches if version < policy_version]:
            self.changes.batches.add(version)
            for group_id in self.batches.pop(version):
                self.changes.groups.add(group_id)
                self.changes.trained.pop(group_id, None)
        self.retained_from = max(self.retained_from, policy_version)
        self.changes.state = True

    def _drop(self, group: Group, reason: str) -> None:
        self.leases.end_all(group)
        del self.groups[group.group_id]
        self.granted -= 1
        self.dropped[reason] += 1
        self.drops_in_a_row += 1
        self._batch_may_be = True
        self.changes.groups.add(group.group_id)
        self.changes.dropped[group.group_id] = reason
        self.changes.state = True

    @property
    def exhausted(self) -> str:
        """Why no further task will be leased, in words; empty while one may be."""
        return self.cursor.exhausted

    @property
    def dry(self) -> bool:
        """Whether the tasks have ended (`exhausted` says how) and what is left can never fill a batch."""
        return bool(self.exhausted) and len(self.groups) < self.config.groups_per_step

    def close(self) -> None:
        """The run is over: what is still under way is dropped, and counted, a batch that was handed out as well."""
        for version in [version for version in self.batches if version >= self.version]:
            del self.batches[version]
            self.changes.batches.add(version)
        self.furthest = self.version
        self.changes.state = True
        for group in list(self.groups.values()):
            self._drop(group, "run_ended")
        self._ready.clear()

    # ------------------------------------------------------------ what is going on

    @property
    def ready(self) -> int:
        """Finished groups that wait for the learner."""
        return len(self._ready) + len(self.batches.get(self.version, ()))

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
        if self.version < self.furthest:
            return f"the learner to make step {self.version + 1} anew, of {self.furthest}"
        if self.version in self.batches:
            return f"the learner to train step {self.version + 1}"
        leases, jobs = self.leases.running, self.jobs.running
        if self.jobs.queued:
            return f"verifiers ({self.jobs.queued} rollouts queued)"
        if jobs and not leases:
            return f"{len(jobs)} verdicts"
        if leases:
            return f"{sum(len(lease.samples) for lease in leases.values())} rollouts of {len(leases)} leases"
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
