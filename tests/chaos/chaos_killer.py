"""Kills -9 at instants that a seed chooses: at random, and in the middle of what must not be torn.

Nothing in the roles helps it. It looks for the right moment from outside: at the writes that the kernel has counted for
a broker, at the directories of a checkpoint, at the shards of a version that it fetches like any actor.
"""

import os
import random
import struct
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from chaos_roles import hello
from chaos_world import Run

from learner.checkpoint import files as checkpoint_files
from protocol.clock import Deadline
from protocol.messages import Goodbye, Shard, ShardRequest, WeightManifest
from protocol.sockets import Dealer

LOOK_SECONDS = 3.0  # for the moment to come; else the kill is one at random
CALM_SECONDS = 0.12  # between two kills, on average
WRITE_SECONDS = 5e-5  # from the first write of a turn on


class Killer:
    """One run's death. `kills` counts by kind."""

    def __init__(self, run: Run, chance: random.Random) -> None:
        self.run = run
        self.chance = chance
        self.kills: Counter[str] = Counter()
        self.torn = 0  # logs that a kill left with a turn half written
        self._watchers = 0
        self._ways: dict[str, tuple[float, Callable[[], list[str]]]] = {
            "broker, in a journal write": (4, self._in_a_write),
            "broker": (2, lambda: self._at_random("broker")),
            "broker, while it comes back": (1, lambda: self._while_it_comes_back("broker")),
            "learner": (2, lambda: self._at_random("learner")),
            "learner, in a publication": (2, self._in_a_publication),
            "learner, in a checkpoint": (2, self._in_a_checkpoint),
            "learner, while it comes back": (1, lambda: self._while_it_comes_back("learner")),
            "actor": (3, lambda: self._at_random(self._one_of("actor"))),
            "verifier": (2, lambda: self._at_random(self._one_of("verifier"))),
            "several at once": (2, self._several),
        }

    def strike(self) -> None:
        """Kill somebody somehow, start it again a moment later."""
        ways, weights = list(self._ways), [weight for weight, _ in self._ways.values()]
        (way,) = self.chance.choices(ways, weights)
        time.sleep(self.chance.expovariate(1 / CALM_SECONDS))
        self.run.all_alive()
        victims = self._ways[way][1]()
        self.kills[way] += len(victims)
        self.chance.shuffle(victims)
        for victim in victims:
            if self.chance.random() < 0.3:
                time.sleep(self.chance.random() * 0.3)
            self.run.again(victim)

    def _one_of(self, role: str) -> str:
        return self.chance.choice([name for name in self.run.processes if name.startswith(role)])

    def _at_random(self, name: str) -> list[str]:
        self.run.kill(name)
        return [name]

    def _several(self) -> list[str]:
        names = self.chance.sample(sorted(self.run.processes), self.chance.randint(2, len(self.run.processes)))
        self.run.kill(*names)
        return names

    def _while_it_comes_back(self, name: str) -> list[str]:
        self.run.kill(name)
        self.run.again(name)
        time.sleep(self.chance.random() * 0.4)
        self.run.kill(name)
        self.kills[f"{name}, while it comes back"] += 1
        return [name]

    def _in_a_write(self) -> list[str]:
        """Some microseconds after something was written to the log of the journal."""
        log, end = self.run.directory / "journal.sqlite-wal", Deadline(LOOK_SECONDS)
        before = written(log)
        while written(log) == before and not end.passed:
            pass
        moment = time.perf_counter() + self.chance.random() * WRITE_SECONDS
        while time.perf_counter() < moment:
            pass
        self.run.kill("broker")
        self.torn += torn(log)
        return ["broker"]

    def _in_a_checkpoint(self) -> list[str]:
        """While a checkpoint has its preliminary name, or one that is removed its last."""
        directory, end = self.run.directory / checkpoint_files.FOLDER, Deadline(LOOK_SECONDS)
        directory.mkdir(exist_ok=True)
        while not any(name.endswith(checkpoint_files.PARTIAL) for name in os.listdir(directory)) and not end.passed:
            pass
        self.run.kill("learner")
        return ["learner"]

    def _in_a_publication(self) -> list[str]:
        """Fetch a version like an actor; after some of its shards there are no more."""
        self._watchers += 1
        end = Deadline(LOOK_SECONDS)
        with Dealer(self.run.address) as line:
            line.send(hello("actor", f"watcher-{self._watchers}"))
            seen = 0
            while seen < 2 and not end.passed:  # the first is there already
                if isinstance(manifest := line.receive(0.05), WeightManifest):
                    seen += 1
                    newest = manifest
            if seen:
                with Dealer(newest.endpoint) as server:
                    for shard in range(self.chance.randint(1, len(newest.shards))):
                        server.send(ShardRequest(version=newest.version, shard=shard))
                        if not isinstance(server.receive(end.remaining), Shard):
                            break
                    self.run.kill("learner")
                    server.socket.close(0)
            else:
                self.run.kill("learner")
            line.send(Goodbye(reason="it has seen enough", finished=False))
        return ["learner"]


def written(log: Path) -> int:
    """When a file was written to last, in the clock's smallest steps."""
    try:
        return os.stat(log).st_mtime_ns
    except FileNotFoundError:
        return 0


def torn(log: Path) -> bool:
    """Whether SQLite's write-ahead log ends in a transaction that was not committed. sqlite.org/fileformat2, 4.1."""
    content = log.read_bytes() if log.exists() else b""
    if len(content) < 32:
        return False
    page, salts = struct.unpack(">I", content[8:12])[0], content[16:24]
    unfinished = 0
    for start in range(32, len(content), 24 + page):
        frame = content[start : start + 24]
        if len(frame) < 24 or frame[8:16] != salts:
            break
        unfinished = 0 if struct.unpack(">I", frame[4:8])[0] else unfinished + 1
    return unfinished > 0
