"""A real Prometheus on loopback, asked by the tests."""

import json
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deploy.prometheus.programs import ProgramMissing, program

START_SECONDS = 30.0


def installed(name: str) -> str:
    """The path of a program; skips the test that wants it when it is not there."""
    try:
        return program(name)
    except ProgramMissing as missing:
        pytest.skip(str(missing))


def free_port() -> int:
    """A port that nobody has at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Prometheus:
    """The process behind a command line, and what its API says."""

    def __init__(self, command: list[str], address: str, log: Path) -> None:
        self.url = f"http://{address}"
        self.log = log
        with log.open("wb") as file:
            self.process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        self.until(self._ready, START_SECONDS, "Prometheus is ready")

    def close(self) -> None:
        """End it."""
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=1) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def until(self, true: Callable[[], Any], seconds: float, what: str) -> Any:
        """What `true` finds as soon as it finds something."""
        end = time.monotonic() + seconds
        while not (found := true()):
            assert self.process.poll() is None, f"Prometheus ended:\n{self.log.read_text()}"
            assert time.monotonic() < end, f"not within {seconds:g} s: {what}\n{self.log.read_text()[-2000:]}"
            time.sleep(0.1)
        return found

    def ask(self, path: str, **parameters: Any) -> Any:
        """The data of an answer of the API. Fails the test for an error."""
        query = urllib.parse.urlencode(parameters, doseq=True)
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{query}", timeout=10) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{path} {parameters}: {error.read().decode()}") from None

    def values(self, query: str) -> dict[tuple[tuple[str, str], ...], float]:
        """The present value of each series, by its labels."""
        found = self.ask("query", query=query)["result"]
        return {tuple(sorted(each["metric"].items())): float(each["value"][1]) for each in found}

    def up(self) -> dict[str, dict[str, str]]:
        """The labels of each target that was scraped well, by process."""
        targets = self.ask("targets", state="active")["activeTargets"]
        return {each["labels"]["process"]: each["labels"] for each in targets if each["health"] == "up"}
