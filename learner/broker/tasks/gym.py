"""Every family of reasoning-gym by name, e.g. `task.name=reasoning_gym/chain_sum`, judged by its own checker."""

import ast
import difflib
import random
from dataclasses import replace
from typing import Any

from reasoning_gym.factory import DATASETS, create_dataset

from learner.broker.config import TaskConfig
from learner.broker.tasks.addition import place_in_epoch
from learner.broker.tasks.template import Wrap
from protocol import reference
from protocol.messages import Task

GYM = "reasoning_gym/"
REWARD = "0.5*reasoning_gym + 0.5*format"
DEFAULT_SIZE = 10_000  # entries of an epoch when task.size is 0: some families make all of them at once


class GymTasks:
    """Entries of one family, each made by seed and index alone."""

    def __init__(self, config: TaskConfig, seed: int, wrap: Wrap) -> None:
        self.family = config.name.partition("/")[2]
        self.config = replace(config, size=config.size or DEFAULT_SIZE)
        self.wrap = wrap
        if self.family not in families():
            close = difflib.get_close_matches(self.family, families(), n=3)
            hint = f"did you mean {', '.join(close)}? task.name={GYM}? names all" if close else ", ".join(families())
            raise ValueError(f"task.name={config.name}: no such family; {hint}")
        params = {name: _literal(text) for name, text in config.params.items()}
        own_seed = random.Random(f"{config.name}/{seed}").getrandbits(31)  # entries of seeds 0 and 1 would overlap
        try:
            self.dataset = create_dataset(self.family, size=self.config.size, seed=own_seed, **params)
        except (TypeError, ValueError, AssertionError) as error:
            raise ValueError(f"task.params: {self.family} does not take {params}: {error}") from None
        self.metadata = {"family": self.family, "params": reference.dump(params)}

    def task(self, index: int) -> Task | None:
        """The entry at `index`; an epoch of `task.size` entries is repeated `task.epochs` times."""
        if (place := place_in_epoch(index, self.config)) is None:
            return None
        entry = self.dataset[place]
        return Task(
            task_id=f"{self.family}/{place}",
            prompt=self.wrap(entry["question"]),
            reward=self.config.reward or REWARD,
            reference=reference.dump(entry),
            metadata=self.metadata,
        )


def families() -> list[str]:
    """Names of all families that stand alone."""
    return sorted(set(DATASETS) - {"composite"})


def _literal(text: str) -> Any:
    """A parameter's value as Python writes it: a number, a truth, a list; anything else is a text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
