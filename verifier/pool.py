"""Jobs and workers: a worker has one job at a time, and a deadline for each check, after which it is killed.

A check is one named reward applied to one text. The pool never waits: `turn` takes what workers have reported, ends
what is overdue, hands out what waits, and gives back the verdicts. The service sleeps on `watched` in between.

The line between a bad completion, which is data and scores 0, and an infrastructure failure, which is void:

| what happened                                              | verdict                    |
|------------------------------------------------------------|----------------------------|
| the reward judged the text, or refused it with a reason    | its score                  |
| the deadline passed while the check computed               | 0 for this part, `timeout` |
| the check reached the worker's memory limit                | 0 for this part, `memory`  |
| the reward is unknown, its reference bad, or it has a bug  | void                       |
| the worker reported what makes no sense                    | void                       |
| the sandbox failed                                         | tried again, `sandbox`     |
| the worker died                                            | tried again, `lost`        |
| the deadline passed though the check got little of the CPU | tried again, `starved`     |
| the reward model's process died, or overran                | tried again, `model`       |

What is tried again is so `retries` times at most, and only while the failures have cost no more than `retry_seconds`;
then it is void too. A wrong answer is never tried again. A job keeps its worker's place until it is over, through
retries and successors: `waiting` says why. What a reward model judges goes to it after the rest, in order.
"""

import itertools
import logging
import os
import signal
from collections import deque
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from protocol.clock import Deadline, now
from protocol.messages import Verdict, VerifyJob
from verifier import metrics
from verifier.channel import Channel, ChannelClosed
from verifier.reports import BadReport, Checked, Outcome, Ready, unpack
from verifier.rewards import library_for
from verifier.rewards.expression import BadExpression, Expression, parse
from verifier.sandbox.run import SandboxError
from verifier.sandbox.sandbox import Sandbox
from verifier.starter import Starter
from verifier.waiting import Expected, Waiting

log = logging.getLogger("verifier")

START_SECONDS = 60.0  # for a worker to report that it is ready, the loading of libraries included
FAILED_STARTS = 5  # workers in a row that ended before they were ready: something is wrong with this host
RETRY_PAUSE_SECONDS = 0.2  # before the second attempt, twice as long before the third, …
MODEL = "reward_model"  # the one reward that workers do not compute, if there is a scorer
BUSY_SHARE = 0.1  # of its deadline that a check must have computed to be blamed for missing it; honest ones take 0.1 s
EXPECTED_ENDS = (0, -signal.SIGKILL)
TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


class PoolBroken(Exception):
    """Workers cannot be started here."""


class Scorer(Protocol):
    """Computes reward `MODEL` elsewhere, in batches. Nothing here waits."""

    def add(self, key: int, job: VerifyJob) -> None:
        """Take a job; `key` is its name until it is done."""

    def turn(self) -> list[tuple[int, Checked]]:
        """What is done; an outcome `failed` is the process's fault."""

    def watched(self) -> list[tuple[int, bool]]:
        """As `Pool.watched`."""


@dataclass(slots=True)
class _Case:
    """A job and what is known of it so far."""

    job: VerifyJob
    expression: Expression
    libraries: set[str]
    todo: deque[str]  # for a worker
    model: bool  # whether the scorer is to see it after that
    arrived: float
    parts: dict[str, float] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)
    seconds: float = 0.0
    waited: bool = False  # its wait has been counted
    attempts: int = 1
    lost_seconds: float = 0.0  # to attempts that failed


