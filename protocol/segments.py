"""Shared memory between processes of one host, which nobody has to clean up.

A segment is an anonymous file (`memfd_create`): it has no name, does not count against /dev/shm, and the kernel frees
it when the last process that holds it is gone, whatever killed that process. It is sealed: its size is fixed, and a
peer that maps it cannot write to it. Peers get it, as a file descriptor, over a socket in Linux's abstract namespace,
whose random name is of no use on another host or in another network namespace and vanishes with its owner. The
connection is the lease: what a reader took is in use until it says otherwise or its connection ends, by its death too.

    reader → owner   take, version        owner → reader   is there?, size, and the descriptor
    reader → owner   release, version
"""

import fcntl
import mmap
import os
import secrets
import socket
import struct
import sys
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

Bytes: TypeAlias = np.ndarray[Any, np.dtype[np.uint8]]

ASKED = struct.Struct("<cq")  # TAKE or RELEASE, version
ANSWER = struct.Struct("<?q")  # is it there, bytes
TAKE, RELEASE = b"t", b"r"
ANSWER_SECONDS = 10.0  # longest wait for an owner that is there
REMEMBERED = 8  # uses of other segments after which one is no longer kept mapped
SEAL_FUTURE_WRITE = 0x10  # F_SEAL_FUTURE_WRITE of linux/fcntl.h, which Python does not name


