"""Blocks world: stacks of blocks are rearranged; only the topmost block of a stack can be moved."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from random import Random
from string import ascii_uppercase
from typing import Any, ClassVar, Self, TypeAlias

from verifier.rewards.puzzles.puzzle import IllegalMove, Puzzle, three
from verifier.rewards.puzzles.shortest import best_first

Stacks: TypeAlias = tuple[tuple[str, ...], ...]
"""Of each stack its blocks, from the lowest."""
STACKS = 3


@dataclass(frozen=True)
class Blocks(Puzzle[Stacks]):
    """From `start` to `goal`, both of the same blocks in three stacks, some of them perhaps empty."""

    start: list[list[str]]
    goal: list[list[str]]

    name: ClassVar[str] = "blocks"
    sizes: ClassVar[range] = range(2, 9)  # the fewest moves of larger ones take minutes to find

    def __post_init__(self) -> None:
        blocks = sorted(chain(*self.start))
        if len(self.start) != STACKS or len(self.goal) != STACKS or sorted(chain(*self.goal)) != blocks:
            raise ValueError(f"blocks needs {STACKS} stacks at the start and at the goal, of the same blocks")
        if len(blocks) not in self.sizes or blocks != list(ascii_uppercase[: len(blocks)]):
            raise ValueError("blocks needs 2 to 8 blocks, named A, B, C and so on")
        if self.start == self.goal:
            raise ValueError("the start is the goal already")

    @classmethod
    def instances(cls, size: int, random: Random) -> Iterator[Self]:
        """One stack turned over, then any arrangement to any other."""
        tower = [*ascii_uppercase[:size]]
        yield (first := cls([tower, [], []], [tower[::-1], [], []]))
        seen = [first]
        while True:
            start, goal = (_arranged(tower, random) for _ in range(2))
            if start != goal and (made := cls(start, goal)) not in seen:
                seen.append(made)
                yield made

    def prompt(self) -> str:
        """See `Puzzle`."""
        return (
            f"Blocks are piled in {STACKS} stacks, numbered from 0. A move takes the topmost block of one stack and "
            "puts it on top of another stack, which may be empty.\n\n"
            f"At the beginning, from bottom to top: {_shown(self.start)}.\n"
            f"Find moves that lead to: {_shown(self.goal)}.\n\n"
            'Give the moves as one JSON list of [block, from stack, to stack], for example [["A", 0, 2]].'
        )

    def shortest(self) -> int:
        """Found by A*: a block with others below it than at the goal must move, and twice if it is in its stack."""
        return best_first(self.begin(), _next, self._moves_left)

    def begin(self) -> Stacks:
        """See `Puzzle`."""
        return tuple(map(tuple, self.start))

    def after(self, state: Stacks, move: Any) -> Stacks:
        """See `Puzzle`."""
        block, source, target = three(move, str, "block, from stack and to stack")
        if not {source, target} <= set(range(STACKS)) or source == target:
            raise IllegalMove(f"from stack {source} to stack {target} is no move between two of the stacks 0, 1 and 2")
        if block not in chain(*state):
            raise IllegalMove(f"there is no block {block[:20]!r}")
        if block not in state[source]:
            raise IllegalMove(f"block {block} is not in stack {source}")
        if state[source][-1] != block:
            raise IllegalMove(f"block {state[source][-1]} lies on top of stack {source}, not {block}")
        return _moved(state, source, target)

    def lacking(self, state: Stacks) -> str:
        """See `Puzzle`."""
        missing = len(self._misplaced(state))
        return f"{missing} blocks are not where they should be" if missing else ""

    def _misplaced(self, state: Stacks) -> list[tuple[str, int]]:
        """The blocks that do not lie as at the goal, with all below them; and the stack of each."""
        found: list[tuple[str, int]] = []
        for place, (stack, wanted) in enumerate(zip(state, self.goal, strict=True)):
            right = 0
            while right < min(len(stack), len(wanted)) and stack[right] == wanted[right]:
                right += 1
            found += [(block, place) for block in stack[right:]]
        return found

    def _moves_left(self, state: Stacks) -> int:
        """At least so many."""
        return sum(1 + (block in self.goal[place]) for block, place in self._misplaced(state))


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


def _shown(stacks: list[list[str]]) -> str:
    return "; ".join(f"stack {number}: {', '.join(stack) or 'empty'}" for number, stack in enumerate(stacks))
