"""The processes of a launch: started in sessions of their own, watched, and stopped together.

Invariant: when `Processes.stop` has returned, or some seconds after the launcher was killed, nothing that it started
is alive. `stop` waits `STOP_SECONDS` before it kills, so that no wait here is without end.
"""

import ctypes
import os
import re
import secrets
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from deploy.local import sweep

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
LIBC = ctypes.CDLL(None, use_errno=True)
TAIL_BYTES = 64 * 1024  # of a log, searched for an error
LONGEST = 300  # characters of an error that are shown
TELLING = re.compile(r" (ERROR|CRITICAL) |^[a-z-]+: |^[\w.]*(Error|Exception|Exit|Interrupt)\b|^Could not |^Key '")


@dataclass(slots=True)
class Child:
    """One role's process."""

    name: str
    log: Path
    process: "subprocess.Popen[bytes]"

    @property
    def code(self) -> int | None:
        """Exit code, negative for a signal; None while it runs."""
        return self.process.poll()

    def end(self) -> str:
        """How it ended, in words, with what its log says last."""
        code = self.code
        assert code is not None
        said = last_error(self.log, or_last=code > 0) if code else ""
        return f"{self.name} {_manner(code)}{f': {said}' if said else ''} (log: {self.log})"


def _manner(code: int) -> str:
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


@dataclass(slots=True)
class Processes:
    """Starts, watches and stops. Use as a context manager."""

    logs: Path
    children: list[Child] = field(default_factory=list)
    tag: str = field(default_factory=lambda: secrets.token_hex(8))
    guard: "subprocess.Popen[bytes] | None" = None

    def __enter__(self) -> "Processes":
        self.logs.mkdir(parents=True, exist_ok=True)
        LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # orphans of a role come to the launcher, which reaps them
        environment = {name: value for name, value in os.environ.items() if name != sweep.TAG}
        self.guard = subprocess.Popen(
            [sys.executable, "-m", "deploy.local.sweep", self.tag],
            stdin=subprocess.PIPE,
            env=environment,
            start_new_session=True,
        )
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def start(
        self, name: str, command: Sequence[str], environment: Mapping[str, str], cores: Sequence[int] = ()
    ) -> Child:
        """Start `command` as `name`, bound to `cores` if any are given, its output in logs/<name>.log."""

        def prepare() -> None:
            LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
            if cores:
                os.sched_setaffinity(0, cores)

        log = self.logs / f"{name}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment, sweep.TAG: self.tag},
                start_new_session=True,
                preexec_fn=prepare,
            )
        child = Child(name, log, process)
        self.children.append(child)
        return child

    def forget(self, child: Child) -> None:
        """Watch `child` no longer: it has ended, as it should."""
        self.children.remove(child)

    def stop(self) -> None:
        """End everything; at most `STOP_SECONDS + KILL_SECONDS`."""
        sweep.stop(self._living, [child.process.pid for child in self.children if child.code is None], self._reap)
        if self.guard and self.guard.stdin:
            self.guard.stdin.close()
            self.guard.wait()
            self.guard = None

    def _living(self) -> list[int]:
        below = set(sweep.descendants(os.getpid())) - ({self.guard.pid} if self.guard else set())
        return sorted(below.union(sweep.tagged(self.tag)))

    def _reap(self) -> None:
        """Take leave of what has ended: roles, and the orphans that came to us."""
        for child in self.children:
            child.process.poll()
        while ended := _zombie():
            if self.guard and ended == self.guard.pid:
                return  # somebody killed it; `stop` takes leave of it
            os.waitpid(ended, 0)


def _zombie() -> int:
    """A child of ours that has ended and waits to be reaped, or 0."""
    try:
        found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return 0
    return found.si_pid if found else 0


def last_error(log: Path, *, or_last: bool) -> str:
    """The last line of a log that tells of an error, `or_last` the last of all; printable, cut at `LONGEST`."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - TAIL_BYTES))
        lines = [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    telling = [line for line in lines if TELLING.search(line)] or (lines if or_last else [])
    if not telling:
        return ""
    text = re.sub(r"^\S+ \S+ \w+ (ERROR|CRITICAL) ", "", telling[-1].strip())
    text = "".join(character if character.isprintable() else " " for character in text)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
