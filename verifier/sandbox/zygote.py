"""Inside the walls: a warm interpreter that forks a locked-in process for each program.

It waits for requests on its links, for the ends of its children and for their deadlines, and never for a child: what
takes time is done by the child. It reads limits and nothing else of a request; the program itself lies in a file that
the child alone reads, so that no check finds another's in its memory. It ends when its owner's end of the control
socket does; as process 1 of its pid namespace it takes everything along.

A request is one datagram `{"limits": …, "argv": bool}` with descriptors: the run's socket, the program, stdin, stdout,
stderr, and further ones that the program finds from 3 on. On the run's socket the child says `["began"]` when its
walls stand, or `["failed", why]`; the zygote says `["ended", …]`. Closing the other end ends the run.
"""

import json
import os
import select
import signal
import socket
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any, NoReturn

from verifier.sandbox import inmate
from verifier.sandbox.enclosure import Enclosure, ready_to_fork
from verifier.sandbox.family import cpu_seconds, exceeds, members, waited_seconds
from verifier.sandbox.program import Limits
from verifier.sandbox.walls import WallError, said

MOST_REQUEST_BYTES = 4096
MOST_DESCRIPTORS = 8
_TICK_SECONDS = 0.05  # between two looks at the CPU time of what runs
_FAMILY_SECONDS = 0.05  # between two looks at all processes of a run together, and before the first
_TELL_SECONDS = 0.5  # between two messages about how runs ended


@dataclass(slots=True, eq=False)
class _Request:
    limits: Limits
    kind: str
    link: socket.socket
    socket: socket.socket
    descriptors: list[int]


@dataclass(slots=True, eq=False)
class _Run:
    request: _Request
    slot: int
    pid: int
    pidfd: int
    started: float
    reason: str = ""  # why the zygote ended it
    waited: float = 0.0
    looked: float = 0.0  # when its processes were last counted together
    cpu: float = 0.0  # that they had used then


def main(enclosure: Enclosure, control: int, most: Limits) -> None:
    """Serve until the control socket ends."""
    inmate.prepare()
    ready_to_fork()
    with socket.socket(fileno=control) as owner:
        owner.send(json.dumps(["walls", enclosure.walls.missing]).encode())
        Zygote(enclosure, owner, most).serve()


