"""Real roles as processes on loopback, started and reaped by a `Cluster`."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


class Cluster:
    """The processes of one run and the directory in which they leave their files and logs."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.commands: dict[str, tuple[str, tuple[str, ...]]] = {}

    def start(self, name: str, module: str, *overrides: str, ranks: int = 1) -> None:
        """Start `python -m module overrides…` (under torchrun for several ranks), its log in <name>.log."""
        self.commands[name] = (module, overrides)
        runner = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
        with (self.directory / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, *runner, "-m", module, *overrides],
                cwd=ROOT,
                env=ENVIRONMENT,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def start_broker(self, model: Path, *overrides: str) -> None:
        """Start the broker and wait until it listens."""
        self.start(
            "broker",
            "learner.broker",
            "broker=tcp://127.0.0.1:*",
            f"model={model}",
            f"run.dir={self.directory}",
            *overrides,
        )
        self.until(lambda: (self.directory / "broker.json").exists(), 30, "the broker listens")

    def start_learner(self, model: Path, *overrides: str, ranks: int = 1) -> None:
        """Start the learner."""
        places = [f"broker={self.address}", f"model={model}", f"run.dir={self.directory}"]
        self.start("learner", "learner", *places, *overrides, ranks=ranks)

    def start_actor(self, name: str, *overrides: str) -> None:
        """Start an actor with a KV cache that suits tiny models."""
        self.start(name, "actors", f"broker={self.address}", f"actor.name={name}", *overrides)

    def start_verifier(self, name: str, *overrides: str) -> None:
        """Start a verifier."""
        self.start(name, "verifier", f"broker={self.address}", f"verifier.name={name}", *overrides)

    @property
    def address(self) -> str:
        """Where the broker listens."""
        return str(json.loads((self.directory / "broker.json").read_text())["broker"])

    def status(self) -> Any:
        """The broker's /status."""
        http = json.loads((self.directory / "broker.json").read_text())["http"]
        with urllib.request.urlopen(f"{http}/status", timeout=5) as answer:
            return json.load(answer)

    def rows(self, name: str = "metrics.jsonl") -> list[Any]:
        """The lines of a JSONL file of the run; none while it is not there."""
        path = self.directory / name
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def log(self, name: str) -> str:
        """What a process printed."""
        return (self.directory / f"{name}.log").read_text()

    def until(self, true: Callable[[], bool], seconds: float, what: str) -> None:
        """Wait for a condition; fails when it does not come or a process dies before."""
        end = time.monotonic() + seconds
        while not true():
            for name, process in self.processes.items():
                assert process.poll() in (None, 0), f"{name} ended with {process.returncode}:\n{self.log(name)[-3000:]}"
            assert time.monotonic() < end, f"not within {seconds} s: {what}\n{self.tails()}"
            time.sleep(0.05)

    def finish(self, seconds: float) -> None:
        """Wait until every process has ended by itself with exit code 0."""
        self.until(lambda: all(process.poll() == 0 for process in self.processes.values()), seconds, "the run ends")

    def stop(self, name: str, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal to one process and wait for its end."""
        process = self.processes.pop(name)
        process.send_signal(number)
        return process.wait(10)

    def kill(self, name: str) -> None:
        """kill -9, of all that the process started in its session."""
        process = self.processes.pop(name)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def again(self, name: str, *more: str) -> None:
        """Start a process that was killed as it was started before; the broker on the address that it had."""
        module, overrides = self.commands[name]
        self.start(name, module, *overrides, f"broker={self.address}", *more)

    def tails(self) -> str:
        """The last lines of every log."""
        return "\n".join(f"--- {name}\n{self.log(name)[-800:]}" for name in self.processes)

    def close(self) -> None:
        """Kill what is left, whole sessions at a time."""
        for process in self.processes.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """The environment of every process that the tests start."""
    return ENVIRONMENT


@pytest.fixture(scope="session")
def start_cluster() -> type[Cluster]:
    """Makes an empty cluster in a directory; whoever makes it closes it."""
    return Cluster


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """An empty cluster; whatever is started in it is gone after the test."""
    started = Cluster(tmp_path)
    yield started
    started.close()


def sft(out: Path, *overrides: str) -> Path:
    """A model after a short cold start."""
    subprocess.run(
        [sys.executable, "-m", "learner.sft", f"sft.out={out}", "sft.digits=1", *overrides],
        cwd=ROOT,
        env=ENVIRONMENT,
        check=True,
        capture_output=True,
        timeout=120,
    )
    return out / "model"


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny tied Llama that answers one-digit additions, right some of the time."""
    return sft(tmp_path_factory.mktemp("cold_start"), "sft.steps=80", "sft.hidden_size=64")


@pytest.fixture(scope="session")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes a model of another architecture, with random weights."""

    def build(architecture: str, *, tied: bool) -> Path:
        from learner import tiny

        directory = tmp_path_factory.mktemp(architecture)
        tiny.build(directory, architecture=architecture, hidden_size=64, layers=2, tied=tied)
        return directory

    return build
