"""The scripts of a run: what they ask of Slurm, and what they do when a step, Slurm or a person ends something."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from fake_slurm import UNTIL_TOLD, FakeSlurm, tree

from deploy.slurm import layout, scripts
from deploy.slurm.config import settle
from deploy.slurm.layout import Run

MakeRun = Callable[..., Run]


@pytest.fixture
def slurm(tmp_path: Path) -> FakeSlurm:
    return FakeSlurm(tmp_path / "fake")


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Writes what `up` writes."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")

    def write(*overrides: str) -> Run:
        whole = tree(f"model={model}", f"run.dir={tmp_path / 'run'}", "run.name=sums", *overrides)
        config = settle(whole)
        return layout.write(whole, config, interpreter=sys.executable, working_directory=tmp_path)

    return write


@pytest.fixture
def begin(slurm: FakeSlurm) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Begins jobs, of which nothing is left after a test."""
    begun: list[subprocess.Popen[str]] = []

    def start(run: Run, script: str, **more: str) -> "subprocess.Popen[str]":
        begun.append(slurm.start(run.directory, script, **more))
        return begun[-1]

    yield start
    for job in begun:
        with suppress(ProcessLookupError):
            os.killpg(job.pid, signal.SIGKILL)
        job.communicate()


def asked(run: Run, script: str) -> set[str]:
    """The options of sbatch that a script gives."""
    return set(re.findall(r"^#SBATCH (.*)$", (run.slurm / script).read_text(), re.MULTILINE))


def ended(job: "subprocess.Popen[str]") -> tuple[int, str]:
    """Exit code and output of a job."""
    output, _ = job.communicate(timeout=30)
    return job.returncode, output


# ------------------------------------------------------------ what they ask for


def test_every_script_is_whole_and_bash_can_read_it(make_run: MakeRun) -> None:
    run = make_run()
    found = sorted(path.name for path in run.slurm.iterdir() if path.suffix in (".sbatch", ".sh"))
    assert found == ["actor.sbatch", "cold_start.sbatch", "learner.sbatch", "role.sh", "verifier.sbatch"]
    for name in found:
        assert "{{" not in (run.slurm / name).read_text()
        assert subprocess.run(["bash", "-n", run.slurm / name], check=False).returncode == 0


def test_each_role_asks_for_what_it_is_given_and_else_for_what_all_are(make_run: MakeRun) -> None:
    run = make_run(
        "slurm.partition=cpu",
        "slurm.account=physics",
        "slurm.options=['--constraint=fast']",
        "jobs.actor.partition=gpu",
        "jobs.actor.gres=gpu:h100:1",
        "jobs.actor.time=4:00:00",
        "jobs.learner.memory=64G",
        "jobs.learner.options=['--exclusive']",
        "jobs.verifier.cpus=8",
        "learner.nodes=2",
        "learner.ranks=16",
    )
    everybody = {"--account=physics", "--constraint=fast", "--requeue", "--open-mode=append"}
    for role in ("learner", "actor", "verifier", "cold_start"):
        assert everybody <= asked(run, f"{role}.sbatch")
    assert {"--partition=gpu", "--gres=gpu:h100:1", "--time=4:00:00"} <= asked(run, "actor.sbatch")
    assert {"--partition=cpu", "--mem=64G", "--exclusive", "--nodes=2"} <= asked(run, "learner.sbatch")
    assert {"--partition=cpu", "--cpus-per-task=8", "--nodes=1"} <= asked(run, "verifier.sbatch")
    assert "--nproc-per-node=8" in (run.slurm / "learner.sbatch").read_text()


def test_the_learner_is_told_of_its_time_limit_and_an_actor_earlier_than_it_takes_to_drain(make_run: MakeRun) -> None:
    run = make_run("slurm.notice_seconds=900", "actor.drain_seconds=120")
    assert "--signal=B:USR1@900" in asked(run, "learner.sbatch")
    assert "--shutdown-timeout=900" in (run.slurm / "learner.sbatch").read_text()
    assert "--signal=B:USR1@180" in asked(run, "actor.sbatch")


