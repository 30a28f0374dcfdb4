"""The launcher with real processes that die: what is started again, when, how often, and what is made sure before."""

import json
import os
import re
import signal
import time
from pathlib import Path

from fake_role import LATER, alive
from fake_run import Start, everyone


def test_whoever_is_killed_is_started_again_and_the_run_finishes(start: Start) -> None:
    run = start({"learner-0": "obey"}, "restart_seconds=0.1")
    everyone(run)
    names = ["actor-0", "broker-0", "learner-0", "verifier-0"]
    for name in names:
        os.kill(run.pid(name), signal.SIGKILL)
        run.pid(name, start=2)
    os.kill(run.pid("actor-0", start=2), signal.SIGSEGV)
    run.pid("actor-0", start=3)
    run.finish()
    code, out, errors = run.end()
    told = "actor-0 restarted 2×, broker-0 restarted 1×, learner-0 restarted 1×, verifier-0 restarted 1×"
    assert (code, out, errors) == (0, f"reward 0.250 → 0.950 in 3 steps and 1:01: enough, {told}\n", "")
    assert run.living() == []
    numbers = {name: len(run.starts(name)) - 1 for name in names}
    assert json.loads((run.path / "summary.json").read_text())["restarts"] == numbers
    first, *_, last = run.restarts()
    assert (first["process"], first["cause"]) == ("actor-0", "was killed by SIGKILL")
    assert (last["cause"], last["counted"], last["limit"], last["pause_seconds"]) == (
        "was killed by SIGSEGV",
        2,
        5,
        0.2,
    )
    lines = run.log("local").splitlines()
    assert len(lines) == 5
    sentence = "actor-0 was killed by SIGSEGV; it is started again in 0.2 s (restart 2 of 5)"
    assert lines[-1].endswith(f" local WARNING {sentence} (log: {run.path}/logs/actor-0.log)")
    stamp = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} local INFO start"
    pattern = rf"actor-0 is good\n{stamp} 2 of actor-0\nactor-0 is good\n{stamp} 3 of actor-0\nactor-0 is good\n"
    assert re.fullmatch(pattern, run.log("actor-0"))


def test_a_restarted_learner_goes_on_from_a_checkpoint_if_there_is_one_and_a_restarted_broker_listens_where_it_did(
    start: Start,
) -> None:
    run = start({"learner-0": "obey"}, "restart_seconds=0")
    everyone(run)
    first = json.loads((run.path / "broker.json").read_text())
    for name in ("broker-0", "learner-0"):
        os.kill(run.pid(name), signal.SIGKILL)
        run.pid(name, start=2)
    again = json.loads((run.path / "broker.json").read_text())
    assert again == first | {"pid": run.pid("broker-0", start=2)}
    added = [start["command"][-2:] for start in run.starts("learner-0")]
    assert added[0][0] == "--config-name"
    assert added[1] == ["checkpoint.resume=true", "checkpoint.required=false"]
    assert run.starts("actor-0")[0]["command"][-1] == "actor.name=actor-0"


def test_pauses_double_and_the_last_death_ends_everything_and_says_who_how_often_and_of_what(start: Start) -> None:
    run = start({"actor-0": "die"}, "restarts=3", "restart_seconds=0.2")
    code, out, errors = run.end()
    cause = f"it was killed by SIGKILL (log: {run.path}/logs/actor-0.log); everything else was ended"
    assert errors == f"local: actor-0 died 4 times and is started again 3 times at most (restarts=3): {cause}\n"
    assert (code, out, run.living()) == (1, "", [])
    clocks = [row["clock"] for row in run.starts("actor-0")]
    for number, wanted in enumerate((0.2, 0.4, 0.8)):
        assert clocks[number + 1] - clocks[number] > wanted


def test_a_learner_without_checkpoints_is_started_again_until_it_has_trained_a_step(start: Start) -> None:
    run = start({}, "restart_seconds=0", "checkpoint.every=0")
    everyone(run)
    os.kill(run.pid("learner-0"), signal.SIGKILL)
    second = run.pid("learner-0", start=2)
    (run.path / "metrics.jsonl").write_text('{"step": 1}\n')
    os.kill(second, signal.SIGKILL)
    code, _, errors = run.end()
    cause = (
        f"learner-0 was killed by SIGKILL (log: {run.path}/logs/learner-0.log) and cannot go on: its steps are in no"
    )
    assert errors.startswith(f"local: {cause} checkpoint (checkpoint.every=10 saves one every 10 steps); everything")
    assert (code, run.living()) == (1, [])
    assert (run.path / "metrics.jsonl").read_text() == '{"step": 1}\n'


def test_an_error_ends_the_run_unless_the_process_had_worked(start: Start) -> None:
    run = start({"actor-0": "fail_later fail"}, f"restart_reset_seconds={LATER}", "restart_seconds=0.1")
    code, _, errors = run.end()
    cause = "actor-0 ended with exit code 3: the engine has no memory left"
    assert errors == f"local: {cause} (log: {run.path}/logs/actor-0.log); everything else was ended\n"
    assert (code, run.living(), len(run.starts("actor-0"))) == (1, [], 2)
    assert [row["cause"] for row in run.restarts()] == ["ended with exit code 3: the engine has no memory left"]


