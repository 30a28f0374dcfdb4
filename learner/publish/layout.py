"""Where each tensor of a version lies among its bytes, and what each rank holds of it.

Under FSDP2 a rank holds consecutive rows of every parameter, so that what it publishes is a handful of byte ranges and
nothing has to be gathered first. What is not held so (buffers, merged adapters, tensor-parallel slices) is gathered
whole, and published by the first rank.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor, Shard

from learner.distributed import Ranks
from learner.policy.lora import SCALE
from learner.policy.model import Policy, full_state
from protocol.messages import TensorSpec
from protocol.weights import ALIGNMENT


@dataclass(frozen=True, slots=True)
class Held:
    """One tensor of the policy, as far as this rank holds it."""

    name: str  # HF name
    shape: tuple[int, ...]  # of the whole
    dtype: torch.dtype  # of the master weight
    by_rows: bool  # every rank holds some rows; else the first rank publishes it
    local: torch.Tensor


@dataclass(frozen=True, slots=True)
class Part:
    """A range of a version's bytes that one rank publishes."""

    tensor: int  # index in the layout
    begin: int  # bytes from the beginning of the version
    nbytes: int
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class Layout:
    """The tensors of a version, tied ones with the place of the first, and which of them lie on the ranks by rows."""

    tensors: tuple[TensorSpec, ...]
    nbytes: int
    by_rows: tuple[bool, ...]  # for each tensor
    tied: frozenset[str]  # names whose bytes are those of another

    def parts(self, rank: int, world: int) -> list[Part]:
        """What `rank` publishes, in the order of the tensors."""
        found = []
        for index, (spec, by_rows) in enumerate(zip(self.tensors, self.by_rows, strict=True)):
            if spec.name in self.tied or not (by_rows or rank == 0):
                continue
            first, last = row_range(spec.shape[0], rank, world) if by_rows else (0, 1)
            row = spec.nbytes // max(spec.shape[0], 1) if by_rows else spec.nbytes
            dtype: torch.dtype = getattr(torch, spec.dtype)
            found.append(Part(index, spec.offset + first * row, (last - first) * row, dtype))
        return found


def row_range(rows: int, rank: int, world: int) -> tuple[int, int]:
    """The rows that FSDP2 gives `rank`: equal pieces, the last ones smaller or empty."""
    piece = -(-rows // world)
    return min(rank * piece, rows), min((rank + 1) * piece, rows)


def held(policy: Policy, ranks: Ranks) -> Iterator[Held]:
    """Every parameter and buffer under its HF name, `lm_head.weight` also when tied. Collective."""
    state: Mapping[str, Any] = policy.state_dict(keep_vars=True)
    if ranks.tensor_mesh is not None or f"network.{SCALE}" in state:
        for name, tensor in full_state(policy):
            yield Held(name, tuple(tensor.shape), tensor.dtype, False, tensor)
        return
    for full_name, tensor in state.items():
        name = full_name.removeprefix("network.")
        by_rows = isinstance(tensor, DTensor)
        if isinstance(tensor, DTensor):
            assert tensor.placements == (Shard(0),), f"{name} is sharded as {tensor.placements}, FSDP2 does it by rows"
            local = tensor.to_local()
        else:
            local = tensor
        yield Held(name, tuple(tensor.shape), tensor.dtype, by_rows, local.detach())


def tied(network: nn.Module) -> dict[str, str]:
    """Names of parameters that are another one under a second name → the first name."""
    first: dict[int, str] = {}
    again = {}
    for name, parameter in network.named_parameters(remove_duplicate=False):
        if first.setdefault(id(parameter), name) != name:
            again[name] = first[id(parameter)]
    return again


def lay_out(tensors: Iterable[Held], same: Mapping[str, str], dtype: torch.dtype | None) -> Layout:
    """Put tensors one after the other; floating ones will have `dtype`, if one is given. `same`: as `tied` gives it."""
    specs: list[TensorSpec] = []
    by_rows: list[bool] = []
    places: dict[str, tuple[int, int]] = {}
    end = 0
    for each in tensors:
        published = dtype if dtype is not None and each.dtype.is_floating_point else each.dtype
        if (twin := same.get(each.name)) in places:
            begin, nbytes = places[twin]
        else:
            begin, nbytes = -(-end // ALIGNMENT) * ALIGNMENT, prod(each.shape) * published.itemsize
            end = begin + nbytes
        places[each.name] = (begin, nbytes)
        name: Any = str(published).removeprefix("torch.")
        specs.append(TensorSpec(name=each.name, dtype=name, shape=each.shape, offset=begin, nbytes=nbytes))
        by_rows.append(each.by_rows)
    repeated = frozenset(name for name, twin in same.items() if twin in places and name in places)
    return Layout(tuple(specs), end, tuple(by_rows), repeated)