@dataclass(slots=True)
class Zygote:
    """The loop."""

    enclosure: Enclosure
    owner: socket.socket
    most: Limits
    _links: dict[int, socket.socket] = field(default_factory=dict)
    _waiting: deque[_Request] = field(default_factory=deque)
    _runs: dict[int, _Run] = field(default_factory=dict)  # by pidfd
    _sockets: dict[int, _Run | _Request] = field(default_factory=dict)  # by the run's socket
    _free: list[int] = field(default_factory=list)
    _ended: Counter[str] = field(default_factory=Counter)
    _told: float = 0.0
    _poll: select.epoll = field(default_factory=select.epoll)

    def serve(self) -> None:
        """Until the owner is gone."""
        self._free = list(range(len(self.enclosure.groups)))
        self._poll.register(self.owner.fileno(), select.EPOLLIN)
        while True:
            ready = {descriptor for descriptor, _ in self._poll.poll(_TICK_SECONDS if self._runs else _TELL_SECONDS)}
            # What closes descriptors comes before what opens them: a number given out anew has nothing ready yet.
            for descriptor in ready & self._runs.keys():
                self._bury(self._runs[descriptor])
            for descriptor in ready & self._sockets.keys():
                self._abandon(descriptor)
            for descriptor in ready & self._links.keys():
                self._take(self._links[descriptor])
            if self.owner.fileno() in ready and not self._obey():
                return
            self._look()
            self._start_waiting()
            self._tell()

    # ------------------------------------------------------------ requests

    def _obey(self) -> bool:
        """Take a new link from the owner. False: the owner is gone."""
        try:
            data, descriptors, _, _ = socket.recv_fds(self.owner, MOST_REQUEST_BYTES, 1)
        except OSError:
            return False
        for descriptor in descriptors:
            link = socket.socket(fileno=descriptor)
            self._links[descriptor] = link
            self._poll.register(descriptor, select.EPOLLIN)
        return bool(data)

    def _take(self, link: socket.socket) -> None:
        try:
            data, descriptors, _, _ = socket.recv_fds(link, MOST_REQUEST_BYTES, MOST_DESCRIPTORS)
        except OSError:
            data, descriptors = b"", []
        if not data:
            self._unlink(link)
            return
        message = json.loads(data)
        limits = Limits(**message["limits"]).within(self.most)
        run = socket.socket(fileno=descriptors[0])
        request = _Request(limits, "argv" if message["argv"] else "source", link, run, descriptors[1:])
        self._sockets[run.fileno()] = request
        self._poll.register(run.fileno(), select.EPOLLRDHUP)
        self._waiting.append(request)

    def _unlink(self, link: socket.socket) -> None:
        """Whoever had this link is gone: so are its runs."""
        self._poll.unregister(link.fileno())
        del self._links[link.fileno()]
        link.close()
        for descriptor, held in list(self._sockets.items()):
            if (held.request if isinstance(held, _Run) else held).link is link:
                self._abandon(descriptor)

    def _abandon(self, descriptor: int) -> None:
        """Whoever wanted this run wants it to end, or is gone."""
        held = self._sockets[descriptor]
        if isinstance(held, _Run):
            del self._sockets[descriptor]
            self._poll.unregister(descriptor)
            self._kill(held, "aborted")
        else:
            self._waiting.remove(held)
            self._forget(held)

    # ------------------------------------------------------------ runs

    def _start_waiting(self) -> None:
        while self._waiting and self._free:
            request, slot = self._waiting.popleft(), self._free.pop()
            self.enclosure.groups[slot].limit(request.limits)
            started = time.monotonic()
            try:
                pid, pidfd = self.enclosure.fork()
            except OSError as error:  # the host has no more processes to give
                _say(request.socket, ["failed", said(error)])
                self._forget(request)
                self._free.append(slot)
                continue
            if pid == 0:
                self._be_inmate(request, slot)
            for descriptor in request.descriptors:
                os.close(descriptor)
            request.descriptors.clear()
            run = _Run(request, slot, pid, pidfd, started)
            self._runs[pidfd] = run
            self._sockets[request.socket.fileno()] = run
            self._poll.register(pidfd, select.EPOLLIN)

    def _be_inmate(self, request: _Request, slot: int) -> NoReturn:
        """In the child: lock in, say so, and become the program."""
        os.setsid()
        (told,) = inmate.lift([request.socket.fileno()])
        try:
            program, *rest = inmate.lift(request.descriptors)
            self.enclosure.confine(slot, request.limits, request.kind, {told, program, *rest})
            inmate.place(rest)
            ready = inmate.read(program)
        except (OSError, WallError, ValueError) as error:
            os.write(told, json.dumps(["failed", str(error)[:1000]]).encode())
            os._exit(1)
        os.write(told, b'["began"]')
        os.close(told)
        inmate.become(ready)

    def _look(self) -> None:
        """End what has used up its time."""
        moment = time.monotonic()
        for run in self._runs.values():
            if run.reason:
                continue
            limits = run.request.limits
            age = moment - run.started
            if age >= limits.wall_seconds:
                run.waited = waited_seconds(self.enclosure.proc, self.enclosure.host_pid(run.pidfd))
                self._count(run)
                self._kill(run, "wall")
            elif age >= limits.cpu_seconds / 2 and _cpu_seconds(run.pid) >= limits.cpu_seconds:
                self._kill(run, "cpu")
            elif moment - run.looked >= _FAMILY_SECONDS and age >= _FAMILY_SECONDS:
                run.looked = moment
                self._count(run)

    def _count(self, run: _Run) -> None:
        """End a run whose processes together have used up what it may have."""
        family = members(self.enclosure.proc, self.enclosure.host_pid(run.pidfd))
        limits = run.request.limits
        run.cpu = cpu_seconds(self.enclosure.proc, family)
        if run.cpu >= limits.cpu_seconds:
            self._kill(run, "cpu")
        elif "memory_cgroup" not in self.enclosure.walls and exceeds(self.enclosure.proc, family, limits.memory_bytes):
            self._kill(run, "memory")

    def _kill(self, run: _Run, reason: str) -> None:
        run.reason = run.reason or reason
        signal.pidfd_send_signal(run.pidfd, signal.SIGKILL)

    def _bury(self, run: _Run) -> None:
        self.enclosure.end_group(run.pid)
        _, status, usage = os.wait4(run.pid, 0)
        wall = time.monotonic() - run.started
        del self._runs[run.pidfd]
        self._poll.unregister(run.pidfd)
        os.close(run.pidfd)
        self._free.append(run.slot)
        code = os.waitstatus_to_exitcode(status)
        cpu = max(run.cpu, usage.ru_utime + usage.ru_stime)
        ended = run.reason or ("exit" if code >= 0 else "signal")
        if self.enclosure.groups[run.slot].killed() and ended in ("exit", "signal"):
            ended = "memory"
        elif ended == "signal" and cpu >= run.request.limits.cpu_seconds:
            ended = "cpu"
        self._ended[ended] += 1
        facts = {
            "ended": ended,
            "exit": code if ended == "exit" else None,
            "signal": -code if ended == "signal" else None,
            "cpu_seconds": cpu,
            "wall_seconds": wall,
            "waited_seconds": run.waited,
        }
        _say(run.request.socket, ["ended", facts])
        self._forget(run.request)

    def _forget(self, request: _Request) -> None:
        """Let go of what a request brought along."""
        if self._sockets.pop(request.socket.fileno(), None) is not None:
            self._poll.unregister(request.socket.fileno())
        request.socket.close()
        for descriptor in request.descriptors:
            os.close(descriptor)

    def _tell(self) -> None:
        """How many runs ended in which way since the last time."""
        moment = time.monotonic()
        if self._ended and moment - self._told >= _TELL_SECONDS:
            self._told = moment
            _say(self.owner, ["runs", dict(self._ended)])
            self._ended.clear()


def _cpu_seconds(pid: int) -> float:
    """CPU time of a child, by its clock (clock_getcpuclockid(3)); 0 once it is gone."""
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:
        return 0.0


def _say(connection: socket.socket, message: list[Any]) -> None:
    """Without waiting: whoever does not listen misses it."""
    try:
        connection.send(json.dumps(message).encode(), socket.MSG_DONTWAIT)
    except OSError:
        return
