"""A sandbox: runs programs behind walls, for whoever made it and for those to whom it hands a line."""

import json
import logging
import socket
from collections import Counter
from collections.abc import Collection
from types import TracebackType

from verifier.sandbox.kept import Kept, Wanted
from verifier.sandbox.link import Link
from verifier.sandbox.program import Limits, Outcome, Program
from verifier.sandbox.run import Run, SandboxError
from verifier.sandbox.walls import Walls

log = logging.getLogger("verifier")

MOST = Limits(wall_seconds=600, cpu_seconds=600, memory_bytes=2**32, disk_bytes=2**28)


class Sandbox:
    """Nothing waits but `walls`, for the start, and `run`.

    `slots` programs run at the same time, the others wait; `most` are the widest limits that any may have; `readable`
    are files and folders that they may read besides the interpreter's; `without` names walls not to put up. `strict`:
    rather no sandbox than one without an essential wall.
    """

    def __init__(
        self,
        *,
        slots: int = 4,
        most: Limits = MOST,
        readable: Collection[str] = (),
        without: Collection[str] = (),
        strict: bool = True,
    ) -> None:
        self._wanted = Wanted(
            module="verifier.sandbox.zygote",
            slots=slots,
            most=most,
            readable=readable,
            without=without,
            strict=strict,
        )
        self._kept = Kept(self._wanted)
        self.starts = 1  # how often it was started: lines to an earlier one are dead
        self.ended: Counter[str] = Counter()  # runs by how they ended, until somebody takes them
        self._link: Link | None = None

    @property
    def walls(self) -> Walls:
        """What stands; waits for the start. Raises `SandboxError` if there is none, which says why."""
        return self._kept.walls()

    # ------------------------------------------------------------ for the owner's loop

    def fileno(self) -> int:
        """Becomes readable when there is something for `turn`."""
        return self._kept.fileno()

    def turn(self) -> None:
        """Take what the zygote tells; start another if it is gone. Raises `SandboxError` if that fails."""
        while (message := self._kept.receive()) is not None:
            if message:
                kind, content = json.loads(message)
                if kind == "runs":
                    self.ended.update(content)
                elif kind == "refused":
                    raise SandboxError(f"the sandbox cannot be started again: this host cannot give {content}")
            else:
                self.restart()

    def restart(self) -> None:
        """Another keeper and zygote take over; links and runs of the old ones are dead."""
        log.warning("the sandbox ended (exit code %s); starting another", self.close())
        self._kept = Kept(self._wanted)
        self.starts += 1

    # ------------------------------------------------------------ programs

    def connect(self) -> socket.socket:
        """A line for a `Link`, here or in another process. Raises `SandboxError`."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            if not self._kept.send(b"link", theirs.fileno()):
                self.restart()
                self._kept.send(b"link", theirs.fileno())
        return ours

    def link(self) -> Link:
        """The owner's own line."""
        if self._link is None:
            self._link = Link(self.connect())
        return self._link

    def start(self, program: Program, *further: int) -> Run:
        """See `Link.start`."""
        return self.link().start(program, *further)

    def run(self, program: Program, *further: int) -> Outcome:
        """Run it and wait for its end. Raises `SandboxError`; the next call then finds another sandbox."""
        try:
            return self.start(program, *further).wait()
        except SandboxError:
            self.turn()
            raise

    # ------------------------------------------------------------ end

    def close(self) -> int | None:
        """End everything and wait for the clean-up; the keeper's exit code."""
        if self._link is not None:
            self._link.close()
            self._link = None
        return self._kept.close()

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
