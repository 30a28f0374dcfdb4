"""A stream socket between service and worker: msgpack, each message behind its length. No pickle, nothing trusted.

`Channel` is the service's end, which never blocks; `worker_receive` and `worker_send` are the worker's, which wait.
"""

import socket
import struct
from typing import Any

import msgpack

_LENGTH = struct.Struct("<I")
_PIECE = 256 * 2**10
MAX_FROM_WORKER = 64 * 2**10  # a report is a name, a few numbers and a short reason


class ChannelClosed(Exception):
    """The other end is gone, or spoke nonsense. The text says which."""


class Channel:
    """The service's end. What the worker does not take yet waits in a buffer until the socket is writable."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._socket = end
        self._in = bytearray()
        self._out = bytearray()

    def fileno(self) -> int:
        """For a poller."""
        return self._socket.fileno()

    @property
    def unsent(self) -> bool:
        """Whether something waits for the socket to become writable."""
        return bool(self._out)

    def send(self, value: Any) -> None:
        """Queue `value` and send what the socket takes. Raises `ChannelClosed`."""
        self._out += _packed(value)
        self.flush()

    def flush(self) -> None:
        """Send what the socket takes. Raises `ChannelClosed`."""
        try:
            while self._out:
                del self._out[: self._socket.send(self._out)]
        except BlockingIOError:
            return
        except OSError as error:
            raise ChannelClosed(str(error)) from None

    def receive(self) -> list[Any]:
        """All messages that have arrived whole. Raises `ChannelClosed` once there are no more to come."""
        closed = ""
        try:
            while piece := self._socket.recv(_PIECE):
                self._in += piece
            closed = "it ended"
        except BlockingIOError:
            pass
        except OSError as error:
            closed = str(error)
        values = self._whole()
        if closed and not values:
            raise ChannelClosed(closed)
        return values

    def _whole(self) -> list[Any]:
        values = []
        while len(self._in) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._in)
            if length > MAX_FROM_WORKER:
                raise ChannelClosed(f"it announced {length} bytes")
            if len(self._in) < _LENGTH.size + length:
                break
            body = bytes(self._in[_LENGTH.size : _LENGTH.size + length])
            del self._in[: _LENGTH.size + length]
            try:
                values.append(msgpack.unpackb(body))
            except (ValueError, msgpack.UnpackException) as error:
                raise ChannelClosed(f"it spoke no msgpack: {error}") from None
        return values

    def close(self) -> None:
        """Close this end; an idle worker ends by itself."""
        self._socket.close()


def worker_send(end: socket.socket, value: Any) -> None:
    """Send `value`, waiting until it is taken."""
    end.sendall(_packed(value))


def worker_receive(end: socket.socket) -> Any:
    """Wait for one message. Raises `ChannelClosed` when the service has closed its end."""
    (length,) = _LENGTH.unpack(_exactly(end, _LENGTH.size))
    return msgpack.unpackb(_exactly(end, length))


def _exactly(end: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        if not (piece := end.recv(min(size - len(data), _PIECE))):
            raise ChannelClosed("the service has closed its end")
        data += piece
    return bytes(data)


def _packed(value: Any) -> bytes:
    body = msgpack.packb(value)
    return _LENGTH.pack(len(body)) + bytes(body)
