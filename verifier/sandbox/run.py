"""One run, seen from outside: what it has written so far, and how it ended.

Never blocks but in `wait`. `fileno` becomes readable when there is something to do for `poll`; many runs can so be
driven from one loop. What a run may write is bounded here: the reader stops, and the run is ended.
"""

import fcntl
import json
import os
import select
import socket
from typing import Any

from protocol.clock import Deadline
from verifier.sandbox.program import Ended, Limits, Outcome

_PIECE = 64 * 2**10
_GRACE_SECONDS = 10.0  # past the deadline of the zygote, which always answers: after that, it is gone


class SandboxError(Exception):
    """The sandbox failed, not the program: the check is void. The text says how."""


class Run:
    """Made by `Link.start`. Close it, or let `poll` see it end."""

    def __init__(self, connection: socket.socket, stdout: int, stderr: int, limits: Limits) -> None:
        connection.setblocking(False)
        self._connection = connection
        self._most = limits.output_bytes
        self._output = {stdout: bytearray(), stderr: bytearray()}
        self._stdout, self._stderr = stdout, stderr
        self._open = {stdout, stderr}
        self._facts: dict[str, Any] | None = None
        self._reason: Ended | None = None
        self._outcome: Outcome | None = None
        self._deadline = Deadline(limits.wall_seconds)
        self.began = False
        self._poll = select.epoll()
        for descriptor in (connection.fileno(), stdout, stderr):
            fcntl.fcntl(descriptor, fcntl.F_SETFL, os.O_NONBLOCK)
            self._poll.register(descriptor, select.EPOLLIN)

    def fileno(self) -> int:
        """For a poller."""
        return self._poll.fileno()

    def poll(self) -> Outcome | None:
        """Take what there is; the outcome once the run has ended. Raises `SandboxError`."""
        if self._outcome is None and not self._poll.closed:
            for descriptor, _ in self._poll.poll(0):
                if descriptor == self._connection.fileno():
                    self._hear()
                else:
                    self._read(descriptor)
            if self._facts is not None and not self._open:
                self._end()
        return self._outcome

    def wait(self) -> Outcome:
        """The outcome, once there is one. Raises `SandboxError`."""
        silence = Deadline(self._deadline.seconds + _GRACE_SECONDS)
        while (outcome := self.poll()) is None:
            select.select([self], [], [], silence.remaining)
            if silence.passed:
                self.close()
                raise SandboxError(f"the sandbox has not answered for {silence.seconds:g} s")
        return outcome

    def close(self) -> None:
        """Let go; a run that goes on is ended by its zygote."""
        self._poll.close()
        self._connection.close()
        for descriptor in self._open:
            os.close(descriptor)
        self._open = set()

    # ------------------------------------------------------------ what comes

    def _hear(self) -> None:
        try:
            message = self._connection.recv(_PIECE)
        except BlockingIOError:
            return
        except OSError as error:
            self.close()
            raise SandboxError(f"the sandbox is gone: {error}") from None
        match json.loads(message or b"[]"):
            case ["began"]:
                self.began = True
            case ["ended", facts]:
                self._facts = facts
                self._poll.unregister(self._connection.fileno())
                if not self.began:
                    self.close()
                    raise SandboxError(f"a run ended before its walls stood: {facts}")
            case ["failed", why]:
                self.close()
                raise SandboxError(f"a run could not be locked in: {why}")
            case _:
                self.close()
                raise SandboxError("the sandbox is gone")

    def _read(self, descriptor: int) -> None:
        kept = self._output[descriptor]
        try:
            piece = os.read(descriptor, _PIECE)
        except BlockingIOError:
            return
        kept += piece[: self._most - len(kept)] if self._reason is None else b""
        if not piece:
            self._poll.unregister(descriptor)
            self._open.discard(descriptor)
            os.close(descriptor)
        elif len(kept) >= self._most and self._reason is None:
            self._reason = "output"
            self._connection.shutdown(socket.SHUT_WR)

    def _end(self) -> None:
        facts = self._facts or {}
        if self._reason:
            facts = {**facts, "ended": self._reason, "exit": None, "signal": None}
        out, err = bytes(self._output[self._stdout]), bytes(self._output[self._stderr])
        self._outcome = Outcome(**facts, stdout=out, stderr=err)
        self.close()
