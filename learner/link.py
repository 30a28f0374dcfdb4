"""The learner's line to the others: a thread that owns its sockets, so that training never delays a heartbeat.

It consumes what the training thread hands over (steps done, batches wanted, versions that are out) and what the broker
sends; it waits for nothing but its sockets. The training thread waits in one place, `next_batch`, whose end is a batch,
the end of the run, an error of this thread, or a deadline.
"""

import logging
import os
import queue
import threading
from dataclasses import dataclass
from functools import singledispatchmethod
from types import TracebackType
from typing import Self, TypeAlias

import zmq

from protocol.clock import Deadline
from protocol.errors import PeerSilent, ProtocolError
from protocol.line import Line
from protocol.messages import (
    BatchRequest,
    Checkpointed,
    Consumed,
    Goodbye,
    GroupBatch,
    GroupRange,
    Heartbeat,
    Hello,
    Message,
    Resume,
    RunSpec,
    StreamStats,
    Sure,
    WeightManifest,
)
from protocol.sockets import Rejected

log = logging.getLogger("learner")

WELCOME_SECONDS = 60.0  # a broker that has not answered by then is not there
STUCK_SECONDS = 600.0  # a training thread that has not heard by then why the run cannot go on hears nothing any more

FromTrainer: TypeAlias = WeightManifest | Resume | BatchRequest | Consumed | Checkpointed | Goodbye


@dataclass(frozen=True, slots=True)
class _Failure:
    """What ended the thread, on its way to the training thread."""

    error: ProtocolError