def test_arrays_are_as_large_as_the_run_begins(make_run: MakeRun) -> None:
    run = make_run("actors=24", "verifiers=1")
    assert "--array=0-23" in asked(run, "actor.sbatch")
    assert "--array=0-0" in asked(run, "verifier.sbatch")


def test_the_site_file_is_copied_and_read_before_the_environment_is_set(make_run: MakeRun, tmp_path: Path) -> None:
    site = tmp_path / "mine.sh"
    site.write_text("module load cuda/12\nexport OMP_NUM_THREADS=7\n")
    run = make_run(f"slurm.site={site}")
    assert (run.slurm / "site.sh").read_text() == site.read_text()
    text = (run.slurm / "actor.sbatch").read_text()
    assert 0 < text.index(f"source {run.slurm}/site.sh") < text.index('OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"')


def test_a_container_sees_the_run_and_what_is_mounted_besides(make_run: MakeRun) -> None:
    run = make_run("slurm.container_image=img.sqsh", "slurm.container_mounts=[/data,/a:/b]")
    pyxis = f"--container-image=img.sqsh --container-mounts={run.directory}:{run.directory},/data:/data,/a:/b"
    for role in ("learner", "actor", "verifier"):
        text = (run.slurm / f"{role}.sbatch").read_text()
        assert pyxis in text
        assert "python=python3" in text
    make_run("slurm.container_image=img.sif", "slurm.container=apptainer", "slurm.container_mounts=[/data]")
    text = (run.slurm / "actor.sbatch").read_text()
    assert f"apptainer exec --nv --pwd {run.directory} --bind {run.directory}:{run.directory},/data img.sif" in text


def test_two_runs_of_one_name_are_not_mistaken_for_each_other() -> None:
    here, there = (scripts.job_name("actor", "sums", Path(path)) for path in ("/a/sums", "/b/sums"))
    assert here != there
    assert re.fullmatch(r"actor@sums-[0-9a-f]{4}", here)


def test_peers_are_to_find_the_broker_by_its_file_and_the_broker_to_rest_when_slurm_moves_it(make_run: MakeRun) -> None:
    run = make_run()
    for role in ("learner", "actor", "verifier"):
        config = (run.directory / "config" / f"run_{role}.yaml").read_text()
        assert f"broker: file:{run.directory}/broker.json" in config
        assert "mode: curve" in config
    assert "on_sigterm: rest" in (run.directory / "config" / "run_broker.yaml").read_text()
    assert (run.directory / "keys" / "broker.key_secret").stat().st_mode & 0o077 == 0


# ------------------------------------------------------------ what an actor's job does


def test_an_actor_that_leaves_by_itself_is_done(
    make_run: MakeRun, slurm: FakeSlurm, begin: Callable[..., object]
) -> None:
    run = make_run()
    code, output = ended(begin(run, "actor.sbatch"))
    assert (code, slurm.requeued()) == (0, [])
    assert "actor-3: left by itself (job 7 on n1, start 1)" in output
    assert (run.slurm / "state" / "actor-3").read_text() in output
    assert "actor.name=actor-3" in slurm.calls("srun")[0]


def test_an_actor_that_fails_goes_back_into_the_queue_as_often_as_was_said(
    make_run: MakeRun, slurm: FakeSlurm, begin: Callable[..., object]
) -> None:
    run = make_run("restarts=2")
    (run.slurm / "learner.job").write_text("6")
    slurm.queue("the learner's job")
    slurm.roles(role="exit 9")
    codes = [ended(begin(run, "actor.sbatch"))[0] for _ in range(3)]
    assert codes == [0, 0, 9]
    assert slurm.requeued() == ["5_3"] * 2  # by its place: the number of the last task is that of the whole array
    said = (run.slurm / "state" / "actor-3").read_text()
    assert "failed with exit code 9, for the 3. time, 2 are made good" in said


