"""The store under the broker: SQLite in WAL mode against LMDB, on the records that a run writes.

    python -m tests.bench.journal [--groups 1500] [--live 500] [--repeats 5] [--out journal.json] [--directory DIR]

Both get the same turns: groups of 8 rollouts of 512 tokens with their text, verdicts, leases that begin and end, and
the deletion of a batch when it is consumed; a turn is one transaction of N events. Records are packed beforehand, so
that only the stores are timed. `normal` survives kill -9, `full` a power failure too, by an fsync each transaction;
for LMDB that is `sync=False` (a power failure may damage its file, where SQLite's has only lost its last turns) and
`sync=True`. LMDB (`pip install lmdb`) is no dependency of the project: without it SQLite is measured alone.
"""

import argparse
import json
import platform
import random
import sqlite3
import statistics
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from learner.broker.changes import State
from learner.broker.journal import TABLES, connect
from learner.broker.log_copier import LogCopier
from protocol.codec import pack
from protocol.messages import Rollout, Task, Verdict, VersionSpan

GROUP_SIZE = 8
TOKENS = 512
TEXT = "The sum of the digits is carried over. "  # repeated to four characters a token
GROUPS_PER_STEP = 32  # consumed, and deleted, at once
EVENTS = (8, 64, 512)  # a transaction
CANNED = 64  # different rollouts
READ = ("groups", "rollouts", "verdicts", "leases", "meta")  # tables, when a broker comes back
SMALL_COLUMNS = {"groups": 8, "verdicts": 1}  # bytes of them before a record, in LMDB
MAP_BYTES = 4 * 2**30  # LMDB's file may grow to this


@dataclass(slots=True)
class Turn:
    """What one transaction writes."""

    groups: list[tuple[int, int, int, bytes]] = field(default_factory=list)  # id, lease version, leases, task
    leases: list[tuple[int, str, int, str]] = field(default_factory=list)  # id, actor, group, samples
    ended: list[tuple[int]] = field(default_factory=list)  # leases
    rollouts: list[tuple[int, int, bytes]] = field(default_factory=list)  # group, sample, rollout
    verdicts: list[tuple[int, int, int, bytes]] = field(default_factory=list)  # group, sample, checks, verdict
    gone: list[tuple[int]] = field(default_factory=list)  # groups
    state: str = ""

    @property
    def payload(self) -> int:
        """Bytes of its records."""
        return sum(len(row[-1]) for rows in (self.groups, self.rollouts, self.verdicts) for row in rows)


class Store(Protocol):
    """One way to keep the records."""

    def commit(self, turn: Turn) -> None:
        """Write a turn, all or nothing."""

    def sizes(self, table: str) -> list[int]:
        """Read every record of a table, in the order of its key; their sizes."""

    def close(self) -> None:
        """Close the file."""


class Sqlite:
    """The journal's own tables, statements and settings."""

    def __init__(self, directory: Path, sync: str) -> None:
        path = directory / "journal.sqlite"
        new = not path.exists()
        self.database = connect(path, sync)
        self.copier = LogCopier(partial(connect, path, sync))
        if new:
            self.database.executescript(TABLES)

    def commit(self, turn: Turn) -> None:
        """Write a turn, all or nothing."""
        many = self.database.executemany
        self.database.execute("BEGIN IMMEDIATE")
        many("INSERT OR REPLACE INTO groups VALUES (?, ?, ?, ?)", turn.groups)
        many("INSERT OR REPLACE INTO rollouts VALUES (?, ?, ?)", turn.rollouts)
        many("INSERT OR REPLACE INTO verdicts VALUES (?, ?, ?, ?)", turn.verdicts)
        for table in ("groups", "rollouts", "verdicts"):
            many(f"DELETE FROM {table} WHERE group_id = ?", turn.gone)
        many("INSERT OR REPLACE INTO leases VALUES (?, ?, ?, ?)", turn.leases)
        many("DELETE FROM leases WHERE lease_id = ?", turn.ended)
        self.database.execute("INSERT OR REPLACE INTO meta VALUES ('state', ?)", (turn.state,))
        self.database.execute("COMMIT")
        self.copier.finish(self.database)

    def sizes(self, table: str) -> list[int]:
        """Read every record of a table, in the order of its key; their sizes."""
        return [len(row[-1]) for row in self.database.execute(f"SELECT * FROM {table} ORDER BY 1, 2")]

    def close(self) -> None:
        """Close the file."""
        self.copier.close()
        self.database.close()


