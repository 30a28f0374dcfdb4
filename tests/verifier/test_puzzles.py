"""Puzzles: a solution by anybody gets 1, a wrong move is named, and what is called the fewest moves is."""

import json
import subprocess
import sys
from itertools import islice, permutations
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.broker.config import TaskConfig
from learner.broker.tasks import open_tasks
from verifier.rewards.puzzles.blocks import Blocks
from verifier.rewards.puzzles.checkers import Checkers
from verifier.rewards.puzzles.hanoi import Hanoi
from verifier.rewards.puzzles.puzzle import IllegalMove, Puzzle
from verifier.rewards.puzzles.reward import PUZZLES, described, puzzle_reward, read_reference
from verifier.rewards.puzzles.river import River, smallest_boat
from verifier.rewards.score import BadAnswer, BadTask

SMALL = {"hanoi": (1, 2, 3), "checkers": (1, 2, 3), "river": (2, 3), "blocks": (2, 3, 4)}
INSTANCES = [
    instance
    for name, sizes in SMALL.items()
    for size in sizes
    for instance in islice(PUZZLES[name].instances(size, Random(size)), 4)
]
FAMILIES = [PUZZLES[name].instances(max(sizes), Random(0)).__next__() for name, sizes in SMALL.items()]


def everything(puzzle: Puzzle[Any]) -> list[Any]:
    """All moves that can be written down, legal or not."""
    if isinstance(puzzle, Hanoi):
        return [[disk, a, b] for disk in range(1, len(puzzle.places) + 1) for a, b in permutations(range(3), 2)]
    if isinstance(puzzle, Checkers):
        squares = range(2 * puzzle.each + 1)
        return [[colour, a, b] for colour in "RB" for a, b in permutations(squares, 2)]
    if isinstance(puzzle, Blocks):
        blocks = [block for stack in puzzle.start for block in stack]
        return [[block, a, b] for block in blocks for a, b in permutations(range(3), 2)]
    people = sorted(puzzle.begin()[0])
    return [
        [person for bit, person in enumerate(people) if chosen >> bit & 1]
        for chosen in range(1, 2 ** len(people))
        if chosen.bit_count() <= puzzle.boat  # type: ignore[attr-defined]
    ]


def solution(puzzle: Puzzle[Any]) -> list[Any]:
    """Fewest moves, found by trying all of them; nothing is shared with the code that is tested but the rules."""
    moves = everything(puzzle)
    came: dict[Any, tuple[Any, Any]] = {puzzle.begin(): (None, None)}
    level = [puzzle.begin()]
    while level:
        further = []
        for state in level:
            if not puzzle.lacking(state):
                path = []
                while came[state][0] is not None:
                    state, move = came[state]
                    path.append(move)
                return path[::-1]
            for move in moves:
                try:
                    after = puzzle.after(state, move)
                except IllegalMove:
                    continue
                if after not in came:
                    came[after] = (state, move)
                    further.append(after)
        level = further
    raise AssertionError(f"{puzzle} cannot be solved")


def judged(puzzle: Puzzle[Any], moves: Any, **parameters: bool) -> tuple[float, str]:
    text = f"<think>Let me see.</think><answer>{moves if isinstance(moves, str) else json.dumps(moves)}</answer>"
    found = puzzle_reward(text, described(puzzle), {"puzzle": parameters})
    return found.value, found.reason


# ------------------------------------------------------------ the fewest moves


@pytest.mark.parametrize("puzzle", INSTANCES, ids=str)
def test_the_fewest_moves_are_those_of_a_search_through_everything_and_get_1(puzzle: Puzzle[Any]) -> None:
    moves = solution(puzzle)
    assert len(moves) == puzzle.shortest()
    assert judged(puzzle, moves, shortest=True) == (1.0, f"solved in {len(moves)} moves; the fewest are {len(moves)}")


def test_the_fewest_moves_are_those_of_the_literature() -> None:
    assert [next(Hanoi.instances(size, Random(0))).shortest() for size in (3, 10)] == [7, 1023]
    assert [Checkers(each).shortest() for each in (1, 2, 3, 10)] == [3, 8, 15, 120]
    crossings = {(2, 2): 5, (3, 2): 11, (4, 3): 9, (5, 3): 11}
    assert {key: River(*key).shortest() for key in crossings} == crossings


@pytest.mark.parametrize("pairs", range(2, 13))
def test_a_river_can_be_crossed_with_the_boat_that_is_said_and_with_no_smaller_one(pairs: int) -> None:
    assert River(pairs, smallest_boat(pairs)).shortest() > 0
    with pytest.raises(ValueError, match="a boat with which all can cross"):
        River(pairs, smallest_boat(pairs) - 1)


