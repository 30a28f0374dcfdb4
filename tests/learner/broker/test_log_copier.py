"""The journal's log is copied beside the turns: it does not grow for ever, and a copy that fails is tried again."""

import sqlite3
import time
from functools import partial
from pathlib import Path

import pytest

from learner.broker import log_copier
from learner.broker.journal import connect
from learner.broker.log_copier import LogCopier

PAGE = 4096


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.sqlite"


def write(database: sqlite3.Connection, turns: int, copier: LogCopier, *, pause: float = 0.0) -> None:
    for _ in range(turns):
        database.execute("INSERT INTO content VALUES (zeroblob(?))", (20 * PAGE,))
        database.execute("DELETE FROM content WHERE rowid < (SELECT max(rowid) FROM content)")
        copier.finish(database)
        time.sleep(pause)


def test_a_log_that_is_always_written_begins_anew_again_and_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_copier, "LOOK_SECONDS", 0.005)
    monkeypatch.setattr(log_copier, "MANY_PAGES", 100)
    database = connect(path, "normal")
    database.execute("CREATE TABLE content (data BLOB)")
    copier = LogCopier(partial(connect, path, "normal"))
    write(database, 1000, copier, pause=0.001)  # 20,000 pages at least
    copier.close()
    assert path.with_name(path.name + "-wal").stat().st_size < 5_000 * PAGE
    database.close()


def test_a_copy_that_cannot_be_made_is_told_once_and_made_later(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(log_copier, "LOOK_SECONDS", 0.005)
    database = connect(path, "normal")
    database.execute("CREATE TABLE content (data BLOB)")
    full = True

    class Disk(sqlite3.Connection):
        """That is full for a while."""

        def execute(self, statement: str, *rest: object) -> sqlite3.Cursor:  # type: ignore[override]
            if full and "checkpoint" in statement:
                raise sqlite3.OperationalError("database or disk is full")
            return super().execute(statement, *rest)  # type: ignore[arg-type]

    copier = LogCopier(lambda: sqlite3.connect(path, factory=Disk, isolation_level=None))
    write(database, 5, copier)
    time.sleep(0.1)
    assert [record.getMessage() for record in caplog.records] == [
        "the journal's log cannot be copied to its file now: database or disk is full"
    ]
    before = path.stat().st_size
    full = False
    deadline = time.monotonic() + 5
    while path.stat().st_size == before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert path.stat().st_size > before
    copier.close()
    database.close()
