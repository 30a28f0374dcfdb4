"""Any process, at any instant: kill -9 by the hundred, and nothing is lost, nothing is trained twice.

The instants follow from a seed, which is printed; `CHAOS_SEED=7 pytest tests/chaos` chooses others.
"""

import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from chaos_killer import Killer
from chaos_truth import check_journal, check_steps, steps
from chaos_world import PATIENCE, SEED, Run, run_in

STRIKES = 45


def audit(run: Run, **limits: int) -> None:
    """What must be true at any time, with the broker dead or alive."""
    found = run.journal()
    made = steps(run.ledger())
    check_steps(made, **limits)
    check_journal(found, made)


@pytest.mark.parametrize(
    ("name", "every", "options"),
    [
        ("asynchronous", 3, {}),
        ("synchronous", 1, {"stream__max_staleness": 0, "stream__lease_attempts": 3}),
        ("dropping", 5, {"stream__straggler": "drop", "stream__zero_variance": "resample", "stream__max_staleness": 1}),
    ],
)
def test_whatever_is_killed_nothing_is_lost_and_nothing_is_trained_twice(
    tmp_path: Path, name: str, every: int, options: dict[str, Any]
) -> None:
    seed = f"{SEED} {name}"
    print(f"seed {seed}")
    with run_in(tmp_path, **options) as run:
        limits = {
            option: run.options[f"stream.{option}"] for option in ("groups_per_step", "group_size", "max_staleness")
        }
        run.start_broker()
        run.start_learner(every=every)
        for actor in ("actor-0", "actor-1"):
            run.start_actor(actor)
        for verifier in ("verifier-0", "verifier-1"):
            run.start_verifier(verifier)
        run.until(lambda: run.steps > 2, "the run begins")
        killer = Killer(run, chance := random.Random(seed))
        longest = 0.0
        for strike in range(STRIKES):
            killer.strike()
            if chance.random() < 0.6:
                began = time.monotonic()
                run.until_it_trains(1, f"training goes on after strike {strike}, {dict(killer.kills)}")
                longest = max(longest, time.monotonic() - began)
            if strike % 5 == 4:
                audit(run, **limits)
        run.kill(*run.processes)
        audit(run, **limits)
        for process in list(run.processes):
            run.again(process)
        run.until_it_trains(every + 2, "training goes on after everybody was killed")
        run.finish()
        audit(run, **limits)
        found = run.journal()
        assert found.next_group > 0
        print(
            f"{sum(killer.kills.values())} kills: {dict(killer.kills)}; {killer.torn} in the middle of a turn's write"
        )
        print(f"{found.policy_version} steps, {run.steps} with those made anew; longest pause {longest:.1f} s")
        print(f"dropped: {found.dropped_by_reason}; counts: {found.counts}")
        assert longest < PATIENCE


def test_a_broker_that_dies_with_the_end_of_the_run_hears_of_it_when_it_comes_back(tmp_path: Path) -> None:
    chance, died = random.Random(SEED), 0
    for place in range(20):
        if died == 2:
            break
        with run_in(tmp_path / str(place)) as run:
            run.start_broker()
            run.start_learner(every=2)
            run.start_actor("actor-0")
            run.start_verifier("verifier-0")
            run.until(lambda run=run: run.steps > 2, "the run begins")
            (run.directory / "stop").touch()
            time.sleep(chance.random() * 0.05)
            run.signal("broker", signal.SIGKILL)
            run.ended("broker")
            time.sleep(0.3)
            if run.processes["learner"].exitcode == 0:
                continue  # it died when it had told the learner: nobody starts it again
            died += 1
            run.again("broker")
            run.end()
            found = run.journal()
            assert found.policy_version == run.ledger()[-1]["version"]
            check_journal(found, steps(run.ledger()))
    assert died
