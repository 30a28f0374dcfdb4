"""What of the stream outlives its process: the records of a journal, and what has changed since it was written last."""

from dataclasses import dataclass, field

from learner.broker.groups import Group
from protocol.messages import GroupRange


@dataclass(slots=True)
class Changes:
    """Names of what a journal must write anew; the stream itself says what they are now, or that they are gone."""

    groups: set[int] = field(default_factory=set)
    trained: dict[int, Group] = field(default_factory=dict)  # in no checkpoint: they left the stream, maybe unwritten
    samples: set[tuple[int, int]] = field(default_factory=set)  # (group, sample): a rollout or a verdict arrived
    leases: set[int] = field(default_factory=set)
    dropped: dict[int, str] = field(default_factory=dict)  # group → reason
    batches: set[int] = field(default_factory=set)  # policy versions
    versions: set[int] = field(default_factory=set)  # published, or not needed any more
    tasks: set[str] = field(default_factory=set)  # task ids whose pass rate moved
    state: bool = False  # a number of `State`

    def __bool__(self) -> bool:
        return self.state or any(
            (self.groups, self.samples, self.leases, self.dropped, self.batches, self.versions, self.tasks)
        )

    def clear(self) -> None:
        """All of it is written."""
        self.trained.clear()
        for names in (self.groups, self.samples, self.leases, self.batches, self.versions, self.tasks):
            names.clear()
        self.dropped.clear()
        self.state = False


@dataclass(slots=True)
class State:
    """The stream's numbers."""

    version: int = 0  # the learner's
    furthest: int = 0  # highest version that the learner has reached, before it went back to a checkpoint
    retains: bool = False  # the learner writes checkpoints: what it consumed is kept until one holds it
    retained_from: int = 0  # oldest version whose batch is kept
    granted: int = 0  # groups leased since the start and not dropped
    consumed_groups: int = 0
    next_task: int = 0
    next_lease: int = 0
    next_job: int = 0
    drops_in_a_row: int = 0  # groups dropped since one was last finished
    resampled: int = 0  # groups dropped as zero_variance since a batch was last consumed
    exhausted: str = ""  # why no further task will be leased, in words; empty while one may be
    dropped: dict[str, int] = field(default_factory=dict)  # by reason
    counts: dict[str, int] = field(default_factory=dict)
    spent: list[list[int]] = field(default_factory=list)  # [first, last] of groups consumed before a restart


@dataclass(frozen=True, slots=True)
class SavedLease:
    """A lease as the journal keeps it; how long it may still take is counted anew."""

    lease_id: int
    actor: str
    group_id: int
    samples: tuple[int, ...]  # those that were leased


@dataclass(frozen=True, slots=True)
class Saved:
    """All that a journal holds."""

    state: State
    groups: list[Group]  # live ones and those that are trained and in no checkpoint, in lease order
    leases: list[SavedLease]
    batches: dict[int, tuple[int, ...]]  # policy version → the groups that it consumes
    fingerprints: dict[int, tuple[str, ...]]  # policy version → the weights that were published as it
    histories: dict[str, tuple[int, int, bool]]  # task → rollouts, passed, retired
    dropped: dict[int, str]  # group → reason

    @property
    def ranges(self) -> list[GroupRange]:
        """`State.spent` as the stream holds it."""
        return [GroupRange(first=first, last=last) for first, last in self.state.spent]
