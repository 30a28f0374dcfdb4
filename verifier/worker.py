"""A worker: one process that applies rewards to hostile texts, one at a time, on its main thread.

It waits for a job on its channel and for nothing else; the end of the channel ends it. It has no deadline of its own:
the pool watches the clock and kills it. It runs locked in (`sandbox.enclosure`); model-written code does not run here
but in a sandbox of its own, to which the worker has a line.
"""

import os
import socket
import time
from collections.abc import Sequence
from typing import Any, NoReturn

from verifier.channel import ChannelClosed, worker_receive, worker_send
from verifier.relay_line import RelayLine, Unavailable
from verifier.reports import Checked, Outcome, Ready, pack
from verifier.rewards import REWARDS
from verifier.rewards.score import BadAnswer, BadTask, described
from verifier.sandbox.access import access
from verifier.sandbox.link import Link
from verifier.sandbox.run import SandboxError


def work(channel: socket.socket, lines: Sequence[socket.socket], pid: int) -> NoReturn:
    """Take jobs `[job_id, rewards, text, reference, metadata, seconds]` until the channel ends; report each reward.

    A void reward voids its job, so the ones after it are left out; so they are when memory ran out. `lines` lead to a
    sandbox and to a relay, as far as there are any; `pid` is this process's number outside.
    """
    if lines:
        link, *relay = lines
        access.grant(Link(link), RelayLine(relay[0]) if relay else None)
    try:
        worker_send(channel, pack(Ready(pid, time.process_time())))
        while True:
            job_id, rewards, text, reference, metadata, seconds = worker_receive(channel)
            for name in rewards:
                access.allow(seconds)
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
    cannot be blamed for, a bad task or a bug in the reward, is void; what the sandbox is to blame for has failed.
    """
    try:
        score = REWARDS[name](text, reference, metadata)
    except BadAnswer as error:
        return 0.0, "scored", str(error)
    except (BadTask, Unavailable) as error:
        return None, "void", str(error)
    except SandboxError as error:
        return None, "failed", f"sandbox: {error}"
    except MemoryError:
        return 0.0, "memory", "memory"
    except Exception as error:  # noqa: BLE001 a bug of this reward must not cost the others their worker; it is reported
        return None, "void", f"bug in the reward: {described(error)}"
    return float(score.value), "scored", score.reason
