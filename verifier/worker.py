"""A worker: one process that applies rewards to hostile texts, one at a time, on its main thread.

It waits for a job on its channel and for nothing else; the end of the channel ends it. It has no deadline of its own:
the pool watches the clock and kills it.
"""

import ctypes
import os
import resource
import signal
import socket
import time
from typing import Any, NoReturn

from verifier.channel import ChannelClosed, worker_receive, worker_send
from verifier.reports import Checked, Outcome, Ready, pack
from verifier.rewards import REWARDS
from verifier.rewards.score import BadAnswer, BadTask, described

PR_SET_PDEATHSIG = 1


def confine(channel: socket.socket, memory_bytes: int, parent: int) -> None:
    """Take away what a check does not need: session, terminal, environment, files, core dumps, address space.

    The process dies with `parent`. The namespaces and the system-call filter of a sandbox belong here.
    """
    os.setsid()
    die_with(parent)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    os.environ.clear()
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    for name in os.listdir("/proc/self/fd"):
        if (descriptor := int(name)) > 2 and descriptor != channel.fileno():
            close_quietly(descriptor)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))


def die_with(parent: int) -> None:
    """Let the kernel kill this process when `parent` ends, and end at once if it already has."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def close_quietly(descriptor: int) -> None:
    """Close a descriptor that may be gone, as the one that listed the directory is."""
    try:
        os.close(descriptor)
    except OSError:
        return


def work(channel: socket.socket) -> NoReturn:
    """Take jobs `[job_id, rewards, text, reference, metadata]` until the channel ends; report each reward by itself.

    A void reward voids its job, so the ones after it are left out; so they are when memory ran out.
    """
    try:
        worker_send(channel, pack(Ready(os.getpid(), time.process_time())))
        while True:
            job_id, rewards, text, reference, metadata = worker_receive(channel)
            for name in rewards:
                report = _check(job_id, name, text, reference, metadata)
                worker_send(channel, pack(report))
                if report.outcome != "scored":
                    break
    except (ChannelClosed, OSError):
        os._exit(0)


def _check(job_id: int, name: str, text: str, reference: str, metadata: dict[str, Any]) -> Checked:
    start = time.perf_counter()
    value, outcome, reason = judge(name, text, reference, metadata)
    return Checked(job_id, name, value, outcome, reason, time.perf_counter() - start, time.process_time())


def judge(name: str, text: str, reference: str, metadata: dict[str, Any]) -> tuple[float | None, Outcome, str]:
    """Apply one reward.

    A bad completion is data: whatever the text leads to is a score, 0 if it must be, with the reason. What the text
    cannot be blamed for, a bad task or a bug in the reward, is void.
    """
    try:
        score = REWARDS[name](text, reference, metadata)
    except BadAnswer as error:
        return 0.0, "scored", str(error)
    except BadTask as error:
        return None, "void", str(error)
    except MemoryError:
        return 0.0, "memory", "memory"
    except Exception as error:  # noqa: BLE001 a bug of this reward must not cost the others their worker; it is reported
        return None, "void", f"bug in the reward: {described(error)}"
    return float(score.value), "scored", score.reason
