"""A group of processes that receive the same bytes at once, over torch.distributed, beside any group that trains.

Between GPUs it is NCCL, else gloo. Its members are fixed: whoever dies or is silent ends it for all, by an error and
within the time that was agreed. torch.distributed knows no keys: what travels here can be read, and a group be broken,
by whoever reaches the ports; what arrives is verified by checksums that came with the keys of the run.

It cannot wait in a circle with a group that trains on the same GPU: the actors' part in a broadcast waits for nothing
that the learner does besides, nor does training wait for any actor.

Array legend: N bytes of a version.
"""

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Generic, Literal, TypeAlias, TypeVar

import numpy as np
import torch
import torch.distributed

from protocol.clock import Deadline

T = TypeVar("T")
dist: Any = torch.distributed  # whose stubs leave out what is used here
Backend: TypeAlias = Literal["gloo", "nccl"]
Bytes: TypeAlias = np.ndarray[Any, np.dtype[np.uint8]]

PART_BYTES = 64 * 2**20  # broadcast at once
GRACE_SECONDS = 2.0  # for torch.distributed to keep its time, before a call counts as one that never returns
CLOSE_SECONDS = 5.0  # for a call that is under way when its process is to end
BLOCKING_WAIT = "TORCH_NCCL_BLOCKING_WAIT"


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

    It is made within `seconds`, and so is each broadcast. Raises `GroupBroken`, then and later. With NCCL both may
    never return when a member dies while its communicator is made: run them as an `Attempt`.
    """

    def __init__(
        self, store: Any, number: int, rank: int, world: int, *, backend: Backend, host: str, seconds: float
    ) -> None:
        self.number = number
        self._rank = rank
        self._seconds = seconds
        self._staging: torch.Tensor | None = None
        limit = timedelta(seconds=seconds)
        store = dist.PrefixStore(f"weights/{number}", store)
        store.set_timeout(limit)
        try:
            if backend == "nccl":
                self._group: Any = _nccl(store, rank, world, limit)
                self._staging = torch.empty(PART_BYTES, dtype=torch.uint8, device="cuda")
            else:
                self._group = _gloo(store, rank, world, limit, host)
        except RuntimeError as error:
            raise GroupBroken(f"group {number} was not formed: {_first_line(error)}") from None

    def broadcast(self, data: Bytes) -> None:
        """Bring rank 0's `data`, [N] uint8, into that of all others. After an error nobody may use `data` again: a part
        of it can still be on its way."""
        whole, deadline = torch.from_numpy(data), Deadline(self._seconds)
        try:
            for begin in range(0, len(data), PART_BYTES):
                if deadline.passed:
                    raise GroupBroken(f"group {self.number} broke: no broadcast within {self._seconds:.0f} s")
                self._broadcast(whole[begin : begin + PART_BYTES], deadline)
        except RuntimeError as error:
            raise GroupBroken(f"group {self.number} broke: {_first_line(error)}") from None

    def _broadcast(self, part: torch.Tensor, deadline: Deadline) -> None:
        options = dist.BroadcastOptions()
        options.rootRank, options.rootTensor = 0, 0
        staged = part if self._staging is None else self._staging[: len(part)]
        if self._staging is not None and self._rank == 0:
            staged.copy_(part)
        limit = timedelta(seconds=deadline.remaining) + timedelta(milliseconds=1)  # none at all is no limit to torch
        self._group.broadcast([staged], options).wait(limit)
        if self._staging is not None and self._rank != 0:
            part.copy_(staged)

    def close(self) -> None:
        """Leave; the others notice at their next call. Not while a call is under way."""
        if self._staging is not None and self._group is not None:
            self._group.abort()  # what its destructor does too, but with a warning
        self._group = None


class Attempt(Generic[T]):
    """A call of torch.distributed in a thread of its own, which is waited for `seconds` and a little, and no longer.

    A call that is overdue is left to itself and keeps nobody from ending the process; whatever it writes to must not be
    used any more. Await it before the process ends: a thread that comes back from torch.distributed while Python is
    being taken down aborts the process.
    """

    def __init__(self, call: Callable[[], T], seconds: float) -> None:
        self._call = call
        self._deadline = Deadline(seconds + GRACE_SECONDS)
        self._result: T | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="group", daemon=True)
        self._thread.start()

    @property
    def over(self) -> bool:
        """Whether it has ended, or is not waited for any more."""
        return not self._thread.is_alive() or self._deadline.passed

    def wait(self, seconds: float = CLOSE_SECONDS) -> None:
        """Give it some time to end, whatever comes of it."""
        self._thread.join(seconds)

    def result(self) -> T:
        """What the call returned, once it is over. Raises what it raised, and `GroupBroken` when it is overdue."""
        if self._thread.is_alive():
            raise GroupBroken(f"torch.distributed did not return within {self._deadline.seconds:.0f} s")
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[return-value]  # None only where T is

    def _run(self) -> None:
        try:
            self._result = self._call()
        except BaseException as error:  # noqa: BLE001 - it is raised where the result is taken
            self._error = error


def _gloo(store: Any, rank: int, world: int, limit: timedelta, host: str) -> Any:
    options = dist.ProcessGroupGloo._Options()
    options._devices = [dist.ProcessGroupGloo.create_device(hostname=host)]
    options._timeout = limit
    return dist.ProcessGroupGloo(store, rank, world, options)


def _nccl(store: Any, rank: int, world: int, limit: timedelta) -> Any:
    options = dist.ProcessGroupNCCL.Options()
    options._timeout = limit
    with _without_watchdog():
        return dist.ProcessGroupNCCL(store, rank, world, options)


@contextmanager
def _without_watchdog() -> Iterator[None]:
    """A group of NCCL that is made now raises errors where it is waited for.

    By default it has a watchdog, which ends the whole process when a member of the group is lost: here the learner,
    because an actor died. The group that trains keeps its own; an environment variable is the only way to choose.
    """
    before = os.environ.get(BLOCKING_WAIT, "0")
    os.environ[BLOCKING_WAIT] = "1"
    try:
        yield
    finally:
        os.environ[BLOCKING_WAIT] = before  # not removed: that moves the others while a thread may read them


def _first_line(error: RuntimeError) -> str:
    return str(error).partition("\n")[0]
