"""Rewards `puzzle` and `puzzle_legal` against plain breadth-first searches over the rules, written out again here."""

import json
from itertools import islice, product
from random import Random
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from plain_puzzles import (
    SMALL,
    Moves,
    checkers_step,
    rules,
    solution,
    solved,
)

from verifier.rewards.puzzles.blocks import Blocks
from verifier.rewards.puzzles.checkers import Checkers, way
from verifier.rewards.puzzles.hanoi import Hanoi
from verifier.rewards.puzzles.puzzle import Puzzle
from verifier.rewards.puzzles.reward import (
    MAX_ANSWER_CHARACTERS,
    PUZZLES,
    described,
    puzzle_legal_reward,
    puzzle_reward,
    read_moves,
    read_reference,
)
from verifier.rewards.puzzles.river import River, smallest_boat
from verifier.rewards.score import BadAnswer, BadTask
from verifier.worker import judge


@st.composite
def instances(draw: st.DrawFn) -> tuple[Puzzle[Any], Moves]:
    """One of them."""
    return draw(st.sampled_from(solved(draw(st.sampled_from(sorted(PUZZLES))))))


def answered(moves: Any) -> str:
    return f"<think>well</think><answer>{json.dumps(moves)}</answer>"


def score(puzzle: Puzzle[Any], moves: Any, **parameters: Any) -> tuple[float, str]:
    """Value and reason, as a worker reports them."""
    value, outcome, reason = judge("puzzle", answered(moves), described(puzzle), {"puzzle": parameters})
    assert outcome == "scored", reason
    assert value is not None
    return value, reason


# ---------------------------------------------------------------- instances


@pytest.mark.parametrize("name", sorted(PUZZLES))
def test_the_shortest_answer_is_as_long_as_a_plain_search_says_and_is_worth_one(name: str) -> None:
    for puzzle, moves in solved(name):
        assert puzzle.shortest() == len(moves) > 0, puzzle
        assert score(puzzle, moves, shortest=True) == (1.0, f"solved in {len(moves)} moves; {len(moves)} are enough")


@pytest.mark.parametrize("size", [1, 2, 3, 10, 16])
def test_closed_forms_hold_for_the_classic_instances(size: int) -> None:
    assert next(Hanoi.instances(size, Random(0))).shortest() == 2**size - 1
    for puzzle in islice(Checkers.instances(size, Random(0)), 2):
        assert puzzle.shortest() == (size + 1) ** 2 - 1


@pytest.mark.parametrize(("pairs", "boat", "moves"), [(2, 2, 5), (3, 2, 11), (4, 3, 9), (5, 3, 11), (6, 4, 9)])
def test_river_crossings_take_as_many_as_the_literature_says(pairs: int, boat: int, moves: int) -> None:
    puzzle = next(River.instances(pairs, Random(0)))
    assert (puzzle.boat, puzzle.shortest()) == (boat, moves)


@pytest.mark.parametrize("pairs", range(2, 21))
def test_a_river_with_a_smaller_boat_cannot_be_crossed(pairs: int) -> None:
    everybody = [f"{kind}_{number + 1}" for kind in "aA" for number in range(pairs)]
    assert River(pairs, smallest_boat(pairs), everybody).shortest() > 0
    if smallest_boat(pairs) > 2:
        with pytest.raises(ValueError, match="cannot be solved"):
            River(pairs, smallest_boat(pairs) - 1, everybody).shortest()


def test_a_plain_search_finds_no_way_either_where_there_is_none() -> None:
    everybody = [f"{kind}_{number + 1}" for kind in "aA" for number in range(4)]
    assert solution(River(4, 2, everybody)) is None


@pytest.mark.parametrize("name", sorted(PUZZLES))
def test_instances_come_from_the_seed_alone_and_never_twice(name: str) -> None:
    def made(seed: int) -> list[str]:
        size = SMALL[name][-1]
        return [json.dumps(each.parameters()) for each in islice(PUZZLES[name].instances(size, Random(seed)), 60)]

    assert made(1) == made(1) != made(2)
    assert len(set(made(1))) == 60


@pytest.mark.parametrize("name", sorted(PUZZLES))
def test_every_size_has_instances_that_can_be_solved(name: str) -> None:
    for size in PUZZLES[name].sizes:
        for puzzle in islice(PUZZLES[name].instances(size, Random(size)), 1 if name == "blocks" else 6):
            assert read_reference(described(puzzle)) == (puzzle, puzzle.shortest())


