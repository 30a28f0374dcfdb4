"""A run of real roles is killed and resumed by the launcher: what was trained stays, what comes again is the same."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
GROUPS = 4
SECONDS = 120.0  # that a part of the run may take on a busy machine
OPTIONS = [
    *("view=none", "report=false", "checkpoint.every=4", "checkpoint.keep=100", "learner.samples_per_step=100"),
    *("task.digits=1", "sampling.max_tokens=24", f"stream.groups_per_step={GROUPS}", "stream.group_size=4"),
    *("stream.max_staleness=0", "optimizer.lr=3e-4", "optimizer.eps=1e-5", "engine.max_num_seqs=8"),
]


def launch(directory: Path, model: Path, environment: dict[str, str], *overrides: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "deploy.local", f"model={model}", f"run.dir={directory}", *OPTIONS, *overrides]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def learner_pid(directory: Path) -> int:
    address = json.loads((directory / "broker.json").read_text())["http"]
    with urllib.request.urlopen(f"{address}/status", timeout=5) as answer:
        (pid,) = [peer["pid"] for peer in json.load(answer)["peers"] if peer["role"] == "learner"]
    return int(pid)


@pytest.mark.parametrize("journal", ["kept", "removed"])
def test_a_killed_run_is_resumed_and_trains_every_group_once(
    model: Path, environment: dict[str, str], tmp_path: Path, journal: str
) -> None:
    run = tmp_path / "run"
    with launch(run, model, environment, "learner.steps=100000", "restarts=0") as launcher:
        try:
            deadline = time.monotonic() + SECONDS
            while len(lines(run / "metrics.jsonl")) < 6:
                assert launcher.poll() is None, launcher.stderr and launcher.stderr.read()
                assert time.monotonic() < deadline
                time.sleep(0.05)
            os.kill(learner_pid(run), signal.SIGKILL)
            _, errors = launcher.communicate(timeout=30)
        finally:
            launcher.terminate()
    assert launcher.returncode == 1
    assert "learner-0 was killed by SIGKILL" in errors
    before, samples_before = lines(run / "metrics.jsonl"), lines(run / "samples.jsonl")
    assert max(path.name for path in (run / "checkpoints").glob("step_????????")) < f"step_{len(before):08d}"
    if journal == "removed":
        for path in run.glob("journal.sqlite*"):
            path.unlink()
    steps = len(before) + 2
    with launch(run, model, environment, "resume=true", f"learner.steps={steps}") as launcher:
        try:
            _, errors = launcher.communicate(timeout=SECONDS)
        finally:
            launcher.terminate()
    assert launcher.returncode == 0, errors
    rows, samples = lines(run / "metrics.jsonl"), lines(run / "samples.jsonl")
    assert [row["step"] for row in rows] == list(range(1, steps + 1))
    assert [sample["group_id"] for sample in samples] == list(range(GROUPS * steps))
    # The steps that both parts trained are the same, as far as two runs of the engine are.
    again = rows[: len(before)]
    kept = ("prompt", "completion", "reward", "versions")
    assert [[sample[name] for name in kept] for sample in samples[: len(samples_before)]] == [
        [sample[name] for name in kept] for sample in samples_before
    ]
    assert [row["reward_mean"] for row in again] == [row["reward_mean"] for row in before]
    np.testing.assert_allclose([row["loss"] for row in again], [row["loss"] for row in before], atol=1e-5)
    np.testing.assert_allclose([row["grad_norm"] for row in again], [row["grad_norm"] for row in before], rtol=1e-3)
    assert [row["lr"] for row in again] == [row["lr"] for row in before]
    summary = json.loads((run / "summary.json").read_text())
    consumed = summary["groups_trained"] + summary["groups_dropped"].get("zero_variance", 0)
    assert (summary["steps"], consumed) == (steps, GROUPS * steps)
    assert summary["generated_tokens"] >= summary["trained_tokens"] == rows[-1]["trained_tokens"]
    assert summary["max_staleness_seen"] == 0
    assert [row["time_s"] for row in rows] == sorted(row["time_s"] for row in rows)


def test_a_learner_that_gets_sigterm_keeps_its_steps_and_comes_back_to_the_same_broker(
    cluster: Any, model: Path
) -> None:
    options = ["optimizer.lr=1e-4", "checkpoint.every=1000", "learner.samples_per_step=4"]
    cluster.start_broker(
        model, "task.digits=1", "sampling.max_tokens=24", "stream.groups_per_step=4", "stream.group_size=4"
    )
    cluster.start_learner(model, "learner.steps=100000", *options)
    cluster.start_actor("actor-0", "engine.max_num_seqs=8")
    cluster.start_verifier("verifier-0")
    cluster.until(lambda: len(cluster.rows()) >= 3, 180, "the learner trains")
    assert cluster.stop("learner") == 1
    trained = len(cluster.rows())
    assert f"the learner got SIGTERM; {trained} steps are in a checkpoint" in cluster.log("learner")
    cluster.start_learner(model, f"learner.steps={trained + 3}", "checkpoint.resume=true", *options)
    cluster.finish(60)
    assert [row["step"] for row in cluster.rows()] == list(range(1, trained + 4))
    groups = [each["group_id"] for each in lines(cluster.directory / "samples.jsonl")]
    assert len(set(groups)) == len(groups) == 4 * (trained + 3), "each group once"
    assert cluster.rows()[-1]["generated_tokens"] >= cluster.rows()[-1]["trained_tokens"]
