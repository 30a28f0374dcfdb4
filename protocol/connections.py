"""The TCP connections of one listener: what libzmq leaves unbounded, bounded, and those that misbehave cut off.

libzmq accepts whoever comes and keeps what arrives until a whole message is there. So anybody who reaches the port,
with keys or without, could hold all file descriptors, or as much memory as the network carries. This watch knows every
connection by its file descriptor (from the socket's monitor) and tells two kinds apart: the owner of the listener calls
a connection `proven` when it has said what was expected of it; all others are cut when they are too many (the oldest
first), too old, or hold too many bytes that came to no message; a proven one only in the last case. An honest peer
whose connection is cut connects again by itself.

It waits for nothing; `look` is to be called often. Linux only: the bytes that came are read from the kernel.
"""

import itertools
import resource
import socket
import struct
import sys
import weakref
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass

import zmq

from protocol.clock import Ticker, now

UNPROVEN = 4096  # connections at most that are not proven
PROVE_SECONDS = 15.0  # time for a connection to prove itself
UNPROVEN_BYTES = 256 * 2**20  # of all unproven connections together, that came and are in no message yet
LOOK_SECONDS = 0.1  # between two looks at the unproven
PROVEN_LOOK_SECONDS = 1.0  # between two looks at each of the others
PROVEN_A_LOOK = 100  # of the others: to ask the kernel takes time
LOOK_MESSAGES = 256  # after which there is a look although more messages wait

HANDSHAKE_FAILED = (
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)
BYTES_RECEIVED = 128  # offset of tcpi_bytes_received, a u64, in the kernel's struct tcp_info

_numbers = itertools.count()


@dataclass(slots=True, eq=False)
class Connection:
    """One TCP connection; `descriptor` is libzmq's."""

    descriptor: int
    begun: float
    peer: bytes = b""  # its identity on the router, once it has spoken
    heard: bool = False  # a message of it was taken since the last look
    before: int = 0  # bytes that had come by the look after that message
    proven: bool = False
    condemned: bool = False  # to be cut off
    ended: bool = False  # cut off, and libzmq has not noticed yet


