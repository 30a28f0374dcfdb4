"""A run of light processes on loopback, a killer, and what must be true whatever the killer did."""

import json
import multiprocessing
import os
import signal
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import chaos_roles

from learner.broker.inspect import Contents, inspect

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["chaos_roles", "learner.broker.service", "hydra", "verifier.service"])
SEED = int(os.environ.get("CHAOS_SEED", "0"))
PATIENCE = 30.0  # seconds within which what must happen happens, on a busy machine
QUICK = {  # of the broker: everything that waits waits for moments only
    "stream.group_size": 3,
    "stream.groups_per_step": 4,
    "stream.max_staleness": 2,
    "stream.heartbeat_seconds": 0.1,
    "stream.silence_seconds": 2.0,
    "stream.return_seconds": 30.0,
    "stream.lease_seconds": 10.0,
    "stream.lease_attempts": 100,
    "stream.verify_attempts": 5,
    "stream.verify_seconds": 2.0,
}


class Run:
    """Processes by name, their logs, the broker's address, the learner's ledger."""

    def __init__(self, directory: Path, **options: Any) -> None:
        self.directory = directory
        directory.mkdir(exist_ok=True)
        self.options: dict[str, Any] = QUICK | {name.replace("__", "."): value for name, value in options.items()}
        self.address = ""
        self.processes: dict[str, ForkServerProcess] = {}
        self._starts: dict[str, Callable[[], None]] = {}
        self._tail = LedgerTail(directory / "ledger.jsonl")

    # ------------------------------------------------------------ processes

    def start(self, name: str, role: Callable[..., None], *arguments: Any, **options: Any) -> None:
        """Start a process, and know how to start it again."""
        self._starts[name] = lambda: self.start(name, role, *arguments, **options)
        log = self.directory / f"{name}.log"
        process = FORKS.Process(target=chaos_roles.enter, args=(log, role, *arguments), kwargs=options, name=name)
        process.start()
        self.processes[name] = process

    def start_broker(self) -> None:
        """Start the broker and wait until it listens; started again, it will listen on the same address."""
        self._start_broker("tcp://127.0.0.1:*")
        self.until(lambda: (self.directory / "broker.json").exists(), "the broker listens")
        self.address = json.loads((self.directory / "broker.json").read_text())["broker"]
        self._starts["broker"] = lambda: self._start_broker(self.address)

    def _start_broker(self, address: str) -> None:
        places = [f"broker={address}", f"run.dir={self.directory}", "model=m"]
        chosen = [f"{name}={value}" for name, value in self.options.items()]
        self.start("broker", chaos_roles.module, "learner.broker", *places, *chosen)
        self._starts["broker"] = lambda: self._start_broker(address)

    def start_actor(self, name: str, **options: Any) -> None:
        self.start(name, chaos_roles.actor, self.address, name, **options)

    def start_verifier(self, name: str, **options: Any) -> None:
        self.start(name, chaos_roles.verifier, self.address, name, **options)

    def start_real_verifier(self, name: str) -> None:
        self.start(name, chaos_roles.module, "verifier", f"broker={self.address}", f"verifier.name={name}")

    def start_learner(self, **options: Any) -> None:
        self.start("learner", chaos_roles.played_learner, self.address, self.directory, **options)

    def kill(self, *names: str) -> None:
        """kill -9, all in the same moment."""
        for name in names:
            self.signal(name, signal.SIGKILL)
        for name in names:
            self.processes[name].join(PATIENCE)
            assert self.processes[name].exitcode == -signal.SIGKILL, f"{name} ended by itself\n{self.tails()}"

    def signal(self, name: str, number: signal.Signals) -> None:
        pid = self.processes[name].pid
        assert pid
        os.kill(pid, number)

    def again(self, name: str) -> None:
        """Start a process that has ended once more, as it was started before."""
        self._starts[name]()

    def ended(self, name: str) -> int:
        """Wait for the end of a process; its exit code."""
        self.processes[name].join(PATIENCE)
        code = self.processes[name].exitcode
        assert code is not None, f"{name} does not end\n{self.tails()}"
        return code

    def all_alive(self, *but: str) -> None:
        """Fails when a process has ended that nobody killed."""
        for name, process in self.processes.items():
            assert name in but or process.exitcode is None, (
                f"{name} ended by itself with {process.exitcode}\n{self.tails()}"
            )

    def until(self, true: Callable[[], Any], what: str, seconds: float = PATIENCE) -> None:
        """Wait for a condition; fails when it does not come."""
        end = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < end, f"not within {seconds} s: {what}\n{self.tails()}"
            time.sleep(0.005)

    def until_it_trains(self, steps: int, what: str) -> None:
        """Wait for so many steps from now on."""
        end = self.steps + steps
        self.until(lambda: self.steps >= end, what)

    def finish(self) -> None:
        """When all have joined, the learner ends the run; everybody leaves by itself."""
        everybody = self.processes.keys() - {"broker"}
        self.until(lambda: {peer["name"] for peer in self.status()["peers"]} == everybody, "all have joined")
        self.end()

    def end(self) -> None:
        """The learner ends the run; everybody leaves by itself."""
        (self.directory / "stop").touch()
        for name in sorted(self.processes, key=lambda name: name == "broker"):
            assert self.ended(name) == 0, f"{name}\n{self.tails()}"

    def close(self) -> None:
        for process in self.processes.values():
            if process.exitcode is None:
                process.kill()
            process.join()

    # ------------------------------------------------------------ what is known of it

    def log(self, name: str) -> str:
        path = self.directory / f"{name}.log"
        return path.read_text() if path.exists() else ""

    def tails(self) -> str:
        """The last lines of every log."""
        return "\n".join(f"--- {name}\n{self.log(name)[-1500:]}" for name in self.processes)

    def status(self) -> Any:
        """The broker's /status."""
        http = json.loads((self.directory / "broker.json").read_text())["http"]
        with urllib.request.urlopen(f"{http}/status", timeout=5) as answer:
            return json.load(answer)

    def journal(self) -> Contents:
        return inspect(Path(self.options.get("journal.path", self.directory)))

    def ledger(self) -> list[dict[str, Any]]:
        """What the learners did, in order."""
        return self._tail.lines()

    @property
    def steps(self) -> int:
        """Steps that were made, those made anew counted again."""
        return sum(line["event"] == "trains" for line in self.ledger())


@contextmanager
def run_in(directory: Path, **options: Any) -> Iterator[Run]:
    """An empty run, of which nothing is left afterwards."""
    _warm()
    run = Run(directory, **options)
    try:
        yield run
    finally:
        run.close()


def _warm() -> None:
    """The server of forks starts with the path of this process, so that it can import what it forks."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    try:
        process = FORKS.Process(target=os.getpid)
        process.start()
        process.join()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


class LedgerTail:
    """Reads a ledger while it grows, each line once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read = 0
        self._lines: list[dict[str, Any]] = []

    def lines(self) -> list[dict[str, Any]]:
        if self.path.exists():
            with self.path.open("rb") as file:
                file.seek(self._read)
                content = file.read()
            whole = content.rfind(b"\n") + 1
            self._read += whole
            self._lines += [json.loads(line) for line in content[:whole].splitlines() if line.endswith(b"}")]
        return self._lines
