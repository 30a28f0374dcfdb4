"""What is done about the death of a process: it is started again, within limits, or it ends the run.

`Supervisor.look` is called every `POLL_SECONDS` and never waits. What it makes of an end while the run goes on:

| the end                                                        | what follows                                      |
|----------------------------------------------------------------|---------------------------------------------------|
| by a signal, of the process or of a rank of it                 | it is started again after a pause                 |
| any other, while the broker is gone                            | it is started again as soon as the broker listens |
| with an error, after it had lived `restart_reset_seconds`      | it had worked: as by a signal                     |
| with an error before, or with exit code 0 before the run's end | the run ends with its sentence                    |
| one to be followed by a restart, when it has had `restarts`    | the run ends with its sentence and the count      |
| one to be followed by a restart, of what cannot go on (`lost`) | the run ends with its sentence and the reason     |

With `restarts=0` each of them ends the run. An end that is no signal's is judged after `SETTLE_SECONDS`, so that a
cause is seen before its consequence is blamed. Nothing is started again before all is gone that it had started.
"""

import logging
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from deploy.local import layout, restarts, sweep
from deploy.local.config import LONGEST_PAUSE, LauncherConfig
from deploy.local.deaths import Death
from deploy.local.processes import Child, Processes

log = logging.getLogger("local")

POLL_SECONDS = 0.1
SETTLE_SECONDS = 1.0  # after a death, for others to end of the same cause
VANISH_SECONDS = 30.0  # for the kernel to end what was killed, along with the GPU memory that it held
BROKER, LEARNER = "broker-0", "learner-0"
RANK = {LEARNER: 0, BROKER: 1}  # who takes others along