def test_small_sizes_end_and_hold_all_instances_there_are() -> None:
    assert len(list(Hanoi.instances(1, Random(0)))) == 3 * (3 - 1)
    assert len(list(Hanoi.instances(3, Random(0)))) == 3 * (3**3 - 1)
    assert len(list(Blocks.instances(2, Random(0)))) == 12 * 11


@pytest.mark.parametrize("size", [1, 2, 3, 7, 20, 50])
@pytest.mark.parametrize(("right", "first"), ["RR", "RB", "BR", "BB"])
def test_checkers_on_the_way_are_a_legal_move_from_the_next_line(size: int, right: str, first: str) -> None:
    """So each line that instances are drawn from can be solved, by as many moves as are left."""
    lines = list(way(size, right, first))
    assert lines[0] == lines[-1][::-1]
    assert lines[0].index("R" if right == "B" else "B") == size + 1
    for left, (line, following) in enumerate(zip(lines[-2::-1], lines[:0:-1], strict=True), start=1):
        source, target = sorted(
            (at for at in range(len(line)) if line[at] != following[at]), key=lambda at: line[at] == "_"
        )
        assert checkers_step(right)(line, [line[source], source, target]) == following
        assert Checkers(line, right).shortest() == left


@pytest.mark.parametrize("size", [1, 4, 50])
def test_checkers_are_drawn_from_the_ways(size: int) -> None:
    ways = {(right, line) for right, first in product("RB", repeat=2) for line in way(size, right, first)}
    drawn = {(each.right, each.line) for each in islice(Checkers.instances(size, Random(size)), 200)}
    assert len(drawn) > 1
    assert drawn < ways


# ---------------------------------------------------------------- moves

HANOI = Hanoi([0, 0], 2)
CHECKERS = Checkers("RR_BB")
RIVER = River(2, 2, ["A_1", "A_2", "a_1", "a_2"])
BLOCKS = Blocks([["A", "B"], ["C"], []], [["C"], [], ["A", "B"]])


@pytest.mark.parametrize(
    ("puzzle", "moves"),
    [
        (HANOI, [[1, 0, 1], [2, 0, 2], [1, 1, 2]]),
        (HANOI, [[1, 0, 2], [1, 2, 1], [2, 0, 2], [1, 1, 2]]),
        (Checkers("R_B"), [["R", 0, 1], ["B", 2, 0], ["R", 1, 2]]),
        (Checkers("R_B"), [["B", 2, 1], ["R", 0, 2], ["B", 1, 0]]),
        (Checkers("B_R", "B"), [["B", 0, 1], ["R", 2, 0], ["B", 1, 2]]),
        (RIVER, [["a_1", "a_2"], ["a_1"], ["A_1", "A_2"], ["a_2"], ["a_1", "a_2"]]),
        (RIVER, [["a_1", "A_1"], ["A_1"], ["A_1", "A_2"], ["a_1"], ["a_1", "a_2"]]),
        (BLOCKS, [["B", 0, 1], ["A", 0, 2], ["B", 1, 2], ["C", 1, 0]]),
    ],
)
def test_whole_solutions_are_worth_one(puzzle: Puzzle[Any], moves: Moves) -> None:
    right = solution(puzzle)
    assert right is not None
    assert score(puzzle, moves)[0] == 1.0
    assert score(puzzle, moves, shortest=True)[0] == float(len(moves) == len(right))


