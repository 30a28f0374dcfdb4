"""How a worker comes to be: the seam at which a sandbox takes the place of plain processes."""

import logging
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Protocol

import msgpack

log = logging.getLogger("verifier")

CLOSE_SECONDS = 2.0  # for the zygote to kill its workers and end
ENVIRONMENT = {  # of the zygote; a worker has none
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONHASHSEED": "0",  # the same text gets the same verdict: sympy walks through sets
    "PYTHONUTF8": "1",
}


class Starter(Protocol):
    """Starts and ends workers. Nothing here waits for a worker."""

    def start(self) -> socket.socket:
        """The service's end of a channel to a worker that is about to run, and whose first report will be `Ready`."""

    def end(self, pid: int) -> None:
        """Kill a worker and all that it started."""

    def load(self, library: str) -> None:
        """Workers started from now on have this library (`rewards.LIBRARIES`) in memory."""

    def deaths(self) -> list[tuple[int, int]]:
        """Workers that have ended since the last call: pid and wait status."""

    def fileno(self) -> int:
        """Becomes readable when there are deaths to tell of."""

    def close(self) -> None:
        """End all workers and what started them."""


class Zygote:
    """Forks workers from a warm process (`verifier.zygote`), which is started anew should it die."""

    def __init__(self, memory_bytes: int) -> None:
        self.memory_bytes = memory_bytes
        self._libraries: list[str] = []
        self._spawn()

    def _spawn(self) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-m", "verifier.zygote"]
        self._process = subprocess.Popen(
            [*command, *map(str, (theirs.fileno(), os.getpid(), self.memory_bytes))],
            pass_fds=[theirs.fileno()],
            env=ENVIRONMENT,
            cwd=Path(__file__).parents[1],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        theirs.close()
        for library in self._libraries:
            self._send(["load", library])

    def _send(self, command: list[str | int], *descriptors: int) -> bool:
        """False: there is no zygote to take the command."""
        try:
            socket.send_fds(self._control, [msgpack.packb(command)], descriptors)
        except OSError:
            return False
        return True

    def _respawn(self) -> None:
        log.warning("the zygote ended (exit code %s); starting another", self._end_process())
        self._spawn()

    def start(self) -> socket.socket:
        """See `Starter.start`. If not even a new zygote takes the command, the channel is at its end at once."""
        ours, theirs = socket.socketpair()
        with theirs:
            if not self._send(["start"], theirs.fileno()):
                self._respawn()
                self._send(["start"], theirs.fileno())
        return ours

    def end(self, pid: int) -> None:
        """See `Starter.end`. A zygote that is gone has taken its workers along."""
        if not self._send(["end", pid]):
            self._respawn()

    def load(self, library: str) -> None:
        """See `Starter.load`."""
        self._libraries.append(library)
        if not self._send(["load", library]):
            self._respawn()

    def deaths(self) -> list[tuple[int, int]]:
        """See `Starter.deaths`."""
        told = []
        try:
            while data := self._control.recv(4096, socket.MSG_DONTWAIT):
                told.append(msgpack.unpackb(data))
        except BlockingIOError:
            return [(pid, status) for _, pid, status in told]
        except OSError as error:
            log.warning("the zygote cannot be heard: %s", error)
        self._respawn()
        return [(pid, status) for _, pid, status in told]

    def fileno(self) -> int:
        """See `Starter.fileno`."""
        return self._control.fileno()

    def close(self) -> None:
        """See `Starter.close`."""
        self._end_process()

    def _end_process(self) -> int:
        self._control.close()
        try:
            return self._process.wait(CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()
