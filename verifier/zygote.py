"""A process that has loaded what checks need and forks a worker whenever it is told to: a new one within milliseconds.

It waits for commands on its control socket and for the death of its children. It reads no hostile text itself. When
the service ends, and with it the control socket, the zygote kills its workers and ends; the kernel sees to it too.

Commands: `start` (with the worker's end of a channel attached), `end <pid>`, `load <library>`.
It answers nothing but `ended`, the pid of a worker and its wait status, once a worker is gone and reaped.
"""

import gc
import os
import resource
import selectors
import signal
import socket
import sys

import msgpack

from verifier.rewards import LIBRARIES
from verifier.worker import confine, die_with, work

MAX_COMMAND_BYTES = 4096


def main(control_fd: int, service: int, memory_bytes: int) -> None:
    """Serve until the control socket ends."""
    die_with(service)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    control = socket.socket(fileno=control_fd)
    wake, woken = os.pipe()
    for descriptor in (wake, woken):
        os.set_blocking(descriptor, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(woken)
    selector = selectors.DefaultSelector()
    selector.register(control, selectors.EVENT_READ)
    selector.register(wake, selectors.EVENT_READ)
    children: set[int] = set()
    while True:
        selector.select()
        _drain(wake)
        _reap(control, children)
        if not _obey(control, children, memory_bytes):
            break
    for child in tuple(children):
        _kill(child)
        os.waitpid(child, 0)


def _obey(control: socket.socket, children: set[int], memory_bytes: int) -> bool:
    """Carry out one command if there is one. False: the service is gone."""
    try:
        data, descriptors, _, _ = socket.recv_fds(control, MAX_COMMAND_BYTES, 1, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return True
    except OSError:
        return False
    if not data:
        return False
    match msgpack.unpackb(data):
        case ["start"]:
            children.add(_fork(descriptors[0], memory_bytes))
        case ["end", int(child)]:
            if child in children:
                _kill(child)
        case ["load", str(library)]:
            LIBRARIES[library]()
            gc.freeze()
    return True


def _fork(descriptor: int, memory_bytes: int) -> int:
    zygote = os.getpid()
    child = os.fork()
    if child == 0:
        signal.set_wakeup_fd(-1)
        channel = socket.socket(fileno=descriptor)
        confine(channel, memory_bytes, zygote)
        work(channel)
    os.close(descriptor)
    return child


def _reap(control: socket.socket, children: set[int]) -> None:
    """Bury the dead, with whatever they left in their process group, and tell the service."""
    while children and (dead := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)):
        _kill(dead.si_pid)
        _, status = os.waitpid(dead.si_pid, 0)
        children.discard(dead.si_pid)
        try:
            control.send(msgpack.packb(["ended", dead.si_pid, status]))
        except OSError:
            return


def _kill(child: int) -> None:
    """Kill a worker and its process group. Before it has a session of its own, only itself."""
    for kill in (os.killpg, os.kill):
        try:
            kill(child, signal.SIGKILL)
        except ProcessLookupError:
            continue


def _drain(wake: int) -> None:
    try:
        while os.read(wake, 4096):
            pass
    except BlockingIOError:
        return


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