@pytest.mark.parametrize(
    ("puzzle", "moves", "reason"),
    [
        (HANOI, [[2, 0, 2]], "move 1 of 1: disk 1 lies above disk 2"),
        (HANOI, [[1, 0, 1], [2, 0, 1]], "move 2 of 2: disk 2 would lie on the smaller disk 1"),
        (HANOI, [[1, 1, 2]], "move 1 of 1: disk 1 is not on peg 1"),
        (HANOI, [[3, 0, 2]], "move 1 of 1: there is no disk 3"),
        (HANOI, [[0, 0, 2]], "move 1 of 1: there is no disk 0"),
        (HANOI, [[1, 0, 0]], "move 1 of 1: from peg 0 to peg 0 is no move between two of the pegs 0, 1 and 2"),
        (HANOI, [[1, 0, -1]], "move 1 of 1: from peg 0 to peg -1"),
        (HANOI, [[1, 0, 1], [2, 0, 2]], "not solved after 2 moves: 1 of 2 disks are not on peg 2"),
        (HANOI, [[1, 0, 1], [2, 0, 2], [1, 1, 2], [1, 2, 0]], "not solved after 4 moves"),
        (HANOI, [[True, 0, 2]], "move 1 of 1: [true, 0, 2] is not a list of disk, from peg and to peg"),
        (HANOI, [["1", 0, 2]], 'move 1 of 1: ["1", 0, 2] is not'),
        (HANOI, [[1.0, 0, 2]], "move 1 of 1: [1.0, 0, 2] is not"),
        (HANOI, [[1, 0]], "move 1 of 1: [1, 0] is not"),
        (HANOI, [[1, 0, 1], "2 0 2"], 'move 2 of 2: "2 0 2" is not'),
        (HANOI, [{"disk": 1}], "move 1 of 1: a dict of 1 is not"),
        (HANOI, [[[1, 0, 1], [2, 0, 2], [1, 1, 2]]], "move 1 of 1: a list of 3 is not"),
        (HANOI, [None], "move 1 of 1: null is not"),
        (CHECKERS, [["R", 0, 2]], "move 1 of 1: a red checker would jump over a checker of its own colour"),
        (CHECKERS, [["R", 1, 2], ["R", 2, 1]], "move 2 of 2: a red checker never moves to the left"),
        (CHECKERS, [["B", 3, 2], ["B", 2, 3]], "move 2 of 2: a blue checker never moves to the right"),
        (CHECKERS, [["B", 1, 2]], "move 1 of 1: on square 1 lies a red checker, not a blue checker"),
        (CHECKERS, [["R", 2, 3]], "move 1 of 1: on square 2 lies nothing, not a red checker"),
        (CHECKERS, [["R", 0, 1]], "move 1 of 1: square 1 is taken"),
        (
            CHECKERS,
            [["R", 1, 2], ["B", 4, 1]],
            "move 2 of 2: a blue checker goes one square ahead, or two in a jump, not 3",
        ),
        (CHECKERS, [["R", -4, 2]], "move 1 of 1: there is no square -4"),
        (CHECKERS, [["R", 1, 5]], "move 1 of 1: there is no square 5"),
        (CHECKERS, [["_", 1, 2]], 'move 1 of 1: there is no colour "_"'),
        (CHECKERS, [["\ud800", 1, 2]], 'move 1 of 1: there is no colour "\\ud800"'),
        (RIVER, [[]], "move 1 of 1: 0 people are in the boat, which carries 1 to 2"),
        (RIVER, [["a_1", "a_2", "A_1"]], "move 1 of 1: 3 people are in the boat"),
        (RIVER, [["a_1", "a_1"]], "move 1 of 1: somebody is in the boat twice"),
        (RIVER, [["a_3"]], 'move 1 of 1: there is no "a_3"'),
        (RIVER, [[1]], "move 1 of 1: [1] is not a list of people"),
        (RIVER, [[["a_1"]]], "move 1 of 1: a list of 1 is not a list of people"),
        (RIVER, ["a_1"], 'move 1 of 1: "a_1" is not a list of people'),
        (RIVER, [["a_1"], ["a_2"]], "move 2 of 2: a_2 is not on the right bank, where the boat is"),
        (RIVER, [["a_1", "A_2"]], "move 1 of 1: in the boat a_1 is with the agent of another actor"),
        (RIVER, [["A_1"]], "move 1 of 1: on the left bank a_1 is with the agent of another actor"),
        (
            RIVER,
            [["a_1"], ["a_1"], ["a_1", "A_1"], ["a_1"], ["A_2", "a_2"]],
            "move 4 of 5: on the left bank a_1 is with",
        ),
        (BLOCKS, [["A", 0, 2]], "move 1 of 1: block B lies on top of stack 0, not A"),
        (BLOCKS, [["B", 1, 2]], "move 1 of 1: block B is not in stack 1"),
        (BLOCKS, [["D", 1, 2]], 'move 1 of 1: there is no block "D"'),
        (BLOCKS, [["C", 1, 3]], "move 1 of 1: from stack 1 to stack 3"),
        (BLOCKS, [["C", 1, 2]], "not solved after 1 moves: 3 of 3 blocks are not where they should be"),
    ],
)
def test_the_first_wrong_move_is_named_with_its_number_and_why(puzzle: Puzzle[Any], moves: Moves, reason: str) -> None:
    value, said = score(puzzle, moves)
    assert value == 0.0
    assert said.startswith(reason)
    said.encode()


