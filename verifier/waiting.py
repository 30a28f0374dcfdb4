"""The order in which jobs are begun: short ones first, and no job for ever.

A job goes by its rank, its arrival plus a head start that it gives to others: `STRETCH` times the seconds that it is
expected to take, `patience_seconds` at most. So a job that takes long lets those pass that come a little after it and
take less. Two more rules keep that from hurting anybody.

**Nobody is overtaken for ever.** What comes later than a job's rank never goes before it, and the rank is at most
`patience_seconds` after the arrival.

**The steady worker is kept for the oldest.** One worker takes a job out of turn only if that job would be over, even if
it took all the time that it may take, before the oldest waiting one has waited `patience_seconds`; else it takes the
oldest. So the job that is the oldest unfinished one begins, at the latest, `patience_seconds` after its arrival or at
the moment at which it became the oldest, whichever is later:

1. While it is the oldest and waits, the steady worker begins no job that ends, at worst, past that moment.
2. What the steady worker was at when it became the oldest was begun out of turn, before a job at least as old, and so
   ends by that job's arrival + patience, which is no later; or it was the oldest waiting one then, is older, and has
   ended, since nothing older is unfinished.

A job that has been begun is never put back. Other workers go by the rank alone. The broker counts on this: it takes a
verifier whose oldest job is not judged in time for lost. All moments are the caller's; `patience_seconds` 0 is the
order of arrival.
"""

import heapq
import itertools
from dataclasses import dataclass, field
from typing import Generic, TypeVar

STRETCH = 10.0  # seconds of head start for each second that a job is expected to take
_RECENT = 0.05  # weight of the newest check in the mean of its reward

Item = TypeVar("Item")


class Expected:
    """How long checks of each reward take, by those that were seen; one that was never seen counts as quick."""

    def __init__(self) -> None:
        self._means: dict[str, float] = {}

    def saw(self, reward: str, seconds: float) -> None:
        """A check of `reward` took so long."""
        mean = self._means.get(reward, seconds)
        self._means[reward] = mean + _RECENT * (seconds - mean)

    def seconds(self, reward: str) -> float:
        """What the next one is expected to take."""
        return self._means.get(reward, 0.0)


@dataclass(slots=True)
class _Entry(Generic[Item]):
    item: Item
    arrived: float
    worst_seconds: float
    taken: bool = field(default=False)


class Waiting(Generic[Item]):
    """Jobs that no worker has begun."""

    def __init__(self, patience_seconds: float) -> None:
        self.patience_seconds = patience_seconds
        self._by_rank: list[tuple[float, int, _Entry[Item]]] = []
        self._by_arrival: list[tuple[float, int, _Entry[Item]]] = []
        self._numbers = itertools.count()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, item: Item, *, arrived: float, expected_seconds: float, worst_seconds: float) -> None:
        """Take a job. Worst: all the time that it may take."""
        entry, number = _Entry(item, arrived, worst_seconds), next(self._numbers)
        rank = arrived + min(STRETCH * expected_seconds, self.patience_seconds)
        heapq.heappush(self._by_rank, (rank, number, entry))
        heapq.heappush(self._by_arrival, (arrived, number, entry))
        self._count += 1

    def next(self, moment: float, *, steady: bool) -> Item | None:
        """The job that a worker, the steady one or another, begins now; None if there is none."""
        entry = self._next(moment, steady)
        return entry.item if entry else None

    def take(self, moment: float, *, steady: bool) -> Item:
        """Remove and return what `next` says. Raises `IndexError` if there is none."""
        if (entry := self._next(moment, steady)) is None:
            raise IndexError("nothing waits")
        entry.taken = True
        self._count -= 1
        return entry.item

    def _next(self, moment: float, steady: bool) -> _Entry[Item] | None:
        for heap in (self._by_rank, self._by_arrival):
            while heap and heap[0][2].taken:
                heapq.heappop(heap)
        if not self._count:
            return None
        first, oldest = self._by_rank[0][2], self._by_arrival[0][2]
        if steady and moment + first.worst_seconds > oldest.arrived + self.patience_seconds:
            return oldest
        return first
