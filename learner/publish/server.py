"""The learner's weight server: a thread that serves shards, names sources, hands out shared memory, hears who loaded.

It consumes requests of actors and waits for nothing but its sockets. What it sends is bounded by the credit of those
who ask: each has a few shards on its way at a time.
"""

import logging
import threading
from functools import singledispatchmethod
from types import TracebackType
from typing import Self

import torch
import zmq

from learner import metrics
from learner.publish.group import Group
from learner.publish.loads import Loads
from learner.publish.store import Store
from learner.publish.tree import Trees
from learner.publish.version import Address
from protocol.messages import CalledOff, Enlist, Loaded, Message, Shard, ShardRequest, Source, SourceRequest
from protocol.segments import SegmentServer, available
from protocol.sockets import Rejected, Router

log = logging.getLogger("learner")

REQUEST_BYTES = 2**16  # largest frame that an actor may send
UNREAD_SHARDS = 512  # that wait for an actor which does not read, before it is cut off; an honest one asks for 64
CPU = torch.device("cpu")
LOOK_SECONDS = 0.2  # between two looks at whether it is over
MESSAGES_A_TURN = 100


class WeightServer:
    """Serves `store` at `host`; used as a context manager. `loads` is what actors say that they have loaded."""

    def __init__(
        self,
        store: Store,
        host: str,
        *,
        fanout: int,
        shared_memory: bool,
        group: int = 0,
        group_seconds: float = 120.0,
        device: torch.device = CPU,
    ) -> None:
        self.store = store
        self.loads = Loads()
        self._router = Router(f"tcp://{host}:*", roles=("actor",), largest=REQUEST_BYTES, unread=UNREAD_SHARDS)
        self._segments = SegmentServer(store.lease, store.release) if shared_memory and available() else None
        self._trees = Trees(fanout)
        self._group = (
            Group(store, host, group, seconds=group_seconds, device=device, send=self._router.send) if group else None
        )
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="weights", daemon=True)

    @property
    def address(self) -> Address:
        """Where it is found."""
        local = self._segments.name if self._segments else ""
        return Address(self._router.address, local, self._group.size if self._group else 0)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        self._router.close()
        if self._group:
            self._group.close()
        if self._segments:
            self._segments.close()

    def _serve(self) -> None:
        while not self._over.is_set():
            poller = zmq.Poller()
            poller.register(self._router.socket, zmq.POLLIN)
            for descriptor in self._segments.descriptors if self._segments else ():
                poller.register(descriptor, zmq.POLLIN)
            for source, _ in poller.poll(round(1e3 * LOOK_SECONDS)):
                if self._segments and isinstance(source, int):
                    self._segments.serve(source)
            for _ in range(MESSAGES_A_TURN):
                if (received := self._router.receive()) is None:
                    break
                self._on(received[1], received[0])
            if self._group:
                self._group.look()

    @singledispatchmethod
    def _on(self, message: Message | Rejected, actor: bytes) -> None:
        log.warning("the weight server ignored: %s", message)

    @_on.register
    def _(self, message: ShardRequest, actor: bytes) -> None:
        self.store.asked()
        answer = self.store.answer(message)
        if self._router.send(actor, answer) and isinstance(answer, Shard):
            metrics.WEIGHTS_SERVED.labels("delta" if message.delta else "full").inc(len(answer.data))

    @_on.register
    def _(self, message: SourceRequest, actor: bytes) -> None:
        self.store.asked()
        self._router.send(actor, Source(version=message.version, endpoint=self._trees.source(message)))

    @_on.register
    def _(self, message: Enlist, actor: bytes) -> None:
        if self._group:
            self._group.enlist(actor, message)
        else:
            self._router.send(actor, CalledOff(version=message.version))

    @_on.register
    def _(self, message: Loaded, actor: bytes) -> None:
        self.loads.add(message)
