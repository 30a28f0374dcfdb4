"""`python -m verifier.rewards.puzzles`: what it writes is what the broker reads; what it refuses, it says."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from learner.broker.tasks.files import read_files
from learner.template import template
from verifier.rewards.puzzles.__main__ import main
from verifier.rewards.puzzles.reward import PUZZLES, read_reference
from verifier.worker import judge

Command = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs it with these arguments and gives the lines that it writes."""

    def run(*arguments: str) -> list[dict[str, Any]]:
        out = tmp_path / "tasks.jsonl"
        monkeypatch.setattr("sys.argv", ["puzzles", *arguments, "--out", str(out)])
        main()
        return [json.loads(line) for line in out.read_text().splitlines()]

    return run


@pytest.mark.parametrize("name", sorted(PUZZLES))
def test_the_broker_reads_the_file_and_the_reward_its_tasks(name: str, command: Command, tmp_path: Path) -> None:
    lines = command(name, "--sizes", "4", "2", "--count", "5", "--reward", "0.9*puzzle + 0.1*format")
    tasks = read_files([str(tmp_path / "tasks.jsonl")], "", template("r1"))
    assert [task.metadata["size"] for task in tasks] == [4] * 5 + [2] * 5
    for line, task in zip(lines, tasks, strict=True):
        puzzle, _ = read_reference(task.reference)
        assert puzzle.name == name
        assert line["prompt"] == puzzle.prompt()
        assert line["prompt"] in task.prompt
        assert task.reward == "0.9*puzzle + 0.1*format"
        value, outcome, reason = judge("puzzle", "<answer>[[]]</answer>", task.reference, task.metadata)
        assert (value, outcome) == (0.0, "scored")
        assert reason.startswith("move 1 of 1: ")


def test_the_same_seed_writes_the_same_file_and_another_another(command: Command) -> None:
    def made(*arguments: str) -> list[dict[str, Any]]:
        return command("hanoi", "--sizes", "5", *arguments)

    assert made() == made("--seed", "0", "--count", "100") != made("--seed", "1")
    assert made("--seed", "0")[:1] == made("--seed", "1")[:1]  # the classic one
    assert len({line["reference"] for line in made()}) == 100


def test_a_size_draws_the_same_tasks_whatever_other_sizes_are_asked_for(command: Command) -> None:
    alone = command("blocks", "--sizes", "4", "--count", "7")
    assert command("blocks", "--sizes", "3", "4", "--count", "7")[7:] == alone


def test_only_shortest_answers_are_right_where_that_is_asked_for(command: Command) -> None:
    (task,) = command("hanoi", "--sizes", "1", "--count", "1", "--shortest")
    assert task["prompt"].endswith("Use as few moves as possible.")
    detour = "<answer>[[1, 0, 1], [1, 1, 2]]</answer>"
    metadata = {"puzzle": task["puzzle"]}
    assert judge("puzzle", detour, task["reference"], metadata) == (
        0.0,
        "scored",
        "solved in 2 moves where 1 are enough",
    )
    assert judge("puzzle", detour, task["reference"], {})[0] == 1.0


def test_who_asks_for_more_than_there_are_gets_all_and_is_told(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(command("hanoi", "--sizes", "1")) == 6
    said = capsys.readouterr()
    assert "hanoi has only 6 tasks of 1 disks" in said.err
    assert said.out.startswith("6 tasks in ")


@pytest.mark.parametrize(
    ("arguments", "culprit"),
    [
        (["chess", "--sizes", "3"], "invalid choice: 'chess'"),
        (["hanoi"], "the following arguments are required: --sizes"),
        (["hanoi", "--sizes", "three"], "invalid int value: 'three'"),
        (["hanoi", "--sizes", "3", "17"], "--sizes 17: hanoi takes 1 to 16 disks"),
        (["river", "--sizes", "1"], "--sizes 1: river takes 2 to 20 pairs of an actor and an agent"),
        (["blocks", "--sizes", "11"], "--sizes 11: blocks takes 2 to 10 blocks"),
        (["checkers", "--sizes", "0"], "--sizes 0: checkers takes 1 to 50 checkers of each colour"),
        (["hanoi", "--sizes", "3", "4", "3"], "--sizes 3: named more than once"),
        (["hanoi", "--sizes", "3", "--count", "0"], "--count 0: must be 1 or more"),
        (["hanoi", "--sizes", "3", "--reward", "beauty"], "there is no reward 'beauty'"),
        (["hanoi", "--sizes", "3", "--reward", "format"], "--reward 'format': names neither puzzle nor puzzle_legal"),
    ],
)
def test_what_cannot_be_is_refused_with_its_culprit_and_nothing_is_written(
    arguments: list[str], culprit: str, command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        command(*arguments)
    assert culprit in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "nowhere" / "tasks.jsonl"
    monkeypatch.setattr("sys.argv", ["puzzles", "hanoi", "--sizes", "1", "--out", str(out)])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert f"--out {out}: No such file or directory" in capsys.readouterr().err
