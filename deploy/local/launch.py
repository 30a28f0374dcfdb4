"""The stages of a run: cold start → broker → learner, actors, verifiers → the end.

It waits for four things, each with a deadline or a watch over the processes that it depends on: the cold start's end,
the broker's address (`start_seconds`), the learner's end, and that of all others (`end_seconds`). While it waits it
looks at the signals and at every process; what follows the death of one is `supervision.py`'s to say.
"""

import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TypeVar

from omegaconf import DictConfig

from deploy.local import layout, presence, restarts, scale
from deploy.local.config import LauncherConfig, model_directory, run_directory
from deploy.local.processes import Child, Processes
from deploy.local.supervision import BROKER, LEARNER, POLL_SECONDS, RunFailed, Supervisor

log = logging.getLogger("local")

Found = TypeVar("Found")

SHOW_SECONDS = 0.5
MODULES = {
    "broker": "learner.broker",
    "learner": "learner",
    "actor": "actors",
    "verifier": "verifier",
    "sft": "learner.sft",
}
RESTARTED = {LEARNER: ("checkpoint.resume=true", "checkpoint.required=false")}  # what a restart adds to the command


@dataclass(slots=True)
class Launch:
    """One run. `show` is called while it waits, to keep a view up to date."""

    tree: DictConfig
    config: LauncherConfig
    show: Callable[[], None] = lambda: None
    signal: str = ""
    shown: float = 0.0
    wanted: scale.Wish = field(init=False)  # how many actors and verifiers there are to be
    cores: dict[str, list[int]] = field(default_factory=dict)  # of a role's processes, once they may be started
    processes: Processes = field(init=False)
    supervisor: Supervisor = field(init=False)

    @property
    def directory(self) -> Path:
        """The run's directory."""
        return run_directory(self.tree)

    def run(self) -> None:
        """Every stage in turn; nothing is left running, however it ends. Raises `RunFailed`."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._note_signal)
        layout.lock_doors(self.tree)
        layout.write_launch(self.tree)
        logs = self.directory / "logs"
        with presence.held(self.directory), Processes(logs, self.config.resume) as processes, self._logging():
            self.processes = processes
            self.wanted = {"actor": self.config.actors, "verifier": self.config.verifiers}
            self.supervisor = Supervisor(processes, self.config, self.directory, RESTARTED, self.lost)
            if self.config.cold_start:
                self.make_model()
            self.start_roles()
            self.watch()

    @contextmanager
    def _logging(self) -> Iterator[None]:
        """The launcher's own log is logs/local.log."""
        handler = logging.FileHandler(self.directory / "logs" / "local.log", "a" if self.config.resume else "w")
        handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        try:
            yield
        finally:
            log.removeHandler(handler)
            handler.close()

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
        child = self.start("sft", "sft-0")
        self.wait(lambda: child.code == 0)
        self.processes.forget(child)
        if not made.is_file():
            raise RunFailed(f"the cold start ended well but left no {made} (log: {child.log})")

    def start_roles(self) -> None:
        """The broker first; the others when its address is known."""
        layout.write_config(self.tree, ["broker"])
        broker = self.start("broker", BROKER)
        address, port = self.wait(
            lambda: layout.broker_address(self.directory, broker.process.pid),
            self.config.start_seconds,
            lambda: "the broker to listen",
        )
        layout.write_config(self.tree, ["broker"], broker=address, metrics_port=port)  # where a restarted one is found
        layout.write_config(self.tree, ["learner", "actor", "verifier"], broker=address)
        learner_cores, actor_cores = self.placement()
        self.start("learner", LEARNER, cores=learner_cores)
        self.cores = {"verifier": [], "actor": actor_cores}
        self.populate()

    def populate(self) -> None:
        """Start the actors and verifiers that are missing, and let go of those that are too many.

        A name that is wanted again is free when its process, and what that had started, is gone.
        """
        if self.supervisor.over:
            return
        for role, cores in self.cores.items():
            names = [f"{role}-{index}" for index in range(self.wanted[role])]
            running = {child.name: child for child in self.processes.children if child.name.startswith(f"{role}-")}
            for name in running.keys() - set(names):
                self.supervisor.let_go(running[name])
            for name in names:
                if name not in running:
                    self.start(role, name, f"{role}.name={name}", cores=cores)

    def listen(self) -> None:
        """Take a wish for more or fewer processes, if there is one."""
        try:
            wish = scale.heard(self.directory)
        except ValueError as error:
            log.warning("not scaled: %s", error)
            return
        for role, number in wish.items():
            log.info("scaled: %s from %d to %d", scale.plural(role), self.wanted[role], number)
            self.wanted[role] = number

    def lost(self, child: Child) -> str:
        """Why a process that has died cannot be started again; empty if it can."""
        metrics = self.directory / "metrics.jsonl"
        if child.name == LEARNER and not self.tree.checkpoint.every and metrics.is_file() and metrics.stat().st_size:
            return "its steps are in no checkpoint (checkpoint.every=10 saves one every 10 steps)"
        return ""

    def placement(self) -> tuple[list[int], list[int]]:
        """Cores of the learner's ranks and of the actors; empty lists where the system decides.

        More compute threads than cores slow all of them down several times, so learner and actors never share one.
        """
        cores = sorted(os.sched_getaffinity(0))
        ranks = self.tree.learner.ranks
        if self.config.placement == "none" or len(cores) <= ranks or Path("/dev/nvidiactl").exists():
            return [], []
        return cores[:ranks], cores[ranks:]

    def start(self, role: str, name: str, *overrides: str, cores: list[int] | None = None) -> Child:
        """Start one process of `role` with its configuration of this run."""
        ranks = self.tree.learner.ranks if role == "learner" else 1
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
        config = str(layout.config_directory(self.tree).absolute())
        command = [sys.executable, *torchrun, "-m", MODULES[role]]
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

    def wait(
        self, ready: Callable[[], Found | None], seconds: float | None = None, what: Callable[[], str] = str
    ) -> Found:
        """Until `ready` is true or finds something, which is returned.

        Raises `RunFailed` on a signal, on a death that ends the run, and after `seconds`.
        """
        deadline = None if seconds is None else time.monotonic() + seconds
        while not (found := ready()):
            if self.signal:
                codes = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129}
                raise RunFailed(f"the launcher got {self.signal} and ended everything", codes[self.signal])
            self.supervisor.look()
            self.listen()
            self.populate()
            if deadline and time.monotonic() > deadline:
                raise RunFailed(f"waited {seconds:g} s for {what()} in vain (logs: {self.processes.logs})")
            if time.monotonic() - self.shown >= SHOW_SECONDS:
                self.show()
                self.shown = time.monotonic()
            time.sleep(POLL_SECONDS)
        return found

    def watch(self) -> None:
        """Until the learner has finished and everyone has left by itself."""
        self.wait(self.supervisor.finished)
        self.supervisor.over = True
        restarts.add_to_summary(self.directory)
        self.wait(
            self.supervisor.all_left,
            self.config.end_seconds,
            lambda: f"{self.supervisor.running()} to leave when the run was over",
        )
