"""The launcher with real processes: however a run ends, nothing is left, and one sentence says what happened."""

import os
import re
import signal
import time
from pathlib import Path

import pytest
from fake_run import DEADLINE, Start, everyone


def test_a_run_that_finishes_exits_0_and_tells_its_result(start: Start) -> None:
    run = start({"learner-0": "finish"})
    everyone(run)
    assert run.end() == (0, "reward 0.250 → 0.950 in 3 steps and 1:01: enough\n", "")
    assert run.living() == []


def test_a_resumed_run_keeps_its_cold_start_and_its_files(start: Start, tmp_path: Path) -> None:
    checkpoint = tmp_path / "run" / "checkpoints" / "step_00000001"
    checkpoint.mkdir(parents=True)
    (checkpoint / "progress.json").write_text("{}")
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 1}\n')
    cold_start = (
        "model=",
        "cold_start=true",
        f"sft.out={tmp_path}",
        "sft.steps=1000000",
    )  # its model is tmp_path/model
    run = start({"learner-0": "finish"}, "resume=true", *cold_start)
    everyone(run)
    assert run.end()[0] == 0
    assert not (run.path / "logs" / "sft-0.log").exists()
    assert (checkpoint / "progress.json").exists()
    assert (run.path / "metrics.jsonl").read_text() == '{"step": 1}\n'
    assert "resume: true" in (run.path / "config" / "run_learner.yaml").read_text()


def test_a_run_without_a_checkpoint_is_not_resumed(start: Start) -> None:
    run = start({}, "resume=true")
    code, _, errors = run.end()
    assert code == 1
    sentence = "holds neither a whole checkpoint nor a journal to go on from"
    assert errors.startswith(f"local: resume=true: {run.path} {sentence}")


@pytest.mark.parametrize("name", ["broker-0", "learner-0", "actor-0", "verifier-0"])
def test_without_restarts_the_violent_death_of_any_role_ends_everything_and_is_named(start: Start, name: str) -> None:
    run = start({}, "restarts=0")
    everyone(run)
    os.kill(run.pid(name), signal.SIGKILL)
    code, out, errors = run.end()
    assert (code, out) == (1, "")
    assert (
        errors == f"local: {name} was killed by SIGKILL (log: {run.path}/logs/{name}.log); everything else was ended\n"
    )
    assert run.living() == []


def test_a_role_that_fails_is_named_with_its_last_error(start: Start) -> None:
    run = start({"actor-1": "fail"}, "actors=2")
    run.pid("actor-1")
    code, _, errors = run.end()
    cause = "actor-1 ended with exit code 3: the engine has no memory left"
    assert errors == f"local: {cause} (log: {run.path}/logs/actor-1.log); everything else was ended\n"
    assert (code, run.living()) == (1, [])


def test_of_two_that_end_together_the_one_that_takes_others_along_is_named(start: Start) -> None:
    run = start({"learner-0": "fail", "actor-0": "fail"})
    run.pid("actor-0")
    assert run.end()[2].startswith("local: learner-0 ended with exit code 3")


def test_a_role_that_leaves_early_ends_everything_even_with_exit_code_0(start: Start) -> None:
    run = start({"verifier-0": "leave"})
    run.pid("verifier-0")
    code, _, errors = run.end()
    assert errors.startswith("local: verifier-0 ended with exit code 0")
    assert (code, run.living()) == (1, [])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_everything_also_roles_that_ignore_it(start: Start, number: signal.Signals, code: int) -> None:
    run = start({"actor-0": "deaf", "verifier-0": "mother"})
    everyone(run, "verifier-0-daughter")
    run.process.send_signal(number)
    assert run.end() == (code, "", f"local: the launcher got {number.name} and ended everything\n")
    assert run.living() == []


def test_a_killed_launcher_leaves_no_orphans(start: Start) -> None:
    run = start({"actor-0": "deaf", "verifier-0": "mother"})
    everyone(run, "verifier-0-daughter")
    run.process.kill()
    deadline = time.monotonic() + DEADLINE
    while left := run.living():
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def test_a_broker_that_does_not_listen_ends_the_start(start: Start) -> None:
    run = start({"broker-0": "mute"}, "start_seconds=0.5")
    run.pid("broker-0")
    code, _, errors = run.end()
    assert re.fullmatch(r"local: waited 0.5 s for the broker to listen in vain \(logs: .*/logs\)\n", errors)
    assert (code, run.living()) == (1, [])


def test_a_role_that_does_not_leave_when_the_run_is_over_is_named_and_ended(start: Start) -> None:
    run = start({"learner-0": "finish", "actor-0": "stay"}, "end_seconds=2")
    everyone(run)
    code, _, errors = run.end()
    assert errors.startswith("local: waited 2 s for actor-0 to leave when the run was over in vain")
    assert (code, run.living()) == (1, [])
