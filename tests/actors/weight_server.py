"""A weight server whose every answer the test decides, and versions for it."""

import time

import numpy as np

from protocol import delta
from protocol.clock import Deadline
from protocol.messages import (
    DeltaSpec,
    Loaded,
    Shard,
    ShardRequest,
    ShardSpec,
    Source,
    SourceRequest,
    TensorSpec,
    WeightManifest,
)
from protocol.sockets import Router
from protocol.weights import checksum, fingerprint

ARRIVAL_SECONDS = 5.0
SIZE = 8  # bytes of a shard


class Server:
    """Versions of two tensors in shards of 8 bytes. Questions for a source are answered with `source`."""

    def __init__(self, address: str = "tcp://127.0.0.1:*") -> None:
        self.router = _bound(address)
        self.data: dict[int, list[np.ndarray]] = {}  # version → shards
        self.deltas: dict[int, list[np.ndarray]] = {}  # version → deltas of its shards
        self.manifests: dict[int, WeightManifest] = {}
        self.source = ""
        self.asked_sources: list[SourceRequest] = []
        self.loaded: list[Loaded] = []

    def manifest(
        self,
        version: int,
        shards: int = 10,
        *,
        endpoint: str = "",
        local: str = "",
        base: int | None = None,
        seed: int = 0,
    ) -> WeightManifest:
        """Describe a new version: random, or like `base` but for a byte in every other shard."""
        if base is None:
            data = np.random.default_rng((seed, version)).integers(0, 256, SIZE * shards, dtype=np.uint8)
            chain: tuple[DeltaSpec, ...] = ()
        else:
            before = self.data[base]
            data = np.concatenate(before)
            data[:: 2 * SIZE] += 1
            self.deltas[version] = [
                delta.encode(old, new) for old, new in zip(before, np.split(data, shards), strict=True)
            ]
            step = DeltaSpec(version=version, base=base, nbytes=tuple(map(len, self.deltas[version])))
            chain = (*self.manifests[base].deltas, step)
        self.data[version] = np.split(data, shards)
        tensors = (
            TensorSpec(name="first", dtype="bfloat16", shape=(3,), offset=0, nbytes=6),
            TensorSpec(name="second", dtype="uint8", shape=(len(data) - 6,), offset=6, nbytes=len(data) - 6),
        )
        specs = tuple(ShardSpec(nbytes=len(shard), checksum=checksum(shard)) for shard in self.data[version])
        self.manifests[version] = WeightManifest(
            version=version,
            fingerprint=fingerprint(tensors, specs),
            endpoint=endpoint or self.router.address,
            local=local,
            tensors=tensors,
            shards=specs,
            deltas=chain,
        )
        return self.manifests[version]

    def request(self) -> tuple[bytes, ShardRequest]:
        """The next request for a shard, which must come."""
        while True:
            received = self.router.receive(ARRIVAL_SECONDS)
            assert received is not None
            peer, message = received
            if isinstance(message, SourceRequest):
                self.asked_sources.append(message)
                self.router.send(peer, Source(version=message.version, endpoint=self.source))
            elif isinstance(message, Loaded):
                self.loaded.append(message)
            else:
                assert isinstance(message, ShardRequest)
                return peer, message

    def requests(self, count: int) -> list[tuple[bytes, ShardRequest]]:
        """The next `count` requests."""
        return [self.request() for _ in range(count)]

    def answer(self, peer: bytes, asked: ShardRequest) -> None:
        """Send what was asked for."""
        data = (self.deltas if asked.delta else self.data)[asked.version][asked.shard]
        self.router.send(peer, Shard(version=asked.version, shard=asked.shard, delta=asked.delta, data=data))

    def idle(self) -> bool:
        """Whether nothing further is asked."""
        return not self.router.readable(0.1)


def _bound(address: str) -> Router:
    """A router there, as soon as the one before has left."""
    deadline = Deadline(ARRIVAL_SECONDS)
    while True:
        try:
            return Router(address)
        except OSError:
            assert not deadline.passed
            time.sleep(0.01)
