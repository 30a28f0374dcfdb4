"""The way of an actor on another host: shards and deltas over ZeroMQ, from the learner or from an actor that has them.

It asks the learner's weight server of whom to fetch, keeps `WINDOW_BYTES` on their way, and serves what arrives to
those who were sent to it. A source that answers nothing for `SILENCE_SECONDS` is given up for the learner, a shard
that it does not have is asked of the learner, and so is one that arrived damaged. From the learner itself everything
outstanding is asked again after a silence, as after a lost connection: what has arrived stays.
"""

import logging
from collections import Counter, deque
from functools import singledispatchmethod

import zmq

from actors import metrics
from actors.weights.fetched import FetchedVersion, VersionLost, WayLost
from actors.weights.holdings import Damaged, Holdings
from actors.weights.relay import Relay
from protocol.clock import Deadline, now
from protocol.messages import (
    Message,
    Shard,
    ShardComing,
    ShardGone,
    ShardRequest,
    Source,
    SourceRequest,
    WeightManifest,
)
from protocol.sockets import Dealer, Rejected, own_address

log = logging.getLogger("actor")

WINDOW_BYTES = 32 * 2**20  # asked for and not yet here
WINDOW = 64  # requests, however small
ATTEMPTS = 3  # times a shard may arrive damaged
SILENCE_SECONDS = 5.0  # after which a source is taken for dead, and the learner is asked again
MESSAGES_A_TURN = 16