def test_an_actor_without_a_learner_goes_back_as_often_as_it_takes(
    make_run: MakeRun, slurm: FakeSlurm, begin: Callable[..., object]
) -> None:
    run = make_run("restarts=1")
    slurm.roles(role="exit 1")
    assert [ended(begin(run, "actor.sbatch"))[0] for _ in range(3)] == [0, 0, 0]
    assert slurm.requeued() == ["5_3"] * 3
    assert not any((run.slurm / "failures").iterdir())


@pytest.mark.parametrize(("received", "requeued"), [("USR1", True), ("USR2", False)])
def test_an_actor_is_told_once_to_finish_and_comes_back_only_after_a_time_limit(
    make_run: MakeRun, slurm: FakeSlurm, begin: Callable[..., "subprocess.Popen[str]"], received: str, requeued: bool
) -> None:
    run = make_run()
    slurm.roles(role=UNTIL_TOLD)
    job = begin(run, "actor.sbatch")
    slurm.until_stepping(0)
    job.send_signal(getattr(signal, f"SIG{received}"))
    assert ended(job)[0] == 0
    assert slurm.calls("scancel") == ["--signal=TERM 7.0"]
    assert (slurm.requeued() == ["5_3"]) == requeued


def test_a_cancelled_actor_asks_for_nothing(
    make_run: MakeRun, slurm: FakeSlurm, begin: Callable[..., "subprocess.Popen[str]"]
) -> None:
    run = make_run()
    slurm.roles(role=UNTIL_TOLD)
    job = begin(run, "actor.sbatch")
    slurm.until_stepping(0)
    os.killpg(job.pid, signal.SIGTERM)  # as Slurm signals all of a job
    assert ended(job)[0] == 143
    assert slurm.calls("scontrol") == []


def test_a_preempted_actor_that_leaves_within_its_grace_time_comes_back(
    make_run: MakeRun, slurm: FakeSlurm, begin: Callable[..., object]
) -> None:
    run = make_run("restarts=0")
    slurm.preempt()  # its step gets a SIGTERM, its script none
    for role in ("exit 0", "exit 143"):
        slurm.roles(role=role)
        assert ended(begin(run, "actor.sbatch"))[0] == 0
    assert slurm.requeued() == ["5_3"] * 2
    assert not any((run.slurm / "failures").iterdir())


@pytest.mark.parametrize("sign", ["summary.json", "slurm/over", "slurm/leaving/actor-3"])
def test_who_comes_after_the_end_or_was_told_to_leave_starts_nothing(
    make_run: MakeRun, slurm: FakeSlurm, begin: Callable[..., object], sign: str
) -> None:
    run = make_run()
    (run.directory / sign).write_text("drained\n")
    assert ended(begin(run, "actor.sbatch"))[0] == 0
    assert slurm.calls("srun") == []


@pytest.mark.parametrize("code", [71, 72])
def test_an_actor_that_was_refused_does_not_come_back(
    make_run: MakeRun, slurm: FakeSlurm, begin: Callable[..., object], code: int
) -> None:
    run = make_run()
    slurm.queue("the learner's job")
    slurm.roles(role=f"exit {code}")
    assert ended(begin(run, "actor.sbatch"))[0] == code
    assert slurm.calls("scontrol") == []


# ------------------------------------------------------------ what the learner's job does


FINISHES = 'echo "{}" >"$FAKE_RUN/summary.json"'


def test_a_learner_that_finishes_ends_its_broker_and_sends_home_who_waits_for_a_node(
    make_run: MakeRun, slurm: FakeSlurm, begin: Callable[..., object]
) -> None:
    run = make_run()
    slurm.roles(role=FINISHES)
    code, output = ended(begin(run, "learner.sbatch"))
    assert code == 0
    assert "learner: the run is finished" in output
    broker, learner = slurm.calls("srun")
    assert "broker=tcp://127.0.0.1:*" in broker
    assert "--rdzv-backend=c10d" in learner
    assert sorted(slurm.calls("scancel")) == [
        f"--quiet --state=PENDING --name={run.job_name(role)}" for role in ("actor", "verifier")
    ]
    assert (run.slurm / "learner.job").read_text() == "7\n"


