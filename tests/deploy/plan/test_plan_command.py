"""The command as people meet it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from plan_rates import rates

from deploy.plan.config import PlanRoot, lengths, planned
from deploy.plan.rates import write

ROOT = Path(__file__).parents[3]
BY_HAND = (
    *("actor.step_seconds=0.01", "actor.rollout_seconds=0.001", "actor.max_num_seqs=16", "verifier.check_seconds=0.01"),
    *("learner.tokens_per_second=2000", "stream.group_size=4", "stream.groups_per_step=16", "stream.max_staleness=2"),
    "lengths.mean=50",
)


def command(*words: str) -> tuple[int, str, str]:
    """`python -m deploy.plan …`: exit code, output, errors."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "deploy.plan", *words], cwd=ROOT, env=environment, text=True, capture_output=True
    )
    return done.returncode, done.stdout, done.stderr


def test_it_finds_how_many_actors_and_says_what_they_give(tmp_path: Path) -> None:
    write(rates(), tmp_path / "rates.json")
    code, out, errors = command(f"rates={tmp_path}/rates.json", "prices.actor_hour=2", f"out={tmp_path}/plan.json")
    assert (code, errors) == (0, "")
    found = json.loads((tmp_path / "plan.json").read_text())["found"]
    assert found["learner_busy"] >= 0.95
    last = out.splitlines()[-1]
    assert last.startswith(f"→ {found['actors']} actors and {found['verifiers']} verifier: the learner is busy ")
    assert "cost/M tokens" in out


def test_it_says_what_so_many_give() -> None:
    code, out, _ = command(*BY_HAND, "actors=3", "verifiers=2", "faults.actor_failure_hours=0.01")
    assert code == 0
    assert "→ 3 actors and 2 verifiers: the learner is busy " in out


def test_where_no_number_of_actors_is_enough_it_names_the_bound_that_would_be() -> None:
    code, out, _ = command(*BY_HAND, "stream.max_staleness=0")
    assert code == 0
    assert "and no more: " in out
    assert "would need stream.max_staleness=" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "plan: give a measured run (rates=runs/mine), or by hand also actor.step_seconds="),
        (("rates=nowhere",), "plan: rates=nowhere: must be a run directory"),
        ((*BY_HAND, "busy=1.5"), "plan: busy=1.5: must lie in (0, 1)"),
        ((*BY_HAND, "faults.slow_factor=0.5"), "plan: faults.slow_factor=0.5: must be 1 or more"),
        ((*BY_HAND, "actor.max_num_seqs=0"), "plan: actor.max_num_seqs=0: must be above 0"),
        (("measure", "nowhere"), "measure: give a run that goes on"),
    ],
)
def test_what_cannot_be_planned_is_refused_in_a_sentence(words: tuple[str, ...], said: str) -> None:
    code, out, errors = command(*words)
    assert (code, out) == (1, "")
    assert errors.startswith(said)


def test_what_is_given_by_hand_wins_over_what_was_measured(tmp_path: Path) -> None:
    write(rates(length=77), tmp_path / "rates.json")
    config = PlanRoot(rates=str(tmp_path / "rates.json"))
    config.stream.max_staleness = 9
    found = planned(config)
    assert (found.stream.max_staleness, found.stream.group_size, found.length_mean) == (9, 4, 77.0)


def test_lengths_drawn_have_the_mean_and_the_spread_that_are_asked_for() -> None:
    options = PlanRoot().lengths
    options.mean, options.variation = 500.0, 0.8
    drawn = lengths(options, seed=1)
    mean = sum(drawn) / len(drawn)
    spread = (sum((each - mean) ** 2 for each in drawn) / len(drawn)) ** 0.5
    assert mean == pytest.approx(500, rel=0.03)
    assert spread / mean == pytest.approx(0.8, rel=0.06)
    options.longest = 600
    assert max(lengths(options, seed=1)) == 600
