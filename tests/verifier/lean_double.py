"""A double of Kimina Lean Server on loopback: its protocol, and as much of Lean as the tests need.

It knows no mathematics: a theorem counts as proved when its proof is `by rfl`. What it says of the last three lines it
says by looking at the file, as Lean does: the theorem's statement, `axioms it used`, `sorry`.
"""

import contextlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Result = dict[str, Any]


def message(source: str, needle: str, severity: str, data: str) -> Result:
    """As Lean's REPL words it; its position is that of `needle`."""
    line = source[: source.index(needle)].count("\n") + 1
    return {"severity": severity, "pos": {"line": line, "column": 0}, "endPos": None, "data": data}


def elaborated(source: str) -> Result:
    """The response to a file."""
    marked = re.search(r"theorem checked_(\w+) : stated_\w+ := @([\w.']+)", source)
    assert marked, source
    mark, name = marked[1], marked[2]
    messages = []
    stated = re.search(rf"def stated_{mark} : Prop := (.*)", source)
    assert stated
    if "unknown_constant" in stated[1]:
        messages.append(message(source, stated[0], "error", "unknown identifier 'unknown_constant'"))
    proof = re.search(rf"theorem {re.escape(name)} : (.*?) := by (\w+)", source)
    if proof is None:
        return {"env": 0, "messages": [*messages, message(source, marked[0], "error", f"unknown identifier '{name}'")]}
    if proof[2] not in ("rfl", "choose", "cheat"):
        messages.append(message(source, proof[0], "error", "unsolved goals\n⊢ False"))
    if proof[1] != stated[1]:
        messages.append(message(source, marked[0], "error", "type mismatch"))
    axioms = {"choose": "depends on axioms: [propext,\n Classical.choice]", "cheat": "depends on axioms: [trust]"}
    said = axioms.get(proof[2], "does not depend on any axioms")
    messages.append(message(source, "#check", "info", f"checked_{mark} : stated_{mark}"))
    messages.append(message(source, "#print axioms", "info", f"'checked_{mark}' {said}"))
    return {"env": 0, "messages": messages}


class LeanServer:
    """The server; `reply` makes the result for one file, and may be changed by a test."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.statuses: list[int] = []  # that the next requests get instead of an answer
        self.body: bytes | None = None  # instead of an answer
        self.delay_seconds = 0.0
        self.reply: Callable[[str], Result] = lambda source: {"response": elaborated(source)}
        handler = type("Handler", (_Handler,), {"server_": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.address = f"http://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()


@contextmanager
def lean_server() -> Iterator[LeanServer]:
    """One, for as long as the context."""
    server = LeanServer()
    try:
        yield server
    finally:
        server.close()


class _Handler(BaseHTTPRequestHandler):
    server_: LeanServer

    def do_POST(self) -> None:
        double = self.server_
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        double.requests.append(request)
        double.keys.append(self.headers.get("Authorization", ""))
        time.sleep(double.delay_seconds)
        if self.path != "/verify":
            self._send(404, b'{"detail": "Not Found"}')
        elif double.statuses:
            self._send(double.statuses.pop(0), b'{"detail": "No available REPLs"}')
        else:
            results = [{"custom_id": each["custom_id"], **double.reply(each["proof"])} for each in request["codes"]]
            self._send(200, json.dumps({"results": results}).encode() if double.body is None else double.body)

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(BrokenPipeError):  # who asked may have been ended by its deadline
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: tests look at `requests`."""
