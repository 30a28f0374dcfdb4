"""Versions made in one process, for tests that need one and not how it came about."""

from collections.abc import Iterable

import numpy as np
import torch

from learner.publish.layout import Held, lay_out
from learner.publish.version import Address, PublishedVersion, Step, seal
from protocol.segments import Segment

NOWHERE = "tcp://127.0.0.1:1"


def publish(
    version: int,
    state: Iterable[tuple[str, torch.Tensor]],
    dtype: torch.dtype | None = None,
    *,
    endpoint: str = NOWHERE,
    steps: tuple[Step, ...] = (),
) -> PublishedVersion:
    """The version of a state dictionary; floating tensors are cast to `dtype` when one is given."""
    held = [Held(name, tuple(tensor.shape), tensor.dtype, False, tensor.detach()) for name, tensor in state]
    layout = lay_out(held, {}, dtype)
    segment = Segment(layout.nbytes)
    data = torch.from_numpy(segment.data)
    for spec, each in zip(layout.tensors, held, strict=True):
        place = data[spec.offset : spec.offset + spec.nbytes].view(getattr(torch, spec.dtype))
        place.copy_(each.local.reshape(-1))
    return seal(version, layout.tensors, segment, Address(endpoint), steps)


def tensors_of(version: PublishedVersion) -> dict[str, torch.Tensor]:
    """The tensors as an actor reads them, cut by the manifest; copies."""
    return {
        spec.name: torch.from_numpy(version.segment.data[spec.offset : spec.offset + spec.nbytes].copy())
        .view(getattr(torch, spec.dtype))
        .reshape(spec.shape)
        for spec in version.manifest.tensors
    }


def shards_of(version: PublishedVersion) -> list[np.ndarray]:
    """Its shards."""
    return [version.shard(index) for index in range(len(version.manifest.shards))]
