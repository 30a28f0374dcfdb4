"""More and fewer processes of a run that goes on, by the command and a launcher of fake roles."""

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from fake_run import Run, Start, everyone

from deploy.local import presence, scale
from deploy.local.scale import ask, heard, parse

ROOT = Path(__file__).parents[2]


def command(*words: str) -> tuple[int, str, str]:
    """`python -m deploy.local scale …`: exit code, output, errors."""
    done = subprocess.run(
        [sys.executable, "-m", "deploy.local", "scale", *words], cwd=ROOT, text=True, capture_output=True
    )
    return done.returncode, done.stdout, done.stderr


def left(run: Run, name: str) -> bool:
    """Whether the launcher has parted with a process."""
    return bool(re.search(rf"{name} was let go and ", run.log("local")))


def test_actors_and_verifiers_come_and_go_in_mid_run_and_the_run_finishes(start: Start) -> None:
    run = start({"learner-0": "obey"})
    everyone(run)
    code, out, errors = command(str(run.path), "actors=3", "verifiers=2")
    assert (code, errors) == (0, "")
    assert (
        out == f"{run.path}: 3 actors, 2 verifiers from now on; those that are too many finish what they have begun\n"
    )
    for name in ("actor-1", "actor-2", "verifier-1"):
        run.pid(name)
        assert f"{name[:-2]}.name={name}" in run.starts(name)[0]["command"]
    ask(run.path, {"actor": 1})
    run.until(lambda: left(run, "actor-1") and left(run, "actor-2"), "two actors leave")
    assert sorted(name for name in run.living() if name.startswith("actor")) == ["actor-0"]
    ask(run.path, {"actor": 2})
    run.pid("actor-1", start=2)
    run.finish()
    code, out, errors = run.end()
    assert (code, out, errors) == (0, "reward 0.250 → 0.950 in 3 steps and 1:01: enough\n", "")
    assert run.living() == []
    assert run.restarts() == []
    wishes = [line.partition(" INFO ")[2] for line in run.log("local").splitlines() if "scaled:" in line]
    assert wishes == [
        "scaled: actors from 1 to 3",
        "scaled: verifiers from 1 to 2",
        "scaled: actors from 3 to 1",
        "scaled: actors from 1 to 2",
    ]


def test_who_was_let_go_may_die_as_it_likes_and_takes_its_children_along(start: Start) -> None:
    run = start({"learner-0": "obey", "actor-1": "mother stay", "actor-2": "deaf"}, "actors=3")
    everyone(run, "actor-1", "actor-1-daughter", "actor-2")
    ask(run.path, {"actor": 1})
    run.until(lambda: left(run, "actor-1"), "actor-1 leaves")
    assert sorted(name for name in run.living() if name.startswith("actor")) == ["actor-0", "actor-2"]
    os.kill(run.pid("actor-2"), signal.SIGKILL)
    run.until(lambda: left(run, "actor-2"), "actor-2 is gone")
    run.finish()
    assert run.end()[0] == 0
    assert run.restarts() == []


def test_a_name_that_is_wanted_again_waits_until_its_process_is_gone(start: Start) -> None:
    run = start({"learner-0": "obey", "actor-1": "deaf good"}, "actors=2")
    everyone(run, "actor-1")
    ask(run.path, {"actor": 1})
    ask(run.path, {"actor": 2})
    run.until(lambda: "actors from 1 to 2" in run.log("local"), "the second wish")
    assert len(run.starts("actor-1")) == 1
    os.kill(run.pid("actor-1"), signal.SIGKILL)
    run.pid("actor-1", start=2)
    run.finish()
    assert run.end()[0] == 0


def test_a_wish_that_nobody_can_read_is_logged_and_harms_nothing(start: Start) -> None:
    run = start({"learner-0": "obey"})
    everyone(run)
    (run.path / scale.FILE).write_text('{"learner": 3}')
    run.until(lambda: "not scaled" in run.log("local"), "a warning")
    run.finish()
    assert run.end()[0] == 0


@pytest.mark.parametrize("words", [[], ["actors=-1"], ["actors=two"], ["learners=2"], ["actors"]])
def test_a_wish_for_anything_else_is_refused(words: list[str]) -> None:
    with pytest.raises(ValueError, match=r"actors="):
        parse(words)


@pytest.mark.parametrize("text", ["{", "[]", '{"actor": -1}', '{"actor": true}', '{"learner": 1}'])
def test_what_is_no_wish_is_taken_and_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / scale.FILE).write_text(text)
    with pytest.raises(ValueError, match=r"scale\.json"):
        heard(tmp_path)
    assert heard(tmp_path) == {}


def test_without_a_launcher_nobody_is_asked(tmp_path: Path) -> None:
    assert command(str(tmp_path), "actors=2") == (
        1,
        "",
        f"scale: {tmp_path}: no launcher is at work there; a run begins with as many as `actors=` says\n",
    )
    assert not (tmp_path / scale.FILE).exists()


def test_a_launcher_that_does_not_hear_is_not_waited_for_without_end(tmp_path: Path) -> None:
    with presence.held(tmp_path), pytest.raises(ValueError, match=r"has not taken scale\.json in 0\.1 s"):
        ask(tmp_path, {"actor": 2}, seconds=0.1)
    assert not (tmp_path / scale.FILE).exists()


def test_a_directory_has_one_launcher_at_a_time(start: Start) -> None:
    run = start({"learner-0": "obey"})
    everyone(run)
    with pytest.raises(ValueError, match="another launcher is at work there"), presence.held(run.path):
        pass
    second = start({})
    code, _, errors = second.end()
    assert (code, errors) == (1, f"local: {run.path}: a launcher is at work there; choose another run.name\n")
    run.finish()
    assert run.end()[0] == 0
    assert not presence.at_work(run.path)


def test_the_same_launcher_seen_from_many_threads_is_one(tmp_path: Path) -> None:
    seen: list[bool] = []
    with presence.held(tmp_path):
        threads = [threading.Thread(target=lambda: seen.append(presence.at_work(tmp_path))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert seen == [True] * 8
    assert not presence.at_work(tmp_path)
