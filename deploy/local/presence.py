"""Whether a launcher is at work in a run's directory: it holds a lock there for as long as it lives.

The kernel lets go of the lock when the launcher ends, however that ends, so that a stale file tells nothing wrong. The
file itself stays: to remove a lock that somebody may be about to take would let two hold it.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NAME = "launcher.lock"


@contextmanager
def held(directory: Path) -> Iterator[None]:
    """Be the launcher of `directory`. Raises `ValueError` when another one is."""
    descriptor = os.open(directory / NAME, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if not _lock(descriptor):
            raise ValueError(f"{directory}: another launcher is at work there; choose another run.name")
        yield
    finally:
        os.close(descriptor)


def at_work(directory: Path) -> bool:
    """Whether a living launcher holds `directory`."""
    try:
        descriptor = os.open(directory / NAME, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        return not _lock(descriptor)
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
