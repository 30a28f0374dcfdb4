"""Which task is leased next: each index of the task stream once, in order.

What a run consumed before it was resumed is passed over, and so are tasks that are retired. A group has the index of
its task for an id.
"""

import itertools
from collections import deque
from collections.abc import Iterator
from typing import Protocol

from learner.broker.retirement import Retirement
from protocol.messages import GroupRange, Task


class Tasks(Protocol):
    """A deterministic stream of tasks by index."""

    @property
    def epoch_size(self) -> int:
        """Indexes after which the same tasks come again, in whatever order; 0: they never do."""

    def task_id(self, index: int) -> str | None:
        """The id of the task at `index`, or None past the end; in no time, even where the task takes some to make."""

    def task(self, index: int) -> Task | None:
        """The task at `index`, or None past the end."""


class Cursor:
    """Stands before `next_index`. `spent` are ranges from there on that were consumed before a restart."""

    def __init__(self, tasks: Tasks, retirement: Retirement) -> None:
        self.tasks = tasks
        self.retirement = retirement
        self.next_index = 0
        self.spent: deque[GroupRange] = deque()
        self.exhausted = ""  # why no further task will come, in words; empty while one may

    def advance(self) -> tuple[int, Task, int] | None:
        """The next index, its task, and how many retired tasks come before it; None, and `exhausted`, past the end.

        What is passed over is told only with the task that comes of it, so that a journal may leave out the calls that
        came to nothing.
        """
        passed_over, index = self._next()
        if index is None:
            rate = f"{100 * self.retirement.pass_rate:g} %"
            self.exhausted = f"all tasks are retired: each was solved in at least {rate} of its rollouts"
            return None
        task = self.tasks.task(index)
        if task is None:
            self.exhausted = "the tasks have ended"
            return None
        self.next_index = index + 1
        while self.spent and self.spent[0].last < index:
            self.spent.popleft()
        return index, task, passed_over

    def _next(self) -> tuple[int, int | None]:
        """How many retired tasks come before the next index, and that; None when a whole epoch holds none."""
        retired, indexes = self.retirement.retired, self._unspent()
        if not retired:
            return 0, next(indexes)
        assert self.tasks.epoch_size, "only tasks that come again retire"
        last_spent = self.spent[-1].last if self.spent else -1
        end = max(self.next_index, last_spent + 1) + 2 * self.tasks.epoch_size - 1  # behind it was a whole epoch
        for passed_over, index in enumerate(indexes):
            if index >= end:
                break
            if self.tasks.task_id(index) not in retired:
                return passed_over, index
        return 0, None

    def _unspent(self) -> Iterator[int]:
        """The indexes from the next one on that were not consumed before a restart, without end."""
        index = self.next_index
        for spent in self.spent:
            yield from range(index, spent.first)
            index = max(index, spent.last + 1)
        yield from itertools.count(index)
