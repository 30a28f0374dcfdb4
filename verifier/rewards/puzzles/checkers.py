"""Checker jumping: red and blue checkers on a line change places; none ever goes back.

Rules and moves as in Shojaee et al. 2025, appendix A.1; the puzzle is known as frogs and toads.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Any, ClassVar

from verifier.rewards.puzzles.puzzle import IllegalMove, Puzzle, distinct, shown, three

EMPTY = "_"
COLOURS = {"R": "B", "B": "R"}  # each and the other


@dataclass(frozen=True)
class Checkers(Puzzle[str]):
    """The checkers lie as in `line`, such as `RR_BB`; those of colour `right` move to the right and end there.

    Whether it can be solved is not checked. A state is the line.
    """

    line: str
    right: str = "R"

    name: ClassVar[str] = "checkers"
    sizes: ClassVar[range] = range(1, 51)
    dial: ClassVar[str] = "checkers of each colour"

    def __post_init__(self) -> None:
        if not isinstance(self.line, str) or self.right not in COLOURS:
            raise ValueError("checkers needs a line, and R or B that moves to the right")
        each = len(self.line) // 2
        if each not in self.sizes or sorted(self.line) != sorted("RB" * each + EMPTY):
            raise ValueError("checkers needs a line of 1 to 50 R, as many B, and one _")
        if self.line == self._goal():
            raise ValueError("all checkers have changed places already")

    @classmethod
    def instances(cls, size: int, random: Random) -> "Iterator[Checkers]":
        """Red on the left, then blue, then lines on the way from there to the end: about 4 (size + 1)² in all."""
        classic = [cls(_begin(size, right), right) for right in reversed(COLOURS)]
        ways = [(right, list(way(size, right, first))[:-1]) for right in COLOURS for first in COLOURS]

        def draw() -> Checkers | None:
            if classic:
                return classic.pop()
            right, lines = random.choice(ways)
            return cls(random.choice(lines), right)

        return distinct(draw, lambda made: (made.line, made.right))

    def prompt(self) -> str:
        """See `Puzzle`."""
        each, left = len(self.line) // 2, COLOURS[self.right]
        return (
            f"On a line of {len(self.line)} squares, numbered from 0 on the left, lie {each} red checkers (R) and "
            f"{each} blue ones (B); one square is empty (_). A checker slides onto the empty square beside it, "
            f"or jumps over exactly one checker of the other colour onto the empty square behind. {self.right} only "
            f"ever moves to the right, {left} only to the left.\n\n"
            f"At the beginning: {' '.join(self.line)}\nFind moves that lead to: {' '.join(self._goal())}\n\n"
            'Give the moves as one JSON list of [colour, from square, to square], for example [["R", 0, 1]].'
        )

    def shortest(self) -> int:
        """Every solution has as many moves: (n + 1)² - 1 from the very beginning.

        A jump takes one checker past another of the other colour, once for each two that have yet to pass; what is left
        of the way is slides.
        """
        movers = [square for square, found in enumerate(self.line) if found == self.right]
        others = [square for square, found in enumerate(self.line) if found == COLOURS[self.right]]
        jumps = sum(mover < other for mover in movers for other in others)
        each = len(movers)
        way = sum(range(each + 1, 2 * each + 1)) - sum(movers) + sum(others) - sum(range(each))
        return way - jumps

    def begin(self) -> str:
        """See `Puzzle`."""
        return self.line

    def after(self, state: str, move: Any) -> str:
        """See `Puzzle`."""
        colour, source, target = three(move, str, "colour, from square and to square")
        if colour not in COLOURS:
            raise IllegalMove(f"there is no colour {shown(colour)}")
        for square in (source, target):
            if not 0 <= square < len(state):
                raise IllegalMove(f"there is no square {shown(square)}")
        if state[source] != colour:
            raise IllegalMove(f"on square {source} lies {_what(state[source])}, not {_what(colour)}")
        if state[target] != EMPTY:
            raise IllegalMove(f"square {target} is taken")
        forward = 1 if colour == self.right else -1
        distance = (target - source) * forward
        if distance < 0:
            raise IllegalMove(f"{_what(colour)} never moves to the {'left' if forward == 1 else 'right'}")
        if distance > 2:
            raise IllegalMove(f"{_what(colour)} goes one square ahead, or two in a jump, not {distance}")
        if distance == 2 and state[source + forward] == colour:
            raise IllegalMove(f"{_what(colour)} would jump over a checker of its own colour")
        return _moved(state, source, target)

    def lacking(self, state: str) -> str:
        """See `Puzzle`."""
        return "" if state == self._goal() else f"the line is {' '.join(state)}"

    def _goal(self) -> str:
        return _begin(len(self.line) // 2, self.right)[::-1]


def way(size: int, right: str, first: str) -> Iterator[str]:
    """The lines of the solution that begins with colour `first`, from the beginning to the end.

    The colours take turns with 1, 2, …, n, n, n, …, 2, 1 moves; whoever can jump does.
    """
    line, colour = _begin(size, right), first
    for moves in (*range(1, size), size, size, size, *range(size - 1, 0, -1)):
        forward = 1 if colour == right else -1
        for _ in range(moves):
            yield line
            target = line.index(EMPTY)
            behind = target - 2 * forward
            jumps = 0 <= behind < len(line) and line[behind] == colour != line[target - forward]
            line = _moved(line, behind if jumps else target - forward, target)
        colour = COLOURS[colour]
    yield line


def _begin(size: int, right: str) -> str:
    return right * size + EMPTY + COLOURS[right] * size


def _moved(line: str, source: int, target: int) -> str:
    squares = list(line)
    squares[source], squares[target] = squares[target], squares[source]
    return "".join(squares)


def _what(found: str) -> str:
    return {"R": "a red checker", "B": "a blue checker", EMPTY: "nothing"}[found]
