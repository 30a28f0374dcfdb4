"""The broker's memory: an SQLite file in which every turn of the broker is one transaction.

The broker says nothing that depends on a turn before `commit` has returned (`service`), so that a peer never knows more
than the journal: kill -9 at any instant loses what no peer was told. What a checkpoint of the learner holds is deleted,
so the file's size is bounded by the live groups and those trained since that checkpoint. One broker at a time may hold
a journal; anyone may read it (`learner.broker.inspect`).

SQLite and not LMDB, which commits with a sixth of the CPU (`python -m tests.bench.journal`): without an fsync a turn, a
power failure leaves a whole SQLite file, which any tool reads, and perhaps a broken one of LMDB.
"""

import fcntl
import json
import os
import sqlite3
from collections import deque
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, fields
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from learner.broker.changes import Saved, SavedLease, State
from learner.broker.groups import Group, Sample, SampleState, sample_seeds
from learner.broker.leases import RunningLease
from learner.broker.log_copier import LogCopier
from learner.broker.stream import Stream
from protocol.codec import pack, unpack
from protocol.errors import MalformedMessage
from protocol.messages import Rollout, Task, Verdict

FORMAT = 1
SETTINGS = (
    "secure_delete=OFF",  # Debian's default is to wipe what is deleted
    "cache_size=-65536",  # KiB: what is written is deleted before it is read again
    "wal_autocheckpoint=0",  # `LogCopier` does it
)
LEFTOVERS_A_TURN = 16  # groups whose rollouts are deleted at once: thousands would hold the broker for a second
LEFTOVER_TURNS = 256  # in which all that waits is deleted, however much that is
CURE = "move it away to begin anew from the learner's checkpoint"
TABLES = """
    CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
    CREATE TABLE groups (group_id INTEGER PRIMARY KEY, lease_version INTEGER NOT NULL, leases INTEGER NOT NULL,
                         task BLOB NOT NULL) STRICT;
    CREATE TABLE rollouts (group_id INTEGER NOT NULL, sample INTEGER NOT NULL, rollout BLOB NOT NULL,
                           PRIMARY KEY (group_id, sample)) STRICT;
    CREATE TABLE verdicts (group_id INTEGER NOT NULL, sample INTEGER NOT NULL, checks INTEGER NOT NULL, verdict BLOB,
                           PRIMARY KEY (group_id, sample)) STRICT, WITHOUT ROWID;
    CREATE TABLE leases (lease_id INTEGER PRIMARY KEY, actor TEXT NOT NULL, group_id INTEGER NOT NULL,
                         samples TEXT NOT NULL) STRICT;
    CREATE TABLE batches (policy_version INTEGER PRIMARY KEY, groups TEXT NOT NULL) STRICT;
    CREATE TABLE versions (policy_version INTEGER PRIMARY KEY, fingerprints TEXT NOT NULL) STRICT;
    CREATE TABLE dropped (group_id INTEGER PRIMARY KEY, reason TEXT NOT NULL) STRICT;
    CREATE TABLE tasks (task_id TEXT PRIMARY KEY, rollouts INTEGER NOT NULL, passed INTEGER NOT NULL,
                        retired INTEGER NOT NULL) STRICT, WITHOUT ROWID;
"""
OF_GROUPS = "WHERE group_id IN (SELECT group_id FROM groups)"  # and not of those that are gone, see `_delete_leftovers`
# groups that are gone, but some of their rollouts are not; no group has verdicts without rollouts
LEFTOVERS = "SELECT DISTINCT group_id FROM rollouts WHERE group_id NOT IN (SELECT group_id FROM groups)"


class JournalFailed(Exception):
    """The journal cannot be used, or not written now; the text names the file and the cure."""


class JournalDamaged(JournalFailed):
    """The journal will not become better by waiting."""


