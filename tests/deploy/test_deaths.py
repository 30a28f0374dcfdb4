"""What a process died of, from its exit code and its log, also where torchrun stands in between."""

import os
import signal
from pathlib import Path

import pytest
from fake_role import alive
from fake_run import Start, everyone

from deploy.local import deaths
from deploy.local.deaths import last_error, tail

REPORT = Path(__file__).with_name("torchrun.log").read_text()  # of rank 1 killed by SIGKILL, rank 0 stopped by torchrun


@pytest.mark.parametrize(
    ("log", "told"),
    [
        ("2026-01-01 00:00:00,1 actor ERROR no memory\n2026-01-01 00:00:01,1 actor INFO leaving\n", "no memory"),
        ("learner: model=x: has no config.json\nWARNING: something\n", "learner: model=x: has no config.json"),
        (
            "Traceback (most recent call last):\n  File x\ntorch.OutOfMemoryError: 3 GB\n",
            "torch.OutOfMemoryError: 3 GB",
        ),
        ("all is well\n\n", "all is well"),
        ("", ""),
        ("broker: \x1b[31m" + 400 * "x", "broker:  [31m" + 287 * "x" + "…"),
    ],
)
def test_the_error_that_a_log_tells_of_is_found(tmp_path: Path, log: str, told: str) -> None:
    (tmp_path / "a.log").write_text(log)
    assert last_error(tail(tmp_path / "a.log", 0), or_last=True) == told


def test_a_killed_role_is_not_said_to_have_died_of_its_last_line(tmp_path: Path) -> None:
    (tmp_path / "a.log").write_text("all is well\n")
    assert last_error(tail(tmp_path / "a.log", 0), or_last=False) == ""


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        ({}, (4840, 9)),
        ({"-9 (pid: 4840)": "-11 (pid: 4840)"}, (4840, 11)),
        ({"-9 (pid: 4840)": "1 (pid: 4840)"}, None),  # that torchrun stopped the other is no death
        ({"-9 (pid: 4840)": "-15 (pid: 4840)"}, (4840, 15)),
        ({"Sending process 4839": "Sending process 4840", "-15 (pid: 4839)": "1 (pid: 4839)"}, None),
        ({"-15 (pid: 4839)": "1 (pid: 4839)"}, (4840, 9)),  # it failed for want of the one that was killed
    ],
)
def test_torchruns_report_tells_a_rank_that_was_killed_from_ranks_that_failed_or_were_stopped(
    changed: dict[str, str], found: tuple[int, int] | None
) -> None:
    text = REPORT
    for old, new in changed.items():
        assert old in text
        text = text.replace(old, new)
    assert deaths.killed_rank(text) == found


def test_the_error_of_a_rank_is_told_and_not_that_torchrun_saw_one(tmp_path: Path) -> None:
    log = tmp_path / "learner-0.log"
    log.write_text("learner: of an earlier start\n")
    begin = log.stat().st_size
    log.write_text(log.read_text() + "learner: model=x: has no config.json\n" + REPORT.replace("-9 (", "1 ("))
    death = deaths.describe(1, log, begin, 5.0)
    assert death.told == f"ended with exit code 1: learner: model=x: has no config.json (log: {log})"
    assert not death.violent


def test_only_the_last_start_is_asked_for_its_error(tmp_path: Path) -> None:
    log = tmp_path / "actor-0.log"
    log.write_text("actor: of an earlier start\n")
    assert deaths.describe(1, log, log.stat().st_size, 5.0).cause == "ended with exit code 1"
    assert deaths.describe(-64, log, 0, 5.0).cause == "was killed by SIGRTMAX: actor: of an earlier start"
    assert deaths.signal_name(40) == "signal 40"


def test_a_learner_of_several_ranks_is_started_again_when_a_rank_or_torchrun_is_killed(start: Start) -> None:
    run = start({"learner-0": "obey", "learner-1": "good"}, "learner.ranks=2", "restart_seconds=0")
    everyone(run, "learner-1")
    os.kill(run.pid("learner-1"), signal.SIGKILL)
    second = [run.pid(name, start=2) for name in ("learner-0", "learner-1")]
    assert not alive(run.pid("learner-0"))
    torchrun = int(Path(f"/proc/{second[0]}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(torchrun, signal.SIGKILL)
    for name in ("learner-0", "learner-1"):
        run.pid(name, start=3)
    assert not any(map(alive, second))
    run.finish()
    assert run.end()[0] == 0
    lost = f"lost a rank, process {run.pid('learner-1')} was killed by SIGKILL"
    assert [row["cause"] for row in run.restarts()] == [lost, "was killed by SIGKILL"]
    assert run.living() == []