@pytest.mark.parametrize(("pairs", "boat"), [(4, 2), (6, 3)])
def test_the_smaller_boat_is_really_too_small(pairs: int, boat: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("verifier.rewards.puzzles.river.smallest_boat", lambda _: 1)
    with pytest.raises(ValueError, match="cannot be solved"):
        River(pairs, boat).shortest()


# ------------------------------------------------------------ what is wrong


@given(st.sampled_from(FAMILIES), st.data())
@settings(max_examples=150, deadline=None)
def test_the_first_wrong_move_is_named_wherever_it_stands(puzzle: Puzzle[Any], data: st.DataObject) -> None:
    """One move of a right solution is replaced by any other: judged as by walking through it by hand."""
    moves = solution(puzzle)
    place = data.draw(st.integers(0, len(moves) - 1))
    moves[place] = data.draw(st.sampled_from(everything(puzzle)))
    state, wrong = puzzle.begin(), 0
    for number, move in enumerate(moves, start=1):
        try:
            state = puzzle.after(state, move)
        except IllegalMove:
            wrong = number
            break
    value, reason = judged(puzzle, moves)
    if wrong:
        assert (value, reason.partition(":")[0]) == (0.0, f"move {wrong} of {len(moves)}")
        assert wrong > place
    else:
        assert value == float(not puzzle.lacking(state))


@pytest.mark.parametrize("puzzle", FAMILIES, ids=str)
def test_a_part_of_a_solution_or_none_of_it_gets_0(puzzle: Puzzle[Any]) -> None:
    moves = solution(puzzle)
    for part in (moves[:-1], []):
        value, reason = judged(puzzle, part)
        assert value == 0.0
        assert reason.startswith(f"not solved after {len(part)} moves: ")


def test_each_rule_has_its_words() -> None:
    hanoi, checkers = Hanoi([0, 0], 2), Checkers(2)
    river, blocks = River(3, 2), Blocks([["A", "B"], ["C"], []], [[], [], ["A", "B", "C"]])
    cases: list[tuple[Puzzle[Any], list[Any], str]] = [
        (hanoi, [[2, 0, 1]], "disk 1 lies on disk 2"),
        (hanoi, [[1, 0, 1], [2, 0, 1]], "disk 2 would lie on the smaller disk 1"),
        (hanoi, [[1, 1, 2]], "disk 1 is not on peg 1"),
        (hanoi, [[3, 0, 1]], "there is no disk 3"),
        (hanoi, [[1, 0, 3]], "is no move between two of the pegs"),
        (hanoi, [[True, 0, 1]], "is not a list of disk, from peg and to peg"),
        (checkers, [["R", 0, 1]], "square 1 is taken"),
        (checkers, [["B", 1, 2]], "on square 1 lies a red checker, not a blue checker"),
        (checkers, [["R", 1, 2], ["R", 2, 1]], "goes one square ahead"),
        (checkers, [["R", 0, 2]], "jumps over a checker of its own colour"),
        (checkers, [["R", 1, -1]], "there is no square -1"),
        (river, [["a_1", "a_2", "a_3"]], "3 people are in the boat"),
        (river, [[]], "0 people are in the boat"),
        (river, [["a_1", "a_1"]], "somebody is in the boat twice"),
        (river, [["a_1", "b"]], "there is no 'b'"),
        (river, [["a_1", "A_2"]], "in the boat a_1 is with the agent of another actor"),
        (river, [["A_1", "A_2"]], "on the left bank a_1 is with the agent of another actor"),
        (river, [["a_1", "A_1"], ["a_2"]], "a_2 is not on the right bank, where the boat is"),
        (blocks, [["A", 0, 2]], "block B lies on top of stack 0, not A"),
        (blocks, [["C", 0, 2]], "block C is not in stack 0"),
        (blocks, [["D", 0, 2]], "there is no block 'D'"),
    ]
    for puzzle, moves, words in cases:
        value, reason = judged(puzzle, moves)
        assert value == 0.0
        assert words in reason, reason
        assert reason.startswith(f"move {len(moves)} of {len(moves)}: ")


@pytest.mark.parametrize("puzzle", FAMILIES, ids=str)
@pytest.mark.parametrize("junk", [None, 7, "x", {}, [1], [[], [], []], ["R", "0", 1], [1.0, 0, 1], [1, 0, 10**400]])
def test_what_is_no_move_is_a_wrong_move(puzzle: Puzzle[Any], junk: Any) -> None:
    value, reason = judged(puzzle, [junk])
    assert (value, reason[:12]) == (0.0, "move 1 of 1:")
    assert len(reason) < 300


def test_longer_solutions_get_1_unless_the_task_wants_the_shortest() -> None:
    puzzle, moves = Hanoi([0, 0], 2), [[1, 0, 2], [1, 2, 1], [2, 0, 2], [1, 1, 2]]
    assert judged(puzzle, moves) == (1.0, "solved in 4 moves; the fewest are 3")
    assert judged(puzzle, moves, shortest=True) == (0.0, "solved in 4 moves where 3 are enough")


# ------------------------------------------------------------ how an answer is written


@pytest.mark.parametrize(
    "written",
    [
        "[[1, 0, 1], [2, 0, 2], [1, 1, 2]]",
        "moves = [(1, 0, 1), (2, 0, 2), (1, 1, 2)]",
        "```json\n[[1,0,1],\n [2,0,2],\n [1,1,2]]\n```",
        "```python\nmoves = [[1, 0, 1], [2, 0, 2], [1, 1, 2]]\n```",
    ],
)
def test_a_list_may_be_written_in_the_usual_ways(written: str) -> None:
    assert judged(Hanoi([0, 0], 2), written)[0] == 1.0


def test_python_quotes_are_read_too() -> None:
    assert judged(Checkers(1), "[['R', 0, 1], ['B', 2, 0], ['R', 1, 2]]")[0] == 1.0


@pytest.mark.parametrize(
    "written",
    [
        *("", "none", "{}", '{"moves": []}', "[[1, 0, 1]", "[0]*10"),
        *("[" * 100_000, "[" + "9" * 5000 + "]", "1" * 10_000, "[" + "0," * 200_001 + "0]"),
    ],
    ids=range(10),
)
def test_what_is_no_list_is_refused_in_bounded_time(written: str) -> None:
    with pytest.raises(BadAnswer):
        judged(Hanoi([0, 0], 2), written)


def test_two_answers_or_an_answer_in_the_thinking_are_none() -> None:
    puzzle = Hanoi([0], 2)
    right = json.dumps([[1, 0, 2]])
    reference = described(puzzle)
    assert puzzle_reward(f"\\boxed{{{right}}}", reference, {}).value == 1.0
    for text in (
        f"<answer>{right}</answer><answer>[]</answer>",
        f"\\boxed{{{right}}} or \\boxed{{[[1, 0, 1]]}}",
        f"<think><answer>{right}</answer>",
        puzzle.prompt(),
        reference,
    ):
        with pytest.raises(BadAnswer):
            puzzle_reward(text, reference, {})


# ------------------------------------------------------------ tasks


@pytest.mark.parametrize("puzzle", INSTANCES, ids=str)
def test_a_reference_is_read_as_it_was_written(puzzle: Puzzle[Any]) -> None:
    assert read_reference(described(puzzle)) == (puzzle, puzzle.shortest())


@pytest.mark.parametrize(
    "reference",
    [
        "",
        "[]",
        '{"puzzle": "chess", "shortest": 1}',
        '{"puzzle": "hanoi", "shortest": 1}',
        '{"puzzle": "hanoi", "places": [2], "goal": 2, "shortest": 1}',
        '{"puzzle": "hanoi", "places": [0], "goal": 5, "shortest": 1}',
        '{"puzzle": "hanoi", "places": [0], "goal": 2, "shortest": 0}',
        '{"puzzle": "checkers", "each": 0, "shortest": 3}',
        '{"puzzle": "river", "pairs": 4, "boat": 2, "shortest": 9}',
        '{"puzzle": "blocks", "start": [["A", "B"], [], []], "goal": [["A"], [], []], "shortest": 1}',
        '{"puzzle": "blocks", "start": 3, "goal": 3, "shortest": 1}',
    ],
)
def test_a_reference_that_is_no_puzzle_is_the_tasks_fault(reference: str) -> None:
    with pytest.raises(BadTask):
        puzzle_reward("<answer>[]</answer>", reference, {})


def command(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "verifier.rewards.puzzles", *options], capture_output=True, text=True, timeout=60
    )


