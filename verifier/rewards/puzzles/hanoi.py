"""Tower of Hanoi: three pegs, disks of all sizes, none ever on a smaller one.

Rules and moves as in Shojaee et al. 2025, appendix A.1; the puzzle is Édouard Lucas's (1883).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Any, ClassVar, TypeAlias

from verifier.rewards.puzzles.puzzle import IllegalMove, Puzzle, distinct, is_whole, shown, three

Pegs: TypeAlias = tuple[tuple[int, ...], ...]
"""Of each peg its disks, from the lowest; disk 1 is the smallest."""


@dataclass(frozen=True)
class Hanoi(Puzzle[Pegs]):
    """`places[i]` is the peg on which disk i + 1 begins; all end on `goal`. Every instance can be solved."""

    places: list[int]
    goal: int

    name: ClassVar[str] = "hanoi"
    sizes: ClassVar[range] = range(1, 17)
    dial: ClassVar[str] = "disks"

    def __post_init__(self) -> None:
        if not isinstance(self.places, list) or len(self.places) not in self.sizes:
            raise ValueError("hanoi needs 1 to 16 disks")
        if not all(is_whole(peg, 0, 2) for peg in (*self.places, self.goal)):
            raise ValueError("hanoi has pegs 0, 1 and 2")
        if set(self.places) == {self.goal}:
            raise ValueError("all disks lie on the goal already")

    @classmethod
    def instances(cls, size: int, random: Random) -> "Iterator[Hanoi]":
        """The tower on peg 0, which goes to peg 2; then disks on any pegs: at most 3 (3^size - 1) in all."""
        classic = [cls([0] * size, 2)]

        def draw() -> Hanoi | None:
            if classic:
                return classic.pop()
            *places, goal = (random.randrange(3) for _ in range(size + 1))
            return None if set(places) == {goal} else cls(places, goal)

        return distinct(draw, lambda made: (*made.places, made.goal))

    def prompt(self) -> str:
        """See `Puzzle`."""
        return (
            f"There are three pegs, 0, 1 and 2, and {len(self.places)} disks of different sizes; disk 1 is the "
            "smallest. A move takes the topmost disk of one peg and puts it on top of another peg. A disk never lies "
            f"on a smaller one.\n\nAt the beginning, from bottom to top: {_shown(self.begin())}.\n"
            f"Find moves after which all disks lie on peg {self.goal}.\n\n"
            "Give the moves as one JSON list of [disk, from peg, to peg], for example [[1, 0, 2], [2, 0, 1]]."
        )

    def shortest(self) -> int:
        """From the largest disk down: one that is not where it must go costs 2^(disk - 1), all smaller ones aside.

        2^n - 1 for a whole tower of n.
        """
        moves, wanted = 0, self.goal
        for disk in range(len(self.places), 0, -1):
            if self.places[disk - 1] != wanted:
                moves += 2 ** (disk - 1)
                wanted = 3 - wanted - self.places[disk - 1]  # the smaller ones must make way, on the third peg
        return moves

    def begin(self) -> Pegs:
        """See `Puzzle`."""
        disks = range(len(self.places), 0, -1)
        return tuple(tuple(disk for disk in disks if self.places[disk - 1] == peg) for peg in range(3))

    def after(self, state: Pegs, move: Any) -> Pegs:
        """See `Puzzle`."""
        disk, source, target = three(move, int, "disk, from peg and to peg")
        if not {source, target} <= {0, 1, 2} or source == target:
            raise IllegalMove(
                f"from peg {shown(source)} to peg {shown(target)} is no move between two of the pegs 0, 1 and 2"
            )
        if not 1 <= disk <= len(self.places):
            raise IllegalMove(f"there is no disk {shown(disk)}")
        if disk not in state[source]:
            raise IllegalMove(f"disk {disk} is not on peg {source}")
        if state[source][-1] != disk:
            raise IllegalMove(f"disk {state[source][-1]} lies above disk {disk}")
        if state[target] and state[target][-1] < disk:
            raise IllegalMove(f"disk {disk} would lie on the smaller disk {state[target][-1]}")
        pegs = list(state)
        pegs[source], pegs[target] = state[source][:-1], (*state[target], disk)
        return tuple(pegs)

    def lacking(self, state: Pegs) -> str:
        """See `Puzzle`."""
        missing = len(self.places) - len(state[self.goal])
        return f"{missing} of {len(self.places)} disks are not on peg {self.goal}" if missing else ""


def _shown(state: Pegs) -> str:
    return "; ".join(f"peg {peg}: {', '.join(map(str, disks)) or 'empty'}" for peg, disks in enumerate(state))