class RunFailed(Exception):
    """The run ended early; the message is one sentence on why. `code` is the launcher's exit code."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


@dataclass(slots=True)
class End:
    """The end that a process has come to, until it is started again. Times are on the monotonic clock."""

    death: Death
    noticed: float
    due: float | None = None  # when it is to be started again; None: it is not
    alone: bool = False  # what it had started is gone


@dataclass(slots=True)
class Tally:
    """The deaths of one process that were its own and were answered by a restart."""

    all: int = 0
    in_a_row: int = 0  # the last ones, without work in between


def pause(first: float, in_a_row: int) -> float:
    """Seconds until a process is started again that has died `in_a_row` times before: they double each time."""
    return min(first * 2.0 ** min(in_a_row, 30), LONGEST_PAUSE)


@dataclass(slots=True)
class Supervisor:
    """Watches the processes of a run.

    `again` has the words to add to the command of one that is started again; `lost` says why one cannot be, if so.
    """

    processes: Processes
    config: LauncherConfig
    directory: Path
    again: Mapping[str, tuple[str, ...]]
    lost: Callable[[Child], str] = lambda child: ""
    over: bool = False  # the learner has finished: nobody is started again
    ends: dict[str, End] = field(default_factory=dict)  # of those that do not run, by name
    tallies: dict[str, Tally] = field(default_factory=dict)
    broker_heard: int = 1  # the start of the broker that is known to have listened
    broker_missed: float = float("-inf")  # when the broker was last seen to be gone, or not yet back
    asked: set[str] = field(default_factory=set)  # to leave, at the run's end
    unwanted: set[str] = field(default_factory=set)  # those that were let go while the run goes on, until they are gone

    def look(self) -> None:
        """Take notice of every end, and start again what is due. Raises `RunFailed` where an end is the run's."""
        self.processes.reap()
        self._look_for_broker()
        for child in list(self.processes.children):
            if child.code is None:
                continue
            end = self._end(child)
            if child.name in self.unwanted:
                self._part_with(child, end)
            elif end.due is None:
                self._judge(child, end)
            elif not self.over:
                self._bring_back(child, end, end.due)
        if self.over and self.config.restarts:
            self._ask_to_leave()

    def let_go(self, child: Child) -> None:
        """It is wanted no longer: asked to leave, once, and forgotten when it and all that it had started is gone."""
        if child.name in self.unwanted:
            return
        self.unwanted.add(child.name)
        if child.code is None:
            child.process.terminate()

    def finished(self) -> bool:
        """Whether the learner has done its work; one that is killed when the broker knew of the end has, too."""
        learner = self._named(LEARNER)
        if learner is None or learner.code is None or not self._summary():
            return False
        if learner.code == 0:
            return True
        broker = self._named(BROKER)
        told = broker is not None and broker.code == 0
        return told and self.config.restarts > 0 and self._end(learner).death.violent

    def all_left(self) -> bool:
        """Whether every process has come to an end that is none of the run's."""
        return all(
            child.code is not None and self._excused(child, self._end(child)) for child in self.processes.children
        )

    def running(self) -> str:
        """The names of the processes that have not ended."""
        return ", ".join(child.name for child in self.processes.children if child.code is None)

    # ------------------------------------------------------------ ends

    def _judge(self, child: Child, end: End) -> None:
        """Decide what follows an end, as soon as that can be known."""
        if self._excused(child, end):
            return
        settled = time.monotonic() - end.noticed >= SETTLE_SECONDS
        worked = bool(child.code) and end.death.seconds >= self.config.restart_reset_seconds
        mended = self.config.restarts > 0 and not self.over
        if mended and end.death.violent:
            self._plan(child, end)
        elif mended and child.name != BROKER and time.monotonic() - self.broker_missed < SETTLE_SECONDS:
            self._plan_with_broker(child, end)
        elif mended and worked and settled:
            self._plan(child, end)
        elif settled:
            raise RunFailed(f"{self._culprit()}; everything else was ended")

    def _excused(self, child: Child, end: End) -> bool:
        """Whether an end is none of the run's: it is made good, or comes with the run's end.

        Once the learner has finished it does no harm that somebody is killed, or leaves with an error because the
        broker was, or because it was started again and never met the broker.
        """
        if end.due is not None or child.name in self.unwanted or (child.code == 0 and self._summary()):
            return True
        broker = self._named(BROKER)
        deserted = broker is not None and broker.code is not None and self._end(broker).death.violent
        return self.over and self.config.restarts > 0 and (end.death.violent or child.starts > 1 or deserted)

    def _culprit(self) -> str:
        """Of the ends that are the run's, the one that took the others along, in words.

        When the learner or the broker fails, the rest is told and leaves with an error, perhaps before torchrun has
        noticed; an actor or a verifier takes nobody along. A process that was killed did not leave for want of another.
        """
        ended = [(child, self._end(child)) for child in self.processes.children if child.code is not None]
        child, end = min(
            ((child, end) for child, end in ended if not self._excused(child, end)),
            key=lambda each: (not each[1].death.violent, RANK.get(each[0].name, len(RANK))),
        )
        return f"{child.name} {end.death.told}"

    def _ask_to_leave(self) -> None:
        """SIGTERM, once, to whom the broker cannot have told of the end: who was started again, or all if it died."""
        broker = self._named(BROKER)
        if broker is None or broker.code is None:
            return
        for child in self.processes.children:
            deserted = child.starts > 1 or self._end(broker).death.violent
            if child.code is None and deserted and child.name not in self.asked | self.unwanted:
                self.asked.add(child.name)
                child.process.terminate()

    # ------------------------------------------------------------ restarts

    def _plan(self, child: Child, end: End) -> None:
        """It is to be started again after a pause. Raises `RunFailed` when it cannot be, or has had its restarts."""
        self._need(child, end)
        tally, limit = self.tallies.setdefault(child.name, Tally()), self.config.restarts
        if tally.all >= limit:
            died = f"{child.name} died {tally.all + 1} times and is started again {limit} times at most"
            raise RunFailed(f"{died} (restarts={limit}): it {end.death.told}; everything else was ended")
        if end.death.seconds >= self.config.restart_reset_seconds:
            tally.in_a_row = 0
        seconds = pause(self.config.restart_seconds, tally.in_a_row)
        tally.all, tally.in_a_row = tally.all + 1, tally.in_a_row + 1
        end.due = time.monotonic() + seconds
        if child.name == BROKER:
            layout.forget_broker(self.directory)
        self._tell(child, end, seconds, tally.all)

    def _plan_with_broker(self, child: Child, end: End) -> None:
        """It left for want of the broker, as it may: it comes back when the broker does, and has lost no restart."""
        self._need(child, end)
        end.due = time.monotonic()
        self._tell(child, end, 0.0, None)

    def _need(self, child: Child, end: End) -> None:
        if why := self.lost(child):
            raise RunFailed(f"{child.name} {end.death.told} and cannot go on: {why}; everything else was ended")

    def _tell(self, child: Child, end: End, seconds: float, counted: int | None) -> None:
        row = restarts.note(
            self.directory,
            process=child.name,
            cause=end.death.cause,
            pause_seconds=seconds,
            counted=counted,
            limit=self.config.restarts,
        )
        log.warning("%s (log: %s)", restarts.sentence(row), child.log)

    def _bring_back(self, child: Child, end: End, due: float) -> None:
        """Kill what it has left behind; start it when that is gone, the pause over and the broker there."""
        if not end.alone:
            self._clear(child, end)
        elif time.monotonic() >= due and (child.name == BROKER or self._broker_is_there()):
            self.processes.start_again(child, *self.again.get(child.name, ()))
            del self.ends[child.name]

    def _clear(self, child: Child, end: End) -> None:
        """Kill what it has left behind, and see whether that is gone."""
        left = self.processes.left_behind()
        if left and time.monotonic() - end.noticed > VANISH_SECONDS:
            raise RunFailed(f"processes {left} that {child.name} left behind do not end on SIGKILL")
        sweep.send(left, signal.SIGKILL)
        end.alone = not left

    def _part_with(self, child: Child, end: End) -> None:
        """Forget one that was let go and has ended, in whatever way, once nothing is left that it had started."""
        if not end.alone:
            self._clear(child, end)
            return
        log.info("%s was let go and %s", child.name, end.death.cause)
        self.processes.forget(child)
        self.unwanted.remove(child.name)
        self.tallies.pop(child.name, None)
        del self.ends[child.name]

    # ------------------------------------------------------------ the broker, whom all others need

    def _look_for_broker(self) -> None:
        """See whether the broker is there. Raises `RunFailed` when a restarted one does not listen in time."""
        broker = self._named(BROKER)
        if broker is None:
            return
        if broker.starts > self.broker_heard and broker.code is None:
            if layout.broker_address(self.directory, broker.process.pid):
                self.broker_heard = broker.starts
            elif time.monotonic() - broker.began > self.config.start_seconds:
                waited = f"waited {self.config.start_seconds:g} s for the restarted broker to listen in vain"
                raise RunFailed(f"{waited} (log: {broker.log})")
        if not self._broker_is_there():
            self.broker_missed = time.monotonic()

    def _broker_is_there(self) -> bool:
        """Whether no restart of the broker is planned or under way."""
        broker, end = self._named(BROKER), self.ends.get(BROKER)
        return broker is None or ((end is None or end.due is None) and broker.starts <= self.broker_heard)

    # ------------------------------------------------------------ what is known

    def _end(self, child: Child) -> End:
        """The end to which a process has come."""
        if child.name not in self.ends:
            self.ends[child.name] = End(child.death(), time.monotonic())
        return self.ends[child.name]

    def _named(self, name: str) -> Child | None:
        return next((child for child in self.processes.children if child.name == name), None)

    def _summary(self) -> bool:
        """Whether the learner has written its summary, which it does before it says goodbye."""
        return (self.directory / "summary.json").is_file()