def test_before_its_time_limit_a_learner_writes_a_checkpoint_and_goes_back_into_the_queue(
    make_run: MakeRun, slurm: FakeSlurm, begin: Callable[..., "subprocess.Popen[str]"]
) -> None:
    run = make_run()
    slurm.roles(role="trap 'exit 1' TERM; while true; do sleep 0.05; done")
    job = begin(run, "learner.sbatch")
    slurm.until_stepping(1)
    job.send_signal(signal.SIGUSR1)
    assert ended(job)[0] == 0
    assert (slurm.told(1), slurm.told(0)) == ("TERM", "")  # the broker rests when Slurm takes the job
    assert slurm.requeued() == ["7"]
    assert not (run.slurm / "over").exists()


def test_a_drained_learner_ends_the_run_for_all(
    make_run: MakeRun, slurm: FakeSlurm, begin: Callable[..., "subprocess.Popen[str]"]
) -> None:
    run = make_run()
    slurm.roles(role="trap 'exit 1' TERM; while true; do sleep 0.05; done")
    job = begin(run, "learner.sbatch")
    slurm.until_stepping(1)
    job.send_signal(signal.SIGUSR2)
    assert ended(job)[0] == 0
    assert (slurm.told(1), slurm.told(0)) == ("TERM", "INT")
    assert slurm.requeued() == []
    assert "go on with resume=true" in (run.slurm / "over").read_text()


def test_a_learner_that_fails_at_once_has_failed_and_says_why(
    make_run: MakeRun, slurm: FakeSlurm, begin: Callable[..., object]
) -> None:
    run = make_run()
    slurm.roles(role='echo "learner: loss.name=no: is none" >>"$FAKE_RUN/logs/learner-0.log"; exit 1')
    assert ended(begin(run, "learner.sbatch"))[0] == 1
    assert (run.slurm / "over").read_text() == "the learner failed: learner: loss.name=no: is none\n"
    assert slurm.told(0) == "INT"
    assert slurm.requeued() == []


@pytest.mark.parametrize("overrides", [["restart_reset_seconds=0.1"], []])
def test_a_learner_that_had_worked_or_was_killed_goes_back_into_the_queue_as_often_as_was_said(
    make_run: MakeRun, slurm: FakeSlurm, begin: Callable[..., object], overrides: list[str]
) -> None:
    run = make_run("restarts=1", *overrides)
    slurm.roles(role="exit 1" if overrides else "exit 137")
    codes = [ended(begin(run, "learner.sbatch"))[0] for _ in range(2)]
    if overrides:  # each time it had worked: none counts
        assert codes == [0, 0]
    else:
        assert codes == [0, 137]
        assert "for the 2. time" in (run.slurm / "over").read_text()


def test_a_broker_that_finds_its_port_taken_ends_the_run_with_its_sentence(
    make_run: MakeRun, slurm: FakeSlurm, begin: Callable[..., object]
) -> None:
    run = make_run("broker=tcp://node:5555")
    said = "broker: cannot listen on tcp://127.0.0.1:5555: Address already in use; choose another address or port"
    slurm.roles(role="exit 0", broker=f'echo "{said}" >>"$FAKE_RUN/logs/broker-0.log"; exit 1')
    assert ended(begin(run, "learner.sbatch"))[0] == 1
    assert (run.slurm / "over").read_text() == f"the broker did not start: {said}\n"
    assert len(slurm.calls("srun")) == 1
    assert "broker=tcp://127.0.0.1:5555" in slurm.calls("srun")[0]
    for role in ("actor", "verifier"):  # those that run wait for a broker.json that never comes
        assert f"--quiet --batch --signal=USR2 --state=RUNNING --name={run.job_name(role)}" in slurm.calls("scancel")


