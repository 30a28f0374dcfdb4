"""The stages of a run: cold start → broker → learner, actors, verifiers → the end.

It waits for three things, each with a deadline or a watch over the processes that it depends on: the cold start's end,
the broker's address (`start_seconds`), and the learner's end. While it waits it looks at every process and at the
signals; the first unexpected end of any of them ends the run.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from omegaconf import DictConfig

from deploy.local import layout
from deploy.local.config import LauncherConfig, model_directory, run_directory
from deploy.local.processes import Child, Processes

POLL_SECONDS = 0.1
SHOW_SECONDS = 0.5
SETTLE_SECONDS = 1.0  # after a death, for others to end of the same cause
MODULES = {"broker": "learner.broker", "learner": "learner", "actor": "actors", "verifier": "verifier"}


class RunFailed(Exception):
    """The run ended early; the message is one sentence on why. `code` is the launcher's exit code."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


@dataclass(slots=True)
class Launch:
    """One run. `show` is called while it waits, to keep a view up to date."""

    tree: DictConfig
    config: LauncherConfig
    show: Callable[[], None] = lambda: None
    signal: str = ""
    shown: float = 0.0
    processes: Processes = field(init=False)

    @property
    def directory(self) -> Path:
        """The run's directory."""
        return run_directory(self.tree)

    def run(self) -> None:
        """Every stage in turn; nothing is left running, however it ends. Raises `RunFailed`."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._note_signal)
        layout.write_launch(self.tree)
        with Processes(self.directory / "logs") as processes:
            self.processes = processes
            if self.config.cold_start:
                self.make_model()
            self.start_roles()
            self.watch()

    def _note_signal(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number).name

    def make_model(self) -> None:
        """Supervised training, unless the model is there and was made with the same options, or the run is resumed."""
        text = layout.role_config_text(self.tree, "sft")
        written = layout.config_directory(self.tree) / "run_sft.yaml"
        made = model_directory(self.tree) / "config.json"
        if self.config.resume and not made.is_file():
            raise RunFailed(f"resume=true: the model of the cold start is gone, there is no {made}")
        if self.config.resume or (made.is_file() and written.is_file() and written.read_text() == text):
            return
        layout.write_config(self.tree, ["sft"])
        child = self.start("sft", "sft-0", module="learner.sft")
        self.wait(lambda: child.code == 0)
        self.processes.forget(child)
        if not made.is_file():
            raise RunFailed(f"the cold start ended well but left no {made} (log: {child.log})")

    def start_roles(self) -> None:
        """The broker first; the others when its address is known."""
        layout.write_config(self.tree, ["broker"])
        self.start("broker", "broker-0")
        address_file = self.directory / "broker.json"
        self.wait(address_file.is_file, self.config.start_seconds, lambda: "the broker to listen")
        address = json.loads(address_file.read_text())["broker"]
        layout.write_config(self.tree, ["learner", "actor", "verifier"], broker=address)
        learner_cores, actor_cores = self.placement()
        self.start("learner", "learner-0", cores=learner_cores)
        for index in range(self.config.verifiers):
            self.start("verifier", f"verifier-{index}", f"verifier.name=verifier-{index}")
        for index in range(self.config.actors):
            self.start("actor", f"actor-{index}", f"actor.name=actor-{index}", cores=actor_cores)

    def placement(self) -> tuple[list[int], list[int]]:
        """Cores of the learner's ranks and of the actors; empty lists where the system decides.

        More compute threads than cores slow all of them down several times, so learner and actors never share one.
        """
        cores = sorted(os.sched_getaffinity(0))
        ranks = self.tree.learner.ranks
        if self.config.placement == "none" or len(cores) <= ranks or Path("/dev/nvidiactl").exists():
            return [], []
        return cores[:ranks], cores[ranks:]

    def start(self, role: str, name: str, *overrides: str, module: str = "", cores: list[int] | None = None) -> Child:
        """Start one process of `role` with its configuration of this run."""
        ranks = self.tree.learner.ranks if role == "learner" else 1
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
        config = str(layout.config_directory(self.tree).absolute())
        command = [sys.executable, *torchrun, "-m", module or MODULES[role]]
        command += ["--config-dir", config, "--config-name", f"run_{role}", *overrides]
        environment = {
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONUNBUFFERED": "1",
            "TQDM_DISABLE": "1",
        }
        if self.config.placement == "auto":
            environment["OMP_NUM_THREADS"] = "1"  # two that share a machine with others wait for each other
        return self.processes.start(name, command, environment, cores or [])

    def wait(self, ready: Callable[[], bool], seconds: float | None = None, what: Callable[[], str] = str) -> None:
        """Until `ready`. Raises `RunFailed` on a signal, on the death of any process, and after `seconds`."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while not ready():
            if self.signal:
                codes = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129}
                raise RunFailed(f"the launcher got {self.signal} and ended everything", codes[self.signal])
            if self.dead() and not ready():
                raise RunFailed(f"{self.culprit().end()}; everything else was ended")
            if deadline and time.monotonic() > deadline:
                raise RunFailed(f"waited {seconds:g} s for {what()} in vain (logs: {self.processes.logs})")
            if time.monotonic() - self.shown >= SHOW_SECONDS:
                self.show()
                self.shown = time.monotonic()
            time.sleep(POLL_SECONDS)

    def dead(self) -> list[Child]:
        """The processes that should run but do not."""
        finished = (self.directory / "summary.json").is_file()  # written before the learner says goodbye
        return [
            child for child in self.processes.children if child.code is not None and not (finished and child.code == 0)
        ]

    def culprit(self) -> Child:
        """Of the dead, the one that took the others along.

        When the learner or the broker fails, the rest is told and leaves with an error, perhaps before torchrun has
        noticed; an actor or a verifier takes nobody along. A process that was killed did not leave for want of another.
        """
        time.sleep(SETTLE_SECONDS)
        rank = {"learner": 0, "broker": 1}
        return min(
            self.dead(), key=lambda child: ((child.code or 0) >= 0, rank.get(child.name.partition("-")[0], len(rank)))
        )

    def running(self) -> str:
        """The names of the processes that have not ended."""
        return ", ".join(child.name for child in self.processes.children if child.code is None)

    def watch(self) -> None:
        """Until the learner has finished and everyone has left by itself."""
        learner = next(child for child in self.processes.children if child.name == "learner-0")
        self.wait(lambda: learner.code == 0 and (self.directory / "summary.json").is_file())
        self.wait(
            lambda: all(child.code == 0 for child in self.processes.children),
            self.config.end_seconds,
            lambda: f"{self.running()} to leave when the run was over",
        )
