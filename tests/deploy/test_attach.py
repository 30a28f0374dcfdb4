"""`--attach`: a view that comes and goes without the run's knowledge."""

import signal
import subprocess
import sys
from pathlib import Path

from fake_run import Start, everyone
from run_files import write_run

from deploy.local import presence
from deploy.local.attach import attach
from deploy.local.live import NoView

ROOT = Path(__file__).parents[2]


def attached(directory: Path) -> "subprocess.Popen[str]":
    """The command, its output no terminal."""
    words = [sys.executable, "-m", "deploy.local", "--attach", str(directory)]
    return subprocess.Popen(words, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_it_shows_every_step_and_ends_with_the_runs_result(start: Start) -> None:
    run = start({"learner-0": "obey"})
    everyone(run)
    with attached(run.path) as watching:
        write_run(run.path / "elsewhere")
        (run.path / "elsewhere" / "metrics.jsonl").rename(run.path / "metrics.jsonl")
        assert watching.stdout is not None
        assert watching.stdout.readline().startswith("step 1/100  reward 0.100")
        run.finish()
        assert run.end()[0] == 0
        lines = watching.stdout.read().splitlines()  # to its end, which comes when the command ends
    assert watching.returncode == 0
    assert [line.split("  ")[0] for line in lines[:2]] == ["step 2/100", "step 3/100"]
    assert lines[2:] == ["reward 0.250 → 0.950 in 3 steps and 1:01: enough"]


def test_ctrl_c_takes_the_view_away_and_the_run_goes_on(start: Start) -> None:
    run = start({"learner-0": "obey"})
    everyone(run)
    (run.path / "metrics.jsonl").write_text('{"step": 1}\n')
    with attached(run.path) as watching:
        assert watching.stdout is not None
        assert watching.stdout.readline().startswith("step 1")
        watching.send_signal(signal.SIGINT)
        _, errors = watching.communicate(timeout=20)
    assert (watching.returncode, errors) == (0, "")
    assert presence.at_work(run.path)
    run.finish()
    assert run.end()[0] == 0


def test_a_run_that_is_over_is_shown_once(tmp_path: Path) -> None:
    assert attach(write_run(tmp_path / "run"), NoView()).startswith("reward 0.100 → 0.300 in 3 steps and 0:06: ")


def test_a_run_that_was_ended_early_has_no_result(tmp_path: Path) -> None:
    assert "nobody is at work there" in attach(tmp_path, NoView())


def test_without_a_directory_it_says_what_it_wants(tmp_path: Path) -> None:
    with attached(tmp_path / "nowhere") as watching:
        _, errors = watching.communicate(timeout=20)
    assert watching.returncode == 1
    assert errors.startswith("attach: give the directory of a run")
