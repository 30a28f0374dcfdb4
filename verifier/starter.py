"""How a worker comes to be: the seam at which a sandbox takes the place of plain processes."""

import logging
import os
import socket
import sys
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import msgpack

from verifier.relay import Relay
from verifier.rewards.custom_source import CustomFunction
from verifier.sandbox.kept import SOURCE, Kept, Wanted
from verifier.sandbox.program import MOST_PROGRAM_BYTES, Limits
from verifier.sandbox.sandbox import Sandbox
from verifier.sandbox.walls import Walls

log = logging.getLogger("verifier")

LEAVING = 2  # workers that are on their way out while their successors start
UNLIMITED_SECONDS = 1e9  # the pool watches the clock


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
    """Forks workers from a warm, locked-in process (`verifier.zygote`), which is started anew should it die.

    `workers` is how many there are at most at the same time; each gets a line to `sandbox` and then to `relay`, if
    there are such, and knows the `custom` reward.
    """

    def __init__(
        self,
        memory_bytes: int,
        workers: int,
        *,
        sandbox: Sandbox | None = None,
        custom: CustomFunction | None = None,
        relay: Relay | None = None,
        without: Collection[str] = (),
        strict: bool = True,
    ) -> None:
        self._wanted = Wanted(
            module="verifier.zygote",
            slots=workers + LEAVING,
            most=Limits(
                cpu_seconds=UNLIMITED_SECONDS,
                wall_seconds=UNLIMITED_SECONDS,
                memory_bytes=memory_bytes,
                disk_bytes=2 * MOST_PROGRAM_BYTES,
                open_files=256,
            ),
            readable=[*_packages(), *([str(custom.place), *custom.packages] if custom else [])],
            without=without,
            bare=False,
            strict=strict,
        )
        self._sandbox = sandbox
        self._custom = custom
        self._relay = relay
        self._libraries: list[str] = []
        self._kept = Kept(self._wanted)
        self._set_up()

    @property
    def walls(self) -> Walls:
        """What stands round workers; waits until it is known. Raises `SandboxError`."""
        return self._kept.walls()

    def _send(self, command: list[Any], *descriptors: int) -> bool:
        """False: there is no zygote to take the command."""
        return self._kept.send(msgpack.packb(command), *descriptors)

    def _respawn(self) -> None:
        log.warning("the zygote ended (exit code %s); starting another", self._kept.close())
        self._kept = Kept(self._wanted)
        self._set_up()

    def _set_up(self) -> None:
        """What workers of a new zygote have in memory."""
        if self._custom:
            self._send(["custom", asdict(self._custom)])
        for library in self._libraries:
            self._send(["load", library])

    def start(self) -> socket.socket:
        """See `Starter.start`. If not even a new zygote takes the command, the channel is at its end at once."""
        ours, theirs = socket.socketpair()
        lines = [each.connect() for each in (self._sandbox, self._relay) if each is not None]
        descriptors = [theirs.fileno(), *(line.fileno() for line in lines)]
        if not self._send(["start"], *descriptors):
            self._respawn()
            self._send(["start"], *descriptors)
        theirs.close()
        for line in lines:
            line.close()
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
        while (message := self._kept.receive()) is not None:
            if not message:
                self._respawn()
                break
            if message.startswith(b"["):
                continue  # the walls, which nobody has waited for: they stand as those before
            _, pid, status = msgpack.unpackb(message)
            told.append((pid, status))
        return told

    def fileno(self) -> int:
        """See `Starter.fileno`."""
        return self._kept.fileno()

    def close(self) -> None:
        """See `Starter.close`."""
        self._kept.close()


def _packages() -> list[str]:
    """Where this process finds packages, and of this repository no more than what workers import."""
    places = [path for path in sys.path if os.path.isdir(path) and Path(path).resolve() != SOURCE]
    return [*places, str(SOURCE / "verifier"), str(SOURCE / "protocol")]
