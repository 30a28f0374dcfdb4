"""Rates out of a run's directory and out of its metrics."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from plan_rates import rates as made_rates
from run_files import row

from deploy.plan import measure, rates, records
from deploy.plan.measure import CLOCK, Look, counters, evaluate
from deploy.plan.records import Interval, engine_step

CONFIG = {
    "broker": "stream:\n  group_size: 4\n  groups_per_step: 8\n  max_staleness: 2\n  silence_seconds: 7.0\n"
    "  lease_attempts: 3\n  zero_variance: keep\n",
    "actor": "defaults: [actor_schema]\nengine:\n  max_num_seqs: 64\n",
    "verifier": "verifier:\n  workers: 3\n",
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of 10 steps of 2 s, half of which the learner waits, 32 rollouts of 100 tokens each; one actor."""
    (tmp_path / "config").mkdir()
    for role, text in CONFIG.items():
        (tmp_path / "config" / f"run_{role}.yaml").write_text(text)
    write_rows(tmp_path, [step(number) for number in range(1, 11)])
    samples = [{"step": 1, "versions": [[0, 60], [1, 40]]}, {"step": 2, "versions": [[2, 100]]}]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(each) + "\n" for each in samples))
    return tmp_path


def step(number: int, **changed: Any) -> dict[str, Any]:
    """One of those steps."""
    seconds = {"receive": 1.0, "train": 1.0, "total": 2.0}
    fields = {
        "actors": 1,
        "verifiers": 1,
        "length_mean": 100.0,
        "generated_tokens": 3200 * number,
        "groups_dropped": {},
    }
    return row(number, seconds=seconds, **fields | changed)


def write_rows(directory: Path, rows: list[dict[str, Any]]) -> None:
    """As metrics.jsonl."""
    (directory / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))


def test_a_directory_alone_gives_the_learner_the_stream_and_the_lengths(run: Path) -> None:
    found = records.read(run)
    assert found.learner.tokens_per_second == 3200
    assert (found.stream.group_size, found.stream.groups_per_step, found.stream.max_staleness) == (4, 8, 2)
    assert found.stream.silence_seconds == 7.0
    assert found.lengths == (100, 100)
    assert (found.actor.max_num_seqs, found.actor.room, found.verifier.workers) == (64, 96, 3)


def test_a_verifier_without_a_number_of_workers_has_one_for_each_core(run: Path) -> None:
    (run / "config" / "run_verifier.yaml").write_text("verifier:\n  workers: 0\n")
    assert records.read(run).verifier.workers == len(os.sched_getaffinity(0))


def test_without_a_measurement_an_actor_is_as_fast_as_it_was_and_a_note_says_so(run: Path) -> None:
    found = records.read(run)
    assert found.actor.tokens_per_second(64) == pytest.approx(1600)
    assert "measure" in " ".join(found.notes)


def test_a_measurement_wins_and_is_read_as_it_was_written(run: Path) -> None:
    measured = made_rates(length=17)
    rates.write(measured, run / rates.FILE)
    assert records.read(run) == measured
    assert records.read(run / rates.FILE) == measured


def test_the_first_steps_and_pauses_of_the_machine_do_not_count(run: Path) -> None:
    rows = [step(number) for number in range(1, 11)]
    for index in (0, 6):
        rows[index]["seconds"] = {"receive": 100.0, "train": 100.0, "total": 200.0}
    write_rows(run, rows)
    assert records.read(run).learner.tokens_per_second == 3200


@pytest.mark.parametrize(("zero_variance", "share"), [("keep", 0.0), ("resample", 24 / (24 + 6 * 8))])
def test_groups_of_equal_rewards_are_leased_anew_only_when_they_are_resampled(
    run: Path, zero_variance: str, share: float
) -> None:
    rows = [step(number, groups_dropped={"zero_variance": 4 * number}) for number in range(1, 11)]
    write_rows(run, rows)
    path = run / "config" / "run_broker.yaml"
    path.write_text(path.read_text().replace("keep", zero_variance))
    assert records.read(run).stream.dropped_share == pytest.approx(share)


@pytest.mark.parametrize("missing", ["metrics.jsonl", "samples.jsonl", "config/run_actor.yaml"])
def test_what_is_missing_is_named(run: Path, missing: str) -> None:
    (run / missing).unlink()
    with pytest.raises(ValueError, match=missing.replace(".", r"\.")):
        records.read(run)


