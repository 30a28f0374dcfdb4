"""The two ends of every hop: a `Router` that many peers connect to, and the `Dealer` that each peer holds.

Neither blocks without a limit, neither keeps an unbounded queue by itself (what may be in flight is bounded by the
credits in the messages: leases, rooms, batch requests), and neither ever raises for what a peer sent: a message that
cannot be taken is handed back as a `Rejected`, with the peer and the field, and the socket goes on.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import zmq

from protocol.codec import MAX_FRAME_BYTES, Frame, decode, encode
from protocol.errors import MalformedMessage
from protocol.messages import Message

CLOSE_LINGER_MS = 1000  # a Goodbye still gets out; nothing waits longer than this at the end


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
        self.socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)

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
    """The bound end. `address` is where it listens, with the port that was chosen for `tcp://host:*`."""

    def __init__(self, bind: str) -> None:
        super().__init__(zmq.ROUTER)
        self.socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self.socket.setsockopt(zmq.ROUTER_HANDOVER, 0)
        try:
            self.socket.bind(bind)
        except zmq.ZMQError as error:
            self.socket.close(0)
            raise OSError(f"cannot listen on {bind}: {error}; choose another address or port") from None
        self.address: str = self.socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def send(self, peer: bytes, message: Message) -> bool:
        """Queue `message` for `peer`; False when that peer is gone."""
        return self._send(peer, encode(message))

    def send_all(self, letters: Iterable[tuple[bytes, Message]]) -> None:
        """Queue each message for its peer, if that is there; one that goes to many in a row is encoded once."""
        before, frames = None, []
        for peer, message in letters:
            if message is not before:
                before, frames = message, encode(message)
            self._send(peer, frames)

    def _send(self, peer: bytes, frames: Sequence[Frame]) -> bool:
        try:
            self.socket.send_multipart([peer, *frames], copy=False)
        except zmq.ZMQError as error:
            if error.errno == zmq.EHOSTUNREACH:
                return False
            raise
        return True

    def receive(self, timeout: float = 0.0) -> tuple[bytes, Message | Rejected] | None:
        """The next message and its peer, or None after `timeout` seconds.

        Frames are copied: many peers send many small ones, which are faster to copy than to share, and to keep one
        that is shared is to keep the buffer in which it came.
        """
        try:
            peer, *frames = self.socket.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return self.receive() if timeout > 0 and self.readable(timeout) else None
        return peer, _decoded(peer, frames)


class Dealer(_Endpoint):
    """The connecting end."""

    def __init__(self, connect: str) -> None:
        super().__init__(zmq.DEALER)
        try:
            self.socket.connect(connect)
        except zmq.ZMQError as error:
            self.socket.close(0)
            raise ValueError(
                f"cannot connect to {connect!r}: {error}; give an address such as tcp://host:5555"
            ) from None
        self.peer = connect.encode()

    def send(self, message: Message) -> None:
        """Queue `message`."""
        self.socket.send_multipart(encode(message), copy=False)

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