@settings(max_examples=300, deadline=None)
@given(instances(), st.data())
def test_a_changed_move_is_refused_where_the_plain_rules_refuse_it(
    instance: tuple[Puzzle[Any], Moves], data: st.DataObject
) -> None:
    puzzle, moves = instance
    state, step, possible, ends = rules(puzzle)
    place = data.draw(st.integers(0, len(moves) - 1))
    changed = [*moves]
    changed[place] = data.draw(st.sampled_from(possible))
    assume(changed != moves)
    wrong = 0
    for number, move in enumerate(changed, start=1):
        if (after := step(state, move)) is None:
            wrong = number
            break
        state = after
    value, reason = score(puzzle, changed)
    legal = puzzle_legal_reward(answered(changed), described(puzzle), {}).value
    if wrong:
        assert (value, legal) == (0.0, (wrong - 1) / len(moves))
        assert reason.startswith(f"move {wrong} of {len(moves)}: ")
        assert wrong > place
    else:
        assert (value, legal) == (float(ends(state)), 1.0)


@settings(max_examples=100, deadline=None)
@given(instances(), st.data())
def test_a_solution_that_lacks_a_move_or_has_one_too_many_is_not_the_shortest(
    instance: tuple[Puzzle[Any], Moves], data: st.DataObject
) -> None:
    puzzle, moves = instance
    place = data.draw(st.integers(0, len(moves) - 1))
    assert score(puzzle, moves[:-1] or [moves[0]] * 2)[0] == 0.0
    assert score(puzzle, moves[:place] + moves[place + 1 :] or [moves[0]] * 2)[0] == 0.0
    assert score(puzzle, [*moves, moves[-1]], shortest=True)[0] == 0.0


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["R", "A", "a_1", 0, 1]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(instances(), json_values)
def test_no_json_value_is_a_bug_of_the_reward(instance: tuple[Puzzle[Any], Moves], value: Any) -> None:
    puzzle, _ = instance
    for moves in (value, [value], [[value, 0, 1]], [[value]]):
        for reward in ("puzzle", "puzzle_legal"):
            found, outcome, reason = judge(reward, answered(moves), described(puzzle), {})
            assert outcome == "scored", reason
            assert found is not None
            assert 0.0 <= found <= 1.0
            reason.encode()


# ---------------------------------------------------------------- answers

RIGHT = "[[1, 0, 1], [2, 0, 2], [1, 1, 2]]"
WRONG = "[[1, 0, 2], [2, 0, 1], [1, 2, 1]]"


@pytest.mark.parametrize(
    "text",
    [
        f"<answer>{RIGHT}</answer>",
        f"<think>perhaps <answer>{WRONG}</answer>?</think> <answer>\n{RIGHT}\n</answer> as asked",
        f"<answer>moves = {RIGHT}</answer>",
        f"<answer>```json\n{RIGHT}\n```</answer>",
        f"<answer>```python\nmoves = {RIGHT}\n```</answer>",
        f"<answer>```\n{RIGHT}```</answer>",
        f"<think>…</think> \\boxed{{{RIGHT}}}",
        f"\\boxed{{{RIGHT}}} so \\boxed{{{RIGHT}}}",
        "<answer>[(1, 0, 1), (2, 0, 2), (1, 1, 2)]</answer>",
        "<answer>[[1,0,1],\n [2,0,2],\n [1,1,2]]</answer>",
    ],
)
def test_the_list_may_be_written_in_these_forms(text: str) -> None:
    assert puzzle_reward(text, described(HANOI), {}).value == 1.0


def test_names_may_stand_in_pythons_quotes() -> None:
    text = "<answer>moves = [('R', 0, 1), ('B', 2, 0), ('R', 1, 2)]</answer>"
    assert puzzle_reward(text, described(Checkers("R_B")), {}).value == 1.0


