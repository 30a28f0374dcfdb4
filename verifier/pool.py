"""Jobs and workers: a worker has one job at a time, and a deadline for each check, after which it is killed.

A check is one named reward applied to one text. The pool never waits: `turn` takes what workers have reported, ends
what is overdue, hands out what waits, and gives back the verdicts. The service sleeps on `watched` in between.

The line between a bad completion, which is data and scores 0, and an infrastructure failure, which is void:

| what happened                                              | verdict                    |
|------------------------------------------------------------|----------------------------|
| the reward judged the text, or refused it with a reason    | its score                  |
| the deadline passed while the check computed               | 0 for this part, `timeout` |
| the check reached the worker's memory limit                | 0 for this part, `memory`  |
| the deadline passed though the check got little of the CPU | void, `starved`            |
| the worker died, or reported what makes no sense           | void                       |
| the reward is unknown, its reference bad, or it has a bug  | void                       |
"""

import logging
import os
import signal
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

from protocol.clock import Deadline
from protocol.messages import Verdict, VerifyJob
from verifier import metrics
from verifier.channel import Channel, ChannelClosed
from verifier.reports import BadReport, Checked, Ready, unpack
from verifier.rewards import library_for
from verifier.rewards.expression import BadExpression, Expression, parse
from verifier.sandbox.run import SandboxError
from verifier.sandbox.sandbox import Sandbox
from verifier.starter import Starter

log = logging.getLogger("verifier")

START_SECONDS = 60.0  # for a worker to report that it is ready, the loading of libraries included
FAILED_STARTS = 5  # workers in a row that ended before they were ready: something is wrong with this host
BUSY_SHARE = 0.1  # of its deadline that a check must have computed to be blamed for missing it; honest ones take 0.1 s
EXPECTED_ENDS = (0, -signal.SIGKILL)
TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


class PoolBroken(Exception):
    """Workers cannot be started here."""


@dataclass(slots=True)
class _Case:
    """A job and what is known of it so far."""

    job: VerifyJob
    expression: Expression
    libraries: set[str]
    todo: deque[str]
    parts: dict[str, float] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(slots=True)
class _Slot:
    """A place for one worker, and the worker in it."""

    channel: Channel
    libraries: int  # how many had been loaded when the worker was started
    sandbox: int  # which start of the sandbox its line leads to
    deadline: Deadline
    pid: int = 0  # 0 until it is ready
    cpu_seconds: float = 0.0  # that the worker had used when its last check ended
    jobs: int = 0
    case: _Case | None = None

    def refill(self, channel: Channel, libraries: int, sandbox: int) -> None:
        """Another worker, about to start, takes the place."""
        self.channel, self.libraries, self.sandbox = channel, libraries, sandbox
        self.deadline = Deadline(START_SECONDS)
        self.pid, self.cpu_seconds, self.jobs, self.case = 0, 0.0, 0, None