class Lmdb:
    """A table is a named database; keys are big-endian, so that they are in order; small columns precede the record."""

    def __init__(self, directory: Path, sync: str) -> None:
        self.environment = import_module("lmdb").open(
            str(directory / "journal.lmdb"), map_size=MAP_BYTES, max_dbs=8, sync=sync == "full", subdir=False
        )
        self.tables = {name: self.environment.open_db(name.encode()) for name in READ}

    def commit(self, turn: Turn) -> None:
        """Write a turn, all or nothing."""
        one, two = struct.Struct(">Q").pack, struct.Struct(">QB").pack
        with self.environment.begin(write=True) as transaction:
            put, delete, tables = transaction.put, transaction.delete, self.tables
            for group_id, lease_version, leases, task in turn.groups:
                put(one(group_id), struct.pack(">II", lease_version, leases) + task, db=tables["groups"])
            for group_id, sample, rollout in turn.rollouts:
                put(two(group_id, sample), rollout, db=tables["rollouts"])
            for group_id, sample, checks, verdict in turn.verdicts:
                put(two(group_id, sample), bytes([checks]) + verdict, db=tables["verdicts"])
            for (group_id,) in turn.gone:
                delete(one(group_id), db=tables["groups"])
                for sample in range(GROUP_SIZE):
                    delete(two(group_id, sample), db=tables["rollouts"])
                    delete(two(group_id, sample), db=tables["verdicts"])
            for lease_id, actor, group_id, samples in turn.leases:
                put(one(lease_id), json.dumps([actor, group_id, samples]).encode(), db=tables["leases"])
            for (lease_id,) in turn.ended:
                delete(one(lease_id), db=tables["leases"])
            put(b"state", turn.state.encode(), db=tables["meta"])

    def sizes(self, table: str) -> list[int]:
        """Read every record of a table, in the order of its key; their sizes."""
        with self.environment.begin() as transaction:
            before = SMALL_COLUMNS.get(table, 0)
            return [len(bytes(value)[before:]) for _, value in transaction.cursor(db=self.tables[table])]

    def close(self) -> None:
        """Close the file."""
        self.environment.close()


STORES: dict[str, Callable[[Path, str], Store]] = {"sqlite": Sqlite, "lmdb": Lmdb}


# ---------------------------------------------------------------- records


def canned_rollouts(chance: np.random.Generator) -> list[bytes]:
    """Packed rollouts of 512 tokens; tokens and log-probabilities are random, so that nothing is saved by chance."""
    spans = (VersionSpan(version=7, tokens=TOKENS, fingerprint="f" * 32),)
    return [
        pack(
            Rollout(
                group_id=2**20,
                sample_index=0,
                prompt_ids=chance.integers(0, 2**17, 64, dtype=np.int32),
                token_ids=chance.integers(0, 2**17, TOKENS, dtype=np.int32),
                behaviour_logprobs=-chance.random(TOKENS, dtype=np.float32),
                version_spans=spans,
                finish_reason="stop",
                text=(TEXT * TOKENS)[: 4 * TOKENS],
            )
        )
        for _ in range(CANNED)
    ]


def turns(groups: int, live: int, events: int, chance: random.Random) -> Iterator[Turn]:
    """The events of `groups` groups in the order of time, `events` a turn. About `live` of them are there at once."""
    rollouts = canned_rollouts(np.random.default_rng(0))
    verdict = pack(Verdict(reward=1.0, parts={"accuracy": 1.0, "format": 1.0}, reason="", seconds=0.01))
    task = pack(Task(task_id="123456", prompt=TEXT * 6, reward="accuracy", reference="42"))
    timeline: list[tuple[float, str, int, int]] = []  # moment, what, group, sample
    finished_at = []
    for group_id in range(groups):
        timeline.append((group_id, "leased", group_id, 0))
        arrivals = [group_id + live * chance.uniform(0.3, 0.9) for _ in range(GROUP_SIZE)]
        timeline += [(moment, "arrived", group_id, sample) for sample, moment in enumerate(arrivals)]
        timeline += [(moment + 0.5, "judged", group_id, sample) for sample, moment in enumerate(arrivals)]
        finished_at.append(max(arrivals) + 1)
    for first in range(0, groups - GROUPS_PER_STEP + 1, GROUPS_PER_STEP):
        timeline.append((max(finished_at[first : first + GROUPS_PER_STEP]), "consumed", first, 0))
    timeline = sorted(each for each in timeline if each[0] < groups)  # the youngest groups stay: they are read back
    missing = dict.fromkeys(range(groups), GROUP_SIZE)
    state = json.dumps(asdict(State(counts={"generated_tokens": 10**9, "rollouts": 10**6, "verdicts": 10**6})))
    for start in range(0, len(timeline), events):
        turn = Turn(state=state)
        for _, what, group_id, sample in timeline[start : start + events]:
            if what == "leased":
                turn.groups.append((group_id, 7, 1, task))
                turn.leases.append((group_id, f"actor-{group_id % 97}", group_id, "[0, 1, 2, 3, 4, 5, 6, 7]"))
            elif what == "arrived":
                turn.rollouts.append((group_id, sample, rollouts[chance.randrange(CANNED)]))
                missing[group_id] -= 1
                if not missing[group_id]:
                    turn.ended.append((group_id,))
            elif what == "judged":
                turn.verdicts.append((group_id, sample, 0, verdict))
            else:
                turn.gone += [(consumed,) for consumed in range(group_id, group_id + GROUPS_PER_STEP)]
        yield turn


