"""What `python -m deploy.slurm` refuses, submits, scales and says, with Slurm's commands played."""

import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fake_slurm import ROOT, FakeSlurm, line, tree
from hypothesis import given
from hypothesis import strategies as st

from deploy.options import insert
from deploy.slurm import launch, layout, queue, scaling, status, versions
from deploy.slurm.config import seconds
from deploy.slurm.layout import Run
from deploy.slurm.options import tables
from deploy.slurm.queue import Job, SlurmRefused
from deploy.slurm.scripts import job_name


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    fake = FakeSlurm(tmp_path / "fake")
    for name in ("PATH", "FAKE_SLURM"):
        monkeypatch.setenv(name, fake.environment[name])
    return fake


@pytest.fixture
def options(tmp_path: Path) -> list[str]:
    """Those of a run that can be submitted."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    return [f"model={model}", f"run.dir={tmp_path / 'sums'}", "run.name=sums", "slurm.shared=true"]


@pytest.fixture
def run(slurm: FakeSlurm, options: list[str]) -> Run:
    """A run that was submitted."""
    return launch.up(tree(*options))[0]


# ------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("slurm.shared=false", r"run\.dir=.*: lies below /tmp, of which every node has its own; choose a directory on"),
        ("slurm.partition='gpu,fast'", "slurm.partition=gpu,fast: the cluster has no partition fast, but gpu, main"),
        ("jobs.actor.partition=h100", r"jobs\.actor\.partition=h100: the cluster has no partition h100, but gpu, main"),
        ("learner.nodes=0", "learner.nodes=0: must be at least 1"),
        ("learner.ranks=3", "learner.ranks=3: must be a multiple of learner.nodes=2, the same on every node"),
        ("actors=-1", "actors=-1: must be 0 or more"),
        ("checkpoint.every=0", "checkpoint.every=0: a learner that Slurm requeues could not go on"),
        ("slurm.site=/nowhere.sh", "slurm.site=/nowhere.sh: there is no such file"),
        ("slurm.container=docker", "slurm.container=docker: must be one of pyxis, apptainer"),
        ("slurm.notice_seconds=5", "slurm.notice_seconds=5: must be at least 60"),
        ("slurm.options=[exclusive]", "slurm.options: 'exclusive' is no option of sbatch: it must begin with a dash"),
        ("jobs.learner.time=soon", "jobs.learner.time=soon: must be as 30 .minutes., 4:00:00 or 2-00:00:00"),
        (
            "jobs.learner.time=14",
            "jobs.learner.time=14: must be at least 900 s, three times the .* .slurm.notice_seconds",
        ),
        ("jobs.actor.time=4", "jobs.actor.time=4: must be at least 270 s, .* .actor.drain_seconds and 60 s"),
        ("jobs.verifier.time=2", "jobs.verifier.time=2: must be at least 180 s, three times"),
        ("jobs.verifier.cpus=0", "jobs.verifier.cpus=0: must be at least 1"),
        ("broker=ipc:///tmp/x", "broker=ipc:///tmp/x: must be as tcp://node:5555"),
        ("run.name='two words'", "run.name=two words: becomes part of the jobs' names"),
        ("resume=true", "resume=true: .* holds neither a whole checkpoint nor a journal to go on from"),
        ("stream.group_size=1", "stream.group_size=1: a group-relative advantage needs at least 2"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_submitted(
    slurm: FakeSlurm, options: list[str], override: str, sentence: str
) -> None:
    nodes = ["learner.nodes=2"] if "ranks" in override else []
    with pytest.raises(ValueError, match=sentence):
        launch.up(tree(*options, *nodes, override))
    assert slurm.calls("sbatch") == []


def test_a_host_without_slurm_is_told_so(options: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SlurmRefused, match=r"sbatch, .*sinfo not on PATH: run this on a login node of the cluster"):
        launch.up(tree(*options))


def test_what_slurm_refuses_is_passed_on_and_nothing_is_submitted(slurm: FakeSlurm, options: list[str]) -> None:
    (slurm.directory / "refusal").write_text("sbatch: error: Invalid generic resource (gres) specification\n")
    with pytest.raises(SlurmRefused, match=r"^sbatch: Invalid generic resource \(gres\) specification$"):
        launch.up(tree(*options, "jobs.actor.gres=gpu:b999:1"))
    assert all("--test-only" in call for call in slurm.calls("sbatch"))


def test_a_run_whose_jobs_are_in_the_queue_is_not_begun_again(slurm: FakeSlurm, run: Run, options: list[str]) -> None:
    slurm.queue(line("11", run.job_name("learner")))
    with pytest.raises(
        ValueError, match=r"jobs of this run are in the queue \(11\); end them by `down`, or `drain` it"
    ):
        launch.up(tree(*options))


def test_a_finished_run_is_not_written_over(slurm: FakeSlurm, run: Run, options: list[str]) -> None:
    (run.directory / "summary.json").write_text("{}")
    with pytest.raises(ValueError, match=r"holds a run already \(summary.json\)"):
        launch.up(tree(*options))
    launch.up(tree(*options, "overwrite=true"))
    assert not (run.directory / "summary.json").exists()


@pytest.mark.parametrize(
    ("time", "meant"),
    [("30", 1800), ("30:15", 1815), ("4:00:10", 14410), ("2-12", 216000), ("2-12:30", 217800), ("2-00:00:01", 172801)],
)
def test_time_limits_are_read_as_slurm_reads_them(time: str, meant: int) -> None:
    assert seconds(time) == meant


# ------------------------------------------------------------ submission


def test_nobody_starts_before_whom_it_waits_for(slurm: FakeSlurm, options: list[str]) -> None:
    run, numbers = launch.up(tree(*options[1:], "experiment=quickstart", "run.name=sums", "actors=3"))
    submitted = [call for call in slurm.calls("sbatch") if "--parsable" in call]
    scripts = [Path(call.split()[-1]).stem for call in submitted]
    assert scripts == list(numbers) == ["cold_start", "learner", "actor", "verifier"]
    assert f"--dependency=afterok:{numbers['cold_start']} --kill-on-invalid-dep=yes" in submitted[1]
    assert all(f"--dependency=after:{numbers['learner']} " in call for call in submitted[2:])
    assert layout.read(run.directory) == run


def test_a_model_that_is_made_is_not_made_again(slurm: FakeSlurm, options: list[str], tmp_path: Path) -> None:
    quickstart = [*options[1:], "experiment=quickstart", "run.name=sums"]
    run, _ = launch.up(tree(*quickstart))
    (run.slurm / "cold_start.done").touch()
    model = run.directory / "cold_start" / "model"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    (run.directory / "journal.sqlite").touch()
    _, numbers = launch.up(tree(*quickstart, "resume=true"))
    assert list(numbers) == ["learner", "actor", "verifier"]


def test_a_resumed_run_forgets_who_was_to_leave_and_why_it_ended(
    slurm: FakeSlurm, run: Run, options: list[str]
) -> None:
    (run.directory / "journal.sqlite").touch()
    for name in ("over", "leaving/actor-0", "failures/learner"):
        (run.slurm / name).touch()
    launch.up(tree(*options, "resume=true"))
    assert not (run.slurm / "over").exists()
    assert [list((run.slurm / folder).iterdir()) for folder in ("leaving", "failures")] == [[], []]


# ------------------------------------------------------------ scaling


def task(index: int, state: str = "RUNNING") -> Job:
    return Job(f"9_{index}", "actor@sums-0000", index, state, "1:00", "n1", "None")


@given(st.sets(st.integers(0, 12)), st.sets(st.integers(0, 12)), st.sets(st.integers(0, 12)), st.integers(0, 14))
def test_a_plan_brings_those_who_stay_to_the_number_and_uses_no_index_twice(
    indices: set[int], pending: set[int], leaving: set[int], wanted: int
) -> None:
    tasks = [task(index, "PENDING" if index in pending else "RUNNING") for index in sorted(indices)]
    plan = scaling.plan(tasks, leaving, wanted)
    told = {each.index for each in plan.leave}
    assert len((indices - leaving - told) | set(plan.begin)) == wanted
    assert not set(plan.begin) & indices
    assert told <= indices - leaving
    assert not (plan.begin and plan.leave)
    stay = indices - leaving - told
    for gone, kept in itertools.product(told, stay):  # without a node first, then from the top
        assert (gone not in pending, -gone) < (kept not in pending, -kept)


@given(st.sets(st.integers(0, 40)))
def test_indices_are_written_as_slurm_reads_them(indices: set[int]) -> None:
    text = scaling.array(sorted(indices))
    read: set[int] = set()
    for span in filter(None, text.split(",")):
        first, _, last = span.partition("-")
        read |= set(range(int(first), int(last or first) + 1))
    assert read == indices


def test_to_scale_up_is_to_submit_the_free_indices(slurm: FakeSlurm, run: Run) -> None:
    actor, learner = run.job_name("actor"), line("11", run.job_name("learner"))
    (run.slurm / "leaving" / "actor-1").touch()
    slurm.queue(learner, *(line(f"12_{index}", actor, index=str(index)) for index in (0, 3)))
    scaling.scale(run, "actor", 5)
    assert slurm.calls("sbatch")[-1] == f"--parsable --array=1-2,4 {run.slurm / 'actor.sbatch'}"
    assert not (run.slurm / "leaving" / "actor-1").exists()


def test_to_scale_down_is_to_tell_who_works_and_to_cancel_who_waits(slurm: FakeSlurm, run: Run) -> None:
    actor = run.job_name("actor")
    states = ["RUNNING", "RUNNING", "PENDING"]
    slurm.queue(*(line(f"12_{index}", actor, state, str(index)) for index, state in enumerate(states)))
    scaling.scale(run, "actor", 1)
    assert slurm.calls("scancel") == ["--quiet 12_2", "--quiet --batch --signal=USR2 12_1"]
    assert {path.name for path in (run.slurm / "leaving").iterdir()} == {"actor-1", "actor-2"}


def test_nothing_is_scaled_once_the_learner_has_gone(slurm: FakeSlurm, run: Run) -> None:
    with pytest.raises(ValueError, match="its learner is not in the queue, nothing can be scaled"):
        scaling.scale(run, "actor", 5)


def test_to_drain_is_to_tell_all_that_work(slurm: FakeSlurm, run: Run) -> None:
    slurm.queue(line("11", run.job_name("learner")), line("12_0", run.job_name("actor"), index="0"))
    scaling.drain(run)
    assert slurm.calls("scancel") == ["--quiet --batch --signal=USR2 11 12_0"]
    assert not (run.slurm / "over").exists()  # the learner says so, once its checkpoint is written


def test_a_run_without_a_learner_that_works_is_drained_at_once(slurm: FakeSlurm, run: Run) -> None:
    slurm.queue(line("11", run.job_name("learner"), "PENDING"), line("12_0", run.job_name("actor"), index="0"))
    scaling.drain(run)
    assert slurm.calls("scancel") == ["--quiet 11", "--quiet --batch --signal=USR2 12_0"]
    assert (run.slurm / "over").exists()


def test_down_cancels_everything_and_nobody_comes_back(slurm: FakeSlurm, run: Run) -> None:
    slurm.queue(line("11", run.job_name("learner")), line("12_0", run.job_name("actor"), index="0"))
    scaling.down(run)
    assert slurm.calls("scancel") == ["--quiet 11 12_0"]
    assert "cancelled by `down`" in (run.slurm / "over").read_text()


# ------------------------------------------------------------ what is said


def test_the_state_of_a_run_names_every_job_and_what_each_said_last(slurm: FakeSlurm, run: Run) -> None:
    actor = run.job_name("actor")
    slurm.queue(
        line("11", run.job_name("learner")),
        line("12_10", actor, index="10"),
        line("12_2", actor, "PENDING", "2"),
    )
    (run.slurm / "state" / "actor-1").write_text("actor-1: left, as it was told\n")
    (run.slurm / "over").write_text("drained\n")
    said = list(status.lines(run))
    assert [text.split()[0] for text in said[1:]] == ["learner", "actor-1", "actor-2", "actor-10", "over:"]
    assert re.search(r"actor-1 +ended +actor-1: left, as it was told", said[2])
    assert re.search(r"actor-10 +running +job 12_10  on n1  1:00  not joined", said[4])


def test_a_job_that_could_not_be_launched_is_explained(
    slurm: FakeSlurm, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = f"JobId=11 JobName={run.job_name('learner')} JobState=FAILED ExitCode=0:53 Restarts=0\n"
    (slurm.bin / "scontrol").write_text(f"#!/bin/bash\necho '{shown}'\n")
    said = "\n".join(status.lines(run))
    assert f"job 11 could not be launched: its node does not see {run.directory}/logs" in said


def test_jobs_of_others_are_not_this_runs(slurm: FakeSlurm) -> None:
    slurm.queue(line("3", "actor@sums-0000", "COMPLETED", "0"), line("4_1", "actor@sums-0000", index="1"))
    assert [found.identity for found in queue.jobs(["actor@sums-0000"])] == ["4_1"]
    assert slurm.calls("squeue") == ["--me --array --noheader --name=actor@sums-0000 --format=%i|%A|%K|%j|%T|%M|%N|%r"]


def test_the_command_line_finds_the_run_and_refuses_what_it_does_not_know(
    slurm: FakeSlurm, run: Run, tmp_path: Path
) -> None:
    def launcher(*words: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "deploy.slurm", *words],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            cwd=tmp_path,
            text=True,
            capture_output=True,
            check=False,
        )

    runs = tmp_path / "runs"
    runs.mkdir()
    (runs / "sums").symlink_to(run.directory)
    assert launcher("status").stdout.startswith(f"run sums in {run.directory}: no step yet")
    (run.directory / "logs" / "actor-3.log").write_text("first\nlast\n")
    assert launcher("logs", "actor", "lines=1", "run.name=sums").stdout == "last\n"
    for words, sentence in (
        (["scale"], "scale: say how many"),
        (["scale", "actors=many"], "actors=many: must be 0 or more"),
        (["scale", "learners=2"], "scale: does not take 'learners'"),
        (["logs", "actor-9"], "actor-9: no such log; there are actor-3"),
        (["status", "run.dir=/nowhere"], "/nowhere: no run of `python -m deploy.slurm up`"),
        (["explode"], "no command 'explode'"),
        (["up"], "no model to train"),
    ):
        done = launcher(*words, *([] if "run.dir" in words[-1] or words == ["up"] else [f"run.dir={run.directory}"]))
        assert done.returncode == 1
        assert sentence in done.stderr


# ------------------------------------------------------------ versions


def test_versions_differ_where_both_have_one() -> None:
    own, of_run = {"torch": "2", "vllm": "3", "python": "3.11"}, {"torch": "1", "python": "3.11", "offbeat": "0"}
    assert versions.differences(own, of_run) == ["torch 2 here, 1 at the broker"]


def test_builds_for_cpu_and_cuda_are_one_version_and_the_protocol_is_part_of_it() -> None:
    here = versions.here()
    assert all("+" not in version for version in here.values())
    assert re.fullmatch("[0-9a-f]{16}", here["protocol"])


def test_a_changed_protocol_is_another_version(tmp_path: Path) -> None:
    (tmp_path / "messages.py").write_text("VERSION = 1\n")
    before = versions._checksum(tmp_path)
    (tmp_path / "messages.py").write_text("VERSION = 2\n")
    assert versions._checksum(tmp_path) != before


def test_who_comes_before_the_broker_is_not_refused(tmp_path: Path) -> None:
    path = tmp_path / "versions.json"
    versions.compare(path, "actor-0")
    versions.write(path)
    versions.compare(path, "actor-0")
    path.write_text(json.dumps({**versions.here(), "protocol": "0"}))
    with pytest.raises(ValueError, match=r"actor-0 on .* has other versions than the run: protocol \S+ here, 0 at"):
        versions.compare(path, "actor-0")


def test_the_option_tables_are_current_and_every_option_is_explained() -> None:
    readme = (ROOT / "deploy" / "slurm" / "README.md").read_text()
    assert readme == insert(readme, tables), "run `make options`"


def test_a_jobs_name_says_role_and_run() -> None:
    assert re.fullmatch(r"verifier@sums-[0-9a-f]{4}", job_name("verifier", "sums", Path("/shared/sums")))
