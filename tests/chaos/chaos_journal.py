"""A process that writes a journal turn after turn, and the truth of what it wrote: the same world without a journal."""

import os
import random
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from stream_world import NumberedTasks, World, pictured

from learner.broker.config import StreamConfig
from learner.broker.journal import Journal
from learner.broker.stream import Stream

RUN = {"run.seed": 0}
CONFIG = StreamConfig(group_size=3, groups_per_step=4, max_staleness=3, lease_seconds=20.0, lease_attempts=5)
CHECKPOINT_EVERY = 3
TURNS = (1, 12)  # of the world, in one turn of the broker: some are small, some take many pages
PAUSE_SECONDS = 0.002  # between two turns: the truth has to be made as well
LONG = "so many words " * 2000  # of each rollout: a turn takes hundreds of writes, and some time


class Writer:
    """The world of `seed`, some turns at a time."""

    def __init__(self, seed: int, text: str = LONG) -> None:
        self.text = text
        self.chance = random.Random(f"turns {seed}")
        self.stream = Stream(NumberedTasks(), CONFIG, 0)
        self.stream.resume(0, (), checkpoints=True)
        self.world = World(self.stream, random.Random(seed), death_rate=0.05, void_rate=0.2, equal_rate=0.3)

    def turn(self) -> None:
        for _ in range(self.chance.randint(*TURNS)):
            self.world.turn()
        self.stream.checkpointed(self.stream.version // CHECKPOINT_EVERY * CHECKPOINT_EVERY)
        for group_id, index in self.stream.changes.samples:
            if group := self.stream.groups.get(group_id):
                sample = group.samples[index]
                assert sample.rollout
                sample.rollout = replace(sample.rollout, text=self.text)


def write(path: Path, seed: int) -> None:
    """Turn after turn, and a byte in a file beside the journal for each that is written, until somebody kills it."""
    journal, writer = Journal(path, RUN), Writer(seed)
    told = os.open(turns_told(path), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    while True:
        writer.turn()
        journal.commit(writer.stream)
        os.write(told, b".")
        time.sleep(PAUSE_SECONDS)


def turns_told(path: Path) -> Path:
    """The file in which `write` says how many turns are written: its size."""
    return path.with_suffix(".turns")


class Truth:
    """What the stream of `seed` is after so many turns, asked for in order; what was told once is told again."""

    def __init__(self, seed: int) -> None:
        self._writer = Writer(seed)
        self._turns = 0
        self._pictures = {0: pictured(Stream(NumberedTasks(), CONFIG, 0))}

    def after(self, turns: int) -> Any:
        while self._turns < turns:
            self._writer.turn()
            self._turns += 1
        if turns not in self._pictures:
            assert turns == self._turns, "the world does not turn back"
            self._pictures[turns] = pictured(self._writer.stream)
        return self._pictures[turns]


def found(path: Path) -> Any:
    """What a broker would find in the journal, opened as a broker opens it."""
    journal = Journal(path, RUN)
    stream = Stream(NumberedTasks(), CONFIG, 0)
    if journal.begun:
        stream.restore(journal.load(CONFIG.group_size, 0), now=0.0)
    assert journal._database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    journal.close()
    return pictured(stream)