# ---------------------------------------------------------------- measuring


def measure(store: str, sync: str, script: list[Turn], directory: Path) -> dict[str, float]:
    """Write the turns, close, open again and read what is left."""
    journal = STORES[store](directory, sync)
    commits = []
    written, cpu, began = _disk_bytes(), time.process_time(), time.perf_counter()
    for turn in script:
        start = time.perf_counter()
        journal.commit(turn)
        commits.append(time.perf_counter() - start)
    wall, cpu, written = time.perf_counter() - began, time.process_time() - cpu, _disk_bytes() - written
    size = sum(path.stat().st_blocks * 512 for path in directory.iterdir())
    journal.close()
    began = time.perf_counter()
    journal = STORES[store](directory, sync)
    live = sum(sum(journal.sizes(table)) for table in READ)
    restart = time.perf_counter() - began
    journal.close()
    return {
        "wall_seconds": wall,
        "cpu_seconds": cpu,
        "p50_commit_ms": 1e3 * statistics.median(commits),
        "p99_commit_ms": 1e3 * statistics.quantiles(commits, n=100)[98],
        "written_mb": written / 1e6,
        "file_mb": size / 1e6,
        "live_mb": live / 1e6,
        "restart_ms": 1e3 * restart,
    }


def _disk_bytes() -> int:
    """Bytes that this process has caused to be written to a disk."""
    for line in Path("/proc/self/io").read_text().splitlines():
        name, _, value = line.partition(": ")
        if name == "write_bytes":
            return int(value)
    raise RuntimeError("/proc/self/io has no write_bytes")


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, default=1500)
    parser.add_argument("--live", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("journal.json"))
    parser.add_argument("--directory", type=Path, help="on the disk that is to be measured")
    options = parser.parse_args()
    stores = [store for store in STORES if store == "sqlite" or find_spec(store)]
    cases: list[dict[str, Any]] = []
    print(
        f"{'store':8}{'sync':8}{'events':>7}{'groups/s':>10}{'MB/s':>8}{'CPU µs/group':>14}{'p50 ms':>8}{'p99 ms':>8}"
        f"{'written':>9}{'file MB':>9}{'live MB':>9}{'restart ms':>12}"
    )
    for sync in ("normal", "full"):
        for events in EVENTS:
            script = list(turns(options.groups, options.live, events, random.Random(0)))
            payload = sum(turn.payload for turn in script)
            runs: dict[str, list[dict[str, float]]] = {store: [] for store in stores}
            for _ in range(options.repeats):
                for store in stores:
                    with tempfile.TemporaryDirectory(dir=options.directory) as temporary:
                        runs[store].append(measure(store, sync, script, Path(temporary)))
            for store in stores:
                median = {name: statistics.median(run[name] for run in runs[store]) for name in runs[store][0]}
                row = {
                    "store": store,
                    "sync": sync,
                    "events": events,
                    "groups_per_second": options.groups / median["wall_seconds"],
                    "payload_mb_per_second": payload / 1e6 / median["wall_seconds"],
                    "cpu_us_per_group": 1e6 * median["cpu_seconds"] / options.groups,
                    "written_over_payload": 1e6 * median["written_mb"] / payload,
                    **median,
                }
                cases.append(row)
                print(
                    f"{store:8}{sync:8}{events:7}{row['groups_per_second']:10.0f}{row['payload_mb_per_second']:8.1f}"
                    f"{row['cpu_us_per_group']:14.0f}{row['p50_commit_ms']:8.2f}{row['p99_commit_ms']:8.2f}"
                    f"{row['written_over_payload']:9.2f}{row['file_mb']:9.1f}{row['live_mb']:9.1f}"
                    f"{row['restart_ms']:12.1f}",
                    flush=True,
                )
    versions = {"sqlite": sqlite3.sqlite_version, "lmdb": _lmdb_version() if "lmdb" in stores else None}
    content = {"machine": platform.platform(), "groups": options.groups, "live": options.live, "versions": versions}
    options.out.write_text(json.dumps(content | {"repeats": options.repeats, "cases": cases}, indent=2) + "\n")


def _lmdb_version() -> str:
    return ".".join(map(str, import_module("lmdb").version()))


if __name__ == "__main__":
    main()