class Wire:
    """Fetches versions from the weight server at `endpoint`. Raises `WayLost` for an address that is none."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        try:
            self._relay = Relay(own_address(endpoint))
            self._learner = Dealer(endpoint, listener="learner")
        except (ValueError, OSError) as error:
            raise WayLost(str(error)) from None
        self._parent: Dealer | None = None  # an actor of whom it fetches
        self._holdings: Holdings | None = None
        self._begun: float | None = None  # since when it fetches; None: it does not
        self._sourced = False  # whether the learner has said of whom to fetch
        self._ahead: deque[int] = deque()  # shards to ask for
        self._asked: dict[int, tuple[ShardRequest, int]] = {}  # by shard: what is on its way, and its size
        self._of_learner: set[int] = set()  # shards that the parent could not give
        self._damaged: Counter[int] = Counter()  # shard → times it arrived damaged
        self._wire_bytes = 0
        self._silence = Deadline(SILENCE_SECONDS)  # twice as long each time that it passes

    @property
    def sockets(self) -> list[zmq.Socket[bytes]]:
        """The learner's, a parent's, and the children's."""
        return [each.socket for each in (self._learner, self._parent, self._relay) if each is not None]

    @property
    def progress(self) -> str:
        """Shards that are here."""
        if self._begun is None or self._holdings is None:
            return ""
        shards = len(self._holdings.checksums)
        arrived = shards - len(self._ahead) - len(self._asked)
        return f"weights of version {self._holdings.goal.version}, {arrived} of {shards} shards are here"

    def begin(self, manifest: WeightManifest) -> None:
        """Fetch what is missing for this version, and no other any more."""
        self.fetch(self.aim(manifest), now())

    def aim(self, manifest: WeightManifest) -> Holdings:
        """Where this version will be; nothing is fetched yet."""
        if self._holdings is None or not self._holdings.aim(manifest):
            self._holdings = Holdings(manifest)
        return self._holdings

    def forget(self) -> None:
        """Nothing that is held is of use to the next version, nor the memory that it lies in; nothing is fetched."""
        self.stop()
        self._relay.holdings = self._holdings = None

    def fetch(self, holdings: Holdings, since: float) -> None:
        """Fetch what `holdings` lack of their goal; the time that it takes counts from `since`."""
        self._begun, self._wire_bytes = since, 0
        self._ahead = deque(holdings.missing)
        self._asked.clear()
        self._of_learner.clear()
        self._damaged.clear()
        self._leave_parent()
        self._relay.begin(holdings)
        self._heard()
        self._ask_for_source()

    def stop(self) -> None:
        """Fetch nothing until the next `begin`; what has arrived stays."""
        self._begun = None
        self._ahead.clear()
        self._asked.clear()
        self._relay.end()
        self._leave_parent()

    def turn(self) -> FetchedVersion | None:
        """Take what has arrived; the version when it is whole. Raises `VersionLost`."""
        self._relay.turn()
        try:
            self._receive()
        except VersionLost:
            self.stop()
            raise
        if self._begun is None or self._holdings is None:
            return None
        if not self._ahead and not self._asked:
            way, seconds = "zmq" if self._parent is None else "relay", now() - self._begun
            self.stop()
            return FetchedVersion(self._holdings.goal, self._holdings.data, way, self._wire_bytes, seconds)
        if self._silence.passed:
            self._stir()
        return None

    def _receive(self) -> None:
        for line in (self._learner, self._parent):
            if line is None:
                continue
            for _ in range(MESSAGES_A_TURN):
                if (message := line.receive()) is None:
                    break
                self._on(message, line)
                self._ask()  # before the next message is looked at, so that the source has always something to send

    def give_back(self, fetched: FetchedVersion) -> None:
        """Its bytes may change again: nothing to be done, the next `begin` comes after this."""

    def close(self) -> None:
        """Leave the learner and the others."""
        self._leave_parent()
        self._learner.close()
        self._relay.close()

    # ------------------------------------------------------------ sources

    def _ask_for_source(self, failed: str = "") -> None:
        assert self._holdings is not None, "a fetch has begun"
        self._sourced = False
        version, held = self._holdings.goal.version, self._holdings.base()
        self._learner.send(SourceRequest(version=version, held=held, endpoint=self._relay.endpoint, failed=failed))

    def _leave_parent(self) -> None:
        if self._parent is not None:
            self._parent.close()
            self._parent = None

    def _stir(self) -> None:
        """Nothing came for too long: leave the parent for the learner, or ask the learner again."""
        failed = ""
        if self._parent is not None:
            failed = self._parent.peer.decode()
            log.warning("%s, of which weights are fetched, is silent: the learner is asked", failed)
            metrics.weight_sources_lost.inc()
            self._leave_parent()
        self._ahead.extendleft(reversed(self._asked))
        self._asked.clear()
        self._silence = Deadline(2 * self._silence.seconds)
        self._ask_for_source(failed)

    def _heard(self) -> None:
        """A source is there."""
        self._silence = Deadline(SILENCE_SECONDS)

    def _ask(self) -> None:
        """Keep a window of requests on their way."""
        if not self._sourced or self._holdings is None:
            return
        outstanding = sum(nbytes for _, nbytes in self._asked.values())
        while self._ahead and len(self._asked) < WINDOW and (outstanding < WINDOW_BYTES or not self._asked):
            shard = self._ahead.popleft()
            request, nbytes = self._holdings.request(shard)
            self._asked[shard] = (request, nbytes)
            outstanding += nbytes
            line = self._learner if self._parent is None or shard in self._of_learner else self._parent
            line.send(request)

    # ------------------------------------------------------------ what arrives

    @singledispatchmethod
    def _on(self, message: Message | Rejected, line: Dealer) -> None:
        metrics.messages_rejected.inc()
        log.warning("from %s, where weights are fetched: %s: ignored", line.peer.decode(), message)

    @_on.register
    def _(self, message: Source, line: Dealer) -> None:
        if self._begun is None or self._holdings is None or message.version != self._holdings.goal.version:
            return
        self._sourced = True
        self._heard()
        if message.endpoint and message.endpoint != self._relay.endpoint and self._parent is None:
            try:
                self._parent = Dealer(message.endpoint, listener="actor")
            except ValueError as error:
                log.warning("the learner sent this actor to %s: %s", message.endpoint, error)

    @_on.register
    def _(self, message: ShardComing, line: Dealer) -> None:
        """The source is alive."""
        self._heard()

    @_on.register
    def _(self, message: Shard, line: Dealer) -> None:
        metrics.weights_fetched_bytes.inc(len(message.data))
        self._heard()
        if not self._expected(message) or self._holdings is None:
            return
        self._wire_bytes += len(message.data)
        try:
            self._holdings.take(message)
        except Damaged as error:
            self._again(message, str(error), line)
            return
        del self._asked[message.shard]
        if self._holdings.has(message.shard):
            self._relay.arrived(message)
        else:
            self._ahead.appendleft(message.shard)  # there is another delta to come
            if message.delta:
                self._relay.arrived(message)

    def _again(self, message: Shard, problem: str, line: Dealer) -> None:
        shard = message.shard
        metrics.weight_shards_corrupt.inc()
        self._damaged[shard] += 1
        del self._asked[shard]
        text = f"shard {shard} of version {message.version} from {line.peer.decode()} arrived damaged"
        if self._damaged[shard] >= ATTEMPTS:
            raise VersionLost(f"{text} {ATTEMPTS} times: {problem}")
        log.warning("%s: %s; asked again", text, problem)
        self._of_learner.add(shard)
        self._ahead.appendleft(shard)

    @_on.register
    def _(self, message: ShardGone, line: Dealer) -> None:
        self._heard()
        if not self._expected(message) or self._holdings is None:
            return
        if line is self._parent:
            self._of_learner.add(message.shard)
        elif message.delta:
            self._holdings.without_delta(message.shard)
        else:
            raise VersionLost("it is gone from the weight server")
        del self._asked[message.shard]
        self._ahead.appendleft(message.shard)

    def _expected(self, message: Shard | ShardGone) -> bool:
        """Whether this answers what was asked last for this shard."""
        asked = self._asked.get(message.shard)
        return asked is not None and (asked[0].version, asked[0].delta) == (message.version, message.delta)
