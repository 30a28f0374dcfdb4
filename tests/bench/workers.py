"""Processes that measure for a benchmark: a request is a JSON line on standard input, its answer one on the output.

A worker has an address space, a torch and a thread count of its own. It waits for requests and for nothing else, and
ends, in the middle of one if need be, when its standard input does: a killed benchmark leaves no process behind.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

ROOT = Path(__file__).parents[2]


class Worker:
    """`python -m MODULE ARGUMENTS…`, which calls `serve`. Its log is this process's standard error."""

    def __init__(self, module: str, *arguments: str, threads: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, request: object) -> Any:
        """Send a request and wait for its answer. Raises `RuntimeError` when the worker ends instead."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise RuntimeError(f"a worker ended with code {self._process.wait()}; its last words are above")
        return json.loads(line)

    def close(self) -> None:
        """End it, whatever it does."""
        self._process.kill()
        self._process.wait()


def serve(answer: Callable[[Any], object]) -> None:
    """Answer requests until standard input ends. What else is printed meanwhile goes to standard error."""
    requests: SimpleQueue[str] = SimpleQueue()

    def listen() -> None:
        for line in sys.stdin:
            requests.put(line)
        os._exit(0)

    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        Thread(target=listen, daemon=True).start()
        while True:
            answers.write(json.dumps(answer(json.loads(requests.get()))) + "\n")
            answers.flush()
