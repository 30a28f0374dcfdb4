"""The run's files: numbers on a hand-made batch, one whole line a step, one summary."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from learner.record import Record, describe, open_record, resume_record
from learner.reflection import WORDS
from protocol.messages import GroupBatch, Rollout, ScoredRollout, Verdict, VersionSpan

MakeBatch = Callable[..., GroupBatch]


def scored(
    length: int, reward: float, spans: list[tuple[int, int]], *, truncated: bool = False, text: str = "2"
) -> ScoredRollout:
    return ScoredRollout(
        rollout=Rollout(
            group_id=0,
            sample_index=0,
            prompt_ids=np.array([1], dtype=np.int32),
            token_ids=np.zeros(length, dtype=np.int32),
            behaviour_logprobs=np.zeros(length, dtype=np.float32),
            version_spans=tuple(VersionSpan(version=v, tokens=n, fingerprint="0" * 32) for v, n in spans),
            finish_reason="length" if truncated else "stop",
            text=text,
        ),
        verdict=Verdict(reward=reward, parts={"accuracy": float(reward == 1), "format": 1.0}, reason="", seconds=0),
    )


def batch_of(make_batch: MakeBatch, *groups: tuple[ScoredRollout, ...], version: int) -> GroupBatch:
    made = make_batch(len(groups), 2, version=version)
    filled = [dataclasses.replace(group, scored=own) for group, own in zip(made.groups, groups, strict=True)]
    return dataclasses.replace(made, groups=tuple(filled))


def test_a_batch_is_described_by_the_numbers_that_one_counts_by_hand(make_batch: MakeBatch) -> None:
    mixed = (scored(4, 1.0, [(3, 1), (5, 3)], text="Let me check"), scored(6, 0.5, [(5, 6)], truncated=True))
    equal = (scored(2, 0.5, [(4, 2)]), scored(8, 0.5, [(5, 8)]))
    found = describe(batch_of(make_batch, mixed, equal, version=5))
    assert found == {
        "reward_mean": pytest.approx(0.625),
        "reward_std": pytest.approx(math.sqrt((0.375**2 + 3 * 0.125**2) / 4)),
        "parts": {"accuracy": 0.25, "format": 1.0},
        "accuracy": 0.25,
        "majority_accuracy": 0.5,
        "reflective_words": dict.fromkeys(WORDS, 0.0) | {"check": 0.25},
        "length_mean": 5.0,
        "length_max": 8,
        "length_correct_mean": 4.0,
        "length_wrong_mean": pytest.approx(16 / 3),
        "truncated_fraction": 0.25,
        "zero_variance_fraction": 0.5,
        "staleness_mean": pytest.approx((2 * 1 + 1 * 2) / 20),
        "staleness_max": 2,
        "staleness_tokens": {"0": 17, "1": 2, "2": 1},
        "mixed_version_rollouts": 1,
    }
    json.dumps(found)


def test_lengths_without_an_example_are_null(make_batch: MakeBatch) -> None:
    right = (scored(4, 1.0, [(5, 4)]), scored(6, 1.0, [(5, 6)]))
    assert describe(batch_of(make_batch, right, version=5))["length_wrong_mean"] is None
    wrong = (scored(4, 0.0, [(5, 4)]), scored(6, 0.0, [(5, 6)]))
    assert describe(batch_of(make_batch, wrong, version=5))["length_correct_mean"] is None


def test_a_part_is_averaged_over_the_rollouts_that_have_it(make_batch: MakeBatch) -> None:
    with_both = scored(4, 1.0, [(5, 4)])
    other = dataclasses.replace(with_both, verdict=dataclasses.replace(with_both.verdict, parts={"exact": 0.5}))
    parts = describe(batch_of(make_batch, (with_both, other), version=5))["parts"]
    assert parts == {"accuracy": 1.0, "format": 1.0, "exact": 0.5}


def row(step: int, reward: float, **other: Any) -> dict[str, Any]:
    return {
        "step": step,
        "reward_mean": reward,
        "parts": {"accuracy": reward},
        "staleness_max": step % 3,
        "mixed_version_rollouts": 2,
        "generated_tokens": 100 * step,
        "trained_tokens": 90 * step,
        "groups_trained": 4 * step,
        "groups_dropped": {"zero_reward": step},
        **other,
    }


def lines(path: Path) -> list[dict[str, Any]]:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def test_a_step_is_one_line_and_a_number_that_is_not_finite_is_null(tmp_path: Path) -> None:
    record = Record(tmp_path, samples_per_step=1)
    record.step(row(1, 0.5, loss=math.nan, ratio={"max": math.inf, "min": 1.0}))
    record.step(row(2, 0.6))
    first, second = lines(tmp_path / "metrics.jsonl")
    assert (first["loss"], first["ratio"]) == (None, {"max": None, "min": 1.0})
    assert second["reward_mean"] == 0.6


def test_a_summary_says_how_the_run_began_and_ended(tmp_path: Path) -> None:
    record = Record(tmp_path, samples_per_step=1)
    for step, reward in enumerate([0.3, 0.5, 0.7, 0.8, 0.9], start=1):
        record.step(row(step, reward))
    record.summary("5 steps are done", 12.3456)
    (summary,) = [json.loads((tmp_path / "summary.json").read_text())]
    assert summary["reward_start"] == 0.3
    assert summary["reward_end"] == pytest.approx(0.8)
    assert summary["steps"] == 5
    assert summary["seconds"] == 12.346
    assert (summary["generated_tokens"], summary["trained_tokens"], summary["groups_trained"]) == (500, 450, 20)
    assert summary["groups_dropped"] == {"zero_reward": 5}
    assert summary["max_staleness_seen"] == 2
    assert summary["mixed_version_rollouts"] == 10
    assert summary["stopped_because"] == "5 steps are done"
    assert {"python", "torch", "transformers"} <= set(summary["versions"])
    assert not (tmp_path / "summary.json.partial").exists()


def test_a_run_without_a_step_has_a_summary_too(tmp_path: Path) -> None:
    Record(tmp_path, samples_per_step=1).summary("the tasks ended", 0.1)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["steps"], summary["reward_start"], summary["reward_end"]) == (0, None, None)


def test_samples_are_the_first_rollout_of_the_first_groups(tmp_path: Path, make_batch: MakeBatch) -> None:
    received = make_batch(3, 2, version=4)
    Record(tmp_path, samples_per_step=2).samples(9, received)
    found = lines(tmp_path / "samples.jsonl")
    assert [line["group_id"] for line in found] == [0, 1]
    first = received.groups[0].scored[0]
    assert found[0] == {
        "step": 9,
        "group_id": 0,
        "task_id": "t",
        "prompt": "1+1=",
        "completion": "text",
        "reward": first.verdict.reward,
        "parts": first.verdict.parts,
        "reason": "right",
        "versions": [[span.version, span.tokens] for span in first.rollout.version_spans],
        "truncated": False,
    }


def test_a_directory_with_the_steps_of_a_run_is_refused_for_a_new_one(tmp_path: Path) -> None:
    open_record(tmp_path, samples_per_step=1).step(row(1, 0.5))
    with pytest.raises(ValueError, match=r"holds the steps of an earlier run.*checkpoint\.resume=true"):
        open_record(tmp_path, samples_per_step=1)


def test_a_resumed_run_forgets_later_steps_and_a_torn_line_and_its_summary_counts_the_whole(
    tmp_path: Path, make_batch: MakeBatch
) -> None:
    record = Record(tmp_path, samples_per_step=2)
    for step in range(1, 6):
        record.step(row(step, step / 10))
        record.samples(step, make_batch(2, 2))
    record.summary("it was stopped", 9.0)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "rew')
    resumed = resume_record(tmp_path, 2, policy_version=3)
    assert [line["step"] for line in lines(tmp_path / "metrics.jsonl")] == [1, 2, 3]
    assert [line["step"] for line in lines(tmp_path / "samples.jsonl")] == [1, 1, 2, 2, 3, 3]
    assert not (tmp_path / "summary.json").exists()
    resumed.step(row(4, 0.9))
    resumed.summary("4 steps are done", 20.0)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["steps"], summary["reward_start"], summary["mixed_version_rollouts"]) == (4, 0.1, 8)
    assert summary["reward_end"] == pytest.approx((0.2 + 0.3 + 0.9) / 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "samples.jsonl", "summary.json"]


def test_a_record_whose_newest_lines_are_lost_is_taken_up_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record = Record(tmp_path, samples_per_step=1)
    record.step(row(1, 0.1))
    assert [each["step"] for each in resume_record(tmp_path, 1, policy_version=2).rows] == [1]
    assert "tells of 1 of the 2 steps so far" in caplog.text


@pytest.mark.parametrize("line", ["oops", "[1]", "{}"])
def test_a_garbled_line_of_a_record_is_named(line: str, tmp_path: Path) -> None:
    record = Record(tmp_path, samples_per_step=1)
    record.step(row(1, 0.1))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl:2: is no line of a run"):
        resume_record(tmp_path, 1, policy_version=2)
