"""A group of processes that receive the same bytes at once, over torch.distributed, beside any group that trains.

Between GPUs it is NCCL, else gloo. Its members are fixed: whoever dies or is silent ends it for all, by an error and
within the time that was agreed. torch.distributed knows no keys: what travels here can be read, and a group be broken,
by whoever reaches the ports; what arrives is verified by checksums that came with the keys of the run.

Array legend: N bytes of a version.
"""

import socket
from datetime import timedelta
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
import torch.distributed

dist: Any = torch.distributed  # whose stubs leave out what is used here
Backend: TypeAlias = Literal["gloo", "nccl"]
Bytes: TypeAlias = np.ndarray[Any, np.dtype[np.uint8]]

PART_BYTES = 64 * 2**20  # broadcast at once


class GroupBroken(Exception):
    """The group cannot be formed, or lost a member; there will be another."""


class Rendezvous:
    """Where the members of groups find each other, on one address of this host."""

    def __init__(self, host: str) -> None:
        listener = socket.create_server((host, 0))
        self.host, self.port = host, int(listener.getsockname()[1])
        self.store = dist.TCPStore(
            host, self.port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach()
        )

    @property
    def address(self) -> str:
        """host:port"""
        return f"{self.host}:{self.port}"


def find(address: str, seconds: float) -> Any:
    """The rendezvous at host:port. Raises `GroupBroken`."""
    host, _, port = address.rpartition(":")
    try:
        return dist.TCPStore(host, int(port), is_master=False, timeout=timedelta(seconds=seconds))
    except (RuntimeError, ValueError) as error:
        raise GroupBroken(f"no rendezvous at {address}: {error}") from None


class Collective:
    """Group `number` of `store`, of which this process is `rank`; rank 0 sends. Made by all of its `world` at once.

    Each call ends within `seconds`. Raises `GroupBroken`, then and later.
    """

    def __init__(
        self, store: Any, number: int, rank: int, world: int, *, backend: Backend, host: str, seconds: float
    ) -> None:
        self.number = number
        self._staging: torch.Tensor | None = None
        limit = timedelta(seconds=seconds)
        store = dist.PrefixStore(f"weights/{number}", store)
        store.set_timeout(limit)
        try:
            if backend == "nccl":
                options = dist.ProcessGroupNCCL.Options()
                options._timeout = limit
                self._group: Any = dist.ProcessGroupNCCL(store, rank, world, options)
                self._staging = torch.empty(PART_BYTES, dtype=torch.uint8, device="cuda")
            else:
                gloo = dist.ProcessGroupGloo._Options()
                gloo._devices = [dist.ProcessGroupGloo.create_device(hostname=host)]
                gloo._timeout = limit
                self._group = dist.ProcessGroupGloo(store, rank, world, gloo)
        except RuntimeError as error:
            raise GroupBroken(f"group {number} was not formed: {_first_line(error)}") from None
        self._limit = limit

    def broadcast(self, data: Bytes) -> None:
        """Bring rank 0's `data`, [N] uint8, into that of all others."""
        whole = torch.from_numpy(data)
        try:
            for begin in range(0, len(data), PART_BYTES):
                self._broadcast(whole[begin : begin + PART_BYTES])
        except RuntimeError as error:
            raise GroupBroken(f"group {self.number} broke: {_first_line(error)}") from None

    def _broadcast(self, part: torch.Tensor) -> None:
        options = dist.BroadcastOptions()
        options.rootRank, options.rootTensor = 0, 0
        if self._staging is None:
            self._group.broadcast([part], options).wait(self._limit)
            return
        staged = self._staging[: len(part)]
        if self._group.rank() == 0:
            staged.copy_(part)
        self._group.broadcast([staged], options).wait(self._limit)
        if self._group.rank() != 0:
            part.copy_(staged)

    def close(self) -> None:
        """Leave; the others notice at their next call."""
        self._group = None


def _first_line(error: RuntimeError) -> str:
    return str(error).partition("\n")[0]
