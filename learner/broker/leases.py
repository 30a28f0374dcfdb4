"""Who samples what: the running leases, and how many rollouts each actor owes by them."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from learner.broker.changes import Changes, SavedLease
from learner.broker.groups import Group, SampleState


@dataclass(slots=True)
class RunningLease:
    """A lease that an actor holds."""

    lease_id: int
    actor: str
    group: Group
    leased: tuple[int, ...]  # samples
    samples: set[int]  # those that have not arrived
    overdue_at: float


class Leases:
    """Running leases by their number. `changes` is told which of them a journal has to write."""

    def __init__(self, changes: Changes) -> None:
        self.changes = changes
        self.running: dict[int, RunningLease] = {}
        self.relieved: set[str] = set()  # actors that owe less than they did; whoever grants leases forgets them
        self.next_id = 0
        self._owed: Counter[str] = Counter()  # samples by actor

    def restore(self, saved: Sequence[SavedLease], groups: Mapping[int, Group], overdue_at: float) -> None:
        """Be what a journal holds. A sample that has arrived is owed no more."""
        self.relieved |= self.holders
        self.running, self._owed = {}, Counter()
        for each in saved:
            group = groups[each.group_id]
            missing = [index for index in each.samples if group.samples[index].state is SampleState.PENDING]
            self._run(RunningLease(each.lease_id, each.actor, group, each.samples, set(missing), overdue_at))

    def open(self, actor: str, group: Group, overdue_at: float) -> RunningLease:
        """Lease to `actor` the samples of `group` that nobody works on."""
        samples = group.pending
        lease = RunningLease(self.next_id, actor, group, samples, set(samples), overdue_at)
        self.next_id += 1
        group.leases += 1
        self._run(lease)
        self.changes.leases.add(lease.lease_id)
        self.changes.groups.add(group.group_id)
        self.changes.state = True
        return lease

    def _run(self, lease: RunningLease) -> None:
        for index in lease.samples:
            lease.group.samples[index].state = SampleState.LEASED
        lease.group.lease_ids.add(lease.lease_id)
        self.running[lease.lease_id] = lease
        self._owed[lease.actor] += len(lease.samples)

    def deliver(self, group: Group, sample: int) -> None:
        """A sample of `group` has arrived, whoever brought it: an overdue lease may, after another was given."""
        for lease_id in tuple(group.lease_ids):
            lease = self.running[lease_id]
            if sample in lease.samples:
                lease.samples.remove(sample)
                self._owed[lease.actor] -= 1
                self.relieved.add(lease.actor)
            if not lease.samples:
                self.end(lease)

    def end(self, lease: RunningLease) -> None:
        """Nothing more is owed by it."""
        del self.running[lease.lease_id]
        self._owed[lease.actor] -= len(lease.samples)
        self.relieved.add(lease.actor)
        if not self._owed[lease.actor]:
            del self._owed[lease.actor]
        lease.group.lease_ids.discard(lease.lease_id)
        self.changes.leases.add(lease.lease_id)

    def end_all(self, group: Group) -> None:
        """Nobody needs to sample `group` any more."""
        for lease_id in tuple(group.lease_ids):
            self.end(self.running[lease_id])

    def give_back(self, lease: RunningLease) -> None:
        """End it; nobody works on its missing samples now."""
        self.end(lease)
        for index in lease.samples:
            if lease.group.samples[index].state is SampleState.LEASED:
                lease.group.samples[index].state = SampleState.PENDING

    def renew(self, actor: str, lease_ids: Collection[int], overdue_at: float) -> None:
        """Those of them that `actor` holds get their whole time again."""
        for lease_id in lease_ids:
            if (lease := self.running.get(lease_id)) and lease.actor == actor:
                lease.overdue_at = overdue_at

    def overdue(self, now: float) -> list[RunningLease]:
        """Those whose time is up."""
        return [lease for lease in self.running.values() if lease.overdue_at <= now]

    def of(self, actor: str) -> list[RunningLease]:
        """Those that `actor` holds."""
        return [lease for lease in self.running.values() if lease.actor == actor] if self._owed[actor] else []

    def owed(self, actor: str) -> int:
        """Rollouts that `actor` owes."""
        return self._owed[actor]

    @property
    def holders(self) -> set[str]:
        """The actors that owe any."""
        return set(self._owed)
