"""The way of an actor that receives versions together with others, by one broadcast of the learner.

It asks to be of the group for each version. While it is called off, because the group is not complete or broke, the
version comes over the wire as to anybody else; and so does what a broadcast left damaged or undone. The broadcast runs
in a thread of its own, for torch.distributed waits. It writes into memory of this process, from a GPU by way of a small
part of it; there the checksums are verified, as of whatever else arrives. Memory into which a broadcast that is not
waited for may still write is never used again.
"""

import logging

import torch
import zmq

from actors import metrics
from actors.weights.fetched import FetchedVersion, WayLost
from actors.weights.holdings import Holdings
from actors.weights.wire import Wire
from protocol.clock import Deadline, now
from protocol.collective import Attempt, Collective, GroupBroken, find
from protocol.messages import Called, CalledOff, Enlist, WeightManifest
from protocol.sockets import Dealer, own_address

log = logging.getLogger("actor")

WAY = "group"
CALL_SECONDS = 10.0  # the learner answers earlier: it waits for no member for that long


class Together:
    """Versions of the weight server at `endpoint`. Raises `WayLost` for an address that is none."""

    def __init__(self, endpoint: str) -> None:
        self._wire = Wire(endpoint)
        try:
            self._host = own_address(endpoint)
            self._learner = Dealer(endpoint, listener="learner")
        except ValueError as error:
            self._wire.close()
            raise WayLost(str(error)) from None
        self._holdings: Holdings | None = None  # of the version that it asked for
        self._begun = 0.0
        self._patience: Deadline | None = None  # until it is called; None: it waits for no call
        self._rendezvous = ""  # of the group that it is in
        self._collective: Collective | None = None
        self._attempt: Attempt[Collective] | None = None
        self._receiving: Holdings | None = None  # what the attempt fills, while that is wanted

    @property
    def sockets(self) -> list[zmq.Socket[bytes]]:
        """The learner's, and those of the wire."""
        return [self._learner.socket, *self._wire.sockets]

    @property
    def progress(self) -> str:
        """What it waits for."""
        if self._holdings and (self._receiving or self._patience):
            what = "the broadcast" if self._receiving else "the other actors of the group"
            return f"{what} of version {self._holdings.goal.version}"
        return self._wire.progress

    def begin(self, manifest: WeightManifest) -> None:
        """Receive this version with the group, if there is one."""
        self.stop()
        if self._attempt is not None:  # at a version that was given up
            self._wire.begin(manifest)
            return
        self._begun = now()
        self._holdings = self._wire.aim(manifest)
        self._patience = Deadline(CALL_SECONDS)
        self._learner.send(Enlist(version=manifest.version, cuda=torch.cuda.is_available()))

    def stop(self) -> None:
        """Wait for nothing more; a broadcast that is under way ends by itself, and brings nothing."""
        self._patience = None
        self._wire.stop()
        if self._receiving is not None:
            self._wire.forget()  # it still writes there
            self._receiving = None

    def turn(self) -> FetchedVersion | None:
        """See what came of the call and of the broadcast, else fetch. Raises `VersionLost`."""
        while (message := self._learner.receive()) is not None:
            goal = self._holdings.goal.version if self._holdings and self._patience else None
            if isinstance(message, Called) and message.version == goal:
                self._receive(message)
            elif isinstance(message, CalledOff) and message.version == goal:
                self._fetch()
        if self._patience and self._patience.passed:
            self._fetch()
        if self._attempt and self._attempt.over and (fetched := self._see(self._attempt)):
            return fetched
        return self._wire.turn()

    def give_back(self, fetched: FetchedVersion) -> None:
        """Its bytes may change again."""
        self._wire.give_back(fetched)

    def close(self) -> None:
        """Leave the group and the learner. A broadcast that is under way has some seconds to end."""
        if self._attempt is not None:
            self._attempt.wait()
        if self._collective is not None:
            self._collective.close()
            self._collective = None
        self._learner.close()
        self._wire.close()

    # ------------------------------------------------------------ the group

    def _fetch(self) -> None:
        self._patience = None
        if self._holdings is not None:
            self._wire.fetch(self._holdings, self._begun)

    def _receive(self, called: Called) -> None:
        assert self._holdings is not None, "it asked for a version"
        self._patience = None
        self._receiving = holdings = self._holdings
        collective, self._collective = self._collective, None  # the thread's until it is done
        if collective is not None and (self._rendezvous, collective.number) != (called.rendezvous, called.group):
            collective.close()
            collective = None
        self._rendezvous = called.rendezvous
        allowed = called.seconds if collective is not None else 3 * called.seconds  # to find, to form, to broadcast
        self._attempt = Attempt(lambda: self._join(called, collective, holdings), allowed)

    def _join(self, called: Called, collective: Collective | None, holdings: Holdings) -> Collective:
        """In the thread."""
        if collective is None:
            collective = Collective(
                find(called.rendezvous, called.seconds),
                called.group,
                called.rank,
                called.world,
                backend=called.backend,
                host=self._host,
                seconds=called.seconds,
            )
        try:
            collective.broadcast(holdings.data)
        except GroupBroken:
            collective.close()
            raise
        return collective

    def _see(self, attempt: Attempt[Collective]) -> FetchedVersion | None:
        """What the broadcast brought, if it is whole."""
        self._attempt = None
        holdings, self._receiving = self._receiving, None
        try:
            self._collective = attempt.result()
        except GroupBroken as error:
            log.warning("%s: weights are fetched", error)
            metrics.weight_versions_not_broadcast.inc()
            if holdings is not None:
                self._wire.forget()
                self._holdings = self._wire.aim(holdings.goal)
                self._fetch()
            return None
        if holdings is None:
            return None
        if not (damaged := holdings.received()):
            nbytes = len(holdings.data)
            metrics.weights_fetched_bytes.inc(nbytes)
            return FetchedVersion(holdings.goal, holdings.data, WAY, nbytes, now() - self._begun)
        metrics.weight_shards_corrupt.inc(len(damaged))
        self._fetch()
        return None
