"""The actors that receive versions together: one broadcast instead of one transfer each.

    enlist ──► not enough yet: called off, each fetches; remembered
    enlist ──► the last of `size`: they are the group from the next version on
    enlist ──► a member: waits until all have; then all are called, and one broadcast brings the version to all

Nobody waits for long: a member that does not enlist within `WAIT_SECONDS` of the first, or a group that is not formed
or a broadcast not done within `seconds`, dissolves the group; its members fetch that version like anybody else, and
whoever enlists for a later one may form the next group. The more groups were dissolved in a row, the more versions
pass before the next, so that a network on which none can work costs its time seldom. All methods are called by the
weight server's thread, the broadcast runs in one of its own.
"""

import logging
from collections.abc import Callable

import torch

from learner import metrics
from learner.publish.store import Store
from protocol.clock import Deadline
from protocol.collective import Attempt, Backend, Collective, GroupBroken, Rendezvous
from protocol.messages import Called, CalledOff, Enlist, Message

log = logging.getLogger("learner")

WAIT_SECONDS = 3.0  # from the first member that is ready to the last
MOST_VERSIONS_APART = 64  # from a group that was dissolved to the next


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
        self._candidates: dict[bytes, int] = {}  # while there is no group: by actor, the version it enlisted for
        self._ready: dict[bytes, Enlist] = {}  # members that wait to be called
        self._patience = Deadline(WAIT_SECONDS)
        self._dissolved = 0  # groups in a row, without a broadcast that arrived
        self._not_before = 0  # the version for which the next group may be formed
        self._collective: Collective | None = None
        self._attempt: Attempt[Collective] | None = None

    def enlist(self, actor: bytes, message: Enlist) -> None:
        """An actor is ready for a version."""
        newest = self._store.newest
        if newest is None or message.version != newest.manifest.version or actor not in self._members:
            self._send(actor, CalledOff(version=message.version))
            if not self._members:
                self._form(actor, message.version)
            return
        if not self._ready:
            self._patience = Deadline(WAIT_SECONDS)
        elif any(other.version != message.version for other in self._ready.values()):
            self._call_off()  # some were offered the version before: they would wait for each other
            self._send(actor, CalledOff(version=message.version))
            return
        self._ready[actor] = message
        self.look()

    def look(self) -> None:
        """Call the members once all are ready, see to deadlines, and to what became of a broadcast."""
        if self._attempt is not None:
            if not self._attempt.over:
                if self._ready and self._patience.passed:
                    self._call_off()  # they are there in time, but the others are not done with the version before
                return
            self._see(self._attempt)
        if self._ready and len(self._ready) == self.size:
            self._call()
        elif self._ready and self._patience.passed:
            self._dissolve(f"{self.size - len(self._ready)} of {self.size} actors are not there")

    def close(self) -> None:
        """End it. A broadcast that is under way has some seconds to end, and is then left to itself."""
        if self._attempt is not None:
            self._attempt.wait()
        self._leave()

    # ------------------------------------------------------------ members

    def _form(self, actor: bytes, version: int) -> None:
        self._candidates[actor] = version
        self._candidates = {each: asked for each, asked in self._candidates.items() if asked >= version - 1}
        if version >= self._not_before and len(self._candidates) >= self.size:
            self._members = tuple(self._candidates)[: self.size]
            self._candidates.clear()
            self._number += 1
            log.info("%d actors receive weights together from the next version on", self.size)

    def _dissolve(self, why: str) -> None:
        self._dissolved += 1
        apart = min(2 ** (self._dissolved - 1), MOST_VERSIONS_APART)
        log.warning(
            "the group of actors that receive weights together is dissolved: %s; the next is formed %d versions on",
            why,
            apart,
        )
        metrics.GROUPS_DISSOLVED.inc()
        newest = self._store.newest
        self._not_before = apart + (newest.manifest.version if newest is not None else 0)
        self._call_off()
        self._members = ()
        self._leave()

    def _call_off(self) -> None:
        for actor, asked in self._ready.items():
            self._send(actor, CalledOff(version=asked.version))
        self._ready.clear()

    def _leave(self) -> None:
        if self._collective is not None:
            self._collective.close()
            self._collective = None

    # ------------------------------------------------------------ versions

    def _call(self) -> None:
        version = self._ready[self._members[0]].version
        gpus = self._device.type == "cuda" and all(each.cuda for each in self._ready.values())
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
        collective, number = self._collective, self._number
        self._collective = None  # the thread's until it is done
        allowed = self._seconds if collective is not None else 2 * self._seconds  # to be formed, and to broadcast
        self._attempt = Attempt(lambda: self._bring(version, collective, number, backend), allowed)

    def _see(self, attempt: Attempt[Collective]) -> None:
        self._attempt = None
        try:
            self._collective = attempt.result()
        except GroupBroken as error:
            self._dissolve(str(error))
        else:
            self._dissolved = 0
            self._patience.renew()  # those who are ready were until now

    def _bring(self, version: int, collective: Collective | None, number: int, backend: Backend) -> Collective:
        """In the thread."""
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)  # a new thread would use the first one
        segment = self._store.lease(version)
        try:
            if segment is None:
                raise GroupBroken(f"version {version} is gone")
            if collective is None:
                collective = Collective(
                    self._rendezvous.store,
                    number,
                    0,
                    self.size + 1,
                    backend=backend,
                    host=self._rendezvous.host,
                    seconds=self._seconds,
                )
            collective.broadcast(segment.data)
            metrics.WEIGHTS_SERVED.labels("group").inc(len(segment.data))
            return collective
        except GroupBroken:
            if collective is not None:
                collective.close()
            raise
        finally:
            if segment is not None:
                self._store.release(version)
