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
from protocol.connections import Connections
from protocol.errors import MalformedMessage, PeerSilent
from protocol.messages import Message
from protocol.security import InsecureKeys, Keys

CLOSE_LINGER_MS = 1000  # a Goodbye still gets out; nothing waits longer than this at the end
HANDSHAKE_MS = 5000  # a connection that has not shaken hands by then is closed
UNREAD_MESSAGES = 4000  # that a router keeps for a peer which does not read; credits allow far fewer
UNTAKEN_MESSAGES = 1000  # of one peer that wait in a router; then its connection is not read any further
EVERYBODY = ("learner", "actor", "verifier")


@dataclass(frozen=True, slots=True)
class Rejected:
    """A message that could not be taken: its text names the field and the peer."""

    peer: bytes
    field: str
    problem: str

    def __str__(self) -> str:
        return f"message from {self.peer.hex()} rejected: {self.field}: {self.problem}"


@dataclass(frozen=True, slots=True)
class Letter:
    """What came over a router and is not decoded yet, so that it can be judged by its sender and its size."""

    peer: bytes
    role: str  # of the key with which it came; "" where there are no keys
    frames: Sequence[Frame]

    @property
    def size(self) -> int:
        """Bytes of all frames."""
        return sum(map(len, self.frames))

    def read(self) -> Message | Rejected:
        """What it says."""
        return _decoded(self.peer, self.frames)


class _Endpoint:
    """What both ends share: one socket, polled with a time-out, closed once."""

    def __init__(self, kind: int) -> None:
        self.socket: zmq.Socket[bytes] = zmq.Context.instance().socket(kind)
        self.socket.setsockopt(zmq.LINGER, CLOSE_LINGER_MS)
        self.socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)

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

    With keys only `roles` come in. A frame larger than `largest` bytes ends the connection that brought it, and so do
    `unread` messages that a peer has not read; its `connections` are watched.
    """

    def __init__(
        self,
        bind: str,
        *,
        roles: Collection[str] = EVERYBODY,
        largest: int = MAX_FRAME_BYTES,
        unread: int = UNREAD_MESSAGES,
        keys: Keys | None = None,
    ) -> None:
        super().__init__(zmq.ROUTER)
        for name, value in (
            (zmq.ROUTER_MANDATORY, 1),
            (zmq.ROUTER_HANDOVER, 0),
            (zmq.SNDHWM, unread),
            (zmq.RCVHWM, UNTAKEN_MESSAGES),
            (zmq.MAXMSGSIZE, largest),
        ):
            self.socket.setsockopt(name, value)
        keys = keys or security.in_use()
        self._admitted = security.listen(self.socket, keys, roles) if keys else {}
        self.connections = Connections(self.socket, largest=largest)
        try:
            self.socket.bind(bind)
        except zmq.ZMQError as error:
            self.connections.close()
            self.socket.close(0)
            raise OSError(f"cannot listen on {bind}: {error}; choose another address or port") from None
        self.address: str = self.socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def close(self) -> None:
        """Close the socket; what was sent last still leaves for up to a second."""
        self.connections.close()
        super().close()

    def send(self, peer: bytes, message: Message) -> bool:
        """Queue `message` for `peer`; False when that peer is gone, or is cut off because it does not read."""
        return self._send(peer, encode(message)) == 0

    def send_all(self, letters: Iterable[tuple[bytes, Message]]) -> list[bytes]:
        """Queue each message for its peer, if that is there; one that goes to many in a row is encoded once.

        Returns the peers that are cut off because they do not read.
        """
        before, frames, deaf = None, [], []
        for peer, message in letters:
            if message is not before:
                before, frames = message, encode(message)
            if self._send(peer, frames) == zmq.EAGAIN:
                deaf.append(peer)
        return deaf

    def _send(self, peer: bytes, frames: Sequence[Frame]) -> int:
        """0, or the number of what went wrong."""
        try:
            self.socket.send_multipart([peer, *frames], zmq.NOBLOCK, copy=False)
        except zmq.ZMQError as error:
            if error.errno == zmq.EAGAIN:
                self.connections.cut(peer, "deaf")
            elif error.errno != zmq.EHOSTUNREACH:
                raise
            return int(error.errno)
        return 0

    def take(self, timeout: float = 0.0) -> Letter | None:
        """The next message, not decoded yet, or None after `timeout` seconds.

        Frames are copied: many peers send many small ones, which are faster to copy than to share, and to keep one
        that is shared is to keep the buffer in which it came.
        """
        try:
            sender = self.socket.recv(zmq.NOBLOCK, copy=False)
        except zmq.Again:
            self.connections.look(nothing_left=True)
            return self.take() if timeout > 0 and self.readable(timeout) else None
        frames = self.socket.recv_multipart()
        peer = sender.bytes
        role = self._admitted[str(sender.get("User-Id")).encode()] if self._admitted else ""
        self.connections.heard(_descriptor(sender), peer)
        return Letter(peer, role, frames)

    def receive(self, timeout: float = 0.0) -> tuple[bytes, Message | Rejected] | None:
        """The next message and its peer, or None after `timeout` seconds. Who says what can be read is proven."""
        letter = self.take(timeout)
        if letter is None:
            return None
        message = letter.read()
        if not isinstance(message, Rejected):
            self.connections.prove(letter.peer)
        return letter.peer, message


class Dealer(_Endpoint):
    """The connecting end; with keys it speaks to nobody but the role `listener`."""

    def __init__(self, connect: str, *, listener: str = "broker", keys: Keys | None = None) -> None:
        super().__init__(zmq.DEALER)
        for name in (zmq.SNDHWM, zmq.RCVHWM):
            self.socket.setsockopt(name, 0)  # bounded by credit, see above; a mark would drop or block in silence
        self.socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
        self.peer = connect.encode()
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


def _descriptor(frame: zmq.Frame) -> int:
    """Of the TCP connection over which a frame came; -1 for versions of ZMTP so old that libzmq does not say."""
    try:
        return int(frame.get(zmq.SRCFD))
    except zmq.ZMQError:
        return -1


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