def test_who_leaves_because_the_broker_is_gone_comes_back_with_it_and_loses_no_restart(start: Start) -> None:
    roles = {"learner-0": "obey", "actor-0": "depend good", "verifier-0": "leave_with_broker good"}
    run = start(roles, "restarts=1", "restart_seconds=1")
    everyone(run)
    os.kill(run.pid("broker-0"), signal.SIGKILL)
    for name in ("actor-0", "verifier-0"):
        run.pid(name, start=2)
        assert run.starts(name)[1]["clock"] > run.starts("broker-0")[1]["clock"]
        os.kill(run.pid(name, start=2), signal.SIGKILL)  # it still has the one restart that it is allowed
        run.pid(name, start=3)
    run.finish()
    assert run.end()[0] == 0
    told = {(row["process"], row["counted"]) for row in run.restarts()}
    assert told == {("broker-0", 1)} | {(name, counted) for name in ("actor-0", "verifier-0") for counted in (None, 1)}
    assert "actor: the broker was silent for 30 s; it is started again when the broker listens" in run.log("local")


def test_what_a_dead_process_had_started_is_gone_before_its_next_start_and_others_keep_theirs(start: Start) -> None:
    run = start(
        {"learner-0": "obey", "verifier-0": "mother_of_two good", "actor-0": "mother_of_two"}, "restart_seconds=0"
    )
    everyone(run)
    (daughter, naked), kept = (
        [run.pid(f"{name}-{child}") for child in ("daughter", "naked")] for name in ("verifier-0", "actor-0")
    )
    os.kill(run.pid("verifier-0"), signal.SIGKILL)
    run.pid("verifier-0", start=2)
    assert run.starts("verifier-0")[1]["daughters"] == []
    assert not alive(daughter)
    assert not alive(naked)
    assert all(map(alive, kept))
    run.finish()
    assert run.end()[0] == 0
    assert run.living() == []


def test_ctrl_c_during_a_pause_ends_everything_at_once(start: Start) -> None:
    run = start({}, "restart_seconds=30")
    everyone(run)
    os.kill(run.pid("actor-0"), signal.SIGKILL)
    run.until(lambda: bool(run.restarts()), "the decision to start it again")
    began = time.monotonic()
    run.process.send_signal(signal.SIGINT)
    assert run.end() == (130, "", "local: the launcher got SIGINT and ended everything\n")
    assert time.monotonic() - began < 5
    assert (run.living(), len(run.starts("actor-0"))) == ([], 1)


def test_at_the_end_nobody_is_started_again_and_who_was_is_asked_to_leave(start: Start) -> None:
    roles = {"learner-0": "obey", "actor-0": "good stay", "actor-1": "stay", "actor-2": "good"}
    run = start(roles, "actors=3", "restart_seconds=0.1", "end_seconds=60")
    everyone(run, "actor-1", "actor-2")
    os.kill(run.pid("actor-0"), signal.SIGKILL)
    run.pid("actor-0", start=2)
    run.finish()
    run.until((run.path / "broker_left").exists, "the broker leaves")
    os.kill(run.pid("actor-1"), signal.SIGKILL)
    assert run.end()[0] == 0
    assert [len(run.starts(f"actor-{number}")) for number in range(3)] == [2, 1, 1]
    assert run.living() == []


def test_a_learner_that_is_killed_when_the_broker_knew_of_the_end_has_finished(start: Start) -> None:
    run = start({"learner-0": "obey_and_die"}, "restart_seconds=30")
    everyone(run)
    run.finish()
    code, out, errors = run.end()
    assert (code, errors) == (0, "")
    assert out.startswith("reward 0.250 → 0.950 in 3 steps")


def test_a_cold_start_that_is_killed_begins_anew(start: Start, tmp_path: Path) -> None:
    cold_start = ("model=", "cold_start=true", f"sft.out={tmp_path}")  # its model is tmp_path/model
    run = start({"sft-0": "die leave", "learner-0": "finish"}, "restart_seconds=0", *cold_start)
    everyone(run)
    code, out, _ = run.end()
    assert code == 0
    assert out.endswith("enough, sft-0 restarted 1×\n")


def test_a_new_run_begins_its_logs_anew_and_a_resumed_one_adds_to_them(start: Start, tmp_path: Path) -> None:
    logs = tmp_path / "run" / "logs"
    logs.mkdir(parents=True)
    for name in ("actor-0", "local"):
        (logs / f"{name}.log").write_text("of old\n")
    (tmp_path / "run" / "restarts.jsonl").write_text('{"process": "actor-7"}\n')
    run = start({"learner-0": "finish"})
    assert run.end()[0] == 0
    assert (run.log("actor-0"), run.log("local"), run.restarts()) == ("actor-0 is good\n", "", [])
    checkpoint = run.path / "checkpoints" / "step_00000001"
    checkpoint.mkdir(parents=True)
    (checkpoint / "progress.json").write_text("{}")
    (run.path / "restarts.jsonl").write_text('{"process": "actor-7"}\n')
    (run.path / "summary.json").unlink()
    run = start({"learner-0": "finish"}, "resume=true")
    assert run.end()[0] == 0
    assert re.fullmatch(r"actor-0 is good\n.* local INFO start 1 of actor-0\nactor-0 is good\n", run.log("actor-0"))
    assert json.loads((run.path / "summary.json").read_text())["restarts"] == {"actor-7": 1}