def test_a_file_that_holds_no_rates_is_refused_with_the_cure(tmp_path: Path) -> None:
    for text in ("{", "{}", '{"actor": {"wings": 2}}'):
        (tmp_path / "rates.json").write_text(text)
        with pytest.raises(ValueError, match=r"deploy\.plan measure RUN"):
            records.read(tmp_path / "rates.json")


@pytest.mark.parametrize(
    ("name", "part"),
    [("actor", {"max_num_seqs": 0}), ("stream", {"dropped_share": 1.0}), ("learner", {"step_seconds": -1.0})],
)
def test_rates_that_no_run_can_have_are_refused(name: str, part: dict[str, float]) -> None:
    good = made_rates()
    with pytest.raises(ValueError, match=rf"{name}\.{next(iter(part))}"):
        rates.check(replace(good, **{name: replace(getattr(good, name), **part)}))


def test_the_two_parts_of_an_engine_step_are_told_apart_where_batches_differ() -> None:
    intervals = [Interval(100, 100 * batch, 100 * (0.02 + 0.001 * batch)) for batch in (8, 20, 60)]
    fixed, slope, note = engine_step(intervals, 64)
    assert (fixed, slope, note) == (pytest.approx(0.02), pytest.approx(0.001), "")


def test_where_all_batches_were_alike_the_worse_is_assumed_of_those_that_were_not_seen() -> None:
    intervals = [Interval(100, 100 * 50, 7.0), Interval(50, 50 * 51, 3.6)]
    fixed, slope, note = engine_step(intervals, 64)
    assert (fixed, slope) == (pytest.approx(10.6 / 150), 0.0)
    assert note == "an engine step is taken to be as long with fewer rollouts, for all had about 50 rollouts"
    fixed, slope, note = engine_step(intervals, 128)
    assert (fixed, slope) == (0.0, pytest.approx(10.6 / 7550))
    assert "in proportion" in note


def test_a_slope_that_noise_made_impossible_is_none() -> None:
    fixed, slope, _ = engine_step([Interval(100, 1000, 5.0), Interval(100, 5000, 3.0)], 64)
    assert (fixed, slope) == (0.04, 0.0)


def test_a_run_in_which_nothing_happens_cannot_be_measured() -> None:
    with pytest.raises(ValueError, match="no actor sampled anything"):
        engine_step([Interval(0, 0, 0)], 64)


def look(second: float, steps: float, batch: float, idle: float) -> Look:
    """What the page of an actor says after so many seconds of steps of 0.01 s + 0.001 s a rollout."""
    actor = {
        CLOCK: second,
        "actor_step_seconds_count": steps,
        "actor_generated_tokens_total": batch,
        "actor_idle_seconds_total": idle,
        "actor_weight_swap_seconds_sum": 0.0,
        "actor_weight_swap_seconds_count": 0.0,
    }
    return {
        "actor-0": actor,
        "verifier-0": {CLOCK: second, "verifier_check_seconds_sum": second, "verifier_verdicts_total": 4 * second},
    }


def test_looks_become_rates_and_a_look_that_was_held_up_does_not_count() -> None:
    # 100 steps of 10, then 50 of 40, then a pause of the machine, then 100 of 10; a step takes
    # 0.01 s + 0.001 s a rollout
    looks = [
        look(0.0, 0, 0, 0.0),
        look(5.0, 100, 1000, 3.0),
        look(10.0, 150, 3000, 5.5),
        look(300.0, 250, 4000, 5.5),
        look(305.0, 350, 5000, 8.5),
    ]
    found = evaluate(made_rates(), looks)
    assert found.actor.step_seconds == pytest.approx(0.01)
    assert found.actor.rollout_seconds == pytest.approx(0.001)
    assert found.verifier.check_seconds == pytest.approx(0.25)


def test_a_process_that_was_started_again_counts_from_nothing() -> None:
    assert measure.rise({"a": 100.0}, {"a": 30.0}, "a") == 30.0
    assert measure.rise({"a": 100.0}, {"a": 130.0}, "a") == 30.0


def test_a_page_of_metrics_is_summed_over_labels() -> None:
    page = 'a_total{x="1"} 2.0\na_total{x="2"} 3.0\nb_total 7.0\n'
    assert counters(page, ("a_total",)) == {"a_total": 5.0}


def test_a_run_whose_broker_is_gone_cannot_be_measured(run: Path) -> None:
    with pytest.raises(ValueError, match="does the run go on"):
        measure.measure(run, 1.0, 1.0)
