"""Every family of reasoning-gym by name, e.g. `task.name=reasoning_gym/chain_sum`, judged by its own checker."""

import json
import os
import random
import subprocess
import sys
import weakref
from collections import deque
from dataclasses import replace

from learner.broker.config import TaskConfig
from learner.broker.tasks.addition import place_in_epoch
from learner.broker.tasks.question import with_question
from learner.template import Wrap
from protocol import reference
from protocol.messages import Task

REWARD = "0.5*reasoning_gym + 0.5*format"
DEFAULT_SIZE = 10_000  # entries of an epoch when task.size is 0: some families make all of them at once
AHEAD = 8  # entries asked for before they are needed, so that the broker seldom waits for one


class GymTasks:
    """Entries of one family, each made by seed and index alone, in a process of its own (`gym_entries`).

    `task` waits for an entry that is not made yet, mostly milliseconds, in a few families a second. The process ends
    with this object.
    """

    def __init__(self, config: TaskConfig, seed: int, wrap: Wrap) -> None:
        self.family = config.name.partition("/")[2]
        self.config = replace(config, size=config.size or DEFAULT_SIZE)
        self.wrap = wrap
        own_seed = random.Random(f"{config.name}/{seed}").getrandbits(31)  # entries of seeds 0 and 1 would overlap
        setup = {"family": self.family, "size": self.config.size, "seed": own_seed, "params": config.params}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "learner.broker.tasks.gym_entries", json.dumps(setup)],
            env=os.environ | {"PYTHONHASHSEED": "0"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            start_new_session=True,
        )
        self._end = weakref.finalize(self, _end, self._process)
        self._asked: deque[int] = deque()  # places whose entries are under way, in order
        said = json.loads(self._line())
        if "error" in said:
            self._end()
            raise ValueError(said["error"])
        self._params: str = said["params"]

    @property
    def epoch_size(self) -> int:
        """Entries in an epoch."""
        return self.config.size

    def task_id(self, index: int) -> str | None:
        """The id of the entry at `index`, which need not be made for it."""
        place = place_in_epoch(index, self.config)
        return None if place is None else _task_id(self.family, place)

    def task(self, index: int) -> Task | None:
        """The entry at `index`; an epoch of `task.size` entries is repeated `task.epochs` times."""
        if (place := place_in_epoch(index, self.config)) is None:
            return None
        return gym_task(self.family, place, self._entry(place), self._params, self.wrap, self.config.reward)

    def _entry(self, place: int) -> str:
        """The entry at `place`, after which the next few are asked for."""
        if place not in self._asked:
            while self._asked:
                self._next()
            self._ask(place)
        while (found := self._next())[0] != place:
            pass
        last = self._asked[-1] if self._asked else place
        for ahead in range(last + 1, min(place + 1 + AHEAD, self.config.size)):
            self._ask(ahead)
        return found[1]

    def _ask(self, place: int) -> None:
        assert self._process.stdin is not None
        self._asked.append(place)
        try:
            self._process.stdin.write(f"{place}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._death() from None

    def _next(self) -> tuple[int, str]:
        return self._asked.popleft(), self._line()

    def _line(self) -> str:
        assert self._process.stdout is not None
        if line := self._process.stdout.readline():
            return line.rstrip("\n")
        raise self._death()

    def _death(self) -> RuntimeError:
        return RuntimeError(f"the process that makes {self.family} entries ended with code {self._process.wait()}")


def gym_task(family: str, place: int, entry: str, params: str, wrap: Wrap, reward: str) -> Task:
    """The task of an entry and its family's parameters, both as `protocol.reference` writes them."""
    question: str = reference.load(entry)["question"]
    return Task(
        task_id=_task_id(family, place),
        prompt=wrap(question),
        reward=reward or REWARD,
        reference=entry,
        metadata=with_question({"family": family, "params": params}, reward, question),
    )


def _task_id(family: str, place: int) -> str:
    return f"{family}/{place}"


def _end(process: subprocess.Popen[str]) -> None:
    """Entries are nothing that could be lost."""
    process.kill()
    process.communicate()