def test_when_the_broker_dies_the_learner_is_told_and_both_go_back_into_the_queue(
    make_run: MakeRun, slurm: FakeSlurm, begin: Callable[..., object]
) -> None:
    run = make_run("restart_reset_seconds=0.1")
    broker = """echo '{}' >"$FAKE_RUN/broker.json"; sleep 1.5; exit 137"""
    slurm.roles(role="trap 'exit 1' TERM; while true; do sleep 0.05; done", broker=broker)
    assert ended(begin(run, "learner.sbatch"))[0] == 0
    assert slurm.told(1) == "TERM"
    assert slurm.requeued() == ["7"]


@pytest.mark.parametrize("code", [0, 1])
def test_a_preempted_learner_is_told_once_and_goes_back_into_the_queue_however_early_that_is(
    make_run: MakeRun, slurm: FakeSlurm, begin: Callable[..., object], code: int
) -> None:
    run = make_run("restarts=0")
    slurm.preempt()  # both steps get a SIGTERM, of which the broker is gone first
    broker = """echo '{}' >"$FAKE_RUN/broker.json"; sleep 0.5; exit 0"""
    slurm.roles(role=f"sleep 2.5; exit {code}", broker=broker)
    assert ended(begin(run, "learner.sbatch"))[0] == 0
    assert (slurm.told(1), slurm.requeued()) == ("", ["7"])
    assert not (run.slurm / "over").exists()
    assert not any((run.slurm / "failures").iterdir())


def test_a_requeued_learner_of_a_finished_run_starts_nothing(
    make_run: MakeRun, slurm: FakeSlurm, begin: Callable[..., object]
) -> None:
    run = make_run()
    (run.directory / "summary.json").write_text("{}")
    assert ended(begin(run, "learner.sbatch"))[0] == 0
    assert slurm.calls("srun") == []


def test_a_cold_start_is_made_once_and_its_failure_is_the_runs_end(
    make_run: MakeRun, slurm: FakeSlurm, begin: Callable[..., object]
) -> None:
    run = make_run()
    slurm.roles(role="exit 3")
    assert ended(begin(run, "cold_start.sbatch"))[0] == 3
    assert (run.slurm / "over").exists()
    slurm.roles(role="exit 0")
    assert ended(begin(run, "cold_start.sbatch"))[0] == 0
    assert ended(begin(run, "cold_start.sbatch"))[0] == 0
    assert len(slurm.calls("srun")) == 2


# ------------------------------------------------------------ what every step does first


def role_step(run: Run, mode: str, *command: str) -> "subprocess.CompletedProcess[str]":
    words = ["bash", str(run.slurm / "role.sh"), mode, "actor-3", *command]
    return subprocess.run(words, cwd=Path(__file__).parents[2], text=True, capture_output=True, check=False)


def test_a_node_that_sees_another_directory_is_refused(make_run: MakeRun) -> None:
    run = make_run()
    for spoil in (lambda path: path.write_text("that of another run\n"), Path.unlink):
        spoil(run.slurm / "token")
        done = role_step(run, "compare", "true")
        assert done.returncode == 71
        assert "is not the directory in which this run was set up: put run.dir on a file system that all" in done.stderr


def test_a_role_of_other_versions_than_the_brokers_is_refused(make_run: MakeRun) -> None:
    run = make_run()
    assert role_step(run, "write", "true").returncode == 0
    assert role_step(run, "compare", "sh", "-c", "exit 5").returncode == 5
    versions = run.slurm / "versions.json"
    versions.write_text(re.sub(r'"torch": ".*?"', '"torch": "1.0"', versions.read_text()))
    done = role_step(run, "compare", "true")
    assert done.returncode == 72
    assert re.search(r"actor-3 on \S+ has other versions than the run: torch \S+ here, 1\.0 at the broker", done.stderr)
