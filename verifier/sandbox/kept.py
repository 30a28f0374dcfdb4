"""A keeper and its zygote, from their owner's side: started, heard of, ended. What the zygote does is its module's."""

import json
import os
import select
import socket
import subprocess
import sys
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path

from protocol.clock import Deadline
from verifier.sandbox.program import Limits
from verifier.sandbox.run import SandboxError
from verifier.sandbox.walls import Walls

START_SECONDS = 30.0  # for the walls to stand; half a second on an idle machine
CLOSE_SECONDS = 5.0  # for the zygote to end and the keeper to clean up
SOURCE = Path(__file__).parents[2]
ENVIRONMENT = {  # of keeper and zygote; a check has none
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONHASHSEED": "0",  # the same text gets the same verdict: sympy walks through sets
    "PYTHONUTF8": "1",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What the owner wants of a zygote: `module`'s, with room for `slots` checks at the same time.

    `readable` are files and folders that they may read besides the interpreter's, `most` their widest limits,
    `without` walls not to put up. `bare`: no packages but the standard library, and the quicker forks for it.
    `strict`: rather no zygote than one that lacks an essential wall.
    """

    module: str
    slots: int
    most: Limits
    readable: Collection[str] = ()
    without: Collection[str] = ()
    bare: bool = True
    strict: bool = True


class Kept:
    """One keeper process. `control` is the owner's end of the zygote's control socket, `walls` what stands."""

    def __init__(self, wanted: Wanted) -> None:
        self.control, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        lifeline, self._lifeline = os.pipe()
        passed = (control.fileno(), lifeline)
        settings = {
            "module": wanted.module,
            "slots": wanted.slots,
            "readable": list(wanted.readable),
            "most": asdict(wanted.most),
            "without": list(wanted.without),
            "strict": wanted.strict,
        }
        python = [sys.executable, *(["-S"] if wanted.bare else [])]
        self._process = subprocess.Popen(
            [*python, "-m", "verifier.sandbox.keeper", json.dumps(settings), *map(str, passed)],
            pass_fds=passed,
            env=ENVIRONMENT,
            cwd=SOURCE,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        control.close()
        os.close(lifeline)
        self._walls: Walls | None = None

    @property
    def pid(self) -> int:
        """Of the keeper."""
        return self._process.pid

    def fileno(self) -> int:
        """Of the control socket, for a poller."""
        return self.control.fileno()

    def send(self, message: bytes, *descriptors: int) -> bool:
        """Give the zygote a command. False: it is gone."""
        try:
            socket.send_fds(self.control, [message], descriptors)
        except OSError:
            return False
        return True

    def receive(self) -> bytes | None:
        """A message that the zygote has sent; nothing (b"") once it is gone, None while there is none."""
        try:
            return self.control.recv(2**16, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def walls(self) -> Walls:
        """What stands; waits until it is known. Raises `SandboxError`."""
        if self._walls is None:
            limit = Deadline(START_SECONDS)
            if not select.select([self.control], [], [], limit.remaining)[0]:
                self.close()
                raise SandboxError(f"the walls did not stand after {START_SECONDS:g} s: the log says more")
            message = self.receive()
            if not message:
                raise SandboxError(f"the sandbox did not start (exit code {self.close()}): the log says more")
            kind, content = json.loads(message)
            if kind == "refused":
                self.close()
                raise SandboxError(
                    f"this host cannot give {content}; allow unprivileged user namespaces or run as root, or choose "
                    "sandbox.require=best_effort to go on without"
                )
            self._walls = Walls(content)
        return self._walls

    def close(self) -> int | None:
        """End everything and wait for the clean-up; the keeper's exit code. More than once does no harm."""
        self.control.close()
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1
        try:
            return self._process.wait(CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()