@pytest.mark.parametrize(
    "text",
    [
        "",
        RIGHT,
        f"the moves are {RIGHT}",
        f"<think>{RIGHT}</think>",
        f"<think><answer>{RIGHT}</answer></think>",
        f"<think><answer>{RIGHT}</answer>",
        f"<answer>{RIGHT}",
        f"{RIGHT}</answer>",
        f"</answer>{RIGHT}<answer>",
        f"<answer>{WRONG}</answer><answer>{RIGHT}</answer>",
        f"<answer>{RIGHT}</answer><answer>{RIGHT}</answer>",
        f"<answer>{WRONG} {RIGHT}</answer>",
        f"<answer>{WRONG}\n{RIGHT}</answer>",
        f"<answer>either {WRONG} or {RIGHT}</answer>",
        f"<answer>moves = {WRONG}; moves = {RIGHT}</answer>",
        f"<answer>```\n{WRONG}\n```\n```\n{RIGHT}\n```</answer>",
        f"<answer>a = b = {RIGHT}</answer>",
        f"\\boxed{{{WRONG}}} \\boxed{{{RIGHT}}}",
        "<answer></answer>",
        "<answer>[]</answer>",
        '<answer>{"moves": ' + RIGHT + "}</answer>",
        f'<answer>"{RIGHT}"</answer>',
        f"<answer>{RIGHT[:-1]}</answer>",
        "<answer>[[1, 0, 1], ...]</answer>",
        "<answer>[[1, 0, 1]] * 3</answer>",
        "<answer>__import__('os')</answer>",
        "<answer>solved</answer>",
        "<answer>" + "[" * 100_000 + "</answer>",
        "<answer>" + "[" * 900 + "]" * 900 + "</answer>",
        "<answer>[[1" + "0" * 5000 + ", 0, 1]]</answer>",
        "<answer>[[NaN, 0, 1]]</answer>",
        "<answer>[[1, 0, 1, 1e999]]</answer>",
    ],
)
def test_who_does_not_commit_to_one_list_gets_nothing(text: str) -> None:
    for reward in ("puzzle", "puzzle_legal"):
        value, outcome, reason = judge(reward, text, described(HANOI), {})
        assert (value, outcome) == (0.0, "scored"), reason


@pytest.mark.parametrize("deep", [*range(100, 1100, 7)])
def test_a_list_deeper_than_the_stack_is_the_answers_fault(deep: int) -> None:
    for puzzle in (HANOI, CHECKERS, RIVER, BLOCKS):
        text = f"<answer>[{'[' * deep}{']' * deep}]</answer>"
        value, outcome, reason = judge("puzzle", text, described(puzzle), {})
        assert (value, outcome) == (0.0, "scored"), reason


@settings(max_examples=60, deadline=None)
@given(instances())
def test_a_quoted_prompt_or_reference_is_worth_nothing(instance: tuple[Puzzle[Any], Moves]) -> None:
    puzzle, _ = instance
    prompt, reference = puzzle.prompt(), described(puzzle)
    example = prompt[prompt.index("for example ") + len("for example ") :]
    example = example[: example.index("]]") + 2]
    assert read_moves(example)
    for quoted in (prompt, reference, example, json.dumps(prompt)):
        for text in (quoted, f"<answer>{quoted}</answer>", f"\\boxed{{{quoted}}}"):
            assert judge("puzzle", text, reference, {})[:2] == (0.0, "scored")


def test_the_longest_shortest_answer_is_read_and_longer_ones_are_not() -> None:
    def tower(disks: int, source: int, target: int) -> Moves:
        if disks == 0:
            return []
        third = 3 - source - target
        return [*tower(disks - 1, source, third), [disks, source, target], *tower(disks - 1, third, target)]

    moves = tower(16, 0, 2)
    puzzle = next(Hanoi.instances(16, Random(0)))
    assert score(puzzle, moves) == (1.0, "solved in 65535 moves; 65535 are enough")
    with pytest.raises(BadAnswer, match="are not read"):
        read_moves("[" + " " * MAX_ANSWER_CHARACTERS + "]")


def test_no_detour_is_followed_for_ever() -> None:
    to_and_fro = [[1, 0, 1], [1, 1, 0]]
    rest = [[1, 0, 1], [2, 0, 2], [1, 1, 2]]
    assert score(HANOI, to_and_fro * 13 + rest) == (1.0, "solved in 29 moves; 3 are enough")
    assert score(HANOI, to_and_fro * 14 + rest)[1] == "31 moves are more than 30, 10 times as many as are enough"
    assert score(HANOI, [*to_and_fro * 15, [2, 0, 0]])[1] == "31 moves are more than 30, 10 times as many as are enough"
    assert score(HANOI, [*to_and_fro * 14, [2, 0, 0], *rest])[1].startswith("move 29 of 32: ")
    legal = puzzle_legal_reward(answered(to_and_fro * 30), described(HANOI), {})
    assert legal.value == 30 / 60


# ---------------------------------------------------------------- tasks


