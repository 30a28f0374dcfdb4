"""The receiver of weight versions: from a manifest to a whole, verified version, in a thread of its own.

The loop offers manifests (`offer`) and takes what is whole (`receive`); neither waits. The thread waits for its
sockets, at most `seconds` for a version. Which way a version comes is found out, not configured: if the learner's
shared memory is on this host, it is read there, else it comes over the wire.

A version that is being fetched is finished even when a newer one is offered, else an actor slower than the learner
would never hold any; then the newest one is next. One that cannot be completed is given up for the newest, and what
arrived of it is of use there. A version that was handed out is not touched until the next `receive`.
"""

import logging
import math
import queue
import secrets
import threading
from dataclasses import dataclass
from typing import TypeAlias

import zmq

from actors import metrics
from actors.weights.fetched import FetchedVersion, VersionLost, Way, WayLost, WeightsUnavailable
from actors.weights.shared import SharedMemory
from actors.weights.together import Together
from actors.weights.wire import Wire
from protocol.clock import Deadline
from protocol.messages import Loaded, WeightManifest
from protocol.sockets import Dealer
from protocol.weights import fingerprint

log = logging.getLogger("actor")

LOOK_SECONDS = 0.2  # between two looks at deadlines

ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int64": 8, "int32": 4, "uint8": 1, "bool": 1}


@dataclass(frozen=True, slots=True)
class _GivenBack:
    """The loop has loaded a version, or will not."""

    fetched: FetchedVersion


class _Over:
    """The receiver is closed."""


Order: TypeAlias = WeightManifest | _GivenBack | Loaded | _Over


class WeightReceiver:
    """Fetches the versions that it is offered, one at a time."""

    def __init__(self, *, seconds: float) -> None:
        self.seconds = seconds
        self._orders: queue.SimpleQueue[Order] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[FetchedVersion | WeightsUnavailable] = queue.SimpleQueue()
        self._newest: WeightManifest | None = None  # that was offered and taken
        self._held: WeightManifest | None = None  # of the version that the loop took last
        self._lent: FetchedVersion | None = None  # what the loop may be reading
        self.socket, self._other_end = _pair()
        self._thread = _Fetching(seconds, self._orders, self._results, self._other_end)
        self._thread.start()

    @property
    def progress(self) -> str:
        """What it waits for; '' while nothing is wanted."""
        return self._thread.progress

    def offer(self, manifest: WeightManifest) -> None:
        """A version can be fetched. Raises `WeightsUnavailable` when the manifest contradicts itself.

        A learner that came back makes some versions anew: it offers older ones from another address, which are taken
        only while nothing newer is held.
        """
        check(manifest)
        held, newest = self._held, self._newest
        if held and (known(manifest, held) or manifest.version < held.version):
            log.info("version %d offered, version %d is held: not taken", manifest.version, held.version)
            return
        if newest and manifest.endpoint == newest.endpoint and manifest.version <= newest.version:
            return
        self._newest = manifest
        self._order(manifest)

    def receive(self) -> FetchedVersion | None:
        """The next version that is whole, or None. It may be read until this is called again.

        Raises `WeightsUnavailable` when there is no first one within `seconds`; later ones may fail to come.
        """
        if self._lent is not None:
            self._order(_GivenBack(self._lent))
            self._lent = None
        while self.socket.poll(0):
            self.socket.recv()
        if self._results.empty():
            if not self._thread.is_alive():
                raise WeightsUnavailable("the thread that fetches weights has crashed: its error is in the log")
            return None
        result = self._results.get()
        if isinstance(result, WeightsUnavailable):
            raise result
        self._lent, self._held = result, result.manifest
        return result

    def loaded(self, fetched: FetchedVersion, pause_seconds: float) -> None:
        """Tell the learner that this version is sampled from now on, and for how long nothing was sampled."""
        manifest = fetched.manifest
        self._order(
            Loaded(
                version=manifest.version,
                fingerprint=manifest.fingerprint,
                way=fetched.way,
                nbytes=fetched.wire_bytes,
                fetch_seconds=fetched.seconds,
                pause_seconds=pause_seconds,
            )
        )

    def close(self) -> None:
        """End the thread, and leave the weight server."""
        if self._thread.is_alive():
            self._order(_Over())
            self._thread.join()
        for end in (self.socket, self._other_end):
            end.close(0)

    def _order(self, order: Order) -> None:
        self._orders.put(order)
        self.socket.send(b"")


