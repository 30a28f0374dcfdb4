"""A broker that a batch system moves leaves in silence; any other tells everybody that the run is over."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(("on_sigterm", "code", "left"), [("rest", -signal.SIGTERM, True), ("end", 1, False)])
def test_sigterm_ends_a_broker_as_was_said(tmp_path: Path, on_sigterm: str, code: int, left: bool) -> None:
    words = ["broker=tcp://127.0.0.1:*", "model=none", f"run.dir={tmp_path}", f"journal.on_sigterm={on_sigterm}"]
    with subprocess.Popen(
        [sys.executable, "-m", "learner.broker", *words],
        cwd=ROOT,
        env=dict(os.environ),
        stderr=subprocess.PIPE,
        text=True,
    ) as broker:
        end = time.monotonic() + 60
        while not (tmp_path / "broker.json").exists():
            assert broker.poll() is None
            assert time.monotonic() < end
            time.sleep(0.05)
        assert broker.stderr is not None
        while "listening on" not in broker.stderr.readline():
            assert time.monotonic() < end
        time.sleep(0.2)
        broker.send_signal(signal.SIGTERM)
        said = broker.stderr.read()
        assert broker.wait(30) == code
    assert ("the run ended early: broker got SIGTERM" in said) is not left
    assert (tmp_path / "broker.json").exists() is left
