"""Launchers with fake roles, of which nothing is left after a test."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_role import alive
from fake_run import Run, Start


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a launcher with the given fake roles; whatever a failed test leaves is killed."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    runs: list[Run] = []

    def starter(roles: dict[str, str], *overrides: str) -> Run:
        runs.append(Run(tmp_path / "run", model, roles, *overrides))
        return runs[-1]

    yield starter
    for run in runs:
        run.process.kill()
        run.process.communicate()
        for pid in run.pids():
            if alive(pid):
                os.kill(pid, signal.SIGKILL)
