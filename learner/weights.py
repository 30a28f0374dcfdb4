"""A weight version, from tensors to manifest and shards, and the store that the weight server reads.

`snapshot` copies the parameters (the only part for which training waits); `seal` hashes the copy and may run in
another thread while the next step trains.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch

from protocol.messages import Shard, ShardGone, ShardSpec, TensorSpec, WeightManifest
from protocol.weights import SHARD_BYTES, checksum, fingerprint

Bytes: TypeAlias = np.ndarray[Any, np.dtype[np.uint8]]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The weights of one version as they were between two steps."""

    version: int
    tensors: tuple[TensorSpec, ...]
    data: Bytes  # [sum of nbytes] uint8, tensors one after the other


@dataclass(frozen=True, slots=True)
class PublishedVersion:
    """A snapshot that can be served: its shards are views of one buffer."""

    manifest: WeightManifest
    shards: tuple[Bytes, ...]  # [S] uint8 each


def snapshot(version: int, state: Iterable[tuple[str, torch.Tensor]], dtype: torch.dtype | None) -> Snapshot:
    """Copy `state` (HF names, full tensors); floating tensors are cast to `dtype` when one is given."""
    specs: list[TensorSpec] = []
    chunks: list[torch.Tensor] = []
    offset = 0
    for name, tensor in state:
        cast = tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor
        flat = cast.detach().cpu().contiguous().view(-1).view(torch.uint8)  # [nbytes]
        dtype_name: Any = str(cast.dtype).removeprefix("torch.")
        shape = tuple(cast.shape)
        specs.append(TensorSpec(name=name, dtype=dtype_name, shape=shape, offset=offset, nbytes=flat.numel()))
        chunks.append(flat)
        offset += flat.numel()
    return Snapshot(version, tuple(specs), torch.cat(chunks).numpy())


def seal(taken: Snapshot, endpoint: str) -> PublishedVersion:
    """Cut a snapshot into shards and describe it; actors will ask `endpoint` for them."""
    shards = tuple(taken.data[start : start + SHARD_BYTES] for start in range(0, len(taken.data), SHARD_BYTES))
    specs = tuple(ShardSpec(nbytes=len(shard), checksum=checksum(shard)) for shard in shards)
    manifest = WeightManifest(
        version=taken.version,
        fingerprint=fingerprint(taken.tensors, specs),
        endpoint=endpoint,
        tensors=taken.tensors,
        shards=specs,
    )
    return PublishedVersion(manifest, shards)


class WeightStore:
    """The newest `kept` versions."""

    def __init__(self, kept: int) -> None:
        self.kept = kept
        self._versions: dict[int, PublishedVersion] = {}

    def add(self, published: PublishedVersion) -> None:
        """Keep `published`, forget what is too old."""
        self._versions[published.manifest.version] = published
        for version in sorted(self._versions)[: -self.kept]:
            del self._versions[version]

    def shard(self, version: int, index: int) -> Shard | ShardGone:
        """The answer to a request for one shard."""
        published = self._versions.get(version)
        if published is None or index >= len(published.shards):
            return ShardGone(version=version)
        return Shard(version=version, shard=index, data=published.shards[index])
