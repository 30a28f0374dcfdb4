"""The whole learner, stopped and taken up again: files, totals and weights are those of one that never stopped."""

import dataclasses
import functools
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from learner import __main__ as command
from learner import optimizer
from learner.checkpoint.checkpoints import Checkpoints
from learner.checkpoint.progress import Progress
from learner.config import LearnerRoot, LossConfig
from learner.distributed import Ranks
from learner.loop import Learner
from learner.metrics import REGISTRY
from learner.policy import model
from learner.policy.config import ModelConfig
from learner.policy.reference import load_reference
from learner.record import open_record, resume_record
from protocol.messages import Goodbye, GroupBatch, GroupRange, RunSpec, Sampling, StreamStats

Build = Callable[[str, bool], Path]
GROUPS = 2
RUN = RunSpec(
    name="r",
    model="m",
    seed=0,
    group_size=3,
    groups_per_step=GROUPS,
    max_staleness=0,
    sampling=Sampling(temperature=1.0, top_p=1.0, max_tokens=12),
)


class Killed(Exception):
    """What a kill -9 looks like from inside the test's process."""


class Broker:
    """Plays link, broker and publisher: a batch depends on its version alone. It knows what the learner tells it."""

    def __init__(self, make_batch: Callable[..., GroupBatch], killed_at: int = -1) -> None:
        self.make_batch = make_batch
        self.killed_at = killed_at
        self.heard: list[Any] = []
        self.tokens = 0

    def next_batch(self, version: int, seconds: float) -> GroupBatch | Goodbye:
        if version == self.killed_at:
            raise Killed
        made = self.make_batch(GROUPS, RUN.group_size, seed=version, version=version + 2)
        groups = tuple(
            dataclasses.replace(group, group_id=GROUPS * version + place) for place, group in enumerate(made.groups)
        )
        self.tokens += sum(len(item.rollout.token_ids) for group in groups for item in group.scored)
        stats = dataclasses.replace(made.stats, generated_tokens=self.tokens, verdicts=self.tokens)
        return dataclasses.replace(made, groups=groups, stats=stats)

    def resume(
        self, policy_version: int, consumed: tuple[GroupRange, ...], *, checkpoints: bool, counted: StreamStats
    ) -> None:
        assert checkpoints
        self.heard.append((policy_version, consumed))
        self.tokens = counted.generated_tokens

    def checkpointed(self, policy_version: int) -> None:
        pass

    def publish(self, version: int) -> None:
        self.heard.append(version)

    def row(self) -> None:
        pass

    def consumed(self, policy_version: int, group_ids: tuple[int, ...]) -> None:
        pass

    def show(self, **gauges: float) -> None:
        pass


@pytest.fixture
def learn(
    ranks: Ranks, model_directory: Build, make_batch: Callable[..., GroupBatch]
) -> Callable[..., tuple[Learner, Broker]]:
    """Runs a learner in a directory until it ends or is killed, or goes on with one."""

    def run(
        directory: Path,
        *,
        resume: bool = False,
        required: bool = True,
        killed_at: int = -1,
        loss: dict[str, Any] | None = None,
        **changed: Any,
    ) -> tuple[Learner, Broker]:
        source = model_directory("llama", True)
        config = LearnerRoot(model=str(source))
        config.run.dir = str(directory)
        config.learner.steps, config.optimizer.lr = 7, 1e-3
        config.checkpoint.every, config.checkpoint.resume, config.checkpoint.required = 2, resume, required
        config.loss = LossConfig(filters=[], **(loss or {}))
        for name, value in changed.items():
            setattr(config.learner, name, value)
        policy = model.load(source, ranks, ModelConfig(logprob_chunk=16))
        reference = load_reference(config, ranks)
        steps = optimizer.build(policy, config.optimizer)
        checkpoints = Checkpoints(
            directory / "checkpoints", ranks, source, keep=2, write_seconds=60, reference=reference
        )
        restored = command.restore(config, checkpoints, policy, steps)
        opened = resume_record(directory, 2, restored.policy_version) if resume else open_record(directory, 2)
        broker = Broker(make_batch, killed_at)
        learner = Learner(
            config,
            RUN,
            ranks,
            policy,
            steps,
            reference,
            broker,  # type: ignore[arg-type]
            opened,
            broker,  # type: ignore[arg-type]
            checkpoints,
            restored,
        )
        try:
            learner.train()
        except Killed:
            checkpoints.finish()
        return learner, broker

    return run


