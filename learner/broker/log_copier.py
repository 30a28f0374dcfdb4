"""Brings the journal's write-ahead log into its file beside the broker's turns, so that no turn waits for that.

SQLite does it in a commit, once the log has some thousand pages: tens of milliseconds in which the broker hears nobody.
Here a thread with a connection of its own copies while turns go on. The log begins anew only when all of it is copied
and nobody writes, so the little that came meanwhile is copied between two turns (`finish`).
"""

import logging
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing

log = logging.getLogger("broker")

LOOK_SECONDS = 0.25  # between two looks at the log
MANY_PAGES = 4000  # of the log, 4 KiB each: time to begin anew


class LogCopier:
    """Copies the log of the journal that `connect` opens. A log that cannot be copied now grows until it can be."""

    def __init__(self, connect: Callable[[], sqlite3.Connection]) -> None:
        self._connect = connect
        self._over = threading.Event()
        self._almost = threading.Event()  # a long log is copied, but for what came meanwhile
        self._trouble = ""
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self._thread.start()

    def finish(self, database: sqlite3.Connection) -> None:
        """Between two transactions of `database`: copy what is left of a log that should begin anew; else nothing."""
        if self._almost.is_set():
            self._almost.clear()
            self._copy(database)

    def close(self) -> None:
        """End the thread."""
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        with closing(self._connect()) as database:
            while not self._over.wait(LOOK_SECONDS):
                if self._copy(database) >= MANY_PAGES:
                    self._almost.set()

    def _copy(self, database: sqlite3.Connection) -> int:
        """Copy what can be copied without making anybody wait; the pages that the log has."""
        try:
            _, pages, _ = database.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        except sqlite3.Error as error:
            if str(error) != self._trouble:
                log.warning("the journal's log cannot be copied to its file now: %s", error)
            self._trouble = str(error)
            return 0
        self._trouble = ""
        return int(pages)
