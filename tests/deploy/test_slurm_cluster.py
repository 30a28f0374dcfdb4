"""The quickstart experiment on a real Slurm of three virtual nodes, of which one dies while the run goes on."""

import json
import os
import re
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from slurm_cluster import SlurmCluster, missing

from learner.broker.inspect import inspect

ROOT = Path(__file__).parents[2]
STEPS, GROUPS = 40, 16
TINY = [
    "experiment=quickstart",
    "task.digits=1",
    "sft.steps=150",
    "sft.evaluate=0",
    "sampling.max_tokens=24",
    f"stream.groups_per_step={GROUPS}",
    "stream.silence_seconds=10",
    "optimizer.lr=1e-3",
    "checkpoint.every=4",
    f"learner.steps={STEPS}",
    "learner.target_reward=0",
    "learner.samples_per_step=1000",
    "engine.max_num_seqs=1",
    "actor.room=16",  # slow actors: there is time to do something to them
    "engine.kv_cache_bytes=67108864",
    "slurm.shared=true",
    "slurm.notice_seconds=60",
]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(bool(missing()), reason=f"no Slurm here: {missing()}"),
]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[SlurmCluster]:
    with SlurmCluster(tmp_path / "slurm") as started:
        yield started
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            assert str(tmp_path).encode() not in command, f"left behind: {command!r}"


class Launched:
    """A run on the cluster."""

    def __init__(self, cluster: SlurmCluster, directory: Path) -> None:
        self.cluster, self.directory = cluster, directory

    def launcher(self, command: str, *words: str, fails: bool = False) -> str:
        """`python -m deploy.slurm command …`, and what it says."""
        done = subprocess.run(
            [sys.executable, "-m", "deploy.slurm", command, *words, f"run.dir={self.directory}"],
            cwd=ROOT,
            env=self.cluster.environment,
            text=True,
            capture_output=True,
            timeout=300,
            check=False,
        )
        assert (done.returncode != 0) == fails, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def rows(self) -> list[Any]:
        """The lines of metrics.jsonl."""
        path = self.directory / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def peers(self) -> dict[str, Any]:
        """Who is joined to the broker, by name."""
        try:
            http = json.loads((self.directory / "broker.json").read_text())["http"]
            with urllib.request.urlopen(f"{http}/status", timeout=5) as answer:
                return {peer["name"]: peer for peer in json.load(answer)["peers"]}
        except (OSError, urllib.error.URLError, ValueError):
            return {}

    def job(self, name: str) -> tuple[str, str]:
        """Number and node of a role's job that runs; empty texts when none does."""
        role, _, index = name.partition("-")
        lines = self.cluster.ask("squeue", "--noheader", "--array", "--states=RUNNING", "--format=%A|%K|%j|%N")
        for number, task, job, node in (line.split("|") for line in lines.splitlines()):
            if job.startswith(f"{role}@") and task == (index or task):
                return number, node
        return "", ""

    def actors(self) -> set[str]:
        """The actors that sample: joined, with weights."""
        return {name for name, peer in self.peers().items() if peer["role"] == "actor"}

    def until(self, true: Any, what: str, seconds: float = 300.0) -> None:
        """Wait, and do not let requeued jobs wait."""

        def hurried() -> bool:
            self.cluster.hurry()
            return bool(true())

        self.cluster.until(hurried, seconds, what, self.shown)

    def shown(self) -> str:
        """What there is to know when something does not come."""
        logs = [f"--- {path.name}\n{path.read_text()[-1500:]}" for path in sorted((self.directory / "logs").iterdir())]
        return "\n".join([self.cluster.ask("squeue"), *logs])


def demand_ledger(run: Launched, steps: int) -> None:
    """Every step is there once; every group was trained once, or dropped."""
    rows, summary = run.rows(), json.loads((run.directory / "summary.json").read_text())
    assert [row["step"] for row in rows] == list(range(1, steps + 1))
    assert max(row["staleness_max"] for row in rows) <= 2
    samples = [json.loads(line) for line in (run.directory / "samples.jsonl").read_text().splitlines()]
    trained = [sample["group_id"] for sample in samples]
    ledger = inspect(run.directory)
    assert sorted({*trained, *ledger.dropped}) == list(range(ledger.next_group))
    assert set(trained).isdisjoint(ledger.dropped)
    assert (len(set(trained)), ledger.groups_trained, ledger.policy_version) == (steps * GROUPS, steps * GROUPS, steps)
    assert summary["steps"] == steps


