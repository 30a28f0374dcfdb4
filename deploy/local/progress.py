"""What is known of a run from its directory alone: the state that the live view shows.

Files are read on from where they ended before; a line that is still being written is left for the next look.
"""

import json
import os
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from deploy.local import restarts

STATUS_SECONDS = 0.5  # longest wait for the broker's answer
RECENT = 8  # steps from which the speed is taken
NO_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))

Row = dict[str, Any]


@dataclass(slots=True)
class Lines:
    """A growing JSONL file, which a resumed run replaces, and a cold start that begins anew empties."""

    path: Path
    rows: list[Row] = field(default_factory=list)
    offset: int = 0
    inode: int = 0  # of the file that was read so far

    def read_on(self) -> list[Row]:
        """Take in the lines added since the last look; returns them. Raises `ValueError` naming file and line."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            state = os.fstat(file.fileno())
            if state.st_ino != self.inode or state.st_size < self.offset:
                self.inode, self.rows, self.offset = state.st_ino, [], 0
            file.seek(self.offset)
            added = file.read()
        whole = added[: added.rfind(b"\n") + 1]
        self.offset += len(whole)
        new: list[Row] = []
        for line in whole.splitlines():
            number = len(self.rows) + len(new) + 1
            new.append(_object(line, f"{self.path}:{number}"))
        self.rows += new
        return new


def _object(line: bytes, where: str) -> Row:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where}: is not JSON: {error}") from None
    if not isinstance(row, dict):
        raise ValueError(f"{where}: must be an object, is {type(row).__name__}")
    return row


@dataclass(slots=True)
class Progress:
    """The run in `directory`, as far as it has got."""

    directory: Path
    metrics: Lines = field(init=False)
    cold_start: Lines = field(init=False)
    restarts: Lines = field(init=False)
    status: Row = field(default_factory=dict)  # the broker's /status; empty while it does not answer
    steps: int = 0  # at most; 0 while unknown
    target_reward: float = 0.0  # 0: none

    def __post_init__(self) -> None:
        self.metrics = Lines(self.directory / "metrics.jsonl")
        self.cold_start = Lines(self.directory / "cold_start" / "sft_metrics.jsonl")
        self.restarts = Lines(self.directory / restarts.FILE)

    def look(self) -> None:
        """Take in what is new."""
        self.cold_start.read_on()
        self.restarts.read_on()
        self.metrics.read_on()
        if not self.steps:
            self._read_limits()
        self.status = self._ask_broker()

    @property
    def last(self) -> Row:
        """The newest step's line of metrics.jsonl; empty before the first."""
        return self.metrics.rows[-1] if self.metrics.rows else {}

    @property
    def name(self) -> str:
        """The run's name, as far as it is known."""
        return str(self.status.get("run") or self.directory.name)

    def seconds_left(self) -> float | None:
        """Until the last step at the speed of the newest ones, in seconds; None while that is unknown."""
        if self.metrics.rows:
            return _seconds_left(self.metrics.rows, "time_s", self.steps)
        training = [row for row in self.cold_start.rows if "step" in row]
        return _seconds_left(training, "seconds", training[-1].get("steps", 0) if training else 0)

    def rewards(self) -> list[float]:
        """Mean reward of every step so far."""
        return [float(row.get("reward_mean") or 0.0) for row in self.metrics.rows]

    def _read_limits(self) -> None:
        try:
            config = OmegaConf.load(self.directory / "config" / "run_learner.yaml")
            self.steps = int(OmegaConf.select(config, "learner.steps"))
            self.target_reward = float(OmegaConf.select(config, "learner.target_reward"))
        except (OSError, OmegaConfBaseException, TypeError, ValueError):
            return  # not written yet, or a learner that was started by hand

    def _ask_broker(self) -> Row:
        try:
            address = json.loads((self.directory / "broker.json").read_text())["http"]
            with NO_PROXY.open(f"{address}/status", timeout=STATUS_SECONDS) as answer:
                status = json.loads(answer.read())
        except (OSError, urllib.error.URLError, ValueError, KeyError, TypeError):
            return {}  # not there yet, or no longer
        return status if isinstance(status, dict) else {}


def _seconds_left(rows: list[Row], clock: str, steps: int) -> float | None:
    recent = rows[-RECENT - 1 :]
    if len(recent) < 2 or not steps:
        return None
    done = int(recent[-1]["step"] - recent[0]["step"])
    elapsed = float(recent[-1][clock] - recent[0][clock])
    return max(0.0, (steps - int(recent[-1]["step"])) * elapsed / max(done, 1))