class Connections:
    """Watches the connections of `listener`, a socket that is not bound yet.

    `largest` bounds the bytes of a proven connection that come to no message. `cut_off` counts by reason.
    """

    def __init__(self, listener: "zmq.Socket[bytes]", *, largest: int) -> None:
        self._largest = largest
        self._listener = listener
        self._port = 0
        self._open: dict[int, Connection] = {}  # oldest first
        self._unproven: dict[int, Connection] = {}
        self._by_peer: dict[bytes, Connection] = {}
        self._condemned: list[tuple[float, str, Connection]] = []
        self._taken = 0  # messages since the last look
        self._due = Ticker(LOOK_SECONDS)
        self._proven_due = Ticker(PROVEN_LOOK_SECONDS)
        self._to_judge: list[Connection] = []  # of the proven, in this round
        self.cut_off: Counter[str] = Counter()
        self.failed_handshakes = 0
        address = f"inproc://connections-{next(_numbers)}"
        listener.monitor(address, zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED | HANDSHAKE_FAILED)
        self._events: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PAIR)
        self._events.setsockopt(zmq.RCVHWM, 0)  # with a mark libzmq would stop its input until somebody looks
        self._events.connect(address)
        self._let_go = weakref.finalize(self, self._events.close, 0)

    @property
    def count(self) -> int:
        """Open connections."""
        return len(self._open)

    @property
    def unproven(self) -> int:
        """Open connections that are not proven."""
        return len(self._unproven)

    def heard(self, descriptor: int, peer: bytes) -> None:
        """A message of `peer` was taken off the listener; it came over `descriptor`."""
        self._taken += 1
        if self._taken % LOOK_MESSAGES == 0:
            self.look(nothing_left=False)
        connection = self._open.get(descriptor)
        if connection is None:
            self._take_notice()
            if (connection := self._open.get(descriptor)) is None:
                return  # it has ended, and its last words are taken only now
        connection.heard = True
        if connection.peer != peer:  # new, or these are the last words of one that had its number before
            self._unname(connection)
            connection.peer = peer
            self._by_peer[peer] = connection

    def prove(self, peer: bytes) -> None:
        """The connection of `peer` is one of those for whom the listener is there."""
        if (connection := self._by_peer.get(peer)) and not connection.proven:
            connection.proven = True
            del self._unproven[connection.descriptor]

    def doubt(self, peer: bytes) -> None:
        """It is not any more; it may prove itself anew."""
        if (connection := self._by_peer.get(peer)) and connection.proven:
            connection.proven, connection.begun = False, now()
            self._unproven[connection.descriptor] = connection

    def cut(self, peer: bytes, reason: str, *, after: float = 0.0) -> None:
        """End the connection of `peer` at a look after so many seconds, in which it may still be told why."""
        if (connection := self._by_peer.get(peer)) and not connection.condemned:
            connection.condemned = True
            self._condemned.append((now() + after, reason, connection))

    def look(self, *, nothing_left: bool) -> None:
        """Take notice of what has happened, cut what has to be.

        Nobody is judged before all of them had the chance to be heard: when no message is left on the listener, or
        so many were taken that each connection had its turns.
        """
        self._take_notice()
        if self._condemned:
            self._execute()
        if (nothing_left or self._taken > 4 * len(self._open)) and self._due.due():
            self._taken = 0
            self._judge_unproven()
            self._judge_proven()

    def close(self) -> None:
        """Stop watching; the listener is closed by its owner."""
        if not self._listener.closed:
            self._listener.disable_monitor()  # first, or libzmq would wait for a reader that is gone
        self._let_go()

    # ------------------------------------------------------------ what happened

    def _take_notice(self) -> None:
        while self._events.poll(0):
            kind, descriptor = struct.unpack("=HI", self._events.recv_multipart()[0])
            if kind == zmq.EVENT_ACCEPTED:
                self._forget(descriptor)
                self._open[descriptor] = self._unproven[descriptor] = Connection(descriptor, now())
            elif kind == zmq.EVENT_DISCONNECTED:
                self._forget(descriptor)
            else:
                self.failed_handshakes += 1

    def _forget(self, descriptor: int) -> None:
        self._unproven.pop(descriptor, None)
        if connection := self._open.pop(descriptor, None):
            self._unname(connection)

    def _unname(self, connection: Connection) -> None:
        if self._by_peer.get(connection.peer) is connection:
            del self._by_peer[connection.peer]

    # ------------------------------------------------------------ judgement

    def _execute(self) -> None:
        moment, waiting = now(), self._condemned
        self._condemned = [each for each in waiting if each[0] > moment]
        for due, reason, connection in waiting:
            if due <= moment:
                self._end(connection, reason)

    def _judge_unproven(self) -> None:
        waiting, moment = list(self._unproven.values()), now()
        crowd = len(waiting) - min(UNPROVEN, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
        bytes_held = {}
        for place, connection in enumerate(waiting):
            if place < crowd:
                self._end(connection, "crowd")
            elif moment - connection.begun > PROVE_SECONDS:
                self._end(connection, "unproven")
            else:
                bytes_held[connection] = self._came_to_nothing(connection)
        excess = sum(bytes_held.values()) - UNPROVEN_BYTES
        for connection in sorted(bytes_held, key=bytes_held.__getitem__, reverse=True):
            if excess <= 0:
                break
            excess -= bytes_held[connection]
            self._end(connection, "bytes")

    def _judge_proven(self) -> None:
        """Some of them at a time: thousands would hold up the listener."""
        if not self._to_judge and self._proven_due.due():
            self._to_judge = [connection for connection in self._open.values() if connection.proven]
        some, self._to_judge = self._to_judge[:PROVEN_A_LOOK], self._to_judge[PROVEN_A_LOOK:]
        for connection in some:
            if connection.proven and self._came_to_nothing(connection) > 2 * self._largest:
                self._end(connection, "bytes")

    def _came_to_nothing(self, connection: Connection) -> int:
        """Bytes that have come since the look after its last message."""
        came = self._bytes_received(connection)
        if connection.heard:
            connection.heard, connection.before = False, came
        return came - connection.before

    # ------------------------------------------------------------ the kernel

    def _bytes_received(self, connection: Connection) -> int:
        with suppress(OSError):  # it ended by itself
            tcp = socket.socket(fileno=connection.descriptor)
            try:
                info = tcp.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, BYTES_RECEIVED + 8)
            finally:
                tcp.detach()
            return int.from_bytes(info[BYTES_RECEIVED:], sys.byteorder)
        return 0

    def _end(self, connection: Connection, reason: str) -> None:
        """Shut it down; libzmq notices and closes it."""
        self._take_notice()
        if connection.ended or self._open.get(connection.descriptor) is not connection:
            return
        connection.ended = True
        self.cut_off[reason] += 1
        with suppress(OSError):  # it ended by itself
            tcp = socket.socket(fileno=connection.descriptor)
            try:
                if tcp.getsockname()[1] == self._listener_port():  # the number may be somebody else's by now
                    tcp.shutdown(socket.SHUT_RDWR)
            finally:
                tcp.detach()

    def _listener_port(self) -> int:
        if not self._port:
            self._port = int(self._listener.getsockopt_string(zmq.LAST_ENDPOINT).rpartition(":")[2])
        return self._port