def test_a_run_is_scaled_loses_a_node_and_its_learner_and_ends_with_its_reward_and_ledger(
    cluster: SlurmCluster, tmp_path: Path
) -> None:
    run = Launched(cluster, tmp_path / "run")
    said = run.launcher("up", *TINY)
    assert re.search(r"jobs: cold_start \d+, learner \d+, actor \d+, verifier \d+", said)
    run.until(lambda: len(run.rows()) >= 2, "two steps are trained")
    assert "jobs of this run are in the queue" in run.launcher("up", *TINY, "resume=true", fails=True)

    assert "actors=3: 2 submitted (1-2)" in run.launcher("scale", "actors=3")
    run.until(lambda: run.actors() == {"actor-0", "actor-1", "actor-2"}, "three actors are there")
    learners_node = run.job("learner")[1]
    places = {name: run.job(name)[1] for name in sorted(run.actors())}
    assert len({learners_node, *places.values()}) == 3, "the run is on all nodes"

    victim, dead = next((name, node) for name, node in places.items() if node != learners_node)
    cluster.kill_node(dead)
    run.until(lambda: run.job(victim)[1] not in ("", dead), f"{victim} runs on another node than {dead}")
    run.until(lambda: victim in run.actors(), f"{victim} is back")
    cluster.start_node(dead)

    steps = len(run.rows())
    number, _ = run.job("learner")
    cluster.ask("scontrol", "update", f"nodename={learners_node}", "state=drain", "reason=test")
    cluster.ask("scontrol", "requeue", number)
    run.until(lambda: run.job("learner")[1] not in ("", learners_node), f"the learner left {learners_node}")
    run.until(lambda: len(run.rows()) > steps + 1, "the requeued learner trains on")
    assert "running" in run.launcher("status")

    assert "told to leave: 2, 1" in run.launcher("scale", "actors=1")
    run.until(lambda: run.actors() <= {"actor-0"}, "one actor is left")
    run.until(lambda: not cluster.ask("squeue", "--noheader").strip(), "all jobs have left the queue", 600)

    demand_ledger(run, STEPS)
    rewards = [row["reward_mean"] for row in run.rows()]
    assert sum(rewards[-4:]) / 4 > sum(rewards[:4]) / 4 + 0.1, rewards
    assert {row["actors"] for row in run.rows()} >= {1, 3}
    job = (run.directory / "logs" / "learner-job.log").read_text()
    assert "start 2)" in job
    assert "a checkpoint" in (run.directory / "logs" / "learner-0.log").read_text()
    assert "the broker has moved" in (run.directory / "logs" / "actor-0.log").read_text()
    assert "finished" in run.launcher("status")


def test_a_time_limit_is_met_by_a_checkpoint_and_a_drained_run_goes_on(cluster: SlurmCluster, tmp_path: Path) -> None:
    run = Launched(cluster, tmp_path / "run")
    run.launcher("up", *TINY, "learner.steps=400", "jobs.learner.time=3", "checkpoint.every=100")
    said = run.directory / "logs" / "learner-job.log"
    run.until(lambda: said.exists() and "the time limit is near, a checkpoint is written" in said.read_text(), "notice")
    saved = len(run.rows())
    assert f"{saved} steps are in a checkpoint" in (run.directory / "logs" / "learner-0.log").read_text()
    run.until(lambda: len(run.rows()) > saved + 1, "the requeued learner trains on")
    assert [row["step"] for row in run.rows()] == list(range(1, len(run.rows()) + 1))

    assert "all have left" in run.launcher("drain")
    assert "drained; go on with resume=true" in run.launcher("status")
    drained = len(run.rows())
    assert f"{drained} steps are in a checkpoint" in (run.directory / "logs" / "learner-0.log").read_text()
    for name in ("actor-0", "verifier-0"):
        assert "left, as it was told" in (run.directory / "slurm" / "state" / name).read_text()

    run.launcher("up", *TINY, f"learner.steps={drained + 2}", "resume=true")
    run.until(lambda: not cluster.ask("squeue", "--noheader").strip(), "all jobs have left the queue")
    demand_ledger(run, drained + 2)


def test_what_this_cluster_cannot_do_is_refused_with_a_sentence(cluster: SlurmCluster, tmp_path: Path) -> None:
    run = Launched(cluster, tmp_path / "run")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    words = [f"model={tmp_path / 'model'}", "slurm.shared=true"]
    for word, sentence in (
        ("slurm.partition=gpu", "slurm: slurm.partition=gpu: the cluster has no partition gpu, but main"),
        ("jobs.actor.gres=gpu:1", "slurm: sbatch: Invalid generic resource"),
        ("learner.nodes=4", "slurm: sbatch: "),
    ):
        assert sentence in run.launcher("up", *words, word, fails=True)
    assert not cluster.ask("squeue", "--noheader").strip()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        run.launcher("up", *words, f"broker=tcp://node:{port}")
        run.until(lambda: not cluster.ask("squeue", "--noheader").strip(), "all jobs have left the queue", 300)
    shown = run.launcher("status")
    assert f"the broker did not start: broker: cannot listen on tcp://127.0.0.1:{port}: Address already in use" in shown


