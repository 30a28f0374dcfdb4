"""Finding and killing every process of a launch, however deep, and also when the launcher itself was killed.

Every role inherits a tag in its environment, which sessions, double forks and new process groups do not shake off; a
role that starts processes with an environment of their own must tie their lives to its own.
`python -m deploy.local.sweep TAG` is the launcher's guard: it waits for the end of its standard input, which comes when
the launcher ends in whatever way, then stops what still bears the tag. Linux only: it reads /proc.
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

TAG = "OFFBEAT_LAUNCH"
STOP_SECONDS = 4.0  # from SIGTERM to SIGKILL
KILL_SECONDS = 3.0  # for the kernel to end what was killed
POLL_SECONDS = 0.05


def tagged(tag: str) -> list[int]:
    """The living processes that bear `tag`; zombies have no environment and are not among them."""
    mark = f"{TAG}={tag}\0".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with suppress(OSError):  # it ended meanwhile, or belongs to another user
            if mark in (entry / "environ").read_bytes():
                found.append(int(entry.name))
    return found


def descendants(root: int) -> list[int]:
    """The living processes under `root`, zombies left out. A subreaper keeps those whose parents have ended."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with suppress(OSError):
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            if state not in "ZX":
                children.setdefault(int(parent), []).append(int(entry.name))
    found: list[int] = []
    ahead = [root]
    while ahead:
        new = children.get(ahead.pop(), [])
        found += new
        ahead += new
    return found


def send(pids: list[int], number: signal.Signals) -> None:
    """Signal those that are still there."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def stop(living: Callable[[], list[int]], leaders: list[int], reap: Callable[[], None] = lambda: None) -> None:
    """SIGTERM to the `leaders`, who see to their own children; SIGKILL to all the `living` after `STOP_SECONDS`.

    `reap` is called between looks. Raises `RuntimeError` when a process survives SIGKILL.
    """
    send(leaders, signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    while living() and time.monotonic() < deadline:
        reap()
        time.sleep(POLL_SECONDS)
    deadline = time.monotonic() + KILL_SECONDS
    while left := living():
        if time.monotonic() > deadline:
            raise RuntimeError(f"processes {left} do not end on SIGKILL: they hang in the kernel")
        send(left, signal.SIGKILL)
        reap()
        time.sleep(POLL_SECONDS)
    reap()


def guard(tag: str) -> None:
    """Wait for the launcher's end, then stop what it left."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    stop(lambda: tagged(tag), tagged(tag))


if __name__ == "__main__":
    guard(sys.argv[1])
