"""Rates from what lies in a run's directory: its configuration, its steps, its samples.

The learner's speed, the lengths and what is dropped stand there; the actors' and verifiers' speeds only if they were
measured while the run went on (`measure.py`). Without that an actor is taken to be as fast as it was on average, which
is less than it can when it waited for leases: a note says so.
"""

import json
import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

import actors.config
from deploy.plan import rates
from deploy.plan.rates import ActorRate, LearnerRate, Rates, Stream, VerifierRate

Row = dict[str, Any]

WARM_UP = 3  # steps that are left out: the learner compiles and the actors start
PAUSE = 10.0  # a step that took so many medians was a pause of the machine
DROPS = ("void", "lease_expired", "straggler")  # reasons of the broker that make it lease another group
SLIM_BATCH_VARIATION = 0.1  # of the mean batch: below it the two parts of an engine step cannot be told apart


@dataclass(frozen=True, slots=True)
class Interval:
    """What one actor did between two looks."""

    steps: float  # of its engine
    tokens: float
    seconds: float  # for which it had something to decode, all that it does between its steps included


def read(directory: Path) -> Rates:
    """The rates of a run: its rates.json, if it was measured, else what its records give. Raises `ValueError`."""
    if directory.is_file():
        return rates.read(directory)
    if (directory / rates.FILE).is_file():
        return rates.read(directory / rates.FILE)
    return from_records(directory)


def from_records(directory: Path) -> Rates:
    """From metrics.jsonl and samples.jsonl alone. Raises `ValueError` when they are not there or tell too little."""
    rows = steps(directory)
    seconds = sum(row["seconds"]["total"] for row in rows)
    tokens = rows[-1]["generated_tokens"] - rows[0]["generated_tokens"]
    actor_seconds = sum(row["seconds"]["total"] * row["actors"] for row in rows[1:])
    assumed = (
        "an actor's speed is its mean over the run, waiting included, whatever it decodes at once",
        "checks are taken to cost nothing",
        f"`python -m deploy.plan measure {directory}` measures both while the run goes on",
    )
    if not tokens > 0 or not seconds > 0:
        raise ValueError(f"{directory}: nothing was generated in its {len(rows)} steps")
    part = base(directory, rows)
    actor = replace(part.actor, rollout_seconds=actor_seconds / tokens)
    return rates.check(replace(part, actor=actor, notes=assumed))


def steps(directory: Path) -> list[Row]:
    """The rows of metrics.jsonl without the first ones and without pauses of the machine. Raises `ValueError`."""
    path = directory / "metrics.jsonl"
    if not path.is_file():
        raise ValueError(f"{directory}: has no metrics.jsonl: is it the directory of a run?")
    rows = [json.loads(line) for line in path.read_text().splitlines()][WARM_UP:]
    if len(rows) < 2:
        raise ValueError(f"{directory}: a plan needs more than {WARM_UP + 1} steps, it has {len(rows) + WARM_UP}")
    return unpaused(rows)


def unpaused(rows: Sequence[Row]) -> list[Row]:
    """Without the steps that took more than `PAUSE` medians."""
    median = statistics.median(row["seconds"]["total"] for row in rows)
    return [row for row in rows if row["seconds"]["total"] <= PAUSE * median]


def base(directory: Path, rows: Sequence[Row]) -> Rates:
    """All but the actors' and verifiers' speeds, which are 0."""
    broker, actor = _config(directory, "broker"), _config(directory, "actor")
    stream = Stream(
        group_size=broker.stream.group_size,
        groups_per_step=broker.stream.groups_per_step,
        max_staleness=broker.stream.max_staleness,
        silence_seconds=broker.stream.silence_seconds,
        lease_attempts=broker.stream.lease_attempts,
        dropped_share=dropped_share(rows, broker.stream.groups_per_step, broker.stream.zero_variance),
    )
    root = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(actors.config.ActorRoot), _content(actor)))
    assert isinstance(root, actors.config.ActorRoot)
    return Rates(
        actor=ActorRate(
            step_seconds=0.0,
            rollout_seconds=0.0,
            max_num_seqs=root.engine.max_num_seqs,
            room=actors.config.room(root),
        ),
        verifier=VerifierRate(check_seconds=0.0, workers=workers(_config(directory, "verifier").verifier.workers)),
        learner=learner(rows, stream.rollouts_per_step),
        stream=stream,
        lengths=lengths(directory),
    )


