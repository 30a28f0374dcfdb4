"""A launcher whose roles are fake (`fake_role.py`), as a process under test."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fake_role import alive

HERE = Path(__file__).parent
DEADLINE = 10.0  # seconds within which everything must be over
START = 60.0  # seconds that a start may take on a busy machine


class Run:
    """A launcher under test, in the run directory `path`."""

    def __init__(self, path: Path, model: Path, roles: dict[str, str], *overrides: str) -> None:
        self.path = path
        places = os.pathsep.join(map(str, (HERE, HERE.parents[1])))  # the launcher of this tree, not an installed one
        environment = {**os.environ, "PYTHONPATH": places, "FAKE_ROLES": json.dumps(roles)}
        command = [sys.executable, str(HERE / "fake_launch.py"), f"model={model}", f"run.dir={path}"]
        self.process = subprocess.Popen(
            [*command, "view=none", "report=false", *overrides],
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def starts(self, name: str) -> list[dict[str, Any]]:
        """What a fake role has noted of each of its starts."""
        return rows(self.path / "starts" / f"{name}.jsonl")

    def pid(self, name: str, start: int = 1) -> int:
        """The process of a fake role, once it has been started for the `start`-th time."""
        self.until(lambda: len(self.starts(name)) >= start, f"start {start} of {name}")
        return int(self.starts(name)[start - 1]["pid"])

    def restarts(self) -> list[dict[str, Any]]:
        """The record of restarts."""
        return rows(self.path / "restarts.jsonl")

    def log(self, name: str) -> str:
        """What a role, or the launcher as `local`, has logged."""
        return (self.path / "logs" / f"{name}.log").read_text()

    def until(self, true: Callable[[], bool], what: str) -> None:
        """Wait for something to happen while the launcher runs."""
        deadline = time.monotonic() + START
        while not true():
            over = self.process.poll() is not None or time.monotonic() > deadline
            assert true() or not over, f"not to be seen: {what}"
            time.sleep(0.02)

    def finish(self) -> None:
        """Let a learner that obeys end the run."""
        (self.path / "finish").touch()

    def end(self) -> tuple[int, str, str]:
        """Exit code, output and errors of the launcher; fails when that takes longer than `DEADLINE`."""
        out, errors = self.process.communicate(timeout=DEADLINE)
        return self.process.returncode, out, errors

    def pids(self) -> dict[int, str]:
        """The name of every process that any start of a fake role was."""
        files = (self.path / "starts").glob("*.jsonl")
        return {int(start["pid"]): file.stem for file in files for start in rows(file)}

    def living(self) -> list[str]:
        """Fake roles that are alive, of any start."""
        return [name for pid, name in self.pids().items() if alive(pid)]


def rows(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a JSONL file; none while it is not there."""
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def everyone(run: Run, *more: str) -> None:
    """Wait until every role runs."""
    for name in ("broker-0", "learner-0", "actor-0", "verifier-0", *more):
        run.pid(name)


Start = Callable[..., Run]
