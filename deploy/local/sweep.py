"""Finding and killing every process of a launch, however deep, and also when the launcher itself was killed.

Every role inherits a tag in its environment, which sessions, double forks and new process groups do not shake off; a
role that starts processes with an environment of their own must tie their lives to its own. The tag names the launch
and the role, so that what a dead role left can be told from what the others run.
`python -m deploy.local.sweep TAG` is the launcher's guard: it waits for the end of its standard input, which comes when
the launcher ends in whatever way, then stops what still bears the tag. Linux only: it reads /proc.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

TAG = "OFFBEAT_LAUNCH"
STOP_SECONDS = 4.0  # from SIGTERM to SIGKILL
KILL_SECONDS = 3.0  # for the kernel to end what was killed
POLL_SECONDS = 0.05


def value(tag: str, role: str) -> str:
    """What the variable `TAG` holds in the processes of `role`."""
    return f"{tag}/{role}"


def tagged(tag: str) -> list[int]:
    """The living processes of the launch `tag`; zombies have no environment and are not among them."""
    mark = f"{TAG}={value(tag, '')}".encode()
    entries = [entry for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [int(entry.name) for entry in entries if mark in _environment(entry)]


def role_of(pid: int, tag: str) -> str:
    """The role of the launch `tag` whose environment a process has; empty if it has none."""
    mark = f"{TAG}={value(tag, '')}".encode()
    lines = _environment(Path(f"/proc/{pid}")).split(b"\0")
    return next((line.removeprefix(mark).decode() for line in lines if line.startswith(mark)), "")


def _environment(entry: Path) -> bytes:
    with suppress(OSError):  # it ended meanwhile, or belongs to another user
        return (entry / "environ").read_bytes()
    return b""


def descendants(root: int, besides: Collection[int] = ()) -> list[int]:
    """The living processes under `root`, zombies left out, nor those `besides` and what is under them.

    A subreaper keeps those whose parents have ended.
    """
    families = _families()
    found: list[int] = []
    ahead = [root]
    while ahead:
        new = [pid for pid in families.get(ahead.pop(), []) if pid not in besides]
        found += new
        ahead += new
    return found


def children(parent: int) -> set[int]:
    """The living processes directly under `parent`."""
    return set(_families().get(parent, []))


def _families() -> dict[int, list[int]]:
    """The living children of every process that has any."""
    families: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with suppress(OSError):
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            if state not in "ZX":
                families.setdefault(int(parent), []).append(int(entry.name))
    return families


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