def test_the_command_writes_different_tasks_and_the_same_ones_for_the_same_seed(tmp_path: Path) -> None:
    texts = []
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        out = tmp_path / name
        done = command("blocks", "--sizes", "3", "4", "--count", "5", "--seed", seed, "--out", str(out))
        assert (done.returncode, done.stdout) == (0, f"10 tasks in {out}\n")
        texts.append(out.read_text())
    assert texts[0] == texts[1] != texts[2]
    tasks = [json.loads(line) for line in texts[0].splitlines()]
    assert len({task["prompt"] for task in tasks}) == 10
    for task in tasks:
        puzzle, _ = read_reference(task["reference"])
        assert puzzle.prompt() == task["prompt"]
        answer = f"<answer>{json.dumps(solution(puzzle))}</answer>"
        assert puzzle_reward(answer, task["reference"], task).value == 1.0


def test_the_command_says_when_there_are_fewer_and_refuses_what_cannot_be(tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    few = command("checkers", "--sizes", "2", "--count", "9", "--out", out)
    assert (few.returncode, few.stderr) == (0, "checkers has only 2 tasks of size 2\n")
    for options, words in (
        (("river", "--sizes", "1", "--out", out), "--sizes 1: river has sizes 2 to 20"),
        (("river", "--sizes", "2", "--count", "0", "--out", out), "--count 0: must be 1 or more"),
        (("river", "--sizes", "2", "--out", str(tmp_path)), "Is a directory"),
    ):
        refused = command(*options)
        assert refused.returncode == 2
        assert words in refused.stderr


def test_a_broker_takes_the_tasks(tmp_path: Path) -> None:
    out = tmp_path / "tasks.jsonl"
    assert command("hanoi", "--sizes", "3", "--count", "3", "--out", str(out)).returncode == 0
    task = open_tasks(TaskConfig(name="file", files=[str(out)], template="r1"), seed=0).task(0)
    assert task is not None
    assert task.reward == "puzzle"
    assert puzzle_reward("<answer>[]</answer>", task.reference, task.metadata).value == 0.0
