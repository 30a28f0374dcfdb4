"""The broker's HTTP side: `/metrics` and `/targets` for Prometheus, `/status` for people and the live view.

It runs in a thread of its own and only ever reads texts that the broker's loop has prepared, so that a slow reader
cannot hold the loop.
"""

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class StatusServer:
    """Serves each path from a text that was set last; unknown paths are 404."""

    def __init__(self, host: str, port: int) -> None:
        self.pages: dict[str, tuple[str, bytes]] = {}
        self._server = ThreadingHTTPServer((host, port), _handler(self.pages.get))
        self._server.daemon_threads = True
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