def workers(configured: int) -> int:
    """Of a verifier; one for each core if none are configured, taken to be those of this host."""
    return configured or len(os.sched_getaffinity(0))


def learner(rows: Sequence[Row], rollouts: int) -> LearnerRate:
    """Its speed in the time in which it did not wait for a batch."""
    working = sum(row["seconds"]["total"] - row["seconds"]["receive"] for row in rows)
    return LearnerRate(tokens_per_second=sum(row["length_mean"] for row in rows) * rollouts / working)


def dropped_share(rows: Sequence[Row], groups_per_step: int, zero_variance: str) -> float:
    """Of the groups that were finished between the first row and the last, those that had to be leased anew."""
    reasons = (*DROPS, "zero_variance") if zero_variance == "resample" else DROPS
    first, last = ({} if row is None else row.get("groups_dropped") or {} for row in (rows[0], rows[-1]))
    dropped = sum(last.get(reason, 0) - first.get(reason, 0) for reason in reasons)
    consumed = (rows[-1]["step"] - rows[0]["step"]) * groups_per_step
    return float(max(dropped, 0) / max(dropped + consumed, 1))


def lengths(directory: Path) -> tuple[int, ...]:
    """Completion tokens of the rollouts in samples.jsonl. Raises `ValueError` when there are none."""
    path = directory / "samples.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    found = tuple(sum(tokens for _, tokens in row["versions"]) for row in rows)
    if not found:
        raise ValueError(f"{path}: holds no rollouts to take lengths from; run with learner.samples_per_step=8")
    return found


def engine_step(intervals: Sequence[Interval], most: int) -> tuple[float, float, str]:
    """`step_seconds` and `rollout_seconds` of the line through the mean batch with the slope of least squares.

    The third is a note when the batch hardly varied, so that the slope is not to be known. Then the worse is assumed of
    what was not seen: of nearly full batches (`most` is a full one) that smaller ones take as long, of small batches
    that larger ones take longer in proportion. Raises `ValueError` when no actor did anything.
    """
    used = [each for each in intervals if each.steps > 0]
    total = Interval(*(sum(getattr(each, name) for each in used) for name in Interval.__slots__))
    if not used or not total.tokens:
        raise ValueError("no actor sampled anything meanwhile: does the run wait for something?")
    batch, seconds = total.tokens / total.steps, total.seconds / total.steps
    spread = sum(each.steps * (each.tokens / each.steps - batch) ** 2 for each in used)
    shared = sum(
        each.steps * (each.tokens / each.steps - batch) * (each.seconds / each.steps - seconds) for each in used
    )
    if (spread / total.steps) ** 0.5 < SLIM_BATCH_VARIATION * batch:
        seen = f", for all had about {batch:.0f} rollouts"
        if batch >= most / 2:
            return seconds, 0.0, f"an engine step is taken to be as long with fewer rollouts{seen}"
        return 0.0, seconds / batch, f"an engine step is taken to grow in proportion to its rollouts{seen}"
    slope = min(max(shared / spread, 0.0), seconds / batch)
    return seconds - slope * batch, slope, ""


def _config(directory: Path, role: str) -> DictConfig:
    path = directory / "config" / f"run_{role}.yaml"
    if not path.is_file():
        raise ValueError(f"{directory}: has no config/run_{role}.yaml, which the launcher writes")
    config = OmegaConf.load(path)
    assert isinstance(config, DictConfig)
    return config


def _content(config: DictConfig) -> DictConfig:
    """The role's options without hydra's list of defaults."""
    return OmegaConf.masked_copy(config, [str(name) for name in config if name != "defaults"])
