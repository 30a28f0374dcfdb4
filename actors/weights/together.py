"""The way of an actor that receives versions together with others, by one broadcast of the learner.

It asks to be of the group for each version. While it is called off, because the group is not complete or broke, the
version comes over the wire as to anybody else; and so does what a broadcast left damaged or undone. The broadcast runs
in a thread of its own, for torch.distributed waits.
"""

import logging
from concurrent.futures import Future, ThreadPoolExecutor

import torch
import zmq

from actors import metrics
from actors.weights.fetched import FetchedVersion, WayLost
from actors.weights.holdings import Holdings
from actors.weights.wire import Wire
from protocol.clock import Deadline, now
from protocol.collective import Collective, GroupBroken, find
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
        self._holdings: Holdings | None = None
        self._begun = 0.0
        self._patience: Deadline | None = None  # until it is called; None: it waits for no call
        self._collective: Collective | None = None
        self._thread = ThreadPoolExecutor(1, "group")
        self._broadcast: Future[None] | None = None

    @property
    def sockets(self) -> list[zmq.Socket[bytes]]:
        """The learner's, and those of the wire."""
        return [self._learner.socket, *self._wire.sockets]

    @property
    def progress(self) -> str:
        """What it waits for."""
        if self._holdings and (self._broadcast or self._patience):
            what = "the broadcast" if self._broadcast else "the other actors of the group"
            return f"{what} of version {self._holdings.goal.version}"
        return self._wire.progress

    def begin(self, manifest: WeightManifest) -> None:
        """Receive this version with the group, if there is one."""
        self.stop()
        self._begun = now()
        if self._broadcast is not None:  # of a version that was given up; it still writes
            self._holdings = None
            self._wire.begin(manifest)
            return
        self._holdings = self._wire.aim(manifest)
        self._patience = Deadline(CALL_SECONDS)
        self._learner.send(Enlist(version=manifest.version, cuda=torch.cuda.is_available()))

    def stop(self) -> None:
        """Wait for nothing more; a broadcast that is under way ends by itself."""
        self._patience = None
        self._wire.stop()

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
        if self._broadcast and self._broadcast.done() and (fetched := self._received()):
            return fetched
        return self._wire.turn()

    def give_back(self, fetched: FetchedVersion) -> None:
        """Its bytes may change again."""
        self._wire.give_back(fetched)

    def close(self) -> None:
        """Leave the group and the learner."""
        self._thread.shutdown(wait=False, cancel_futures=True)
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
        self._broadcast = self._thread.submit(self._join, called, self._holdings)

    def _join(self, called: Called, holdings: Holdings) -> None:
        """In the thread."""
        if self._collective is None or self._collective.number != called.group:
            self._collective = Collective(
                find(called.rendezvous, called.seconds),
                called.group,
                called.rank,
                called.world,
                backend=called.backend,
                host=self._host,
                seconds=called.seconds,
            )
        self._collective.broadcast(holdings.data)

    def _received(self) -> FetchedVersion | None:
        """What the broadcast brought, if it is whole."""
        assert self._broadcast is not None, "there was one"
        error, self._broadcast = self._broadcast.exception(), None
        holdings = self._holdings
        if isinstance(error, GroupBroken):
            log.warning("%s: weights are fetched", error)
            metrics.weight_sources_lost.inc()
            self._collective = None
        elif error is not None:
            raise error
        if holdings is None:
            return None
        if error is not None:
            holdings.lost()
        elif not (damaged := holdings.received()):
            nbytes = len(holdings.data)
            metrics.weights_fetched_bytes.inc(nbytes)
            return FetchedVersion(holdings.goal, holdings.data, WAY, nbytes, now() - self._begun)
        else:
            metrics.weight_shards_corrupt.inc(len(damaged))
        self._fetch()
        return None
