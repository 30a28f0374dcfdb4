"""Blocks world: stacks of blocks are rearranged; only the topmost block of a stack can be moved.

Rules and moves as in Shojaee et al. 2025, appendix A.1.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from random import Random
from string import ascii_uppercase
from typing import Any, ClassVar, TypeAlias

from verifier.rewards.puzzles.puzzle import IllegalMove, Puzzle, distinct, shown, three
from verifier.rewards.puzzles.shortest import best_first

Stacks: TypeAlias = tuple[tuple[str, ...], ...]
"""Of each stack its blocks, from the lowest."""
STACKS = 3


@dataclass(frozen=True)
class Blocks(Puzzle[Stacks]):
    """From `start` to `goal`, both of the same blocks in three stacks, some perhaps empty. Each can be solved."""

    start: list[list[str]]
    goal: list[list[str]]

    name: ClassVar[str] = "blocks"
    sizes: ClassVar[range] = range(2, 11)
    dial: ClassVar[str] = "blocks"

    def __post_init__(self) -> None:
        if not (_are_stacks(self.start) and _are_stacks(self.goal)):
            raise ValueError(f"blocks needs a start and a goal of {STACKS} stacks each, lists of blocks")
        blocks = sorted(chain(*self.start))
        if len(blocks) not in self.sizes or blocks != list(ascii_uppercase[: len(blocks)]):
            raise ValueError("blocks needs 2 to 10 blocks, named A, B, C and so on")
        if sorted(chain(*self.goal)) != blocks:
            raise ValueError("the goal has other blocks than the start")
        if self.start == self.goal:
            raise ValueError("the start is the goal already")

    @classmethod
    def instances(cls, size: int, random: Random) -> "Iterator[Blocks]":
        """Two stacks to be interleaved in one, as in the paper; then any arrangement to any other."""
        blocks = [*ascii_uppercase[:size]]
        classic = [cls([blocks[: (size + 1) // 2], blocks[(size + 1) // 2 :], []], [_interleaved(blocks), [], []])]

        def draw() -> Blocks | None:
            if classic:
                return classic.pop()
            start, goal = (_arranged(blocks, random) for _ in range(2))
            return None if start == goal else cls(start, goal)

        return distinct(draw, lambda made: (made.begin(), _tuples(made.goal)))

    def prompt(self) -> str:
        """See `Puzzle`."""
        return (
            f"Blocks are piled in {STACKS} stacks, numbered from 0. A move takes the topmost block of one stack and "
            "puts it on top of another stack, which may be empty.\n\n"
            f"At the beginning, from bottom to top: {_shown(self.start)}.\n"
            f"Find moves that lead to: {_shown(self.goal)}.\n\n"
            "Give the moves as one JSON list of [block, from stack, to stack], for example "
            '[["A", 0, 2], ["A", 2, 0]].'
        )

    def shortest(self) -> int:
        """Found by A*, mostly in milliseconds, in a second or two for some of 10 blocks.

        NP-hard even where the table has room for any number of stacks (Gupta and Nau 1992).
        """
        ends = {block: (stack, height) for stack, blocks in enumerate(self.goal) for height, block in enumerate(blocks)}
        return best_first(self.begin(), _next, lambda state: needed(state, ends))

    def begin(self) -> Stacks:
        """See `Puzzle`."""
        return _tuples(self.start)

    def after(self, state: Stacks, move: Any) -> Stacks:
        """See `Puzzle`."""
        block, source, target = three(move, str, "block, from stack and to stack")
        if not {source, target} <= set(range(STACKS)) or source == target:
            raise IllegalMove(
                f"from stack {shown(source)} to stack {shown(target)} is no move between two of the stacks 0, 1 and 2"
            )
        if block not in chain(*state):
            raise IllegalMove(f"there is no block {shown(block)}")
        if block not in state[source]:
            raise IllegalMove(f"block {block} is not in stack {source}")
        if state[source][-1] != block:
            raise IllegalMove(f"block {state[source][-1]} lies on top of stack {source}, not {block}")
        return _moved(state, source, target)

    def lacking(self, state: Stacks) -> str:
        """See `Puzzle`."""
        if missing := sum(len(stack) - _settled(stack, goal) for stack, goal in zip(state, self.goal, strict=True)):
            return f"{missing} of {sum(map(len, state))} blocks are not where they should be"
        return ""


def needed(state: Stacks, ends: dict[str, tuple[int, int]]) -> int:
    """Moves that are needed at least; 0 at the goal only. `ends` is where each block must go: stack and height.

    A block that does not lie as at the goal, with all below it, must be moved. It must be moved twice if it must come
    back onto its own stack, or onto a block that it lies above now: that one cannot be there before it.
    """
    moves = 0
    for number, stack in enumerate(state):
        lowest: dict[int, int] = {}  # of each stack the least height that a block further down here must go to
        settled = True
        for height, block in enumerate(stack):
            end, level = ends[block]
            settled = settled and (end, level) == (number, height)
            if settled:
                continue
            moves += 2 if end == number or lowest.get(end, level) < level else 1
            lowest[end] = min(level, lowest.get(end, level))
    return moves


def _settled(stack: tuple[str, ...], goal: list[str]) -> int:
    """How many blocks, from the lowest, are as at the goal."""
    same = (block == wanted for block, wanted in zip(stack, goal, strict=False))
    return next((height for height, right in enumerate(same) if not right), min(len(stack), len(goal)))


def _next(state: Stacks) -> Iterator[Stacks]:
    for source in range(STACKS):
        for target in range(STACKS):
            if state[source] and source != target:
                yield _moved(state, source, target)


def _moved(state: Stacks, source: int, target: int) -> Stacks:
    stacks = list(state)
    stacks[source], stacks[target] = state[source][:-1], (*state[target], state[source][-1])
    return tuple(stacks)


def _arranged(blocks: list[str], random: Random) -> list[list[str]]:
    """The blocks in any order, in any stacks."""
    stacks: list[list[str]] = [[] for _ in range(STACKS)]
    for block in random.sample(blocks, len(blocks)):
        random.choice(stacks).append(block)
    return stacks


def _interleaved(blocks: list[str]) -> list[str]:
    """Of two halves the last one each in turn, the second half's first: D, B, C, A of A, B and C, D."""
    first, second = blocks[: (len(blocks) + 1) // 2], blocks[(len(blocks) + 1) // 2 :]
    return [half.pop() for _ in first[:] for half in (second, first) if half]


def _are_stacks(found: Any) -> bool:
    return (
        isinstance(found, list)
        and len(found) == STACKS
        and all(isinstance(stack, list) and all(isinstance(block, str) for block in stack) for stack in found)
    )


def _tuples(stacks: list[list[str]]) -> Stacks:
    return tuple(map(tuple, stacks))


def _shown(stacks: list[list[str]]) -> str:
    return "; ".join(f"stack {number}: {', '.join(stack) or 'empty'}" for number, stack in enumerate(stacks))
