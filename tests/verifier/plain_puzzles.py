"""The puzzles' rules written out again, and plain breadth-first searches over them."""

from collections.abc import Callable
from functools import cache
from itertools import combinations, islice, product
from random import Random
from typing import Any, TypeAlias

from verifier.rewards.puzzles.blocks import Blocks
from verifier.rewards.puzzles.checkers import Checkers
from verifier.rewards.puzzles.hanoi import Hanoi
from verifier.rewards.puzzles.puzzle import Puzzle
from verifier.rewards.puzzles.reward import (
    PUZZLES,
)
from verifier.rewards.puzzles.river import River

Moves: TypeAlias = list[Any]
State: TypeAlias = Any
Step: TypeAlias = Callable[[State, Any], State | None]

SMALL = {"hanoi": range(1, 5), "checkers": range(1, 6), "river": range(2, 5), "blocks": range(2, 6)}


def hanoi_step(places: State, move: Any) -> State | None:
    """A state is the peg of each disk."""
    disk, source, target = move
    if source == target or not {source, target} <= {0, 1, 2} or not 1 <= disk <= len(places):
        return None
    if places[disk - 1] != source or {source, target} & set(places[: disk - 1]):
        return None
    return (*places[: disk - 1], target, *places[disk:])


def checkers_step(right: str) -> Step:
    """A state is the line."""

    def step(line: State, move: Any) -> State | None:
        colour, source, target = move
        if not {source, target} <= set(range(len(line))) or colour not in ("R", "B"):
            return None
        if (line[source], line[target]) != (colour, "_"):
            return None
        way = target - source if colour == right else source - target
        if way != 1 and not (way == 2 and line[(source + target) // 2] not in (colour, "_")):
            return None
        return "".join({source: "_", target: colour}.get(square, found) for square, found in enumerate(line))

    return step


def blocks_step(stacks: State, move: Any) -> State | None:
    """A state is the stacks."""
    block, source, target = move
    if source == target or not {source, target} <= {0, 1, 2} or stacks[source][-1:] != (block,):
        return None
    after = [list(stack) for stack in stacks]
    after[target].append(after[source].pop())
    return tuple(map(tuple, after))


def safe(people: set[str]) -> bool:
    """Nobody is with the agent of another without the own one."""
    return not any(
        actor[0] == "a" and agent[0] == "A" and agent != actor.upper() and actor.upper() not in people
        for actor in people
        for agent in people
    )


def river_step(pairs: int, boat: int) -> Step:
    """A state is who is on the left, and whether the boat is there."""
    everybody = {f"{kind}_{number + 1}" for kind in "aA" for number in range(pairs)}

    def step(state: State, move: Any) -> State | None:
        left, here = state
        side = left if here else everybody - left
        if not 1 <= len(move) <= boat or len(set(move)) < len(move) or not set(move) <= side:
            return None
        left = left - set(move) if here else left | set(move)
        if not (safe(set(move)) and safe(set(left)) and safe(everybody - left)):
            return None
        return frozenset(left), not here

    return step


def rules(puzzle: Puzzle[Any]) -> tuple[State, Step, list[Any], Callable[[State], bool]]:
    """The beginning, the step, all moves that could be written, and the end."""
    numbers = range(3)
    match puzzle:
        case Hanoi():
            moves = [[disk + 1, *way] for disk in range(len(puzzle.places)) for way in product(numbers, repeat=2)]
            return tuple(puzzle.places), hanoi_step, moves, lambda places: set(places) == {puzzle.goal}
        case Checkers():
            line, each = puzzle.line, len(puzzle.line) // 2
            goal = ("B" if puzzle.right == "R" else "R") * each + "_" + puzzle.right * each
            moves = [[colour, *way] for colour in "RB" for way in product(range(len(line)), repeat=2)]
            return line, checkers_step(puzzle.right), moves, lambda line: line == goal
        case River():
            everybody = sorted(f"{kind}_{number + 1}" for kind in "aA" for number in range(puzzle.pairs))
            moves = [list(crew) for size in range(1, puzzle.boat + 1) for crew in combinations(everybody, size)]
            begin = frozenset(puzzle.left), puzzle.side == "left"
            return begin, river_step(puzzle.pairs, puzzle.boat), moves, lambda state: not state[0]
        case Blocks():
            goal_stacks = tuple(map(tuple, puzzle.goal))
            moves = [[block, *way] for stack in puzzle.goal for block in stack for way in product(numbers, repeat=2)]
            return tuple(map(tuple, puzzle.start)), blocks_step, moves, lambda stacks: stacks == goal_stacks
    raise AssertionError(puzzle)


def solution(puzzle: Puzzle[Any]) -> Moves | None:
    """A shortest one, by breadth-first search over all moves; None if there is none."""
    begin, step, moves, ends = rules(puzzle)
    came: dict[State, tuple[State, Any] | None] = {begin: None}
    level = [begin]
    while level:
        further = []
        for state in level:
            if ends(state):
                found: Moves = []
                while (last := came[state]) is not None:
                    state = last[0]
                    found.append(last[1])
                return found[::-1]
            for move in moves:
                if (after := step(state, move)) is not None and after not in came:
                    came[after] = (state, move)
                    further.append(after)
        level = further
    return None


@cache
def solved(name: str) -> list[tuple[Puzzle[Any], Moves]]:
    """Small instances, each with a shortest solution."""
    found = []
    for size in SMALL[name]:
        for puzzle in islice(PUZZLES[name].instances(size, Random(size)), 6 if name == "river" else 10):
            moves = solution(puzzle)
            assert moves is not None, puzzle
            found.append((puzzle, moves))
    return found
