"""The two ends of every hop: a `Router` that many peers connect to, and the `Dealer` that each peer holds.

Neither blocks without a limit, neither keeps an unbounded queue by itself (what may be in flight is bounded by the
credits in the messages: leases, rooms, batch requests), and neither ever raises for what a peer sent: a message that
cannot be taken is handed back as a `Rejected`, with the peer and the field, and the socket goes on. Both are locked
with the keys of the process, if it has any (`protocol.security`).
"""

import socket
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

import zmq

from protocol import security
from protocol.codec import MAX_FRAME_BYTES, Frame, decode, encode
from protocol.errors import MalformedMessage, PeerSilent, PeerStalled
from protocol.messages import Message
from protocol.security import InsecureKeys, Keys

CLOSE_LINGER_MS = 1000  # a Goodbye still gets out; nothing waits longer than this at the end
UNREAD_MESSAGES = 20_000  # that a router keeps for a peer which does not read; credits allow far fewer
EVERYBODY = ("learner", "actor", "verifier")


@dataclass(frozen=True, slots=True)
class Rejected:
    """A message that could not be taken: its text names the field and the peer."""

    peer: bytes
    field: str
    problem: str

    def __str__(self) -> str:
        return f"message from {self.peer.hex()} rejected: {self.field}: {self.problem}"


class _Endpoint:
    """What both ends share: one socket, polled with a time-out, closed once."""

    def __init__(self, kind: int) -> None:
        self.socket: zmq.Socket[bytes] = zmq.Context.instance().socket(kind)
        self.socket.setsockopt(zmq.LINGER, CLOSE_LINGER_MS)
        self.socket.setsockopt(zmq.SNDHWM, 0)  # bounded by credit, see above; a mark would drop or block in silence
        self.socket.setsockopt(zmq.RCVHWM, 0)

    def readable(self, timeout: float) -> bool:
        """Whether a message is there within `timeout` seconds."""
        return bool(self.socket.poll(max(0, round(timeout * 1000)), zmq.POLLIN))

    def fileno(self) -> int:
        """Lets the endpoint be registered in a `zmq.Poller` beside others."""
        return int(self.socket.getsockopt(zmq.FD))

    def close(self) -> None:
        """Close the socket; what was sent last still leaves for up to a second."""
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Router(_Endpoint):
    """The bound end. `address` is where it listens, with the port that was chosen for `tcp://host:*`.

    With keys only `roles` come in, and `speaker` is the role of whoever sent the last message; else it is "". A frame
    larger than `largest` bytes ends the connection that brought it.
    """

    def __init__(
        self,
        bind: str,
        *,
        roles: Collection[str] = EVERYBODY,
        largest: int = MAX_FRAME_BYTES,
        keys: Keys | None = None,
    ) -> None:
        super().__init__(zmq.ROUTER)
        self.socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self.socket.setsockopt(zmq.ROUTER_HANDOVER, 0)
        self.socket.setsockopt(zmq.SNDHWM, UNREAD_MESSAGES)
        self.socket.setsockopt(zmq.MAXMSGSIZE, largest)
        keys = keys or security.in_use()
        self._admitted = security.listen(self.socket, keys, roles) if keys else {}
        self.speaker = ""
        try:
            self.socket.bind(bind)
        except zmq.ZMQError as error:
            self.socket.close(0)
            raise OSError(f"cannot listen on {bind}: {error}; choose another address or port") from None
        self.address: str = self.socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def send(self, peer: bytes, message: Message) -> bool:
        """Queue `message` for `peer`; False when that peer is gone. Raises `PeerStalled` when it does not read."""
        return self._send(peer, encode(message))

    def send_all(self, letters: Iterable[tuple[bytes, Message]]) -> list[bytes]:
        """Queue each message for its peer, if that is there; one that goes to many in a row is encoded once.

        Returns the peers that do not read.
        """
        before, frames, stalled = None, [], []
        for peer, message in letters:
            if message is not before:
                before, frames = message, encode(message)
            try:
                self._send(peer, frames)
            except PeerStalled:
                stalled.append(peer)
        return stalled

    def _send(self, peer: bytes, frames: Sequence[Frame]) -> bool:
        try:
            self.socket.send_multipart([peer, *frames], zmq.NOBLOCK, copy=False)
        except zmq.ZMQError as error:
            if error.errno == zmq.EHOSTUNREACH:
                return False
            if error.errno == zmq.EAGAIN:
                raise PeerStalled(f"{peer.hex()} has not read {UNREAD_MESSAGES} messages") from None
            raise
        return True

    def receive(self, timeout: float = 0.0) -> tuple[bytes, Message | Rejected] | None:
        """The next message and its peer, or None after `timeout` seconds.

        Frames are copied: many peers send many small ones, which are faster to copy than to share, and to keep one
        that is shared is to keep the buffer in which it came.
        """
        try:
            peer, *frames = self._read()
        except zmq.Again:
            return self.receive() if timeout > 0 and self.readable(timeout) else None
        return peer, _decoded(peer, frames)

    def _read(self) -> list[bytes]:
        if not self._admitted:
            return self.socket.recv_multipart(zmq.NOBLOCK)
        frames = self.socket.recv_multipart(zmq.NOBLOCK, copy=False)
        self.speaker = self._admitted[str(frames[0].get("User-Id")).encode()]
        return [frame.bytes for frame in frames]


class Dealer(_Endpoint):
    """The connecting end; with keys it speaks to nobody but the role `listener`."""

    def __init__(self, connect: str, *, listener: str = "broker", keys: Keys | None = None) -> None:
        super().__init__(zmq.DEALER)
        self.socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
        try:
            if keys := keys or security.in_use():
                security.connect(self.socket, keys, listener)
            self.socket.connect(connect)
        except InsecureKeys:
            self.socket.close(0)
            raise
        except zmq.ZMQError as error:
            self.socket.close(0)
            raise ValueError(
                f"cannot connect to {connect!r}: {error}; give an address such as tcp://host:5555"
            ) from None
        self.peer = connect.encode()

    def send(self, message: Message) -> None:
        """Queue `message`. Raises `PeerSilent` when the other end has refused this one's keys: nobody would take it."""
        try:
            self.socket.send_multipart(encode(message), zmq.NOBLOCK, copy=False)
        except zmq.Again:
            raise PeerSilent(
                f"{self.peer.decode()} takes no messages of this process: are its keys those of the run?"
            ) from None

    def receive(self, timeout: float = 0.0) -> Message | Rejected | None:
        """The next message, or None after `timeout` seconds."""
        if not self.readable(timeout):
            return None
        frames = self.socket.recv_multipart(copy=False)
        return _decoded(self.peer, [memoryview(frame.buffer).toreadonly() for frame in frames])


def _decoded(peer: bytes, frames: Sequence[Frame]) -> Message | Rejected:
    try:
        return decode(frames)
    except MalformedMessage as error:
        return Rejected(peer, error.field, error.problem)


def own_address(peer: str) -> str:
    """The address of this host on the way to `peer` (tcp://host:port): where those on that way can reach it.

    Raises `ValueError` when there is none.
    """
    target = urlsplit(peer)
    if not target.hostname or not target.port:
        raise ValueError(f"{peer}: give the address as tcp://host:port")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:  # no packet is sent: only the route is looked up
        try:
            probe.connect((target.hostname, target.port))
        except OSError as error:
            raise ValueError(f"{peer}: this host knows no way there: {error}") from None
        return str(probe.getsockname()[0])