class Journal:
    """The journal of one run in `path`, made if it is not there. `run` is what must be the same when it goes on.

    Raises `JournalFailed` when another broker holds it, when it is of another run, and when it is no journal.
    """

    def __init__(self, path: Path, run: Mapping[str, Any], *, sync: str = "normal") -> None:
        self.path = path
        self.bytes_written = 0  # of rollouts, verdicts and tasks
        self._leftovers: deque[int] = deque()  # groups that are gone, whose rollouts and verdicts are to be deleted
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(path.with_suffix(".lock"))
        self._copier: LogCopier | None = None
        try:
            self._database = connect(path, sync)
            self._open(run)
            self._copier = LogCopier(partial(connect, path, sync))
        except sqlite3.OperationalError as error:  # no room, no right, no disk: the journal itself may be whole
            os.close(self._lock)
            raise JournalFailed(f"{path}: {error}; make room on its disk, and see that it can be written") from None
        except sqlite3.Error as error:
            os.close(self._lock)
            raise JournalDamaged(f"{path}: {error}; {CURE}") from None
        except JournalFailed:
            self.close()
            raise

    def _open(self, run: Mapping[str, Any]) -> None:
        if not _tables(self._database):
            with self._transaction():
                for statement in TABLES.split(";")[:-1]:
                    self._database.execute(statement)
                self._keep("format", FORMAT)
                self._keep("run", run)
                self._keep("state", asdict(State()))
            return
        if (found := self._kept("format")) != FORMAT:
            raise JournalFailed(f"{self.path}: is of format {found}, this version reads {FORMAT}; move it away")
        before, now = self._kept("run"), json.loads(json.dumps(run))
        for name in sorted(before.keys() | now.keys()):
            if before.get(name) != now.get(name):
                raise JournalFailed(
                    f"{self.path}: was begun with {name}={before.get(name)}, now it is {now.get(name)}: what is leased "
                    "would not fit; set it back, or choose another run.name"
                )

    @property
    def begun(self) -> bool:
        """Whether it holds anything of a run."""
        return State(**self._kept("state")) != State()

    @property
    def file_bytes(self) -> int:
        """Size of the file, its write-ahead log included."""
        log = self.path.with_name(self.path.name + "-wal")
        return self.path.stat().st_size + (log.stat().st_size if log.exists() else 0)

    def close(self) -> None:
        """Close the file."""
        if self._copier:
            self._copier.close()
        self._database.close()
        os.close(self._lock)

    # ------------------------------------------------------------ writing

    def commit(self, stream: Stream) -> None:
        """Write what has changed since the last time, in one transaction. Raises `JournalFailed`; then nothing is."""
        if not (changes := stream.changes) and not self._leftovers:
            return
        groups = {group_id: stream.groups.get(group_id) or changes.trained.get(group_id) for group_id in changes.groups}
        gone = [group_id for group_id, group in groups.items() if group is None]
        try:
            with self._transaction():
                self._write_groups([group for group in groups.values() if group])
                written = self._write_samples(stream)
                self._many("DELETE FROM groups WHERE group_id = ?", [(group_id,) for group_id in gone])
                removed = self._delete_leftovers()
                self._write_leases(changes.leases, stream.leases.running)
                self._write_rows("batches", stream.batches, changes.batches)
                self._write_rows("versions", stream.fingerprints.known, changes.versions)
                self._many("INSERT OR REPLACE INTO dropped VALUES (?, ?)", changes.dropped.items())
                histories = [(task_id, *stream.retirement.history(task_id)) for task_id in changes.tasks]
                self._many("INSERT OR REPLACE INTO tasks VALUES (?, ?, ?, ?)", histories)
                self._keep("state", asdict(stream.state()))
        except sqlite3.OperationalError as error:  # no room, no disk
            raise JournalFailed(f"{self.path}: {error}") from None
        except sqlite3.Error as error:
            raise JournalDamaged(f"{self.path}: {error}; {CURE}") from None
        for sample in written:
            sample.written = True
        for _ in range(removed):
            self._leftovers.popleft()
        self._leftovers.extend(gone)
        changes.clear()
        if self._copier:
            self._copier.finish(self._database)

    def _transaction(self) -> "_Transaction":
        return _Transaction(self._database)

    def _write_groups(self, groups: list[Group]) -> None:
        rows = []
        for group in groups:
            task = pack(group.task)
            self.bytes_written += len(task)
            rows.append((group.group_id, group.lease_version, group.leases, task))
        self._many("INSERT OR REPLACE INTO groups VALUES (?, ?, ?, ?)", rows)

    def _write_samples(self, stream: Stream) -> list[Sample]:
        """Rollouts once, verdicts as they come; the samples that are in the journal then."""
        rollouts, verdicts, samples = [], [], []
        for group_id, index in stream.changes.samples:
            group = stream.groups.get(group_id) or stream.changes.trained.get(group_id)
            if group is None:
                continue
            sample = group.samples[index]
            if not sample.written:
                rollouts.append((group_id, index, pack(sample.rollout)))
            if sample.checks or sample.verdict:
                verdict = pack(sample.verdict) if sample.verdict else None
                verdicts.append((group_id, index, sample.checks, verdict))
            samples.append(sample)
        self.bytes_written += sum(len(row[-1]) for row in rollouts) + sum(len(row[-1] or b"") for row in verdicts)
        self._many("INSERT OR REPLACE INTO rollouts VALUES (?, ?, ?)", rollouts)
        self._many("INSERT OR REPLACE INTO verdicts VALUES (?, ?, ?, ?)", verdicts)
        return samples

    def _delete_leftovers(self) -> int:
        """Some of the rollouts and verdicts whose groups are gone; of how many groups they were."""
        some = list(islice(self._leftovers, max(LEFTOVERS_A_TURN, len(self._leftovers) // LEFTOVER_TURNS)))
        for table in ("rollouts", "verdicts"):
            self._many(f"DELETE FROM {table} WHERE group_id = ?", [(group_id,) for group_id in some])
        return len(some)

    def _write_leases(self, lease_ids: set[int], running: Mapping[int, RunningLease]) -> None:
        changed = [running[lease_id] for lease_id in lease_ids if lease_id in running]
        rows = [(each.lease_id, each.actor, each.group.group_id, json.dumps(each.leased)) for each in changed]
        ended = [(lease_id,) for lease_id in lease_ids if lease_id not in running]
        self._many("INSERT OR REPLACE INTO leases VALUES (?, ?, ?, ?)", rows)
        self._many("DELETE FROM leases WHERE lease_id = ?", ended)

    def _write_rows(self, table: str, content: Mapping[int, Any], names: set[int]) -> None:
        rows = [(name, json.dumps(content[name])) for name in names if name in content]
        self._many(f"INSERT OR REPLACE INTO {table} VALUES (?, ?)", rows)
        gone = [(name,) for name in names if name not in content]
        self._many(f"DELETE FROM {table} WHERE policy_version = ?", gone)

    def _many(self, statement: str, rows: Any) -> None:
        if rows:
            self._database.executemany(statement, rows)

    def _keep(self, name: str, value: Any) -> None:
        self._database.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, json.dumps(value)))

    # ------------------------------------------------------------ reading

    def _kept(self, name: str) -> Any:
        return json.loads(self._database.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()[0])

    def load(self, group_size: int, seed: int) -> Saved:
        """All of it. Raises `JournalFailed` for what cannot be read."""
        try:
            self._leftovers = deque(group_id for (group_id,) in self._database.execute(LEFTOVERS))
            return read(self._database, group_size, seed)
        except (sqlite3.Error, MalformedMessage, TypeError, ValueError, KeyError) as error:
            raise JournalDamaged(f"{self.path}: is damaged: {error}; {CURE}") from None


def connect(path: Path, sync: str) -> sqlite3.Connection:
    """A connection that writes as a journal is written; what a reader sees does not depend on it."""
    database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    for setting in ("journal_mode=WAL", f"synchronous={sync}", *SETTINGS):
        database.execute(f"PRAGMA {setting}").fetchall()
    return database


class _Transaction:
    """All or nothing."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self.database = database

    def __enter__(self) -> None:
        self.database.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            self.database.execute("COMMIT")
        elif self.database.in_transaction:
            self.database.execute("ROLLBACK")


def read(database: sqlite3.Connection, group_size: int, seed: int) -> Saved:
    """What a journal holds, in one consistent moment."""
    with closing(database.cursor()) as cursor:
        cursor.execute("BEGIN")
        try:
            return _read(cursor, group_size, seed)
        finally:
            cursor.execute("COMMIT")


def _read(cursor: sqlite3.Cursor, group_size: int, seed: int) -> Saved:
    content = json.loads(cursor.execute("SELECT value FROM meta WHERE name = 'state'").fetchone()[0])
    state = State(**{each.name: content[each.name] for each in fields(State)})
    groups = {
        group_id: Group(
            group_id,
            unpack(Task, task),
            lease_version,
            sample_seeds(seed, group_id, group_size),
            [Sample() for _ in range(group_size)],
            leases=leases,
        )
        for group_id, lease_version, leases, task in cursor.execute("SELECT * FROM groups ORDER BY group_id")
    }
    for group_id, index, rollout in cursor.execute(f"SELECT * FROM rollouts {OF_GROUPS}"):
        sample = groups[group_id].samples[index]
        sample.rollout, sample.state, sample.written = unpack(Rollout, rollout), SampleState.VERIFYING, True
    for group_id, index, checks, verdict in cursor.execute(f"SELECT * FROM verdicts {OF_GROUPS}"):
        sample = groups[group_id].samples[index]
        sample.checks = checks
        if verdict is not None:
            sample.verdict = unpack(Verdict, verdict)
            sample.state = SampleState.VOID if sample.verdict.void else SampleState.SCORED
    return Saved(
        state=state,
        groups=list(groups.values()),
        leases=[
            SavedLease(lease_id, actor, group_id, tuple(json.loads(samples)))
            for lease_id, actor, group_id, samples in cursor.execute("SELECT * FROM leases ORDER BY lease_id")
        ],
        batches={version: tuple(json.loads(ids)) for version, ids in cursor.execute("SELECT * FROM batches")},
        fingerprints={
            version: tuple(json.loads(known))
            for version, known in cursor.execute("SELECT * FROM versions ORDER BY policy_version")
        },
        histories={
            task_id: (rollouts, passed, bool(retired))
            for task_id, rollouts, passed, retired in cursor.execute("SELECT * FROM tasks")
        },
        dropped=dict(cursor.execute("SELECT * FROM dropped ORDER BY group_id")),
    )


def _tables(database: sqlite3.Connection) -> list[str]:
    return [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]


def _lock(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise JournalFailed(f"{path}: another broker holds this run; stop it, or choose another run.name") from None
    return descriptor