class Link:
    """Connection to one broker. Used as a context manager by the training thread."""

    def __init__(self, broker: str, hello: Hello) -> None:
        self._to_thread: queue.SimpleQueue[FromTrainer] = queue.SimpleQueue()
        self._to_trainer: queue.SimpleQueue[GroupBatch | Goodbye | _Failure] = queue.SimpleQueue()
        self._manifest: WeightManifest | None = None  # of the newest version
        self._wanted: BatchRequest | None = None  # that was not answered
        self._policy_version = 0
        self._waiting_for = ""
        self._gauges: dict[str, float] = {}
        self._over = False
        self._farewell: Goodbye | None = None  # that the run has ended well, until the broker says so too
        self._farewell_by = Deadline(0.0)
        self._heard = threading.Event()  # the training thread knows that the line is down
        self._line = Line(broker, hello, welcome_seconds=WELCOME_SECONDS, standing=self._standing)
        self.welcome = self._line.welcome
        self._alarm, self._bell = _wake_pair()
        self._ringing = threading.Lock()  # versions are announced by another thread than the training one
        self._thread = threading.Thread(target=self._run, name="link", daemon=True)

    @property
    def run(self) -> RunSpec:
        """What the broker says of the run."""
        return self.welcome.run

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            why = "the learner was stopped" if kind is KeyboardInterrupt else f"the learner failed: {error}"
            self.goodbye(why[:4096], finished=False)
        self._heard.set()
        self._thread.join()
        self._line.close()
        with self._ringing:
            for wake in (self._alarm, self._bell):
                wake.close(0)

    # ------------------------------------------------------------ called by the training thread

    def resume(
        self, policy_version: int, consumed: tuple[GroupRange, ...], *, checkpoints: bool, counted: StreamStats
    ) -> None:
        """Tell the broker, before anything is published, where the learner begins and which groups it has trained."""
        self._policy_version = policy_version
        self._hand_over(
            Resume(policy_version=policy_version, consumed=consumed, checkpoints=checkpoints, counted=counted)
        )

    def checkpointed(self, policy_version: int) -> None:
        """Tell the broker that a whole checkpoint of this version is on the disk. From any thread: it rings no bell."""
        self._to_thread.put(Checkpointed(policy_version=policy_version))

    def announce(self, manifest: WeightManifest) -> None:
        """Tell the actors that a version is out; from any thread."""
        self._hand_over(manifest)

    def consumed(self, policy_version: int, group_ids: tuple[int, ...]) -> None:
        """Tell the broker that these groups are trained and the learner stands at `policy_version`."""
        self._policy_version = policy_version
        self._hand_over(Consumed(policy_version=policy_version, group_ids=group_ids))

    def next_batch(self, policy_version: int, seconds: float) -> GroupBatch | Goodbye:
        """The batch for `policy_version`, or the broker's goodbye when the run is over.

        Raises `ProtocolError` when the broker refuses or falls silent, and after `seconds`.
        """
        self._hand_over(BatchRequest(policy_version=policy_version))
        self._waiting_for = f"the batch for step {policy_version + 1}"
        try:
            answer = self._to_trainer.get(timeout=seconds)
        except queue.Empty:
            raise PeerSilent(
                f"no batch for step {policy_version + 1} within {seconds:.0f} s: see what the broker waits for at its "
                "/status; learner.batch_wait_seconds allows longer waits"
            ) from None
        finally:
            self._waiting_for = ""
        if isinstance(answer, _Failure):
            self._heard.set()
            raise answer.error
        return answer

    def interrupt(self, reason: str) -> None:
        """End the wait for batches, after those that are here: the run stops early. Safe in a signal handler."""
        self._to_trainer.put(Goodbye(reason=reason, finished=False))

    def show(self, **gauges: float) -> None:
        """Values that the next heartbeat carries to the live view."""
        self._gauges = gauges

    def goodbye(self, reason: str, *, finished: bool) -> None:
        """Leave the run; with `finished` the run is over for all, which a broker that is away will hear as well."""
        self._hand_over(Goodbye(reason=reason, finished=finished))

    def _hand_over(self, item: FromTrainer) -> None:
        self._to_thread.put(item)
        with self._ringing:
            if not self._alarm.closed:
                self._alarm.send(b"")

    # ------------------------------------------------------------ the thread

    def _run(self) -> None:
        try:
            self._serve()
        except ProtocolError as error:
            self._over = True
            self._to_trainer.put(_Failure(error))
            if not self._heard.wait(STUCK_SECONDS):
                log.critical("the training thread has been stuck for %.0f s: %s", STUCK_SECONDS, error)
                os._exit(1)

    def _serve(self) -> None:
        poller = zmq.Poller()
        for source in (self._line.dealer.socket, self._bell):
            poller.register(source, zmq.POLLIN)
        while not self._over and not (self._farewell and self._farewell_by.passed):
            poller.poll(round(self.welcome.heartbeat_seconds * 500))
            self._drain_trainer()
            self._drain_broker()
            self._line.tick(self._status)

    def _status(self) -> Heartbeat:
        return Heartbeat(waiting_for=self._waiting_for, policy_version=self._policy_version, gauges=dict(self._gauges))

    def _standing(self) -> list[Message]:
        """What a broker that came back must hear again, acknowledged or not."""
        return [each for each in (self._manifest, self._wanted, self._farewell) if each is not None]

    def _drain_trainer(self) -> None:
        while self._bell.poll(0):
            self._bell.recv()
        while not self._to_thread.empty():
            item = self._to_thread.get()
            if isinstance(item, Sure):
                self._manifest = item if isinstance(item, WeightManifest) else self._manifest
                self._line.say_surely(item)
            else:
                self._wanted = item if isinstance(item, BatchRequest) else None
                self._line.say(item)
                if isinstance(item, Goodbye):
                    self._take_leave(item)

    def _take_leave(self, goodbye: Goodbye) -> None:
        """Early ends are said and forgotten; for the end of the run the broker has its time to come back and agree."""
        if not goodbye.finished:
            self._over = True
            return
        self._farewell = goodbye
        self._farewell_by = Deadline(self.welcome.return_seconds)

    def _drain_broker(self) -> None:
        while (message := self._line.receive()) is not None:
            self._on(message)
        if self._line.over is not None:
            self._over = True
            self._to_trainer.put(self._line.over)

    @singledispatchmethod
    def _on(self, message: Message | Rejected) -> None:
        log.warning("ignored: %s", message)

    @_on.register
    def _(self, message: GroupBatch) -> None:
        if self._wanted is None or message.policy_version != self._wanted.policy_version:
            return  # the same batch came twice: before and after the broker was away
        self._wanted = None
        self._to_trainer.put(message)


def _wake_pair() -> tuple[zmq.Socket[bytes], zmq.Socket[bytes]]:
    """Two ends in one process: what the first sends wakes a poller of the second."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
    alarm, bell = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
    bell.bind(address := f"inproc://link-{id(bell)}")
    alarm.connect(address)
    return alarm, bell
