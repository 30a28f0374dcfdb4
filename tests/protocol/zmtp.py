"""The bytes of ZMTP, ZeroMQ's wire protocol, for connections that libzmq would never make."""

import socket
import struct
from urllib.parse import urlsplit

SIGNATURE = b"\xff" + b"\0" * 8 + b"\x7f"
READY = b"\x05READY\x0bSocket-Type" + struct.pack(">I", 6) + b"DEALER"

MORE, LONG, COMMAND = 1, 2, 4


def greeting(mechanism: bytes, version: bytes = b"\x03\x01") -> bytes:
    return SIGNATURE + version + mechanism.ljust(20, b"\0") + b"\0" * 32


def header(size: int, *, more: bool = False, command: bool = False) -> bytes:
    """What comes before the `size` bytes of a frame."""
    flags = MORE * more | COMMAND * command
    return struct.pack(">BQ", flags | LONG, size) if size > 255 else struct.pack(">BB", flags, size)


def frame(body: bytes, *, more: bool = False, command: bool = False) -> bytes:
    return header(len(body), more=more, command=command) + body


HANDSHAKE = greeting(b"NULL") + frame(READY, command=True)  # of a connection without keys, whole


def connect(address: str) -> socket.socket:
    """A TCP connection that says nothing yet."""
    parts = urlsplit(address)
    return socket.create_connection((str(parts.hostname), int(parts.port or 0)))


def join(address: str) -> socket.socket:
    """A connection without keys, ready for messages."""
    tcp = connect(address)
    tcp.sendall(HANDSHAKE)
    answer = b""
    while b"READY" not in answer:
        answer += tcp.recv(4096)
    return tcp