class Pool:
    """`workers` workers, each replaced after `checks_per_worker` jobs. `starter` says how one comes to be."""

    def __init__(
        self, starter: Starter, *, workers: int, checks_per_worker: int, sandbox: Sandbox | None = None
    ) -> None:
        self._starter = starter
        self._sandbox = sandbox
        self._checks_per_worker = checks_per_worker
        self._waiting: deque[_Case] = deque()
        self._ended: list[tuple[VerifyJob, Verdict]] = []
        self._libraries: set[str] = set()
        self._failed_starts = 0
        self._slots = [
            _Slot(Channel(starter.start()), 0, self._sandbox_starts, Deadline(START_SECONDS)) for _ in range(workers)
        ]

    @property
    def queued(self) -> int:
        """Jobs that no worker has begun."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Jobs that a worker is at."""
        return sum(slot.case is not None for slot in self._slots)

    def watched(self) -> list[tuple[int, bool]]:
        """Descriptors to sleep on, and whether each is also waited for to become writable."""
        channels = [(slot.channel.fileno(), slot.channel.unsent) for slot in self._slots]
        own = [each.fileno() for each in (self._starter, self._sandbox) if each is not None]
        return [*((descriptor, False) for descriptor in own), *channels]

    def add(self, job: VerifyJob) -> None:
        """Take a job."""
        try:
            expression = parse(job.reward)
        except BadExpression as error:
            self._ended.append((job, Verdict(reward=None, parts={}, reason=str(error)[:4096], seconds=0.0)))
            return
        libraries = {library_for(name, job.metadata) for name in expression.names} - {""}
        self._waiting.append(_Case(job, expression, libraries, deque(expression.names)))

    def turn(self) -> list[tuple[VerifyJob, Verdict]]:
        """Everything that can be done now; gives back the jobs that have ended. Raises `PoolBroken`."""
        for pid, status in self._starter.deaths():
            if (code := os.waitstatus_to_exitcode(status)) not in EXPECTED_ENDS:
                log.warning("worker %d ended by itself, exit code %d", pid, code)
        try:
            self._look_at_sandbox()
            for slot in self._slots:
                self._hear(slot)
                self._end_overdue(slot)
                self._occupy(slot)
        except SandboxError as error:
            raise PoolBroken(str(error)) from None
        ended, self._ended = self._ended, []
        return ended

    @property
    def _sandbox_starts(self) -> int:
        return self._sandbox.starts if self._sandbox else 0

    def _look_at_sandbox(self) -> None:
        """Have it started again if it is gone, and count what it has run."""
        if self._sandbox is None:
            return
        self._sandbox.turn()
        for ended, count in self._sandbox.ended.items():
            metrics.sandbox_runs.labels(ended=ended).inc(count)
        self._sandbox.ended.clear()

    def close(self) -> None:
        """Kill all workers."""
        for slot in self._slots:
            slot.channel.close()
        self._starter.close()

    # ------------------------------------------------------------ reports

    def _hear(self, slot: _Slot) -> None:
        channel = slot.channel
        try:
            channel.flush()
            for value in channel.receive():
                if slot.channel is not channel:
                    return  # replaced meanwhile: what else this worker says does not count
                self._take(slot, unpack(value))
        except (ChannelClosed, BadReport) as error:
            self._lost(slot, str(error))

    def _take(self, slot: _Slot, report: Ready | Checked) -> None:
        if isinstance(report, Ready):
            if slot.pid:
                raise BadReport("a worker was ready twice")
            slot.pid, slot.cpu_seconds, self._failed_starts = report.pid, report.cpu_seconds, 0
            return
        case = slot.case
        if case is None or (report.job_id, report.reward) != (case.job.job_id, next(iter(case.todo), "")):
            raise BadReport("a worker reported a check that it was not given")
        slot.cpu_seconds = report.cpu_seconds
        slot.deadline.renew()
        self._record(case, report.value, report.outcome, report.reason, report.seconds)
        if report.outcome == "memory":
            self._replace(slot, "memory")
        elif not case.todo:
            slot.case = None

    def _record(self, case: _Case, value: float | None, outcome: str, reason: str, seconds: float) -> None:
        """Note how the next check of `case` ended, and end the case if it was the last, or void."""
        name = case.todo.popleft()
        metrics.checks.labels(reward=name, outcome=outcome).inc()
        metrics.check_seconds.labels(reward=name).observe(seconds)
        case.seconds += seconds
        case.reasons.append(f"{name}: {reason}")
        if value is None:
            case.todo.clear()
        else:
            case.parts[name] = value
        if not case.todo:
            reward = None if value is None else case.expression.value(case.parts)
            reasons = "; ".join(case.reasons)[:4096]
            verdict = Verdict(reward=reward, parts=case.parts, reason=reasons, seconds=case.seconds)
            self._ended.append((case.job, verdict))

    # ------------------------------------------------------------ workers that must go

    def _lost(self, slot: _Slot, why: str) -> None:
        if not slot.pid:
            self._failed_starts += 1
            if self._failed_starts >= FAILED_STARTS:
                raise PoolBroken(
                    f"{FAILED_STARTS} workers in a row ended before they were ready ({why}): the log says more"
                )
        if slot.case and slot.case.todo:
            self._record(slot.case, None, "void", f"the worker was lost during the check: {why}", 0.0)
        log.warning("worker %d was lost: %s", slot.pid, why)
        self._replace(slot, "lost")

    def _end_overdue(self, slot: _Slot) -> None:
        if not slot.deadline.passed or (slot.pid and slot.case is None):
            return
        if slot.case is None:
            raise PoolBroken(f"a worker was not ready after {START_SECONDS:g} s")
        allowed = slot.deadline.seconds
        computed = _cpu_seconds(slot.pid) - slot.cpu_seconds
        if computed >= BUSY_SHARE * allowed:
            self._record(slot.case, 0.0, "timeout", f"timeout after {allowed:g} s", allowed)
            self._replace(slot, "timeout")
        else:
            why = f"starved: it got the CPU for {max(0.0, computed):.1f} s of {allowed:g} s"
            self._record(slot.case, None, "void", why, allowed)
            self._replace(slot, "starved")

    def _replace(self, slot: _Slot, reason: str) -> None:
        """Kill the worker, start another, and put what is left of its case first in the queue."""
        if slot.case and slot.case.todo:
            self._waiting.appendleft(slot.case)
        metrics.workers_ended.labels(reason=reason).inc()
        slot.channel.close()
        if slot.pid:
            self._starter.end(slot.pid)
        slot.refill(Channel(self._starter.start()), len(self._libraries), self._sandbox_starts)

    # ------------------------------------------------------------ work

    def _occupy(self, slot: _Slot) -> None:
        """Give an idle worker the next job; or a successor, when it has done its share or lacks library or sandbox."""
        if not slot.pid or slot.case:
            return
        if self._waiting:
            self._load(self._waiting[0].libraries)
        outdated = slot.libraries < len(self._libraries) or slot.sandbox < self._sandbox_starts
        if slot.jobs >= self._checks_per_worker or outdated:
            self._replace(slot, "renewed")
        elif self._waiting:
            case = slot.case = self._waiting.popleft()
            slot.jobs += 1
            slot.deadline = Deadline(case.job.deadline_seconds)
            job = case.job
            try:
                slot.channel.send(
                    [job.job_id, list(case.todo), job.text, job.reference, job.metadata, job.deadline_seconds]
                )
            except ChannelClosed as error:
                self._lost(slot, str(error))

    def _load(self, libraries: set[str]) -> None:
        """Have the zygote load what is needed and not there, for workers to come; a check never pays for it."""
        for library in sorted(libraries - self._libraries):
            self._libraries.add(library)
            self._starter.load(library)


def _cpu_seconds(pid: int) -> float:
    """CPU that a process has used in all its threads; 0 when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICKS_A_SECOND
