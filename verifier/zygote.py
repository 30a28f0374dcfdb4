"""Inside the walls: has loaded what checks need and forks a locked-in worker whenever it is told to.

It waits for commands on its control socket and for the death of its children. It reads no hostile text itself. As
process 1 of its pid namespace it takes all workers along when it ends; it ends when the service does, and with it the
control socket.

Commands: `start` (with the worker's end of a channel attached and, after it, lines to a sandbox and to a relay),
`end <pid>`, `load <library>`, `custom <function>` (a user's reward). It answers nothing but `ended`, the pid of a
worker and its wait status, once a worker is gone. Pids are the service's.
"""

import json
import os
import select
import signal
import socket
from collections import deque
from dataclasses import dataclass, field
from typing import NoReturn

import msgpack

from verifier.rewards import LIBRARIES, custom
from verifier.rewards.custom_source import CustomFunction
from verifier.sandbox.enclosure import Enclosure, ready_to_fork
from verifier.sandbox.program import Limits
from verifier.worker import work

MAX_COMMAND_BYTES = 2**16


@dataclass(frozen=True, slots=True)
class _Worker:
    pid: int
    pidfd: int
    host_pid: int
    slot: int


def main(enclosure: Enclosure, control: int, most: Limits) -> None:
    """Serve until the control socket ends."""
    with socket.socket(fileno=control) as service:
        service.send(json.dumps(["walls", enclosure.walls.missing]).encode())
        _Zygote(enclosure, service, most).serve()


@dataclass(slots=True)
class _Zygote:
    enclosure: Enclosure
    service: socket.socket
    limits: Limits
    _workers: dict[int, _Worker] = field(default_factory=dict)  # by pidfd
    _waiting: deque[list[int]] = field(default_factory=deque)  # descriptors of workers to be started
    _free: list[int] = field(default_factory=list)  # slots
    _poll: select.epoll = field(default_factory=select.epoll)

    def serve(self) -> None:
        self._free = list(range(len(self.enclosure.groups)))
        self._poll.register(self.service.fileno(), select.EPOLLIN)
        ready_to_fork()
        while True:
            for descriptor, _ in self._poll.poll():
                if descriptor in self._workers:
                    self._bury(self._workers[descriptor])
                elif not self._obey():
                    return
            while self._waiting and self._free:
                self._fork(self._waiting.popleft(), self._free.pop())

    def _obey(self) -> bool:
        """Carry out one command. False: the service is gone."""
        try:
            data, descriptors, _, _ = socket.recv_fds(self.service, MAX_COMMAND_BYTES, 3)
        except OSError:
            return False
        if not data:
            return False
        match msgpack.unpackb(data):
            case ["start"]:
                self._waiting.append(descriptors)
            case ["end", int(pid)]:
                for worker in self._workers.values():
                    if worker.host_pid == pid:
                        signal.pidfd_send_signal(worker.pidfd, signal.SIGKILL)
            case ["load", str(library)]:
                LIBRARIES[library]()
                ready_to_fork()
            case ["custom", dict(function)]:
                custom.installed.install(CustomFunction(**function))
                ready_to_fork()
        return True

    def _fork(self, descriptors: list[int], slot: int) -> None:
        self.enclosure.groups[slot].limit(self.limits)
        pid, pidfd = self.enclosure.fork()
        if pid == 0:
            self._be_worker(descriptors, slot)
        for descriptor in descriptors:
            os.close(descriptor)
        self._workers[pidfd] = _Worker(pid, pidfd, self.enclosure.host_pid(pidfd), slot)
        self._poll.register(pidfd, select.EPOLLIN)

    def _be_worker(self, descriptors: list[int], slot: int) -> NoReturn:
        os.setsid()
        pid = self.enclosure.own_host_pid()
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        self.enclosure.confine(slot, self.limits, "worker", {0, 1, 2, *descriptors})
        channel, *lines = (socket.socket(fileno=descriptor) for descriptor in descriptors)
        work(channel, lines, pid)

    def _bury(self, worker: _Worker) -> None:
        self.enclosure.end_group(worker.pid)
        _, status = os.waitpid(worker.pid, 0)
        self._poll.unregister(worker.pidfd)
        del self._workers[worker.pidfd]
        os.close(worker.pidfd)
        self._free.append(worker.slot)
        try:
            self.service.send(msgpack.packb(["ended", worker.host_pid, status]))
        except OSError:
            return  # gone: the next command says so