class Segment:
    """Memory that this process fills and others may read. `data` is [N] uint8, zero at first.

    Raises `OSError`, with the cure, when there is not so much.
    """

    def __init__(self, nbytes: int) -> None:
        self.fd = os.memfd_create("offbeat-weights", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        weakref.finalize(self, os.close, self.fd)
        try:
            os.posix_fallocate(self.fd, 0, nbytes)  # now, and not by a SIGBUS when a page is first touched
            self.data: Bytes = _map(os.dup(self.fd), nbytes, mmap.PROT_READ | mmap.PROT_WRITE)
        except OSError as error:
            raise OSError(
                f"no {nbytes / 1e9:.2f} GB of memory for a weight version ({error.strerror}): raise the memory limit "
                "of this process, publish in bfloat16 (learner.publish_dtype), or let the learner keep fewer versions "
                "(learner.versions_kept)"
            ) from None
        fcntl.fcntl(
            self.fd,
            fcntl.F_ADD_SEALS,
            fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | SEAL_FUTURE_WRITE | fcntl.F_SEAL_SEAL,
        )
        self._lent: list[weakref.ref[Bytes]] = []

    def lend(self, begin: int, end: int) -> Bytes:
        """A view, [end − begin] uint8, for a socket that sends it some time: the segment is in use till then."""
        view = self.data[begin:end]
        self._lent.append(weakref.ref(view))
        return view

    @property
    def lent(self) -> bool:
        """Whether a view that was lent still lives."""
        self._lent = [reference for reference in self._lent if reference() is not None]
        return bool(self._lent)


class SegmentServer:
    """Hands segments to processes of this host. Its sockets are polled, and served, by the caller's thread.

    `lease` gives the segment of a version, if there is one, and counts it as in use; `release` ends that.
    """

    def __init__(self, lease: Callable[[int], Segment | None], release: Callable[[int], None]) -> None:
        self.name = f"offbeat-weights-{secrets.token_hex(16)}"
        self._lease, self._release = lease, release
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind("\0" + self.name)
        self._listener.listen(1024)
        self._listener.setblocking(False)
        self._readers: dict[int, tuple[socket.socket, Counter[int]]] = {}  # by descriptor; versions that each holds

    @property
    def descriptors(self) -> list[int]:
        """What to poll for reading."""
        return [self._listener.fileno(), *self._readers]

    def serve(self, descriptor: int) -> None:
        """Take what has arrived on one of `descriptors`."""
        if descriptor == self._listener.fileno():
            self._accept()
        elif descriptor in self._readers:
            self._answer(descriptor)

    def close(self) -> None:
        """End all connections; what readers have mapped stays theirs."""
        for descriptor in list(self._readers):
            self._lose(descriptor)
        self._listener.close()

    def _accept(self) -> None:
        try:
            reader, _ = self._listener.accept()
        except BlockingIOError:
            return
        reader.setblocking(False)
        credentials = reader.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        _, user, _ = struct.unpack("3i", credentials)
        if user not in (os.getuid(), 0):
            reader.close()  # another user of this host, who would need the name to come here at all
            return
        self._readers[reader.fileno()] = (reader, Counter())

    def _answer(self, descriptor: int) -> None:
        reader, held = self._readers[descriptor]
        try:
            asked = reader.recv(ASKED.size)
            if len(asked) != ASKED.size:
                self._lose(descriptor)
                return
            what, version = ASKED.unpack(asked)
            if what == RELEASE:
                if held[version]:
                    held[version] -= 1
                    self._release(version)
                return
            segment = self._lease(version)
            if segment is None:
                reader.send(ANSWER.pack(False, 0))
                return
            held[version] += 1
            socket.send_fds(reader, [ANSWER.pack(True, len(segment.data))], [segment.fd])
        except BlockingIOError:
            return
        except OSError:
            self._lose(descriptor)

    def _lose(self, descriptor: int) -> None:
        reader, held = self._readers.pop(descriptor)
        reader.close()
        for version in held.elements():
            self._release(version)


class SegmentReader:
    """The other end: maps the segments of one owner. Raises `OSError` when the owner is not on this host, or gone."""

    def __init__(self, name: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(ANSWER_SECONDS)
        try:
            self._socket.connect("\0" + name)
        except OSError:
            self._socket.close()
            raise
        self._mapped = Mappings()

    def take(self, version: int) -> Bytes | None:
        """The bytes of a version, [N] uint8, read-only, which stay as they are until it is released; None: it is gone.

        Raises `OSError` when the owner is gone.
        """
        self._socket.send(ASKED.pack(TAKE, version))
        answer, descriptors, _, _ = socket.recv_fds(self._socket, ANSWER.size, 1)
        try:
            if len(answer) != ANSWER.size:
                raise ConnectionResetError("the owner of the shared memory is gone")
            there, nbytes = ANSWER.unpack(answer)
            if not there:
                return None
            if not descriptors:
                raise OSError("the owner of the shared memory sent no descriptor: the limit of open files is reached")
            return self._map(descriptors[0], nbytes)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def release(self, version: int) -> None:
        """The owner may use the memory of `version` again."""
        self._socket.send(ASKED.pack(RELEASE, version))

    def close(self) -> None:
        """End the connection, and with it every lease."""
        self._socket.close()
        self._mapped.clear()

    def _map(self, descriptor: int, nbytes: int) -> Bytes:
        needed = fcntl.F_SEAL_SHRINK | SEAL_FUTURE_WRITE
        if fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & needed != needed:
            raise OSError("the owner of the shared memory sent something else")
        data = self._mapped.map(descriptor)
        if len(data) != nbytes:
            raise OSError(f"the owner of the shared memory sent {len(data)} bytes and said {nbytes}")
        return data


class Mappings:
    """Memory that was mapped lately, by file: owners use theirs again, and to look up all pages anew takes long."""

    def __init__(self) -> None:
        self._mapped: dict[int, tuple[Bytes, int]] = {}  # inode → its bytes, the turn in which they were used last
        self._turn = 0

    def map(self, descriptor: int) -> Bytes:
        """All bytes of a file, [N] uint8, read-only, where they lie."""
        self._turn += 1
        file = os.fstat(descriptor)
        known = self._mapped.get(file.st_ino)
        data = known[0] if known else _map(os.dup(descriptor), file.st_size, mmap.PROT_READ)
        self._mapped[file.st_ino] = (data, self._turn)
        for inode in [inode for inode, (_, turn) in self._mapped.items() if turn <= self._turn - REMEMBERED]:
            del self._mapped[inode]
        return data

    def clear(self) -> None:
        """Forget all; what is in use stays."""
        self._mapped.clear()


# ---------------------------------------------------------------- within one actor, whose engine has several processes


@dataclass(frozen=True, slots=True)
class Place:
    """Where another process of this user finds some bytes, as long as this one holds them."""

    path: str
    offset: int


_descriptors: "weakref.WeakKeyDictionary[mmap.mmap, int]" = weakref.WeakKeyDictionary()


def _map(descriptor: int, nbytes: int, protection: int) -> Bytes:
    """Map a descriptor, which is closed when the last view of the mapping is gone."""
    mapped = mmap.mmap(descriptor, nbytes, mmap.MAP_SHARED | mmap.MAP_POPULATE, protection)
    _descriptors[mapped] = descriptor
    weakref.finalize(mapped, os.close, descriptor)
    return np.frombuffer(mapped, dtype=np.uint8)


def place_of(data: Bytes) -> Place | None:
    """Where `data`, a view of a segment's memory, is to be found; None for memory of this process alone."""
    owner: Any = data
    while isinstance(owner, np.ndarray | memoryview):
        owner = owner.base if isinstance(owner, np.ndarray) else owner.obj
    if not isinstance(owner, mmap.mmap) or owner not in _descriptors:
        return None
    begin = np.frombuffer(owner, dtype=np.uint8).ctypes.data
    return Place(f"/proc/{os.getpid()}/fd/{_descriptors[owner]}", data.ctypes.data - begin)


def read_file(path: str, mappings: Mappings) -> Bytes:
    """All bytes behind the path of a `Place`, [N] uint8, read-only, where they lie. Raises `OSError`."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return mappings.map(descriptor)
    finally:
        os.close(descriptor)


def available() -> bool:
    """Whether this system has what is needed: Linux does."""
    return sys.platform == "linux" and hasattr(os, "memfd_create")