class _Fetching(threading.Thread):
    """The thread: owns the ways, of which it uses one."""

    def __init__(
        self,
        seconds: float,
        orders: queue.SimpleQueue[Order],
        results: queue.SimpleQueue[FetchedVersion | WeightsUnavailable],
        bell: "zmq.Socket[bytes]",
    ) -> None:
        super().__init__(name="weights", daemon=True)
        self.progress = ""
        self._seconds = seconds
        self._orders, self._results, self._bell = orders, results, bell
        self._way: Way | None = None
        self._way_of: WeightManifest | None = None  # for whose server the way was made
        self._no_shared_memory = ""  # the name of a shared memory that cannot be read
        self._desk: Dealer | None = None  # where loads are reported
        self._goal: WeightManifest | None = None  # under way
        self._next: WeightManifest | None = None  # the newest, not begun
        self._lent = False
        self._served = False  # whether some version was whole
        self._wanted = False  # from an offer until a whole version is here
        self._trouble = ""  # why the last version was given up
        self._deadline = Deadline(seconds)  # of the whole version that is wanted
        self._over = False

    def run(self) -> None:
        """Fetch until it is over."""
        try:
            while not self._over:
                self._wait()
                self._take_orders()
                self._turn()
                self.progress = self._describe()
        except WeightsUnavailable as error:
            self._hand_over(error)
        finally:
            for line in (self._way, self._desk):
                if line is not None:
                    line.close()

    def _wait(self) -> None:
        poller = zmq.Poller()
        for source in (self._bell, *(self._way.sockets if self._way else ())):
            poller.register(source, zmq.POLLIN)
        ready = self._goal is None and self._next is not None and not self._lent
        poller.poll(0 if ready else round(1e3 * LOOK_SECONDS))

    def _take_orders(self) -> None:
        while self._bell.poll(0):
            self._bell.recv()
        while not self._orders.empty():
            order = self._orders.get()
            if isinstance(order, WeightManifest):
                self._offered(order)
            elif isinstance(order, _GivenBack):
                self._lent = False
                if self._way:
                    self._way.give_back(order.fetched)
            elif isinstance(order, Loaded):
                self._report(order)
            else:
                self._over = True

    def _offered(self, manifest: WeightManifest) -> None:
        self._next = manifest
        if not self._wanted:  # a version that is given up passes its allowance on to the next
            self._wanted = True
            self._deadline.renew()
        if self._goal and manifest.endpoint != self._goal.endpoint:
            log.info("the weight server moved to %s: version %d next", manifest.endpoint, manifest.version)
            self._goal = None

    def _turn(self) -> None:
        if self._goal is None and self._next is not None and not self._lent:
            self._goal, self._next = self._next, None
            self._begin(self._goal)
        if self._way is not None:
            self._step(self._way)
        if self._wanted and not self._lent and self._deadline.passed:
            self._let_go()

    def _let_go(self) -> None:
        """Give up what does not come, and wait for the next offer. Raises `WeightsUnavailable` without any version."""
        trouble = f"; {self._trouble}" if self._trouble else ""
        endpoint = self._way_of.endpoint if self._way_of else "nowhere"
        problem = (
            f"no whole weight version within {self._seconds:.0f} s ({self._describe()}, from {endpoint}{trouble}): is "
            "the learner reachable there? actor.weights_seconds allows more time, learner.versions_kept keeps versions "
            "longer"
        )
        if not self._served:
            raise WeightsUnavailable(problem)
        log.error("%s; sampling goes on with the version that is held", problem)
        metrics.weight_versions_given_up.inc()
        self._goal, self._wanted = None, self._next is not None
        self._deadline.renew()
        if self._way is not None:
            self._way.stop()

    def _begin(self, goal: WeightManifest) -> None:
        way = self._way
        if way is None or self._way_of is None or self._way_of.endpoint != goal.endpoint:
            if way is not None:
                way.close()
            self._way = way = None
            self._way, self._way_of = self._find_way(goal), goal
        assert self._way is not None, "there is a way, or an error"
        try:
            self._way.begin(goal)
        except OSError as error:
            raise WeightsUnavailable(f"version {goal.version}: {error}") from None

    def _find_way(self, goal: WeightManifest) -> Way:
        if goal.local and goal.local != self._no_shared_memory:
            try:
                return SharedMemory(goal.local)
            except WayLost:
                self._no_shared_memory = goal.local
        try:
            return Together(goal.endpoint) if goal.group else Wire(goal.endpoint)
        except WayLost as error:
            raise WeightsUnavailable(f"version {goal.version}: {error}") from None

    def _step(self, way: Way) -> None:
        try:
            fetched = way.turn()
        except VersionLost as error:
            self._give_up(str(error))
            return
        except WayLost as error:
            log.warning("%s: weights come over the wire from now on", error)
            self._lose_way(way)
            return
        if fetched is not None:
            metrics.weight_fetch_seconds.observe(fetched.seconds)
            self._goal, self._trouble = None, ""
            self._wanted, self._lent, self._served = self._next is not None, True, True
            self._deadline.renew()
            self._hand_over(fetched)

    def _give_up(self, why: str) -> None:
        assert self._goal is not None, "what is lost was under way"
        metrics.weight_versions_given_up.inc()
        self._trouble = f"version {self._goal.version} was given up: {why}"
        log.warning("%s; the next one is taken", self._trouble)
        self._goal = None

    def _lose_way(self, way: Way) -> None:
        way.close()
        self._way = None
        if self._goal is not None:
            self._no_shared_memory = self._goal.local
            self._begin(self._goal)

    def _report(self, loaded: Loaded) -> None:
        if self._way_of is None:
            return
        endpoint = self._way_of.endpoint
        if self._desk is None or self._desk.peer != endpoint.encode():
            if self._desk is not None:
                self._desk.close()
            self._desk = Dealer(endpoint, listener="learner")
        self._desk.send(loaded)

    def _hand_over(self, result: FetchedVersion | WeightsUnavailable) -> None:
        self.progress = self._describe()
        self._results.put(result)
        self._bell.send(b"")

    def _describe(self) -> str:
        if self._goal is not None and self._way is not None:
            return self._way.progress
        return "a weight version newer than the one that is gone" if self._wanted and not self._lent else ""


