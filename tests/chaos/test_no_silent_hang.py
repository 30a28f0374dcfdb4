"""Whatever stops answering, the run goes on without it, or ends in bounded time with a sentence that says why."""

import json
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from chaos_roles import Manners, hello
from chaos_truth import check_journal, check_steps, steps
from chaos_world import Run, run_in

from protocol.messages import Heartbeat, Lease, LeaseRequest, WeightManifest
from protocol.sockets import Dealer

SHORT = {
    "stream__heartbeat_seconds": 0.1,
    "stream__silence_seconds": 0.6,
    "stream__verify_seconds": 0.3,
    "stream__return_seconds": 20.0,
}


@contextmanager
def begun(directory: Path, actors: int = 1, verifiers: int = 1, **options: Any) -> Iterator[Run]:
    """A run that trains."""
    with run_in(directory, **SHORT | options) as run:
        run.start_broker()
        run.start_learner()
        for index in range(actors):
            run.start_actor(f"actor-{index}")
        for index in range(verifiers):
            run.start_verifier(f"verifier-{index}")
        run.until_it_trains(3, "the run begins")
        yield run


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    with begun(tmp_path) as run:
        yield run


def audit(run: Run) -> None:
    made = steps(run.ledger())
    check_steps(made, groups_per_step=4, group_size=3, max_staleness=2)
    check_journal(run.journal(), made)


def peers(run: Run) -> set[str]:
    return {peer["name"] for peer in run.status()["peers"]}


# ------------------------------------------------------------ actors


def tasks(path: Path, *prompts: str) -> dict[str, str]:
    """Options of a run whose tasks are these prompts, again and again."""
    rows = [{"prompt": prompt, "reward": "format", "reference": ""} for prompt in prompts]
    path.write_text("\n".join(map(json.dumps, rows)))
    return {"task__name": "file", "task__files": f"[{path}]"}


def test_impossible_prompts_are_dropped_and_counted_and_the_others_are_trained(tmp_path: Path) -> None:
    with begun(tmp_path, **tasks(tmp_path / "tasks.jsonl", "1+1=", "an impossible one", "2+2=")) as run:
        run.until_it_trains(5, "training goes on")
        run.finish()
        found = run.journal()
        impossible = [group for group, reason in found.dropped.items() if reason == "prompt_impossible"]
        assert len(impossible) == found.dropped_by_reason["prompt_impossible"] >= 10
        check_journal(found, steps(run.ledger()))


def test_a_run_in_which_all_prompts_are_impossible_ends_for_all_with_the_reason(tmp_path: Path) -> None:
    options = tasks(tmp_path / "tasks.jsonl", "impossible", "just as impossible")
    with run_in(tmp_path, **SHORT | options, stream__drops_in_a_row=20) as run:
        run.start_broker()
        run.start_learner()
        run.start_verifier("verifier-0")
        run.until(lambda: "verifier-0 joined" in run.log("broker"), "the verifier is there to hear it")
        run.start_actor("actor-0")
        reason = re.compile(r"the run.*: (\d\d) groups in a row were dropped \(prompt_impossible \1\)")
        for name in run.processes:
            assert run.ended(name) == 1
            assert reason.search(run.log(name)), name


def test_an_actor_that_stops_stepping_loses_its_leases_to_the_others_and_may_come_back(tmp_path: Path) -> None:
    with begun(tmp_path, actors=2) as run:
        run.signal("actor-0", signal.SIGSTOP)
        run.until(lambda: "actor-0" not in peers(run), "its silence is noticed")
        run.until_it_trains(5, "the other one does its work")
        run.signal("actor-0", signal.SIGCONT)
        run.until(lambda: "actor-0" in peers(run), "it is back")
        run.signal("actor-1", signal.SIGSTOP)
        run.until_it_trains(5, "it works again")
        run.signal("actor-1", signal.SIGCONT)
        run.finish()
        audit(run)


def test_an_actor_that_was_stopped_for_longer_than_a_broker_may_be_away_comes_back_too(tmp_path: Path) -> None:
    with begun(tmp_path, actors=2, stream__return_seconds=1.5) as run:
        run.signal("actor-0", signal.SIGSTOP)
        time.sleep(2.5)
        run.signal("actor-0", signal.SIGCONT)
        run.until(lambda: "actor-0" in peers(run), "it is back")
        run.signal("actor-1", signal.SIGSTOP)
        run.until_it_trains(5, "it works again")
        run.signal("actor-1", signal.SIGCONT)
        run.finish()
        audit(run)


def test_a_run_without_actors_waits_and_says_for_whom(run: Run) -> None:
    run.kill("actor-0")
    run.until(lambda: run.status()["waiting_for"] == "a first actor to join", "it is said")
    run.until(
        lambda: "12 rollouts of groups" in " ".join(run.journal().waits) or run.journal().groups["pending"], "shown"
    )
    before = run.steps
    time.sleep(1.0)
    run.all_alive("actor-0")
    assert run.steps <= before + 3
    run.again("actor-0")
    run.until_it_trains(5, "it goes on")
    run.finish()
    audit(run)


