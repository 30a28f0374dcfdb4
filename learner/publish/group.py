"""The actors that receive versions together: one broadcast instead of one transfer each.

    enlist ──► not enough yet: called off, each fetches; remembered
    enlist ──► the last of `size`: they are the group from the next version on
    enlist ──► a member: waits until all have; then all are called, and one broadcast brings the version to all

Nobody waits for long: a member that does not enlist within `WAIT_SECONDS` of the first, or a broadcast that fails or
takes more than `seconds`, dissolves the group; its members fetch that version like anybody else, and whoever enlists
for a later one may form the next group. All methods but `close` are called by the weight server's thread, the broadcast
runs in one of its own.
"""

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from learner import metrics
from learner.publish.store import Store
from protocol.clock import Deadline
from protocol.collective import Backend, Collective, GroupBroken, Rendezvous
from protocol.messages import Called, CalledOff, Enlist, Message

log = logging.getLogger("learner")

WAIT_SECONDS = 3.0  # from the first member that is ready to the last


class Group:
    """`size` actors beside the learner; `send` queues a message for one of them."""

    def __init__(
        self,
        store: Store,
        host: str,
        size: int,
        *,
        seconds: float,
        device: torch.device,
        send: Callable[[bytes, Message], object],
    ) -> None:
        self.size = size
        self._store = store
        self._seconds = seconds
        self._device = device
        self._send = send
        self._rendezvous = Rendezvous(host)
        self._members: tuple[bytes, ...] = ()
        self._number = 0  # of groups that were formed
        self._enlisted: dict[bytes, Enlist] = {}  # since the group was last formed or dissolved
        self._ready: set[bytes] = set()  # members that wait to be called
        self._patience = Deadline(WAIT_SECONDS)
        self._collective: Collective | None = None
        self._thread = ThreadPoolExecutor(1, "group", initializer=self._bind)
        self._broadcast: Future[None] | None = None

    def enlist(self, actor: bytes, message: Enlist) -> None:
        """An actor is ready for a version."""
        newest = self._store.newest
        if newest is None or message.version != newest.manifest.version or actor not in self._members:
            self._send(actor, CalledOff(version=message.version))
            self._enlisted[actor] = message
            self._form(message.version)
            return
        if not self._ready:
            self._patience = Deadline(WAIT_SECONDS)
        elif any(self._enlisted[other].version != message.version for other in self._ready):
            self._call_off()  # some were offered the version before: they would wait for each other
            self._send(actor, CalledOff(version=message.version))
            return
        self._enlisted[actor] = message
        self._ready.add(actor)
        self.look()

    def look(self) -> None:
        """Call the members once all are ready, see to deadlines, and to what became of a broadcast."""
        if self._broadcast:
            if not self._broadcast.done():
                return
            done, self._broadcast = self._broadcast, None
            if error := done.exception():
                self._dissolve(str(error))
                return
            self._patience.renew()
        if self._ready and len(self._ready) == self.size:
            self._call()
        elif self._ready and self._patience.passed:
            self._dissolve(f"{self.size - len(self._ready)} of {self.size} actors are not there")

    def close(self) -> None:
        """End it. A broadcast that is under way ends by itself, within its time."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    # ------------------------------------------------------------ members

    def _form(self, version: int) -> None:
        recent = [actor for actor, asked in self._enlisted.items() if asked.version >= version - 1]
        if not self._members and len(recent) >= self.size:
            self._members = tuple(recent[: self.size])
            self._number += 1
            log.info("%d actors receive weights together from the next version on", self.size)

    def _dissolve(self, why: str) -> None:
        log.warning("the group of actors that receive weights together is dissolved: %s", why)
        metrics.GROUPS_DISSOLVED.inc()
        self._call_off()
        self._members, self._collective = (), None
        self._enlisted.clear()

    def _call_off(self) -> None:
        for actor in self._ready:
            self._send(actor, CalledOff(version=self._enlisted[actor].version))
        self._ready.clear()

    # ------------------------------------------------------------ versions

    def _call(self) -> None:
        version = self._enlisted[self._members[0]].version
        gpus = self._device.type == "cuda" and all(self._enlisted[actor].cuda for actor in self._members)
        backend: Backend = "nccl" if gpus else "gloo"
        for rank, actor in enumerate(self._members, start=1):
            called = Called(
                version=version,
                group=self._number,
                rendezvous=self._rendezvous.address,
                rank=rank,
                world=self.size + 1,
                backend=backend,
                seconds=self._seconds,
            )
            self._send(actor, called)
        self._ready.clear()
        self._broadcast = self._thread.submit(self._bring, version, self._number, backend)

    def _bring(self, version: int, number: int, backend: Backend) -> None:
        segment = self._store.lease(version)
        if segment is None:
            raise GroupBroken(f"version {version} is gone")
        try:
            if self._collective is None or self._collective.number != number:
                self._collective = Collective(
                    self._rendezvous.store,
                    number,
                    0,
                    self.size + 1,
                    backend=backend,
                    host=self._rendezvous.host,
                    seconds=self._seconds,
                )
            self._collective.broadcast(segment.data)
            metrics.WEIGHTS_SERVED.labels("group").inc(len(segment.data))
        finally:
            self._store.release(version)

    def _bind(self) -> None:
        """A new thread would use the first GPU whatever its process uses."""
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)