def known(manifest: WeightManifest, held: WeightManifest) -> bool:
    """Whether both are the same weights under the same number."""
    return (manifest.version, manifest.fingerprint) == (held.version, held.fingerprint)


def check(manifest: WeightManifest) -> None:
    """What a manifest says twice must agree. Raises `WeightsUnavailable`."""
    if not manifest.shards:
        raise WeightsUnavailable(f"version {manifest.version} has no shards")
    for tensor in manifest.tensors:
        needed = math.prod(tensor.shape) * ITEM_BYTES[tensor.dtype]
        if tensor.nbytes != needed:
            raise WeightsUnavailable(
                f"version {manifest.version}: {tensor.name} has {tensor.nbytes} bytes, "
                f"{tensor.dtype} of shape {list(tensor.shape)} needs {needed}"
            )
    if (actual := fingerprint(manifest.tensors, manifest.shards)) != manifest.fingerprint:
        raise WeightsUnavailable(
            f"version {manifest.version} has the fingerprint {actual}, its manifest says {manifest.fingerprint}"
        )


def _pair() -> "tuple[zmq.Socket[bytes], zmq.Socket[bytes]]":
    """Two ends in one process: what one sends wakes a poller of the other."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
    here, there = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
    here.bind(address := f"inproc://weights-{secrets.token_hex(8)}")
    there.connect(address)
    return here, there
