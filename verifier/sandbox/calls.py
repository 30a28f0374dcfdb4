"""Calls into hostile code: a module behind walls whose functions take and return values, and nothing else.

What comes back was built here from plain data (`values`); what it ought to be never goes in.
"""

import json
import os
import select
import socket
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from io import FileIO
from types import MappingProxyType, TracebackType
from typing import Any

from protocol.clock import Deadline
from verifier.sandbox import values
from verifier.sandbox.link import Link
from verifier.sandbox.program import Limits, Outcome, Program
from verifier.sandbox.run import Run, SandboxError

MOST_ANSWER_BYTES = 8 * 2**20
NO_FILES: Mapping[str, bytes] = MappingProxyType({})


class NoAnswer(Exception):
    """A call brought no value. The text says why: it raised, took too long, ended the process, spoke nonsense."""


class Raised(NoAnswer):
    """The function raised an exception of the type `kind`."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f"raised {kind}: {text[:200]}")
        self.kind = kind


class Functions:
    """The functions of `source`, in a process of their own until `close`. `limits` hold for all calls together; `files`
    lie where it can import them."""

    def __init__(self, link: Link, source: str, limits: Limits, files: Mapping[str, bytes] = NO_FILES) -> None:
        self._channel, theirs = socket.socketpair()
        self._channel.setblocking(False)
        self._received = bytearray()
        self.outcome: Outcome | None = None  # once the process has ended
        self.lost = False  # no further call can be answered
        program = Program(source=source, role="functions", limits=limits, files=files)
        with theirs, ExitStack() as unless_started:
            unless_started.callback(self._channel.close)
            self._run = link.start(program, theirs.fileno())
            unless_started.pop_all()

    def call(self, name: str, arguments: list[Any], keywords: dict[str, Any], seconds: float) -> Any:
        """What the function returns. Raises `NoAnswer`, `SandboxError`, and `values.Unsendable` for the arguments."""
        request = values.dump([name, arguments, keywords]) + b"\n"
        self.lost = True  # until it has answered
        limit: Deadline | None = None
        while b"\n" not in self._received:
            if limit is None and self._run.began:
                limit = Deadline(seconds)  # the wait for a free slot is nobody's fault
            request = self._exchange(request, limit)
        line, _, rest = bytes(self._received).partition(b"\n")
        self._received = bytearray(rest)
        self.lost = bool(rest)  # an answer to no question: the next would be taken for another
        try:
            answer = values.load(line)
        except ValueError as error:
            raise NoAnswer(f"nonsense: {error}") from None
        match answer:
            case ["value", value]:
                return value
            case ["error", str(kind), str(text)]:
                raise Raised(kind, text)
        raise NoAnswer("nonsense")

    def _exchange(self, request: bytes, limit: Deadline | None) -> bytes:
        """Wait a moment, send and take what goes; what is left of the request. Raises `NoAnswer`."""
        if len(self._received) > MOST_ANSWER_BYTES:
            raise NoAnswer(f"an answer of more than {MOST_ANSWER_BYTES} bytes")
        if limit is not None and limit.passed:
            raise NoAnswer(f"timeout after {limit.seconds:g} s")
        waiting = limit.remaining if limit else 1.0
        poll = select.poll()
        poll.register(self._channel, select.POLLIN | (select.POLLOUT if request else 0))
        if self.outcome is None:
            poll.register(self._run, select.POLLIN)
        ready = dict(poll.poll(1e3 * waiting))
        if self.outcome is None and self._run.fileno() in ready:
            self.outcome = self._run.poll()
        events = ready.get(self._channel.fileno(), 0)
        try:
            if events & select.POLLOUT:
                request = request[self._channel.send(request) :]
            if events & ~select.POLLOUT:
                piece = self._channel.recv(2**16)
                self._received += piece
                if not piece:
                    raise NoAnswer(f"the process ended{self._end()}")
        except BlockingIOError:
            return request
        except OSError:
            raise NoAnswer(f"the process ended{self._end()}") from None
        return request

    def _end(self) -> str:
        self.outcome = self.outcome or self._run.wait()
        if self.outcome.starved:
            raise SandboxError(f"starved: it waited for a CPU for {self.outcome.waited_seconds:.1f} s")
        lines = self.outcome.stderr.decode(errors="replace").strip().splitlines()
        return f" ({self.outcome.ended}{': ' + lines[-1][:200] if lines else ''})"

    def close(self) -> None:
        """End the process."""
        self._channel.close()
        self._run.close()

    def __enter__(self) -> "Functions":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class Trial:
    """How tests ended: for each, why it failed, empty if it passed. `tests` and `solution` ran in two processes."""

    failures: list[str]
    tests: Outcome
    solution: Outcome | None  # None: it went on until the tests were done


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """Tests of a function `entry`: code in which `candidate` and `entry` stand for it, or that defines
    `check(candidate)`. `prompt` is executed first, for what the tests use of it."""

    prompt: str
    entry: str
    tests: list[str]


def try_out(link: Link, solution: str, tests: Suite, limits: Limits) -> Trial:
    """Run tests against a solution that they can only call by value. Raises `SandboxError`.

    The tests' word that they passed comes on a pipe that only their process has; no word is no pass.
    """
    role = {"entry": tests.entry, "tests": tests.tests}
    trusted = Program(source=tests.prompt, role="tests", limits=limits, parameters=role)
    hostile = Program(source=solution, role="functions", limits=limits)
    with ExitStack() as stack:
        one, other = socket.socketpair()
        told, tell = os.pipe()
        report = stack.enter_context(open(told, "rb", buffering=0))
        os.set_blocking(told, False)
        with one, other, open(tell, "wb"):
            solving = stack.enter_context(closing(link.start(hostile, one.fileno())))
            testing = stack.enter_context(closing(link.start(trusted, other.fileno(), tell)))
        said, solved, tested = bytearray(), None, None
        while tested is None:
            watched: list[Run | FileIO] = [
                testing,
                *([] if solved else [solving]),
                *([] if report.closed else [report]),
            ]
            ready = select.select(watched, [], [], limits.wall_seconds)[0]
            if report in ready:
                said += _piece(report)
            solved = solved or solving.poll()
            tested = testing.poll()
        while piece := b"" if report.closed else _piece(report):
            said += piece
    failures = _failures(bytes(said), len(tests.tests)) if tested.ok else None
    if failures is None:
        failures = [f"the tests ended by {tested.ended}"] * len(tests.tests)
    return Trial(failures, tested, solved)


def _piece(report: FileIO) -> bytes:
    """What has been written meanwhile; closes the report at its end."""
    piece = report.read(2**16)
    if piece == b"":
        report.close()
    return piece or b""


def _failures(report: bytes, count: int) -> list[str] | None:
    try:
        found = json.loads(report)
    except ValueError:
        return None
    return found if isinstance(found, list) and len(found) == count else None
