"""The broker's HTTP side: `/metrics` and `/targets` for Prometheus, `/status` for people and the live view.

It runs in a thread of its own and only ever reads texts that the broker's loop has prepared, so that a slow reader
cannot hold the loop.
"""

import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

READERS = 64  # at the same time; when there are more, the first of them is cut off
READ_SECONDS = 5.0  # that a reader may be silent


class _Server(ThreadingHTTPServer):
    """A thread a reader. It listens where strangers may come: they are bounded, and cannot keep others out."""

    daemon_threads = True
    request_queue_size = READERS

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self._readers: list[socket.socket] = []  # oldest first
        self._lock = threading.Lock()
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve one more."""
        with self._lock:
            self._readers.append(request)
            late = self._readers[:-READERS]
        for reader in late:
            with suppress(OSError):  # it is gone already
                reader.shutdown(socket.SHUT_RDWR)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """A reader is served, or gone."""
        with self._lock:
            if request in self._readers:
                self._readers.remove(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A reader that goes away is no news; all else is."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class StatusServer:
    """Serves each path from a text that was set last; unknown paths are 404."""

    def __init__(self, host: str, port: int) -> None:
        self.pages: dict[str, tuple[str, bytes]] = {}
        self._server = _Server((host, port), _handler(self.pages.get))
        self.address = f"http://{host}:{self._server.server_port}"
        self.port: int = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, name="http", daemon=True)
        self._thread.start()

    def show(self, path: str, content_type: str, body: bytes) -> None:
        """Serve `body` at `path` from now on."""
        self.pages[path] = (content_type, body)

    def close(self) -> None:
        """Stop serving and free the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _handler(page: Callable[[str], tuple[str, bytes] | None]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = READ_SECONDS

        def do_GET(self) -> None:
            found = page(self.path.partition("?")[0])
            content_type, body = found or ("text/plain", b"not here; try /status, /targets or /metrics\n")
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            """Scrapes are not news."""

    return Handler