@dataclass(slots=True)
class _Slot:
    """A place for one worker, and the worker in it. `case` is sent once the worker is ready and the pause over."""

    channel: Channel
    steady: bool
    libraries: int  # how many had been loaded when the worker was started
    sandbox: int  # which start of the sandbox its line leads to
    deadline: Deadline
    pid: int = 0  # 0 until it is ready
    cpu_seconds: float = 0.0  # that the worker had used when its last check ended
    jobs: int = 0
    case: _Case | None = None
    sent: bool = False
    since: float = 0.0  # when the present check began
    pause: Deadline = field(default_factory=lambda: Deadline(0.0))

    def refill(self, channel: Channel, libraries: int, sandbox: int) -> None:
        """Another worker, about to start, takes the place, and what is left of the case."""
        self.channel, self.libraries, self.sandbox = channel, libraries, sandbox
        self.deadline = Deadline(START_SECONDS)
        self.pid, self.cpu_seconds, self.jobs, self.sent = 0, 0.0, 0, False
        if self.case and not self.case.todo:
            self.case = None


class Pool:
    """`workers` workers, each replaced after `checks_per_worker` jobs. `starter` says how one comes to be."""

    def __init__(
        self,
        starter: Starter,
        *,
        workers: int,
        checks_per_worker: int,
        sandbox: Sandbox | None = None,
        scorer: Scorer | None = None,
        patience_seconds: float = 0.0,
        retries: int = 0,
    ) -> None:
        self._starter = starter
        self._sandbox = sandbox
        self._scorer = scorer
        self._checks_per_worker = checks_per_worker
        self._retries = retries
        self._retry_seconds = float("inf")
        self._waiting: Waiting[_Case] = Waiting(patience_seconds)
        self._expected = Expected()
        self._scored: dict[int, _Case] = {}  # at the scorer
        self._numbers = itertools.count()
        self._ended: list[tuple[VerifyJob, Verdict]] = []
        self._libraries: set[str] = set()
        self._failed_starts = 0
        self._slots = [
            _Slot(Channel(starter.start()), number == 0, 0, self._sandbox_starts, Deadline(START_SECONDS))
            for number in range(workers)
        ]

    def answer_within(self, silence_seconds: float) -> None:
        """The broker takes a verifier for lost whose oldest job needs so much longer than its own checks.

        A third of it is for waiting behind others, a third for attempts that the host fails, a third for workers to
        start. Should the host fail two jobs in a row for all of their third, the broker is right: others are faster.
        """
        self._waiting.patience_seconds = min(self._waiting.patience_seconds, silence_seconds / 3)
        self._retry_seconds = silence_seconds / 3

    @property
    def queued(self) -> int:
        """Jobs that no worker has begun."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Jobs that a worker or the reward model is at."""
        return sum(slot.case is not None for slot in self._slots) + len(self._scored)

    def watched(self) -> list[tuple[int, bool]]:
        """Descriptors to sleep on, and whether each is also waited for to become writable."""
        channels = [(slot.channel.fileno(), slot.channel.unsent) for slot in self._slots]
        own = [each.fileno() for each in (self._starter, self._sandbox) if each is not None]
        scorer = self._scorer.watched() if self._scorer else []
        return [*((descriptor, False) for descriptor in own), *scorer, *channels]

    def add(self, job: VerifyJob) -> None:
        """Take a job."""
        try:
            expression = parse(job.reward)
        except BadExpression as error:
            self._ended.append((job, Verdict(reward=None, parts={}, reason=str(error)[:4096], seconds=0.0)))
            return
        names = deque(expression.names)
        if model := self._scorer is not None and MODEL in names:
            names.remove(MODEL)
        libraries = {library_for(name, job.metadata) for name in names} - {""}
        case = _Case(job, expression, libraries, names, model, now())
        if names:
            expected = sum(map(self._expected.seconds, names))
            worst = len(names) * job.deadline_seconds
            self._waiting.add(case, arrived=case.arrived, expected_seconds=expected, worst_seconds=worst)
        else:
            self._to_scorer(case)

    def turn(self) -> list[tuple[VerifyJob, Verdict]]:
        """Everything that can be done now; gives back the jobs that have ended. Raises `PoolBroken`."""
        for pid, status in self._starter.deaths():
            if (code := os.waitstatus_to_exitcode(status)) not in EXPECTED_ENDS:
                log.warning("worker %d ended by itself, exit code %d", pid, code)
        try:
            self._look_at_sandbox()
            self._hear_scorer()
            moment = now()
            for slot in self._slots:
                self._hear(slot)
                self._end_overdue(slot)
                self._occupy(slot, moment)
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
        except ChannelClosed as error:
            self._lost(slot, str(error))
        except BadReport as error:
            self._distrust(slot, str(error))

    def _take(self, slot: _Slot, report: Ready | Checked) -> None:
        if isinstance(report, Ready):
            if slot.pid:
                raise BadReport("a worker was ready twice")
            slot.pid, slot.cpu_seconds, self._failed_starts = report.pid, report.cpu_seconds, 0
            return
        case = slot.case
        expected = (case.job.job_id, next(iter(case.todo), "")) if case and slot.sent else None
        if case is None or (report.job_id, report.reward) != expected:
            raise BadReport("a worker reported a check that it was not given")
        slot.cpu_seconds = report.cpu_seconds
        slot.since = now()
        slot.deadline.renew()
        if report.outcome == "failed":
            self._failed(slot, "sandbox", report.reason, report.seconds)
            return
        self._expected.saw(report.reward, report.seconds)
        self._record(case, report)
        if report.outcome == "memory":
            self._replace(slot, "memory")
        elif not case.todo:
            slot.case, slot.sent = None, False

    def _record(self, case: _Case, check: Checked) -> None:
        """Note how the next check of `case` ended, and end the case if it was the last, or void."""
        _count(check)
        case.seconds += check.seconds
        case.reasons.append(f"{check.reward}: {check.reason}")
        if check.reward == MODEL and case.model:
            case.model = False
        else:
            case.todo.popleft()
        if check.value is None:
            case.todo.clear()
            case.model = False
        else:
            case.parts[check.reward] = check.value
        if case.model and not case.todo:
            self._to_scorer(case)
        elif not case.todo:
            reward = None if check.value is None else case.expression.value(case.parts)
            reasons = "; ".join(case.reasons)[:4096]
            verdict = Verdict(reward=reward, parts=case.parts, reason=reasons, seconds=case.seconds)
            self._ended.append((case.job, verdict))

    # ------------------------------------------------------------ the reward model

    def _to_scorer(self, case: _Case) -> None:
        assert self._scorer is not None, "only cases of a pool with a scorer wait for one"
        key = next(self._numbers)
        self._scored[key] = case
        self._scorer.add(key, case.job)

    def _hear_scorer(self) -> None:
        for key, check in self._scorer.turn() if self._scorer else []:
            case = self._scored.pop(key)
            if check.outcome == "failed" and self._may_retry(case, check, "model"):
                self._to_scorer(case)
            else:
                self._record(case, replace(check, outcome="void") if check.outcome == "failed" else check)

    # ------------------------------------------------------------ attempts that failed

    def _may_retry(self, case: _Case, check: Checked, reason: str) -> bool:
        """Whether a check that is nobody's wrong answer is tried again; counts it if so."""
        case.lost_seconds += check.seconds
        if case.attempts > self._retries or case.lost_seconds > self._retry_seconds:
            return False
        case.attempts += 1
        _count(check)
        metrics.retries.labels(reason=reason).inc()
        log.warning("job %d is tried again: %s: %s", case.job.job_id, reason, check.reason)
        return True

    def _failed(self, slot: _Slot, reason: str, why: str, seconds: float) -> None:
        """The check that `slot` was at has failed: its worker, or the successor, tries again, or the job is void."""
        case = slot.case
        assert case is not None, "only checks fail"
        check = Checked(case.job.job_id, case.todo[0], None, "failed", why, seconds, 0.0)
        if self._may_retry(case, check, reason):
            slot.sent = False
            slot.pause = Deadline(RETRY_PAUSE_SECONDS * 2 ** (case.attempts - 2))
        else:
            self._record(case, replace(check, outcome="void"))
            slot.case, slot.sent = None, False

    # ------------------------------------------------------------ workers that must go

    def _lost(self, slot: _Slot, why: str) -> None:
        if not slot.pid:
            self._failed_starts += 1
            if self._failed_starts >= FAILED_STARTS:
                raise PoolBroken(
                    f"{FAILED_STARTS} workers in a row ended before they were ready ({why}): the log says more"
                )
        if slot.case and slot.sent:
            self._failed(slot, "lost", f"the worker was lost during the check: {why}", now() - slot.since)
        log.warning("worker %d was lost: %s", slot.pid, why)
        self._replace(slot, "lost")

    def _distrust(self, slot: _Slot, why: str) -> None:
        """Hostile text may have taken the worker over: its check gets no second attempt here."""
        if slot.case and slot.sent:
            void = f"the worker was lost during the check: {why}"
            self._record(slot.case, self._unheard(slot.case, None, "void", void, now() - slot.since))
        log.warning("worker %d was lost: %s", slot.pid, why)
        self._replace(slot, "lost")

    def _end_overdue(self, slot: _Slot) -> None:
        if not slot.deadline.passed or (slot.pid and not slot.sent):
            return
        if slot.case is None or not slot.pid:
            raise PoolBroken(f"a worker was not ready after {START_SECONDS:g} s")
        allowed = slot.deadline.seconds
        computed = _cpu_seconds(slot.pid) - slot.cpu_seconds
        if computed >= BUSY_SHARE * allowed:
            self._expected.saw(slot.case.todo[0], allowed)
            why = f"timeout after {allowed:g} s"
            self._record(slot.case, self._unheard(slot.case, 0.0, "timeout", why, allowed))
            self._replace(slot, "timeout")
        else:
            why = f"starved: it got the CPU for {max(0.0, computed):.1f} s of {allowed:g} s"
            self._failed(slot, "starved", why, allowed)
            self._replace(slot, "starved")

    @staticmethod
    def _unheard(case: _Case, value: float | None, outcome: Outcome, reason: str, seconds: float) -> Checked:
        """What is noted of a check that its worker did not report."""
        return Checked(case.job.job_id, case.todo[0], value, outcome, reason, seconds, 0.0)

    def _replace(self, slot: _Slot, reason: str) -> None:
        """Kill the worker and start another, which goes on with what is left of its case."""
        metrics.workers_ended.labels(reason=reason).inc()
        slot.channel.close()
        if slot.pid:
            self._starter.end(slot.pid)
        slot.refill(Channel(self._starter.start()), len(self._libraries), self._sandbox_starts)

    # ------------------------------------------------------------ work

    def _occupy(self, slot: _Slot, moment: float) -> None:
        """Give an idle worker the next job; or a successor, when it has done its share or lacks library or sandbox."""
        if not slot.pid or slot.sent or (slot.case and not slot.pause.passed):
            return
        case = slot.case or self._waiting.next(moment, steady=slot.steady)
        if case:
            self._load(case.libraries)
        outdated = slot.libraries < len(self._libraries) or slot.sandbox < self._sandbox_starts
        if slot.jobs >= self._checks_per_worker or outdated:
            self._replace(slot, "renewed")
        elif case:
            slot.case = slot.case or self._waiting.take(moment, steady=slot.steady)
            self._begin(slot, case)

    def _begin(self, slot: _Slot, case: _Case) -> None:
        """Send `case`, or what is left of it, to the worker."""
        job = case.job
        slot.sent, slot.since = True, now()
        slot.jobs += 1
        slot.deadline = Deadline(job.deadline_seconds)
        if not case.waited:
            case.waited = True
            metrics.wait_seconds.observe(slot.since - case.arrived)
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


def _count(check: Checked) -> None:
    metrics.meet(check.reward)
    metrics.checks.labels(reward=check.reward, outcome=check.outcome).inc()
    metrics.check_seconds.labels(reward=check.reward).observe(check.seconds)


def _cpu_seconds(pid: int) -> float:
    """CPU that a process has used in all its threads; 0 when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICKS_A_SECOND
