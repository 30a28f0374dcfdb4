"""The processes of a launch: started in sessions of their own, watched, started again, and stopped together.

Invariant: when `Processes.stop` has returned, or some seconds after the launcher was killed, nothing that it started
is alive. `stop` waits `STOP_SECONDS` before it kills, so that no wait here is without end.
"""

import ctypes
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from deploy.local import deaths, sweep
from deploy.local.deaths import Death

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass(slots=True)
class Child:
    """A process of the launch, which keeps its name and its log however often it is started."""

    name: str
    log: Path
    command: Sequence[str]
    environment: Mapping[str, str]
    cores: Sequence[int]
    process: "subprocess.Popen[bytes]" = field(init=False)
    starts: int = 0
    began: float = 0.0  # when it was started last, on the monotonic clock
    log_begin: int = 0  # bytes of the log from before this start

    @property
    def code(self) -> int | None:
        """Exit code, negative for a signal; None while it runs."""
        return self.process.poll()

    def death(self) -> Death:
        """How it ended, which it has."""
        code = self.code
        assert code is not None
        return deaths.describe(code, self.log, self.log_begin, time.monotonic() - self.began)


@dataclass(slots=True)
class Processes:
    """Starts, watches and stops. Use as a context manager. With `keep_logs` also a first start adds to an older log."""

    logs: Path
    keep_logs: bool = False
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
        child = Child(name, self.logs / f"{name}.log", command, environment, cores)
        if not self.keep_logs:
            child.log.write_bytes(b"")
        self._start(child, [])
        self.children.append(child)
        return child

    def start_again(self, child: Child, *more: str) -> None:
        """Start what has ended once more, with `more` words at the end of its command, its output after the earlier."""
        assert child.code is not None, f"{child.name} runs"
        self._start(child, more)

    def _start(self, child: Child, more: Sequence[str]) -> None:
        def prepare() -> None:
            LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
            if child.cores:
                os.sched_setaffinity(0, child.cores)

        child.starts += 1
        child.began = time.monotonic()
        with child.log.open("ab") as output:
            if output.tell():
                now = datetime.now().strftime("%Y-%m-%d %H:%M:%S,%f")[:-3]
                output.write(f"{now} local INFO start {child.starts} of {child.name}\n".encode())
                output.flush()
            child.log_begin = output.tell()
            child.process = subprocess.Popen(
                [*child.command, *more],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **child.environment, sweep.TAG: sweep.value(self.tag, child.name)},
                start_new_session=True,
                preexec_fn=prepare,
            )

    def forget(self, child: Child) -> None:
        """Watch `child` no longer: it has ended, as it should."""
        self.children.remove(child)

    def left_behind(self) -> list[int]:
        """The living processes that those which have ended had started.

        The launcher's own children are what it started itself and the orphans that came to it. An orphan whose role
        lives is that role's; any other, also one without the tag, belonged to what has ended.
        """
        living = {child.name: child.process.pid for child in self.children if child.code is None}
        kept = set(living.values()) | ({self.guard.pid} if self.guard else set())
        orphans = sweep.children(os.getpid()) - kept
        kept |= {pid for pid in orphans if sweep.role_of(pid, self.tag) in living}
        return sweep.descendants(os.getpid(), besides=kept)

    def stop(self) -> None:
        """End everything; at most `STOP_SECONDS + KILL_SECONDS`."""
        sweep.stop(self._living, [child.process.pid for child in self.children if child.code is None], self.reap)
        if self.guard and self.guard.stdin:
            self.guard.stdin.close()
            self.guard.wait()
            self.guard = None

    def _living(self) -> list[int]:
        below = set(sweep.descendants(os.getpid())) - ({self.guard.pid} if self.guard else set())
        return sorted(below.union(sweep.tagged(self.tag)))

    def reap(self) -> None:
        """Take leave of what has ended: roles, whose exit codes are kept, and the orphans that came to us."""
        own = [child.process for child in self.children] + ([self.guard] if self.guard else [])
        known = {process.pid: process for process in own if process.returncode is None}
        while ended := _zombie():
            if ended in known:
                known[ended].poll()
            else:
                os.waitpid(ended, 0)


def _zombie() -> int:
    """A child of ours that has ended and waits to be reaped, or 0."""
    try:
        found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return 0
    return found.si_pid if found else 0
