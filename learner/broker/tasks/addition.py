"""Digit addition without end; `task.digits` is the dial of difficulty. Held-out problems never occur."""

import random

from learner import addition
from learner.broker.config import TaskConfig
from learner.broker.tasks.question import with_question
from learner.template import Wrap
from protocol.messages import Task

REWARD = "0.5*accuracy + 0.5*format"


class AdditionTasks:
    """A problem for every index up to `task.size`, drawn by seed and index alone."""

    def __init__(self, config: TaskConfig, seed: int, wrap: Wrap) -> None:
        if not 1 <= config.digits <= 100:
            raise ValueError(f"task.digits={config.digits}: must be 1 to 100")
        if config.epochs and not config.size:
            raise ValueError(f"task.epochs={config.epochs}: addition is endless; set task.size too, or leave it 0")
        self.config = config
        self.seed = seed
        self.wrap = wrap

    @property
    def epoch_size(self) -> int:
        """Problems in an epoch; 0: there is one epoch without end."""
        return self.config.size

    def task_id(self, index: int) -> str | None:
        """The problem at `index` as a sum, which may come more than once in an epoch."""
        return None if (operands := self._operands(index)) is None else _task_id(*operands)

    def _operands(self, index: int) -> tuple[int, int] | None:
        if (place := place_in_epoch(index, self.config)) is None:
            return None
        chance = random.Random(f"addition/{self.seed}/{place}")
        a, b = addition.operands(chance, self.config.digits)
        while addition.held_out(a, b):
            a, b = addition.operands(chance, self.config.digits)
        return a, b

    def task(self, index: int) -> Task | None:
        """The problem at `index`; an epoch of `task.size` problems is repeated `task.epochs` times."""
        if (operands := self._operands(index)) is None:
            return None
        a, b = operands
        question, reward = addition.prompt(a, b), self.config.reward or REWARD
        return Task(
            task_id=_task_id(a, b),
            prompt=self.wrap(question),
            reward=reward,
            reference=str(a + b),
            metadata=with_question({"accuracy": "numeric"}, reward, question),
        )


def _task_id(a: int, b: int) -> str:
    return f"{a}+{b}"


def place_in_epoch(index: int, config: TaskConfig) -> int | None:
    """Where `index` falls in a generator's epoch, None past the last one; without a size there is one endless epoch."""
    if not config.size:
        return index
    if config.epochs and index >= config.size * config.epochs:
        return None
    return index % config.size
