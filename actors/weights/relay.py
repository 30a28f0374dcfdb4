"""What an actor serves to other actors: the version that it fetches, shard by shard as they arrive, and its deltas.

It consumes shard requests. What it is still fetching itself it promises (`ShardComing`, repeated, so that a child tells
a slow line from a dead parent) and sends as soon as it is verified; what it will not have it refuses at once. All this
runs in the thread that fetches, so that what is sent is never half of one version and half of another.
"""

import logging
from collections import OrderedDict

import zmq

from actors import metrics
from actors.requests import Bytes
from actors.weights.holdings import Holdings
from protocol.clock import Ticker
from protocol.messages import Shard, ShardComing, ShardGone, ShardRequest
from protocol.sockets import Router

log = logging.getLogger("actor")

REQUEST_BYTES = 2**16  # largest frame that another actor may send
UNREAD_SHARDS = 512  # that wait for a child which does not read, before it is cut off; an honest one asks for 64
PROMISE_SECONDS = 1.0  # between two words to a child that waits
DELTA_VERSIONS = 4  # whose deltas are kept
MESSAGES_A_TURN = 100


class Relay:
    """Serves what `holdings` and the deltas that passed through give."""

    def __init__(self, host: str) -> None:
        self._router = Router(f"tcp://{host}:*", roles=("actor",), largest=REQUEST_BYTES, unread=UNREAD_SHARDS)
        self.endpoint = self._router.address
        self.holdings: Holdings | None = None
        self._fetching = False
        self._deltas: OrderedDict[int, dict[int, Bytes]] = OrderedDict()  # version → shard → delta
        self._waiting: dict[int, list[tuple[bytes, ShardRequest]]] = {}  # by shard
        self._promise = Ticker(PROMISE_SECONDS)

    @property
    def socket(self) -> zmq.Socket[bytes]:
        """What to poll."""
        return self._router.socket

    def begin(self, holdings: Holdings) -> None:
        """From now on `holdings` is being completed; promises for another version cannot be kept."""
        self.holdings, self._fetching = holdings, True
        for asked in self._take_waiting():
            self._answer(*asked)

    def arrived(self, shard: Shard) -> None:
        """A delta was applied, or a shard completed: pass it on."""
        if shard.delta:
            self._deltas.setdefault(shard.version, {})[shard.shard] = shard.data
            while len(self._deltas) > DELTA_VERSIONS:
                self._deltas.popitem(last=False)
        for asked in self._waiting.pop(shard.shard, ()):
            self._answer(*asked)

    def end(self) -> None:
        """The version is whole, or given up: nothing more will come."""
        self._fetching = False
        for asked in self._take_waiting():
            self._answer(*asked)

    def turn(self) -> None:
        """Take requests; keep those who wait from losing patience."""
        for _ in range(MESSAGES_A_TURN):
            if (received := self._router.receive()) is None:
                break
            child, message = received
            if isinstance(message, ShardRequest):
                self._answer(child, message)
            else:
                metrics.messages_rejected.inc()
                log.warning("asked for weights by something that cannot be taken: %s", message)
        if self._waiting and self._promise.due():
            for requests in self._waiting.values():
                for child, asked in requests:
                    self._router.send(child, ShardComing(version=asked.version, shard=asked.shard))

    def close(self) -> None:
        """Serve nobody any more."""
        self._router.close()

    def _take_waiting(self) -> list[tuple[bytes, ShardRequest]]:
        waiting = [asked for requests in self._waiting.values() for asked in requests]
        self._waiting.clear()
        return waiting

    def _answer(self, child: bytes, asked: ShardRequest) -> None:
        version, shard = asked.version, asked.shard
        if (data := self._find(asked)) is not None:
            metrics.weights_relayed_bytes.inc(len(data))
            self._router.send(child, Shard(version=version, shard=shard, delta=asked.delta, data=data))
        elif self._will_have(asked):
            self._waiting.setdefault(shard, []).append((child, asked))
            self._router.send(child, ShardComing(version=version, shard=shard))
        else:
            self._router.send(child, ShardGone(version=version, shard=shard, delta=asked.delta))

    def _find(self, asked: ShardRequest) -> Bytes | None:
        if asked.delta:
            return self._deltas.get(asked.version, {}).get(asked.shard)
        held = self.holdings
        if held is None or held.goal.version != asked.version or asked.shard >= len(held.checksums):
            return None
        return held.bytes_of(asked.shard).copy() if held.has(asked.shard) else None  # the next delta changes it

    def _will_have(self, asked: ShardRequest) -> bool:
        held = self.holdings
        if not self._fetching or held is None or asked.shard >= len(held.checksums) or held.has(asked.shard):
            return False
        if not asked.delta:
            return asked.version == held.goal.version
        return any(version == asked.version for version, _ in held.steps(asked.shard))
