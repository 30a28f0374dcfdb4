"""A real Prometheus beside a real broker: processes that join are scraped, those that leave or die are not any more."""

import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Counter, start_http_server
from prometheus_server import Prometheus, free_port, installed

from deploy.prometheus import __main__ as command
from protocol.messages import Goodbye, Heartbeat, Hello, Welcome
from protocol.sockets import Dealer

ROOT = Path(__file__).parents[2]
HEARTBEAT_SECONDS = 0.2
SILENCE_SECONDS = 3.0
SOON = 20.0  # for Prometheus to notice: it asks the broker once a second


class ActorDouble:
    """Joins, serves a metric, and says that it lives, until it leaves or falls silent."""

    def __init__(self, broker: str, name: str) -> None:
        registry = CollectorRegistry()
        self.tokens = Counter("actor_generated_tokens", "Completion tokens sampled", registry=registry)
        self.server, self.serving = start_http_server(0, addr="127.0.0.1", registry=registry)
        self.hello = Hello(
            role="actor",
            name=name,
            host="a-name-that-nobody-resolves",
            pid=os.getpid(),
            metrics_port=self.server.server_port,
            metrics_host="127.0.0.1",
            versions={},
            session=secrets.token_hex(4),
        )
        self.gone = threading.Event()
        self.thread = threading.Thread(target=self._live, args=(broker,))
        self.goodbye = False
        self.welcome: Welcome | None = None
        self.thread.start()

    def _live(self, broker: str) -> None:
        with Dealer(broker) as dealer:
            dealer.send(self.hello)
            while not self.gone.wait(HEARTBEAT_SECONDS):
                dealer.send(Heartbeat(waiting_for="leases"))
                self.tokens.inc(100)
                while (message := dealer.receive(0.0)) is not None:
                    self.welcome = message if isinstance(message, Welcome) else self.welcome
            if self.goodbye:
                dealer.send(Goodbye(reason="enough", finished=False))

    def leave(self, *, goodbye: bool) -> None:
        """End, with a word or without one."""
        self.goodbye = goodbye
        self.gone.set()
        self.thread.join(10)
        self.server.shutdown()
        self.server.server_close()
        self.serving.join(10)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Path]:
    """The directory of a run that has a broker and a verifier, and as yet nobody else."""
    installed("prometheus")
    directory = tmp_path / "run"
    directory.mkdir()
    started: list[subprocess.Popen[bytes]] = []

    def start(module: str, *overrides: str) -> None:
        with (directory / f"{module}.log").open("wb") as log:
            line = [sys.executable, "-m", module, *overrides]
            started.append(subprocess.Popen(line, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT))

    start(
        "learner.broker",
        "broker=tcp://127.0.0.1:*",
        "model=nowhere",
        "run.name=watched",
        f"run.dir={directory}",
        f"stream.heartbeat_seconds={HEARTBEAT_SECONDS}",
        f"stream.silence_seconds={SILENCE_SECONDS}",
    )
    end = time.monotonic() + 30
    while not (directory / "broker.json").exists():
        assert time.monotonic() < end, (directory / "learner.broker.log").read_text()
        time.sleep(0.05)
    start("verifier", f"broker={address(directory)}", "verifier.name=verifier-0")
    yield directory
    for process in reversed(started):
        process.send_signal(signal.SIGTERM)
    for process in started:
        process.wait(20)


def address(directory: Path) -> str:
    """Where the broker listens."""
    return str(json.loads((directory / "broker.json").read_text())["broker"])


@pytest.fixture
def prometheus(run: Path, tmp_path: Path) -> Iterator[Prometheus]:
    """Started as people start it."""
    listen = f"127.0.0.1:{free_port()}"
    line = command.command([str(run), "--listen", listen, "--interval", "1s", "--data", str(tmp_path / "prometheus")])
    server = Prometheus(line, listen, tmp_path / "prometheus.log")
    yield server
    server.close()


def test_targets_follow_actors_that_join_leave_and_die(run: Path, prometheus: Prometheus) -> None:
    prometheus.until(
        lambda: {"broker", "verifier-0"} == prometheus.up().keys(), SOON, "broker and verifier are scraped"
    )
    assert prometheus.values("broker_peers{role='actor'}").popitem()[1] == 0

    leaving, dying = (ActorDouble(address(run), f"actor-{index}") for index in range(2))
    everybody = {"broker", "verifier-0", "actor-0", "actor-1"}
    found = prometheus.until(
        lambda: (up := prometheus.up()).keys() == everybody and up, SOON, "both actors are scraped"
    )
    assert {name: (each["job"], each["instance"], each["run"]) for name, each in found.items()} == {
        "broker": ("broker", "broker", "watched"),
        "verifier-0": ("verifier", "verifier-0", "watched"),
        "actor-0": ("actor", "actor-0", "watched"),
        "actor-1": ("actor", "actor-1", "watched"),
    }
    prometheus.until(lambda: prometheus.values("run:generated_tokens:rate1m"), SOON, "the actors' tokens have a rate")
    assert prometheus.values("broker_peers{role='actor'}").popitem()[1] == 2

    leaving.leave(goodbye=True)
    prometheus.until(lambda: prometheus.up().keys() == everybody - {"actor-0"}, SOON, "the one that left is forgotten")
    assert firing(prometheus) == set(), "whoever says goodbye is not lost"

    dying.leave(goodbye=False)
    prometheus.until(lambda: prometheus.up().keys() == {"broker", "verifier-0"}, SOON, "the one that died is forgotten")
    prometheus.until(lambda: firing(prometheus) == {"ActorLost"}, SOON, "and missed")
    lost = {
        dict(labels)["reason"]: value
        for labels, value in prometheus.values("broker_peers_lost_total{role='actor'}").items()
    }
    assert lost == {"left": 1, "silent": 1, "replaced": 0, "refused": 0, "deaf": 0, "wrong_key": 0}


def firing(prometheus: Prometheus) -> set[str]:
    """The alerts that fire now."""
    return {each["labels"]["alertname"] for each in prometheus.ask("alerts")["alerts"] if each["state"] == "firing"}


def test_a_run_without_a_broker_is_refused_with_the_cure(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"broker\.json tells of no broker: start the run first"):
        command.command([str(tmp_path)])


def test_several_runs_and_addresses_are_watched_at_once(run: Path, tmp_path: Path) -> None:
    line = command.command([str(run), "http://10.0.0.1:9400/", "--data", str(tmp_path / "both")])
    assert line[1] == f"--config.file={tmp_path / 'both' / 'prometheus.yml'}"
    text = (tmp_path / "both" / "prometheus.yml").read_text()
    assert "http://10.0.0.1:9400/targets" in text
    assert "http://127.0.0.1:" in text