PLAYED = """#!/bin/bash
# In the place of python: roles that note which GPUs they are given, and leave as soon as they are told.
case "$*" in
    *deploy.slurm.versions*) exit 0 ;;
    *learner.broker*) role=broker; echo '{}' >"$RUN/broker.json" ;;
    *torch.distributed.run*) role=learner ;;
    *) role=$SLURM_ARRAY_TASK_ID ;;
esac
echo "$role $SLURMD_NODENAME ${SLURM_STEP_GPUS:-none}" >>"$RUN/began"
trap 'exit 0' TERM INT
while true; do sleep 0.1; done
"""


def begun(run: Launched) -> list[tuple[str, str, str]]:
    """Role (an actor by its index), node and GPUs of every start of a played role, in order."""
    path = run.directory / "began"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(role, node, gpus) for role, node, gpus in map(str.split, lines)]


def began(run: Launched, **times: int) -> bool:
    """Whether learner and broker, and each actor, have begun so often: `_0=2`."""
    return Counter(role for role, _, _ in begun(run)) == {
        name.removeprefix("_"): count for name, count in times.items()
    }


def play(cluster: SlurmCluster, directory: Path, *words: str) -> Launched:
    """A run of three actors whose roles are played has been submitted, and all of it has begun."""
    model, played, site = directory / "model", directory / "python", directory / "site.sh"
    model.mkdir()
    (model / "config.json").write_text("{}")
    played.write_text(PLAYED)
    played.chmod(0o755)
    run = Launched(cluster, directory / "run")
    site.write_text(f"export RUN={run.directory}\n")
    given = (f"model={model}", f"slurm.python={played}", f"slurm.site={site}", "slurm.shared=true", "restarts=0")
    run.launcher("up", *given, "actors=3", "verifiers=0", *words)
    run.until(lambda: began(run, broker=1, learner=1, _0=1, _1=1, _2=1), "all roles have begun", 60)
    return run


@pytest.mark.parametrize("grace", [0, 30])
def test_who_is_preempted_comes_back_when_the_nodes_are_free_and_finds_its_gpus(tmp_path: Path, grace: int) -> None:
    with SlurmCluster(tmp_path / "slurm", grace=grace, gpus=2) as cluster:
        run = play(cluster, tmp_path, "jobs.learner.gres=gpu:2", "jobs.actor.gres=gpu:1")
        cluster.ask("sbatch", "--partition=urgent", "--nodes=3", "--exclusive", "--output=/dev/null", "--wrap=sleep 3")
        run.until(lambda: began(run, broker=2, learner=2, _0=2, _1=2, _2=2), "all roles are back", 120)
        assert not (run.directory / "slurm" / "over").exists()
        assert not any((run.directory / "slurm" / "failures").iterdir())
        assert "all have left" in run.launcher("down")
    back = {role: (node, gpus) for role, node, gpus in begun(run)[-5:]}
    assert back["broker"] == back["learner"]
    assert back["learner"][1] == "0,1"
    held = [(node, gpu) for role, (node, gpus) in back.items() if role != "broker" for gpu in gpus.split(",")]
    assert len(set(held)) == len(held) == 2 + 3, "a GPU belongs to one job"


def test_an_actor_at_its_time_limit_goes_back_into_the_queue_alone(tmp_path: Path) -> None:
    with SlurmCluster(tmp_path / "slurm") as cluster:
        run = play(cluster, tmp_path)
        lines = cluster.ask("squeue", "--noheader", "--array", "--format=%F_%K %A %j").splitlines()
        tasks = {task: number for task, number, name in map(str.split, lines) if name.startswith("actor@")}
        last = next(
            task for task, number in tasks.items() if task.split("_")[0] == number
        )  # which has the array's number
        cluster.ask("scancel", "--batch", "--signal=USR1", last)  # as Slurm does then
        times = {f"_{task}": 2 if last.endswith(f"_{task}") else 1 for task in range(3)}
        run.until(lambda: began(run, broker=1, learner=1, **times), "it is back", 60)
        assert {line.split()[0] for line in cluster.ask("squeue", "--noheader", "--format=%T").splitlines()} == {
            "RUNNING"
        }
        run.launcher("down")