def timeless(path: Path) -> list[dict[str, Any]]:
    """The lines of a file without what depends on the clock."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{name: value for name, value in row.items() if not re.search("second|time_s|mfu", name)} for row in rows]


@pytest.mark.parametrize(
    "loss",
    [
        {},
        {"kl_coefficient": 0.1, "kl_replace_every": 3},  # replaced between the first checkpoint and the second
        {"name": "cispo", "corrections": ["opsm"], "minibatches": 2, "ess_lr": True, "entropy_bonus": 0.01},
    ],
    ids=["plain", "reference", "minibatches"],
)
def test_a_run_that_was_killed_and_resumed_twice_leaves_what_one_leaves_that_never_stopped(
    learn: Callable[..., tuple[Learner, Broker]], tmp_path: Path, loss: dict[str, Any]
) -> None:
    learn = functools.partial(learn, loss=loss)
    whole, _ = learn(tmp_path / "whole")
    learn(tmp_path / "parts", killed_at=3)
    _, second = learn(tmp_path / "parts", resume=True, killed_at=5)
    assert second.heard[:2] == [(2, (GroupRange(first=0, last=3),)), 2], "it says where it goes on, then publishes that"
    last, third = learn(tmp_path / "parts", resume=True)
    assert third.heard[0] == (4, (GroupRange(first=0, last=7),))
    for name in ("metrics.jsonl", "samples.jsonl"):
        assert timeless(tmp_path / "parts" / name) == timeless(tmp_path / "whole" / name)
    summaries = [json.loads((tmp_path / run / "summary.json").read_text()) for run in ("whole", "parts")]
    assert summaries[0].pop("seconds") > 0
    assert summaries[1].pop("seconds") > 0
    assert summaries[0] == summaries[1]
    assert summaries[1]["generated_tokens"] == summaries[1]["trained_tokens"] > 0
    times = [json.loads(line)["time_s"] for line in (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()]
    assert times == sorted(times)
    assert (last.totals, last.rewards, last.consumed) == (whole.totals, whole.rewards, whole.consumed)
    one, other = (load_file(tmp_path / run / "checkpoint" / "model.safetensors") for run in ("whole", "parts"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    kept = sorted(path.name for path in (tmp_path / "parts" / "checkpoints").iterdir())
    assert kept == ["step_00000006", "step_00000007"], "every second step and the last, two of them kept"


def test_a_window_that_is_shorter_after_a_restart_keeps_the_newest_rewards(
    learn: Callable[..., tuple[Learner, Broker]], tmp_path: Path
) -> None:
    first, _ = learn(tmp_path, killed_at=4)
    rewards = list(first.rewards)
    second, _ = learn(tmp_path, resume=True, killed_at=4, target_window=2)
    assert list(second.rewards) == rewards[-2:]


def test_a_learner_that_is_started_again_begins_anew_without_a_checkpoint_and_goes_on_with_one(
    learn: Callable[..., tuple[Learner, Broker]], tmp_path: Path
) -> None:
    again = functools.partial(learn, tmp_path / "again", resume=True, required=False)
    learn(tmp_path / "again", killed_at=1)
    assert len(timeless(tmp_path / "again" / "metrics.jsonl")) == 1
    again(killed_at=3)  # from version 0, past a checkpoint
    again()  # from version 2
    learn(tmp_path / "whole")
    for name in ("metrics.jsonl", "samples.jsonl"):
        assert timeless(tmp_path / "again" / name) == timeless(tmp_path / "whole" / name)


def test_a_learner_that_is_started_again_writes_what_the_end_lacks(
    learn: Callable[..., tuple[Learner, Broker]], tmp_path: Path
) -> None:
    whole, _ = learn(tmp_path)
    lines = (tmp_path / "metrics.jsonl").read_text()
    summary = json.loads((tmp_path / "summary.json").read_text())
    (tmp_path / "summary.json").unlink()
    shutil.rmtree(tmp_path / "checkpoint")  # it was killed after the last training checkpoint
    again, _ = learn(tmp_path, resume=True, required=False)
    assert (tmp_path / "metrics.jsonl").read_text() == lines
    assert (tmp_path / "checkpoint" / "model.safetensors").is_file()
    written = json.loads((tmp_path / "summary.json").read_text())
    assert {**written, "seconds": 0} == {**summary, "seconds": 0}
    assert (again.policy_version, again.totals) == (whole.policy_version, whole.totals)


def test_a_first_start_that_may_resume_makes_its_directory(tmp_path: Path) -> None:
    assert resume_record(tmp_path / "new" / "run", 2, 0).rows == []


@pytest.mark.parametrize(
    ("resume", "steps", "prepare", "sentence"),
    [
        (True, 9, shutil.rmtree, "checkpoint.resume=true: run.dir={} holds no whole checkpoint to go on from"),
        (False, 9, lambda path: None, "run.dir={}: holds checkpoints of an earlier run; choose another run.name"),
        (
            True,
            2,
            lambda path: None,
            "nothing is left to do after {}/checkpoints/step_00000002: 2 steps are done",
        ),
    ],
)
def test_what_cannot_be_resumed_or_begun_is_refused_with_the_cure(
    resume: bool,
    steps: int,
    prepare: Callable[[Path], object],
    sentence: str,
    ranks: Ranks,
    model_directory: Build,
    tmp_path: Path,
) -> None:
    source = model_directory("llama", True)
    policy = model.load(source, ranks, ModelConfig(logprob_chunk=16))
    config = LearnerRoot(model=str(source))
    config.run.dir, config.learner.steps, config.checkpoint.resume = str(tmp_path), steps, resume
    adam = optimizer.build(policy, config.optimizer)
    checkpoints = Checkpoints(tmp_path / "checkpoints", ranks, source, keep=2, write_seconds=60)
    checkpoints.save(policy, adam, Progress(policy_version=2))
    checkpoints.finish()
    prepare(tmp_path / "checkpoints")
    with pytest.raises(ValueError, match=re.escape(sentence.format(tmp_path))):
        command.restore(config, checkpoints, policy, adam)


def test_prometheus_is_told_what_the_line_of_a_step_says(
    learn: Callable[..., tuple[Learner, Broker]], tmp_path: Path
) -> None:
    before = REGISTRY.get_sample_value("learner_trained_flop_total") or 0.0
    learn(tmp_path, steps=1)
    (row,) = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert 0 < row["mfu"] < 1.5, "the machine may be slower while its peak is measured than while it trains"
    told = {
        "learner_mfu_ratio": row["mfu"],
        "learner_majority_accuracy_ratio": row["majority_accuracy"],
        "learner_accuracy_ratio": row["accuracy"],
        "learner_staleness_steps_max": row["staleness_max"],
        "learner_trained_flop_total": before + row["trained_flop"],
    }
    assert {name: REGISTRY.get_sample_value(name) for name in told} == pytest.approx(told)
    assert REGISTRY.get_sample_value("learner_reflective_words_mean", {"word": "wait"}) == 0.0
    assert REGISTRY.get_sample_value("learner_updates_skipped_total", {"reason": "not_finite"}) is not None
