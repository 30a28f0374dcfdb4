"""The actor's line to the broker: what the broker orders, in order, and a heartbeat while the engine starts."""

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

from actors import metrics
from protocol.errors import ProtocolError
from protocol.line import Line
from protocol.messages import Heartbeat, Hello, Lease, Message, WeightManifest

log = logging.getLogger("actor")

Order: TypeAlias = Lease | WeightManifest

NAP_SECONDS = 0.05  # between two looks at the socket while the engine starts
MESSAGES_A_TURN = 1000  # taken at most before the loop goes on


class Link:
    """Connection to one broker. `standing` and `holds` are what a broker that came back is told, see `Line`."""

    def __init__(self, broker: str, hello: Hello, *, welcome_seconds: float) -> None:
        self.orders: deque[Order] = deque()  # what arrived for the loop, in order
        self.standing: Callable[[], list[Message]] = list
        self.holds: Callable[[], tuple[int, ...]] = tuple
        self.line = Line(
            broker,
            hello,
            welcome_seconds=welcome_seconds,
            standing=lambda: self.standing(),
            holds=lambda: self.holds(),
        )

    def pump(self, status: Callable[[], Heartbeat]) -> None:
        """Take what has arrived, send `status` when it is time. Raises `ProtocolError` when the run cannot go on."""
        for _ in range(MESSAGES_A_TURN):
            if (message := self.line.receive()) is None:
                break
            if isinstance(message, Lease | WeightManifest):
                self.orders.append(message)
            else:
                metrics.messages_rejected.inc()
                log.warning("ignored: %s", message)
        self.line.tick(status)

    @contextmanager
    def kept_alive(self, waiting_for: str) -> Iterator[None]:
        """Pump from another thread while this one starts the engine, which takes longer than a heartbeat.

        The thread is the only one that touches the socket until the block ends. Its error is raised at the end.
        """
        done = threading.Event()
        errors: list[ProtocolError] = []

        def pump_until_done() -> None:
            try:
                while not done.wait(NAP_SECONDS) and self.line.over is None:
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
