"""What the ways to fetch weights have in common: what they bring, and how they fail.

Array legend: N bytes of a version.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import zmq

from actors.requests import Bytes
from protocol.errors import ProtocolError
from protocol.messages import TensorSpec, WeightManifest


class WeightsUnavailable(ProtocolError):
    """A version cannot be had, or not in time; the text says which and why."""


class VersionLost(Exception):
    """This version cannot be completed; a newer one may be."""


class WayLost(Exception):
    """This way does not lead to the weights (any more); another may."""


@dataclass(frozen=True, slots=True)
class FetchedVersion:
    """A whole version whose checksums and fingerprint were verified. It stays as it is until it is given back."""

    manifest: WeightManifest
    data: Bytes  # [N] uint8
    way: str  # shared_memory, zmq, relay, group
    wire_bytes: int  # that came over a wire for it
    seconds: float  # from the first request to the last byte verified

    def tensors(self) -> Iterator[tuple[TensorSpec, Bytes]]:
        """Every tensor with its bytes, a view of `data`, in the manifest's order."""
        for spec in self.manifest.tensors:
            yield spec, self.data[spec.offset : spec.offset + spec.nbytes]


class Way(Protocol):
    """A transport. It is used by one thread, which polls `sockets`, and does not wait by itself."""

    @property
    def sockets(self) -> list[zmq.Socket[bytes]]:
        """What to poll for reading; `turn` when something is there."""

    @property
    def progress(self) -> str:
        """How far the version under way is."""

    def begin(self, manifest: WeightManifest) -> None:
        """Fetch this version, and no other any more. Raises as `turn`."""

    def stop(self) -> None:
        """Fetch nothing until the next `begin`."""

    def turn(self) -> FetchedVersion | None:
        """Take what is here, see to deadlines; the version when it is whole. Call it now and then, begun or not.

        Raises `VersionLost` or `WayLost`.
        """

    def give_back(self, fetched: FetchedVersion) -> None:
        """Nobody reads this version any more."""

    def close(self) -> None:
        """End it."""
