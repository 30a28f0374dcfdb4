"""A worker's line to the relay: a question in bytes, an answer in bytes, one at a time."""

import socket

from verifier.channel import ChannelClosed, worker_receive, worker_send


class Unavailable(RuntimeError):
    """A server that a check needs does not do its work now: infrastructure, the check is void. The text says why."""


class RelayLine:
    """The worker's end; `connection` comes from `Relay.connect`."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def ask(self, question: bytes, seconds: float) -> bytes:
        """What the server answers within `seconds`. Raises `Unavailable`, which says why there is no answer."""
        try:
            worker_send(self._connection, [question, min(seconds, 1e6)])
            answer, why = worker_receive(self._connection)
        except (ChannelClosed, OSError) as error:
            raise Unavailable(f"Lean server: the relay is gone: {error}") from None
        if why:
            raise Unavailable(f"Lean server: {why}")
        return bytes(answer)