def test_a_peer_that_stops_reading_holds_nobody_up(tmp_path: Path) -> None:
    """It keeps saying that it lives, and takes leases, but reads nothing and delivers nothing."""
    with begun(tmp_path, stream__lease_seconds=1.0) as run:
        memory, over = resident(run, "broker"), threading.Event()
        with Dealer(run.address) as line:
            line.send(hello("actor", "deaf"))
            line.send(LeaseRequest(capacity=30))
            thread = threading.Thread(target=chatter, args=(line, over))
            thread.start()
            try:
                run.until(lambda: "of deaf took over 1 s" in run.log("broker"), "its time is up")
                run.until_it_trains(20, "the other one gets its leases when their time is up")
            finally:
                over.set()
                thread.join()
            assert resident(run, "broker") < memory + 50_000_000
            received = list(iter(lambda: line.receive(0.2), None))
            assert any(isinstance(message, Lease) for message in received)
            assert any(isinstance(message, WeightManifest) for message in received)
        run.kill(*run.processes)
        audit(run)


def chatter(line: Dealer, over: threading.Event) -> None:
    """Heartbeats, as many as it takes."""
    while not over.wait(0.001):
        line.send(Heartbeat())


def resident(run: Run, name: str) -> int:
    """Bytes of memory that a process has."""
    pages = Path(f"/proc/{run.processes[name].pid}/statm").read_text().split()[1]
    return 4096 * int(pages)


# ------------------------------------------------------------ verifiers


def test_a_verifier_that_stops_answering_loses_its_jobs_to_the_others(tmp_path: Path) -> None:
    with begun(tmp_path, verifiers=2) as run:
        run.signal("verifier-0", signal.SIGSTOP)
        run.until(lambda: "verifier-0" not in peers(run), "its silence is noticed")
        run.until_it_trains(5, "the other one does its work")
        run.signal("verifier-0", signal.SIGCONT)
        run.until(lambda: "verifier-0" in peers(run), "it is back")
        run.finish()
        audit(run)


def test_a_verifier_that_lives_but_never_answers_is_thrown_out_with_the_reason(tmp_path: Path) -> None:
    with begun(tmp_path) as run:
        run.start_verifier("verifier-1", manners=Manners(deaf=True))
        assert run.ended("verifier-1") == 1
        assert "refused this verifier: verdicts: none came in time" in run.log("verifier-1")
        del run.processes["verifier-1"]
        run.until_it_trains(5, "the other one does its work")
        run.finish()
        audit(run)


def test_jobs_that_a_verifier_forgets_are_void_and_sent_again(tmp_path: Path) -> None:
    with run_in(tmp_path, **SHORT) as run:
        run.start_broker()
        run.start_learner()
        run.start_actor("actor-0")
        run.start_verifier("verifier-0", manners=Manners(void_rate=0.0, forgets=2))
        run.start_verifier("verifier-1", manners=Manners(void_rate=0.0))
        run.until_it_trains(12, "training goes on past the forgotten jobs")
        assert "answers others, but not job" in run.log("broker") or "none came in time" in run.log("broker")
        run.kill(*(name for name, process in run.processes.items() if process.exitcode is None))
        audit(run)


# ------------------------------------------------------------ the learner


def test_a_learner_that_stops_for_a_while_is_waited_for(run: Run) -> None:
    run.signal("learner", signal.SIGSTOP)
    run.until(lambda: "was silent" in run.status()["waiting_for"], "its silence is noticed")
    run.signal("learner", signal.SIGCONT)
    run.until_it_trains(5, "it goes on")
    run.finish()
    audit(run)


def test_a_learner_that_does_not_come_back_ends_the_run_for_all_with_the_reason(tmp_path: Path) -> None:
    with begun(tmp_path, stream__return_seconds=1.0) as run:
        run.signal("learner", signal.SIGSTOP)
        for name in ("actor-0", "verifier-0", "broker"):
            assert run.ended(name) == 1
            assert "waited 1 s for a learner to come back after it was silent for 1 s in vain" in run.log(name), name
        run.signal("learner", signal.SIGCONT)
        assert run.ended("learner") == 1
        assert "was silent for 1 s" in run.log("learner")
        audit(run)


def test_a_learner_whose_training_hangs_is_ended_and_another_goes_on(tmp_path: Path) -> None:
    with run_in(tmp_path, **SHORT, stream__consume_seconds=1.0) as run:
        run.start_broker()
        run.start_learner(hangs=True)
        run.start_actor("actor-0")
        run.start_verifier("verifier-0")
        assert run.ended("learner") == 1
        assert "the training thread has been stuck for 1 s" in run.log("learner")
        assert "is not trained; stream.consume_seconds allows more" in run.log("learner")
        run.start_learner()
        run.until_it_trains(5, "the next one trains")
        run.finish()
        audit(run)


def test_a_learner_that_is_only_stopped_keeps_its_directory_and_another_is_told_which_process_it_is(run: Run) -> None:
    """Else both would write the same checkpoints once it wakes up."""
    run.signal("learner", signal.SIGSTOP)
    stopped = run.processes.pop("learner")
    run.start_learner()
    assert run.ended("learner") == 1
    assert f"another learner (process {stopped.pid} on" in run.log("learner")
    run.processes["learner"] = stopped
    run.signal("learner", signal.SIGCONT)
    run.until_it_trains(5, "it goes on")
    run.finish()
    audit(run)


def test_an_actor_that_was_stopped_and_replaced_ends_when_it_wakes_up(run: Run) -> None:
    run.signal("actor-0", signal.SIGSTOP)
    old = run.processes.pop("actor-0")
    run.start_actor("actor-0")
    run.until_it_trains(5, "the new one works")
    run.processes["old"] = old
    run.signal("old", signal.SIGCONT)
    assert run.ended("old") == 1
    assert "'actor-0' is taken by process" in run.log("actor-0")
    del run.processes["old"]
    run.until_it_trains(5, "the new one is not disturbed")
    run.finish()
    audit(run)
