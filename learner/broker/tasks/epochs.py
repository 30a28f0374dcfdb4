"""A finite list of tasks, repeated."""

import random
from collections.abc import Sequence

from protocol.messages import Task


class Epochs:
    """Each epoch holds every task once, in a new order by `seed`, or in the order of the files when it is None."""

    def __init__(self, tasks: Sequence[Task], *, epochs: int, seed: int | None) -> None:
        self.tasks = tasks
        self.epochs = epochs
        self.seed = seed
        self._epoch = -1
        self._order: list[int] = []

    @property
    def epoch_size(self) -> int:
        """Tasks in an epoch."""
        return len(self.tasks)

    def task_id(self, index: int) -> str | None:
        """The id of the task at `index`, None after the last epoch."""
        task = self.task(index)
        return None if task is None else task.task_id

    def task(self, index: int) -> Task | None:
        """The task at `index`, None after the last epoch; `epochs` 0 means without end."""
        epoch, place = divmod(index, len(self.tasks))
        if self.epochs and epoch >= self.epochs:
            return None
        if epoch != self._epoch:
            self._epoch, self._order = epoch, list(range(len(self.tasks)))
            if self.seed is not None:
                random.Random(f"epoch/{self.seed}/{epoch}").shuffle(self._order)
        return self.tasks[self._order[place]]
