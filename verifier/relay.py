"""A process of its own that asks the Lean server, for workers that are locked in without a network.

Whoever has a line to it can have one fixed address asked, by one fixed request, and nothing else. It waits for lines
on its control socket, and in a thread a line for questions; it ends when its owner's end of the control socket does.

A question is `[body, seconds]`, an answer `[body, ""]` or `[b"", why there is none]`. A server that is busy, or not
there, is asked again until the seconds are over: only infrastructure is ever tried twice.
"""

import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time
from urllib.parse import urlsplit

from protocol.clock import Deadline
from verifier.channel import ChannelClosed, worker_receive, worker_send
from verifier.sandbox.kept import SOURCE

PATH = "/verify"
MOST_ANSWER_BYTES = 8 * 2**20
_BUSY = (429, 502, 503, 504)
_PAUSE_SECONDS = 0.25  # before the second try; doubled before each further one
_CLOSE_SECONDS = 3.0


class Relay:
    """The owner's side. `server` is `http://host:port`, `key_file` holds the API key, if it wants one."""

    def __init__(self, server: str, key_file: str = "") -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        settings = json.dumps({"server": server, "key_file": key_file and os.path.abspath(key_file)})
        self._process = subprocess.Popen(
            [sys.executable, "-m", "verifier.relay", settings, str(theirs.fileno())],
            pass_fds=(theirs.fileno(),),
            cwd=SOURCE,
            stdin=subprocess.DEVNULL,
        )
        theirs.close()

    def connect(self) -> socket.socket:
        """A line for a `RelayLine`. If the relay is gone, it is at its end at once."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                socket.send_fds(self._control, [b"line"], [theirs.fileno()])
            except OSError:
                return ours
        return ours

    def close(self) -> None:
        """End it."""
        self._control.close()
        try:
            self._process.wait(_CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Server:
    """The Lean server, over HTTP. Safe to use from many threads."""

    def __init__(self, address: str, key: str = "") -> None:
        parts = urlsplit(address)
        self._connection = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._host, self._path = parts.netloc, parts.path.rstrip("/") + PATH
        self._headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}

    def ask(self, body: bytes, seconds: float) -> tuple[bytes, str]:
        """The answer, or why there is none; tries again while the server is busy or away, for `seconds` in all."""
        deadline, pause = Deadline(seconds), _PAUSE_SECONDS
        while True:
            answer, why, again = self._once(body, max(deadline.remaining, 0.1))
            if not again or deadline.remaining < pause:
                return answer, why
            time.sleep(pause)
            pause *= 2

    def _once(self, body: bytes, seconds: float) -> tuple[bytes, str, bool]:
        connection = self._connection(self._host, timeout=seconds)
        try:
            connection.request("POST", self._path, body, self._headers)
            response = connection.getresponse()
            content = response.read(MOST_ANSWER_BYTES + 1)
        except (OSError, http.client.HTTPException) as error:
            return b"", f"{self._host} cannot be asked: {type(error).__name__}: {error}", True
        finally:
            connection.close()
        if response.status != 200:
            said = content[:200].decode(errors="replace")
            return b"", f"{self._host} refused with status {response.status}: {said}", response.status in _BUSY
        if len(content) > MOST_ANSWER_BYTES:
            return b"", f"{self._host} answered more than {MOST_ANSWER_BYTES} bytes", False
        return content, "", False


def serve(control: socket.socket, server: Server) -> None:
    """Until the owner is gone."""
    while True:
        data, descriptors, _, _ = socket.recv_fds(control, 64, 1)
        if not data:
            return
        for descriptor in descriptors:
            line = socket.socket(fileno=descriptor)
            threading.Thread(target=_answer, args=(line, server), daemon=True).start()


def _answer(line: socket.socket, server: Server) -> None:
    """Until the worker is gone, which is how workers end."""
    with line:
        try:
            while True:
                body, seconds = worker_receive(line)
                worker_send(line, list(server.ask(body, seconds)))
        except (ChannelClosed, OSError):
            return


def main() -> None:
    """`python -m verifier.relay SETTINGS SOCKET`; started by `Relay`."""
    settings = json.loads(sys.argv[1])
    key = ""
    if settings["key_file"]:
        with open(settings["key_file"], encoding="utf-8") as file:
            key = file.read().strip()
    with socket.socket(fileno=int(sys.argv[2])) as control:
        serve(control, Server(settings["server"], key))


if __name__ == "__main__":
    main()
