"""The record of a run's restarts: a line each in restarts.jsonl, from which views, summary and report count them."""

import json
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

FILE = "restarts.jsonl"

Row = dict[str, Any]


def note(directory: Path, *, process: str, cause: str, pause_seconds: float, counted: int | None, limit: int) -> Row:
    """Append a restart that was decided now, to happen after a pause; returns its line.

    `counted`: which it is of the `limit` that the process has; None: of none, it had to leave for want of the broker.
    """
    row = {
        "time": time.time(),  # seconds since 1970
        "process": process,
        "cause": cause,
        "pause_seconds": pause_seconds,
        "counted": counted,
        "limit": limit,
    }
    with (directory / FILE).open("a") as file:
        file.write(json.dumps(row) + "\n")
    return row


def counts(rows: Iterable[Row]) -> dict[str, int]:
    """The number of restarts of each process that had any, by name."""
    return dict(sorted(Counter(str(row.get("process")) for row in rows).items()))


def add_to_summary(directory: Path) -> None:
    """Write the numbers into summary.json, which the learner has written and left."""
    path, record = directory / "summary.json", directory / FILE
    rows = [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []
    summary = json.loads(path.read_text()) | {"restarts": counts(rows)}
    partial = path.with_name("summary.json.partial")
    partial.write_text(json.dumps(summary, indent=2) + "\n")
    partial.replace(path)


def sentence(row: Row) -> str:
    """One restart in words: who, of what, when it comes back, which of how many."""
    counted = row.get("counted")
    when = f"in {row.get('pause_seconds')} s" if counted else "when the broker listens"
    which = f"restart {counted} of {row.get('limit')}" if counted else "not counted against its restarts"
    return f"{row.get('process')} {row.get('cause')}; it is started again {when} ({which})"
