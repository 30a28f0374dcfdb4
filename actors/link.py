"""The actor's line to the broker: joins, keeps the heartbeat going, and hands on what concerns the loop.

It waits for the broker's answer to Hello, at most `welcome_seconds`; after that it never waits, `pump` takes what is
there. A broker that refuses the actor, ends the run early, or is silent past its deadline ends the actor with an error
that says so.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import singledispatchmethod
from typing import TypeAlias

from actors import metrics
from protocol.clock import Deadline, Ticker
from protocol.errors import PeerSilent, ProtocolError, Refused
from protocol.messages import Goodbye, Heartbeat, Hello, Lease, Message, Refusal, WeightManifest, Welcome
from protocol.sockets import Dealer, Rejected

log = logging.getLogger("actor")

Order: TypeAlias = Lease | WeightManifest

NAP_SECONDS = 0.05  # between two looks at the socket while the engine starts
MESSAGES_A_TURN = 1000  # taken at most before the loop goes on


class Link:
    """Connection to one broker."""

    def __init__(self, broker: str, hello: Hello, *, welcome_seconds: float) -> None:
        self.dealer = Dealer(broker)
        self.broker = broker
        self.orders: deque[Order] = deque()  # what arrived for the loop, in order
        self.over: Goodbye | None = None  # the run's regular end
        self.welcome = self._join(hello, welcome_seconds)
        self.silence = Deadline(self.welcome.silence_seconds)
        self.heartbeat = Ticker(self.welcome.heartbeat_seconds / 2)  # twice as often as asked: steps take time too

    def _join(self, hello: Hello, seconds: float) -> Welcome:
        """Say Hello. Raises `Refused`, or `PeerSilent` when nobody answers within `seconds`."""
        self.dealer.send(hello)
        answer = self.dealer.receive(seconds)
        if isinstance(answer, Welcome):
            return answer
        self.dealer.socket.close(0)  # what nobody takes is not waited for
        if isinstance(answer, Refusal):
            raise Refused(f"the broker at {self.broker} refused this actor: {answer.field}: {answer.problem}")
        if answer is None:
            raise PeerSilent(
                f"no broker answered at {self.broker} within {seconds:g} s: check the address, and that the broker runs"
            )
        raise ProtocolError(f"{self.broker} answered Hello with {answer}: is it a broker?")

    def send(self, message: Message) -> None:
        """Queue a message for the broker."""
        self.dealer.send(message)

    def pump(self, status: Callable[[], Heartbeat]) -> None:
        """Take what has arrived, send `status` when it is time. Raises `ProtocolError` when the run cannot go on."""
        for _ in range(MESSAGES_A_TURN):
            if (message := self.dealer.receive()) is None:
                break
            self.silence.renew()
            self._on(message)
        if self.over is None and self.silence.passed:
            raise PeerSilent(f"the broker at {self.broker} was silent for {self.silence.seconds:g} s")
        if self.heartbeat.due():
            self.send(status())

    @contextmanager
    def kept_alive(self, waiting_for: str) -> Iterator[None]:
        """Pump from another thread while this one starts the engine, which takes longer than a heartbeat.

        The thread is the only one that touches the socket until the block ends. Its error is raised at the end.
        """
        done = threading.Event()
        errors: list[ProtocolError] = []

        def pump_until_done() -> None:
            try:
                while not done.wait(NAP_SECONDS) and self.over is None:
                    self.pump(lambda: Heartbeat(waiting_for=waiting_for))
            except ProtocolError as error:
                errors.append(error)

        thread = threading.Thread(target=pump_until_done, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
        if errors:
            raise errors[0]

    def leave(self, reason: str) -> None:
        """Say goodbye."""
        self.send(Goodbye(reason=reason[:4096], finished=False))

    def close(self) -> None:
        """Close the socket; what was sent last still leaves."""
        self.dealer.close()

    @singledispatchmethod
    def _on(self, message: Message | Rejected) -> None:
        metrics.messages_rejected.inc()
        log.warning("ignored: %s", message if isinstance(message, Rejected) else f"a {message.kind} from the broker")

    @_on.register
    def _(self, message: Heartbeat) -> None:
        """The broker lives."""

    @_on.register
    def _(self, message: Lease) -> None:
        self.orders.append(message)

    @_on.register
    def _(self, message: WeightManifest) -> None:
        self.orders.append(message)

    @_on.register
    def _(self, message: Goodbye) -> None:
        if not message.finished:
            raise ProtocolError(f"the broker ended the run: {message.reason}")
        self.over = message

    @_on.register
    def _(self, message: Refusal) -> None:
        if message.fatal:
            raise Refused(f"the broker refused this actor: {message.field}: {message.problem}")
        log.warning("the broker refused a message: %s: %s", message.field, message.problem)
