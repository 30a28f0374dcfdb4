"""The learner's line to the others: a thread that owns its sockets, so that training never delays a heartbeat.

It consumes what the training thread hands over (snapshots to publish, steps done) and what the broker and the actors
send; it waits for nothing but its sockets. The training thread waits in one place, `next_batch`, whose end is a batch,
the end of the run, an error of this thread, or a deadline.
"""

import logging
import queue
import socket
import threading
from dataclasses import dataclass
from functools import singledispatchmethod
from types import TracebackType
from typing import Self, TypeAlias
from urllib.parse import urlsplit

import zmq

from learner.weights import Snapshot, WeightStore, seal
from protocol.clock import Deadline, Ticker
from protocol.errors import PeerSilent, ProtocolError, Refused
from protocol.messages import (
    BatchRequest,
    Consumed,
    Goodbye,
    GroupBatch,
    GroupRange,
    Heartbeat,
    Hello,
    Message,
    Refusal,
    Resume,
    RunSpec,
    ShardRequest,
    Welcome,
)
from protocol.sockets import Dealer, Rejected, Router

log = logging.getLogger("learner")

WELCOME_SECONDS = 60.0  # a broker that has not answered by then is not there

FromTrainer: TypeAlias = Snapshot | Resume | BatchRequest | Consumed | Goodbye


@dataclass(frozen=True, slots=True)
class _Failure:
    """What ended the thread, on its way to the training thread."""

    error: ProtocolError


class Link:
    """Connection to one broker, and server of weights. Used as a context manager by the training thread."""

    def __init__(self, broker: str, hello: Hello, *, versions_kept: int) -> None:
        self._hello = hello
        self._broker_address = broker
        self._broker = Dealer(broker)
        self._weights = Router(f"tcp://{own_address(broker)}:*")
        self._store = WeightStore(versions_kept)
        self._to_thread: queue.SimpleQueue[FromTrainer] = queue.SimpleQueue()
        self._to_trainer: queue.SimpleQueue[GroupBatch | Goodbye | _Failure] = queue.SimpleQueue()
        self._policy_version = 0
        self._waiting_for = ""
        self._gauges: dict[str, float] = {}
        self._over = False
        self.welcome = self._join()
        self._alarm, self._bell = _wake_pair()
        self._silence = Deadline(self.welcome.silence_seconds)
        self._heartbeat = Ticker(self.welcome.heartbeat_seconds)
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
        self._thread.join()
        for endpoint in (self._broker, self._weights):
            endpoint.close()
        for wake in (self._alarm, self._bell):
            wake.close(0)

    # ------------------------------------------------------------ called by the training thread

    def resume(self, policy_version: int, consumed: tuple[GroupRange, ...]) -> None:
        """Tell the broker, before anything is published, where the run goes on and which groups it has trained."""
        self._policy_version = policy_version
        self._hand_over(Resume(policy_version=policy_version, consumed=consumed))

    def publish(self, taken: Snapshot) -> None:
        """Offer these weights to the actors; returns at once."""
        self._hand_over(taken)

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
            raise answer.error
        return answer

    def show(self, **gauges: float) -> None:
        """Values that the next heartbeat carries to the live view."""
        self._gauges = gauges

    def goodbye(self, reason: str, *, finished: bool) -> None:
        """Leave the run; with `finished` the run is over for all."""
        self._hand_over(Goodbye(reason=reason, finished=finished))

    def _hand_over(self, item: FromTrainer) -> None:
        self._to_thread.put(item)
        self._alarm.send(b"")

    # ------------------------------------------------------------ the thread

    def _join(self) -> Welcome:
        """Say Hello and wait for the broker's answer."""
        self._broker.send(self._hello)
        answer = self._broker.receive(WELCOME_SECONDS)
        if isinstance(answer, Welcome):
            return answer
        self._broker.close()
        self._weights.close()
        if isinstance(answer, Refusal):
            raise Refused(f"the broker refused the learner: {answer.field}: {answer.problem}")
        if answer is None:
            raise PeerSilent(f"no broker answered at {self._broker_address} within {WELCOME_SECONDS:.0f} s")
        raise ProtocolError(f"the broker answered Hello with {answer}")

    def _run(self) -> None:
        try:
            self._serve()
        except ProtocolError as error:
            self._over = True
            self._to_trainer.put(_Failure(error))

    def _serve(self) -> None:
        poller = zmq.Poller()
        for source in (self._broker.socket, self._weights.socket, self._bell):
            poller.register(source, zmq.POLLIN)
        while not self._over:
            poller.poll(round(self.welcome.heartbeat_seconds * 500))
            self._drain_trainer()
            self._drain_broker()
            self._serve_shards()
            if self._heartbeat.due():
                self._broker.send(
                    Heartbeat(
                        waiting_for=self._waiting_for, policy_version=self._policy_version, gauges=dict(self._gauges)
                    )
                )
            if self._silence.passed:
                raise PeerSilent(f"the broker at {self._broker_address} was silent for {self._silence.seconds:.0f} s")

    def _drain_trainer(self) -> None:
        while self._bell.poll(0):
            self._bell.recv()
        while not self._to_thread.empty():
            item = self._to_thread.get()
            if isinstance(item, Snapshot):
                published = seal(item, self._weights.address)
                self._store.add(published)
                self._broker.send(published.manifest)
            else:
                self._broker.send(item)
                self._over = self._over or isinstance(item, Goodbye)

    def _drain_broker(self) -> None:
        while (message := self._broker.receive()) is not None:
            self._silence.renew()
            self._on(message)

    @singledispatchmethod
    def _on(self, message: Message | Rejected) -> None:
        log.warning("ignored: %s", message)

    @_on.register
    def _(self, message: Heartbeat) -> None:
        """The broker lives."""

    @_on.register
    def _(self, message: GroupBatch) -> None:
        self._to_trainer.put(message)

    @_on.register
    def _(self, message: Goodbye) -> None:
        self._over = True
        if not message.finished:
            raise ProtocolError(f"the broker ended the run: {message.reason}")
        self._to_trainer.put(message)

    @_on.register
    def _(self, message: Refusal) -> None:
        if message.fatal:
            raise Refused(f"the broker refused the learner: {message.field}: {message.problem}")
        log.warning("the broker refused a message: %s: %s", message.field, message.problem)

    def _serve_shards(self) -> None:
        while (received := self._weights.receive()) is not None:
            actor, message = received
            if isinstance(message, ShardRequest):
                self._weights.send(actor, self._store.shard(message.version, message.shard))
            else:
                log.warning("the weight server ignored: %s", message)


def own_address(broker: str) -> str:
    """The address of this host on the way to `broker`: where the actors of the same run can reach it."""
    target = urlsplit(broker)
    if not target.hostname or not target.port:
        raise ValueError(f"broker={broker}: give the address as tcp://host:port")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:  # no packet is sent: only the route is looked up
        probe.connect((target.hostname, target.port))
        return str(probe.getsockname()[0])


def _wake_pair() -> tuple[zmq.Socket[bytes], zmq.Socket[bytes]]:
    """Two ends in one process: what the first sends wakes a poller of the second."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
    alarm, bell = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
    bell.bind(address := f"inproc://link-{id(bell)}")
    alarm.connect(address)
    return alarm, bell
