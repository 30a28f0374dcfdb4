"""A sandbox and whoever owns it: starts the keeper and, through it, the zygote; starts another should they die."""

import json
import logging
import os
import select
import socket
import subprocess
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from types import TracebackType

from protocol.clock import Deadline
from verifier.sandbox.link import Link
from verifier.sandbox.program import Limits, Outcome, Program
from verifier.sandbox.run import Run, SandboxError
from verifier.sandbox.walls import Walls

log = logging.getLogger("verifier")

START_SECONDS = 30.0  # for the walls to stand; half a second on an idle machine
CLOSE_SECONDS = 5.0  # for the zygote to end and the keeper to clean up
ENVIRONMENT = {  # of keeper and zygote; a check has none
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONHASHSEED": "0",  # the same program does the same
    "PYTHONUTF8": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
}
PROGRAMS = "verifier.sandbox.zygote"


class Sandbox:
    """Runs programs behind walls. `walls` says which stand; nothing here waits but `run` and the start.

    `slots` programs run at the same time, the others wait; `most` are the widest limits that any may have; `readable`
    are files and folders that they may read besides the interpreter's.
    """

    def __init__(
        self,
        *,
        slots: int = 4,
        most: Limits | None = None,
        readable: tuple[str, ...] = (),
        module: str = PROGRAMS,
        without: tuple[str, ...] = (),
    ) -> None:
        self._settings = json.dumps(
            {
                "module": module,
                "slots": slots,
                "readable": readable,
                "most": asdict(most or Limits(wall_seconds=600, cpu_seconds=600, memory_bytes=2**32)),
                "without": without,
            }
        )
        self.walls = Walls()
        self.ended: Counter[str] = Counter()  # runs by how they ended, until somebody takes them
        self._link: Link | None = None
        self._start()

    def _start(self) -> None:
        self._control, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        lifeline, self._lifeline = os.pipe()
        passed = (control.fileno(), lifeline)
        self._keeper = subprocess.Popen(
            [sys.executable, "-B", "-m", "verifier.sandbox.keeper", self._settings, *map(str, passed)],
            pass_fds=passed,
            env=ENVIRONMENT,
            cwd=Path(__file__).parents[2],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        control.close()
        os.close(lifeline)
        limit = Deadline(START_SECONDS)
        if not select.select([self._control], [], [], limit.remaining)[0]:
            self.close()
            raise SandboxError(f"the walls did not stand after {START_SECONDS:g} s: the log says more")
        if not self._hear():
            code = self._keeper.wait(CLOSE_SECONDS)
            self.close()
            raise SandboxError(f"the sandbox did not start (exit code {code}): the log says more")

    def _hear(self) -> bool:
        """Take one message from the zygote. False: it is gone."""
        try:
            message = self._control.recv(2**16)
        except OSError:
            return False
        match json.loads(message or b"[]"):
            case ["walls", dict(missing)]:
                self.walls = Walls(missing)
            case ["runs", dict(ended)]:
                self.ended.update(ended)
        return bool(message)

    # ------------------------------------------------------------ for the owner's loop

    def fileno(self) -> int:
        """Becomes readable when there is something for `turn`."""
        return self._control.fileno()

    def turn(self) -> None:
        """Take what the zygote tells; start another if it is gone. Raises `SandboxError` if that fails."""
        while select.select([self._control], [], [], 0)[0]:
            if not self._hear():
                self.restart()

    def restart(self) -> None:
        """Another keeper and zygote take over; links and runs of the old ones are dead."""
        log.warning("the sandbox ended (exit code %s); starting another", self.close())
        self._start()

    # ------------------------------------------------------------ programs

    def connect(self) -> socket.socket:
        """A line for a `Link`, here or in another process. Raises `SandboxError`."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                socket.send_fds(self._control, [b"link"], [theirs.fileno()])
            except OSError:
                self.restart()
                socket.send_fds(self._control, [b"link"], [theirs.fileno()])
        return ours

    def start(self, program: Program, *further: int) -> Run:
        """See `Link.start`."""
        if self._link is None:
            self._link = Link(self.connect())
        return self._link.start(program, *further)

    def run(self, program: Program, *further: int) -> Outcome:
        """Run it and wait for its end. Raises `SandboxError`; the next call then has a new sandbox."""
        try:
            return self.start(program, *further).wait()
        except SandboxError:
            if self._keeper.poll() is not None:
                self.restart()
            raise

    # ------------------------------------------------------------ end

    def close(self) -> int | None:
        """End everything and wait for the clean-up; the keeper's exit code."""
        if self._link is not None:
            self._link.close()
            self._link = None
        self._control.close()
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1
        try:
            return self._keeper.wait(CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self._keeper.kill()
            return self._keeper.wait()

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