@pytest.mark.parametrize(
    ("reference", "culprit"),
    [
        ("", "the reference is no puzzle but ''"),
        ("[]", "an object whose puzzle is one of"),
        ('{"puzzle": "chess", "shortest": 1}', "one of blocks, checkers, hanoi, river"),
        ('{"puzzle": ["hanoi"], "shortest": 1}', "one of"),
        ('{"puzzle": "hanoi", "places": [0], "goal": 2}', "shortest must be a whole number of 1 or more, not 'None'"),
        ('{"puzzle": "hanoi", "places": [0], "goal": 2, "shortest": true}', "not 'True'"),
        ('{"puzzle": "hanoi", "goal": 2, "shortest": 1}', "no hanoi: .*places"),
        ('{"puzzle": "hanoi", "places": [0], "goal": 2, "shortest": 1, "pegs": 4}', "pegs"),
        ('{"puzzle": "hanoi", "places": [3], "goal": 2, "shortest": 1}', "pegs 0, 1 and 2"),
        ('{"puzzle": "hanoi", "places": [2], "goal": 2, "shortest": 1}', "already"),
        ('{"puzzle": "hanoi", "places": "0", "goal": 2, "shortest": 1}', "disks"),
        ('{"puzzle": "checkers", "line": "RB", "shortest": 1}', "one _"),
        ('{"puzzle": "checkers", "line": "R_B", "right": "G", "shortest": 1}', "R or B"),
        ('{"puzzle": "checkers", "line": "B_R", "shortest": 1}', "already"),
        ('{"puzzle": "river", "pairs": 2, "boat": 2, "left": ["a_3"], "shortest": 1}', 'no "a_3"'),
        ('{"puzzle": "river", "pairs": 2, "boat": 2, "left": [], "shortest": 1}', "nobody"),
        ('{"puzzle": "river", "pairs": 2, "boat": 2, "left": ["a_1", "a_1"], "shortest": 1}', "twice"),
        ('{"puzzle": "river", "pairs": 2, "boat": 2, "left": ["A_1"], "shortest": 1}', "on the right bank a_1"),
        ('{"puzzle": "river", "pairs": 2.0, "boat": 2, "left": ["a_1"], "shortest": 1}', "2 to 20 pairs"),
        ('{"puzzle": "blocks", "start": [["A"], ["B"]], "goal": [["B"], ["A"]], "shortest": 1}', "3 stacks"),
        ('{"puzzle": "blocks", "start": [["A"], ["C"], []], "goal": [["C"], ["A"], []], "shortest": 1}', "named A, B"),
        ('{"puzzle": "blocks", "start": [["A"], ["B"], []], "goal": [["A"], [], []], "shortest": 1}', "other blocks"),
    ],
)
def test_a_bad_reference_is_void(reference: str, culprit: str) -> None:
    for reward in (puzzle_reward, puzzle_legal_reward):
        with pytest.raises(BadTask, match=culprit):
            reward("<answer>nonsense</answer>", reference, {})


def test_a_parameter_that_is_not_known_is_void() -> None:
    with pytest.raises(BadTask, match=r"metadata\.puzzle\.longest: no such parameter; there are shortest"):
        puzzle_reward("", described(HANOI), {"puzzle": {"longest": True}})


@settings(max_examples=60, deadline=None)
@given(instances())
def test_a_reference_is_read_as_it_was_written(instance: tuple[Puzzle[Any], Moves]) -> None:
    puzzle, moves = instance
    assert read_reference(described(puzzle)) == (puzzle, len(moves))


@pytest.mark.parametrize(
    ("moves", "share"),
    [
        ([[1, 0, 1]], 1 / 3),  # a short list is no way to a high share
        ([[1, 0, 1], [2, 0, 1]], 1 / 3),
        ([[1, 0, 1], [2, 0, 2], [1, 1, 2]], 1.0),
        ([[2, 0, 1], [2, 0, 2], [1, 1, 2]], 0.0),
        ([[1, 0, 1], [1, 1, 0], [1, 0, 1], [1, 1, 0]], 1.0),  # to and fro: why it is not to be paid for
        ([[1, 0, 1], [1, 1, 0], [1, 0, 1], [2, 1, 0]], 3 / 4),
    ],
)
def test_the_legal_share_counts_moves_before_the_first_illegal_one(moves: Moves, share: float) -> None:
    assert puzzle_legal_reward(answered(moves), described(HANOI), {}).value == pytest.approx(share)
