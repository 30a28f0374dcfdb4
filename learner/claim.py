"""One learner at a time writes into a run's directory: two would tear each other's checkpoints and rows.

A learner that was taken for dead, because it was stopped or cut off, may wake up while its successor trains. The kernel
lets go of a claim when its process ends, however that ends.
"""

import fcntl
import logging
import os
import socket
from pathlib import Path

log = logging.getLogger("learner")

NAME = "learner.lock"


def claim(directory: Path) -> None:
    """Hold `directory` until this process ends. Raises `ValueError` when another living learner holds it."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / NAME
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        holder = os.pread(descriptor, 4096, 0).decode(errors="replace").strip()
        os.close(descriptor)
        raise ValueError(
            f"run.dir={directory}: another learner ({holder}) writes there: stop it, or choose another run.name"
        ) from None
    except OSError as error:  # a file system without locks
        log.warning("%s cannot be locked (%s): nothing keeps a second learner away", path, error)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
