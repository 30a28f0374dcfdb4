"""A broker played by the test, and the real `python -m verifier` that has joined it."""

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from protocol.clock import Deadline
from protocol.messages import (
    Ack,
    Goodbye,
    Heartbeat,
    Hello,
    Message,
    RunSpec,
    Sampling,
    Verdict,
    VerifyDone,
    VerifyJob,
    VerifyRequest,
    Welcome,
)
from protocol.sockets import Rejected, Router

ARRIVAL_SECONDS = 30.0  # for what must come
STOP_SECONDS = 3.0
ROOT = Path(__file__).parents[2]
REWARD = "0.5*accuracy + 0.5*format"


class Verifier:
    """One verifier process and the broker that it knows."""

    def __init__(
        self, *options: str, heartbeat: float = 0.5, silence: float = 30.0, prefix: Sequence[str] = ()
    ) -> None:
        self.router = Router("tcp://127.0.0.1:*")
        self.log = ""  # once it has ended
        command = [
            sys.executable,
            *prefix,
            "-m",
            "verifier",
            f"broker={self.router.address}",
            "verifier.workers=1",
            *options,
        ]
        self.process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        self.heartbeats: list[Heartbeat] = []
        self.rejected: list[Rejected] = []
        self._next_job = 0
        self.peer, hello = self._receive()
        assert isinstance(hello, Hello)
        self.hello = hello
        sampling = Sampling(temperature=1.0, top_p=1.0, max_tokens=24)
        run = RunSpec(
            name="test", model="none", seed=0, group_size=4, groups_per_step=2, max_staleness=1, sampling=sampling
        )
        self.send(
            Welcome(
                run=run,
                policy_version=0,
                heartbeat_seconds=heartbeat,
                silence_seconds=silence,
                return_seconds=2 * silence,
            )
        )
        request = self.next()
        assert isinstance(request, VerifyRequest)
        self.capacity = request.capacity

    def send(self, message: Message) -> None:
        assert self.router.send(self.peer, message)

    def _receive(self) -> tuple[bytes, Message | Rejected]:
        received = self.router.receive(ARRIVAL_SECONDS)
        assert received is not None, f"nothing came within {ARRIVAL_SECONDS} s"
        return received

    def next(self) -> Message | Rejected:
        """The next message that is no heartbeat."""
        while isinstance(message := self._receive()[1], Heartbeat):
            self.heartbeats.append(message)
            self.router.send(self.peer, Heartbeat())
        if isinstance(message, VerifyDone):
            self.router.send(self.peer, Ack(seq=message.seq))
        return message

    def submit(
        self,
        text: str,
        reference: str,
        *,
        reward: str = REWARD,
        seconds: float = 10.0,
        further: Mapping[str, Any] | None = None,
        **metadata: Any,
    ) -> int:
        """Send a job; its number. `further` metadata have names that are taken here."""
        self._next_job += 1
        job = VerifyJob(
            job_id=self._next_job,
            group_id=100 + self._next_job,
            sample_index=1,
            text=text,
            reward=reward,
            reference=reference,
            metadata={**metadata, **(further or {})},
            deadline_seconds=seconds,
        )
        self.send(job)
        return self._next_job

    def done(self) -> tuple[int, Verdict]:
        """The next verdict."""
        message = self.next()
        assert isinstance(message, VerifyDone), message
        return message.job_id, message.verdict

    def goodbye(self) -> Goodbye:
        """Its last word, past verdicts and what it said of its room."""
        while not isinstance(message := self.next(), Goodbye):
            assert isinstance(message, VerifyDone | VerifyRequest), message
        return message

    def await_metrics(self, *lines: str) -> None:
        """Wait until all these lines are exported; gauges are set once a turn, so a verdict may be here before them."""
        limit = Deadline(ARRIVAL_SECONDS)
        missing = list(lines)
        while missing:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.hello.metrics_port}/metrics", timeout=5) as page:
                exported = page.read().decode()
            missing = [line for line in lines if line not in exported]
            assert not (missing and limit.passed), f"{missing} in {exported}"

    def judge(self, text: str, reference: str, **options: Any) -> Verdict:
        """The verdict on one text, when no other job is out."""
        number = self.submit(text, reference, **options)
        answered, verdict = self.done()
        assert answered == number
        return verdict

    @property
    def zygote(self) -> int:
        """Process of the workers' zygote."""
        return self._zygote("verifier.zygote")

    @property
    def programs_zygote(self) -> int:
        """Process of the zygote of model-written code."""
        return self._zygote("verifier.sandbox.zygote")

    def _zygote(self, module: str) -> int:
        limit = Deadline(ARRIVAL_SECONDS)
        while True:
            keepers = [child for child in children(self.process.pid) if f'"{module}"' in command_line(child)]
            found = [zygote for keeper in keepers for zygote in children(keeper)]
            if len(found) == 1:
                return found[0]
            assert not limit.passed, f"{len(found)} zygotes"
            time.sleep(0.01)

    def workers(self, count: int = 1) -> list[int]:
        """Processes of the workers, once there are `count`."""
        limit = Deadline(ARRIVAL_SECONDS)
        while len(found := children(self.zygote)) != count:
            assert not limit.passed, f"{len(found)} workers, not {count}"
            time.sleep(0.01)
        return found

    def busy_worker(self) -> int:
        """The only worker, once it has begun to compute."""
        limit = Deadline(ARRIVAL_SECONDS)
        (worker,) = self.workers()
        before = cpu_ticks(worker)
        while cpu_ticks(worker) < before + 5:
            assert not limit.passed, "the worker does not work"
            time.sleep(0.01)
        return worker

    def ended(self) -> tuple[int, str]:
        """Exit code and log, once the process is gone."""
        _, self.log = self.process.communicate(timeout=ARRIVAL_SECONDS)
        return self.process.returncode, self.log

    def close(self) -> None:
        """End the process, if the test has not."""
        if self.process.returncode is None:
            self.send(Goodbye(reason="test over", finished=True))
            try:
                _, self.log = self.process.communicate(timeout=STOP_SECONDS)
            finally:
                self.process.kill()
                self.process.communicate()
        self.router.close()


StartVerifier = Callable[..., Verifier]


def children(parent: int) -> list[int]:
    """Processes whose parent is `parent`."""
    return sorted(
        process for process in map(int, filter(str.isdigit, os.listdir("/proc"))) if _parent(process) == parent
    )


def command_line(process: int) -> str:
    """How a process was started; empty when it is gone."""
    try:
        return Path(f"/proc/{process}/cmdline").read_text()
    except OSError:
        return ""


def _parent(process: int) -> int:
    try:
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def cpu_ticks(process: int) -> int:
    """CPU time of a process, in clock ticks."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def alive(process: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone(processes: list[int]) -> bool:
    """Whether all these processes end within a moment."""
    limit = Deadline(STOP_SECONDS)
    while any(map(alive, processes)) and not limit.passed:
        time.sleep(0.01)
    return not any(map(alive, processes))
