"""Checker jumping: red and blue checkers on a line change places; none ever goes back."""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Any, ClassVar, Self

from verifier.rewards.puzzles.puzzle import IllegalMove, Puzzle, three

EMPTY = "_"
COLOURS = {"R": "B", "B": "R"}  # each and the other


@dataclass(frozen=True)
class Checkers(Puzzle[str]):
    """`each` checkers of both colours, those of colour `left` on the left; a state is the line as a text."""

    each: int
    left: str = "R"

    name: ClassVar[str] = "checkers"
    sizes: ClassVar[range] = range(1, 51)

    def __post_init__(self) -> None:
        if self.each not in self.sizes or self.left not in COLOURS:
            raise ValueError("checkers needs 1 to 50 of each colour, and R or B on the left")

    @classmethod
    def instances(cls, size: int, random: Random) -> Iterator[Self]:
        """Red on the left, then blue."""
        yield from (cls(size, left) for left in COLOURS)

    def prompt(self) -> str:
        """See `Puzzle`."""
        line, goal = self.begin(), self.begin()[::-1]
        right = COLOURS[self.left]
        return (
            f"On a line of {len(line)} squares, numbered from 0 on the left, lie {self.each} red checkers (R) and "
            f"{self.each} blue ones (B); one square is empty (_). A checker slides onto the empty square beside it, "
            f"or jumps over exactly one checker of the other colour onto the empty square behind. {self.left} only "
            f"ever moves to the right, {right} only to the left.\n\n"
            f"At the beginning: {' '.join(line)}\nFind moves that lead to: {' '.join(goal)}\n\n"
            'Give the moves as one JSON list of [colour, from square, to square], for example [["R", 0, 1]].'
        )

    def shortest(self) -> int:
        """Every solution has as many: n² jumps and 2n slides."""
        return (self.each + 1) ** 2 - 1

    def begin(self) -> str:
        """See `Puzzle`."""
        return self.left * self.each + EMPTY + COLOURS[self.left] * self.each

    def after(self, state: str, move: Any) -> str:
        """See `Puzzle`."""
        colour, source, target = three(move, str, "colour, from square and to square")
        if colour not in COLOURS:
            raise IllegalMove(f"there is no colour {colour[:20]!r}")
        for square in (source, target):
            if not 0 <= square < len(state):
                raise IllegalMove(f"there is no square {square}")
        if state[source] != colour:
            raise IllegalMove(f"on square {source} lies {_what(state[source])}, not {_what(colour)}")
        if state[target] != EMPTY:
            raise IllegalMove(f"square {target} is taken")
        forward = 1 if colour == self.left else -1
        distance = (target - source) * forward
        if distance not in (1, 2):
            raise IllegalMove(f"{_what(colour)} goes one square ahead, or two in a jump, not {distance}")
        if distance == 2 and state[source + forward] != COLOURS[colour]:
            raise IllegalMove(f"{_what(colour)} jumps over a checker of its own colour")
        line = list(state)
        line[source], line[target] = EMPTY, colour
        return "".join(line)

    def lacking(self, state: str) -> str:
        """See `Puzzle`."""
        return "" if state == self.begin()[::-1] else f"the line is {' '.join(state)}"


def _what(found: str) -> str:
    return {"R": "a red checker", "B": "a blue checker", EMPTY: "nothing"}[found]
