"""Tower of Hanoi: three pegs, disks of all sizes, none ever on a smaller one."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from random import Random
from typing import Any, ClassVar, Self, TypeAlias

from verifier.rewards.puzzles.puzzle import IllegalMove, Puzzle, three

Pegs: TypeAlias = tuple[tuple[int, ...], ...]
"""Of each peg its disks, from the lowest; disk 1 is the smallest."""


@dataclass(frozen=True)
class Hanoi(Puzzle[Pegs]):
    """`places[i]` is the peg on which disk i + 1 begins; all end on `goal`."""

    places: list[int]
    goal: int

    name: ClassVar[str] = "hanoi"
    sizes: ClassVar[range] = range(1, 17)

    def __post_init__(self) -> None:
        if len(self.places) not in self.sizes or not {*self.places, self.goal} <= {0, 1, 2}:
            raise ValueError("hanoi needs 1 to 16 disks on pegs 0, 1 and 2")
        if set(self.places) == {self.goal}:
            raise ValueError("all disks lie on the goal already")

    @classmethod
    def instances(cls, size: int, random: Random) -> Iterator[Self]:
        """The tower on peg 0, then disks on any pegs."""
        yield cls([0] * size, 2)
        seen = {(*[0] * size, 2)}
        while len(seen) < 3 * (3**size - 1):
            *places, goal = (random.randrange(3) for _ in range(size + 1))
            if (*places, goal) not in seen and set(places) != {goal}:
                seen.add((*places, goal))
                yield cls(places, goal)

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
        """From the largest disk down: one that is not where it must go costs 2^(disk - 1), all smaller ones aside."""
        moves, wanted = 0, self.goal
        for disk in range(len(self.places), 0, -1):
            if self.places[disk - 1] != wanted:
                moves += 2 ** (disk - 1)
                wanted = 3 - wanted - self.places[disk - 1]
        return moves

    def begin(self) -> Pegs:
        """See `Puzzle`."""
        disks = range(len(self.places), 0, -1)
        return tuple(tuple(disk for disk in disks if self.places[disk - 1] == peg) for peg in range(3))

    def after(self, state: Pegs, move: Any) -> Pegs:
        """See `Puzzle`."""
        disk, source, target = three(move, int, "disk, from peg and to peg")
        if not {source, target} <= {0, 1, 2} or source == target:
            raise IllegalMove(f"from peg {source} to peg {target} is no move between two of the pegs 0, 1 and 2")
        if disk not in chain(*state):
            raise IllegalMove(f"there is no disk {disk}")
        if disk not in state[source]:
            raise IllegalMove(f"disk {disk} is not on peg {source}")
        if state[source][-1] != disk:
            raise IllegalMove(f"disk {state[source][-1]} lies on disk {disk}")
        if state[target] and state[target][-1] < disk:
            raise IllegalMove(f"disk {disk} would lie on the smaller disk {state[target][-1]}")
        pegs = list(state)
        pegs[source], pegs[target] = state[source][:-1], (*state[target], disk)
        return tuple(pegs)

    def lacking(self, state: Pegs) -> str:
        """See `Puzzle`."""
        missing = len(self.places) - len(state[self.goal])
        return f"{missing} disks are not on peg {self.goal}" if missing else ""


def _shown(state: Pegs) -> str:
    return "; ".join(f"peg {peg}: {', '.join(map(str, disks)) or 'empty'}" for peg, disks in enumerate(state))
