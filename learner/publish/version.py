"""A version that can be served: its bytes, what describes them, and the delta that leads to it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

from protocol import delta
from protocol.delta import Bytes
from protocol.messages import DeltaSpec, ShardSpec, TensorSpec, WeightManifest
from protocol.segments import Segment
from protocol.weights import checksum, fingerprint, shard_bytes

PROBED = 16  # shards after which it can be said whether a delta is worth it

A = TypeVar("A")
T = TypeVar("T")


class Spread(Protocol):
    """`map`, or one that several threads share."""

    def __call__(self, work: Callable[[A], T], items: Iterable[A], /) -> Iterable[T]:
        """The results in the order of the items."""


@dataclass(frozen=True, slots=True)
class Step:
    """The delta of a whole version, shard by shard."""

    spec: DeltaSpec
    coded: tuple[Bytes, ...]  # [D] uint8 each; empty: the shard did not change
    changed: int  # 16-bit words

    @property
    def nbytes(self) -> int:
        """Bytes of all shards' deltas."""
        return sum(self.spec.nbytes)


@dataclass(frozen=True, slots=True)
class PublishedVersion:
    """A version as it is served."""

    manifest: WeightManifest
    segment: Segment

    def shard(self, index: int) -> Bytes:
        """The bytes of a shard, lent."""
        size = self.manifest.shards[0].nbytes
        return self.segment.lend(index * size, min((index + 1) * size, len(self.segment.data)))


@dataclass(frozen=True, slots=True)
class Address:
    """Where a weight server is found."""

    endpoint: str  # zmq
    local: str = ""  # on its own host
    group: int = 0  # actors that receive versions together; 0: none do


def seal(
    version: int,
    tensors: tuple[TensorSpec, ...],
    segment: Segment,
    address: Address,
    steps: tuple[Step, ...] = (),
    spread: Spread = map,
) -> PublishedVersion:
    """Describe a version; `steps` are the deltas that lead to it, oldest first."""
    data = cut(segment.data)
    shards = tuple(
        ShardSpec(nbytes=len(shard), checksum=found) for shard, found in zip(data, spread(checksum, data), strict=True)
    )
    manifest = WeightManifest(
        version=version,
        fingerprint=fingerprint(tensors, shards),
        endpoint=address.endpoint,
        local=address.local,
        group=address.group,
        tensors=tensors,
        shards=shards,
        deltas=tuple(step.spec for step in steps),
    )
    return PublishedVersion(manifest, segment)


def step_between(
    base: PublishedVersion, version: int, data: Bytes, *, limit: float, spread: Spread = map
) -> Step | None:
    """The delta from `base` to `data`, the bytes of `version`; None when it is larger than `limit` times the whole."""
    old, new = cut(base.segment.data), cut(data)
    if len(base.segment.data) != len(data):
        return None

    def encode(index: int) -> Bytes:
        return delta.encode(old[index], new[index])

    order = np.random.default_rng(version).permutation(len(new)).tolist()  # the first ones speak for all
    coded: dict[int, Bytes] = {}
    for some in (order[:PROBED], order[PROBED:]):
        coded |= zip(some, spread(encode, some), strict=True)
        if sum(map(len, coded.values())) > limit * sum(len(new[index]) for index in coded):
            return None
    every = tuple(coded[index] for index in range(len(new)))
    spec = DeltaSpec(version=version, base=base.manifest.version, nbytes=tuple(map(len, every)))
    return Step(spec, every, sum(map(delta.changed_words, every)))


def cut(data: Bytes) -> list[Bytes]:
    """The shards of a version's bytes, views."""
    size = shard_bytes(len(data))
    return [data[begin : begin + size] for begin in range(0, len(data), size)]
