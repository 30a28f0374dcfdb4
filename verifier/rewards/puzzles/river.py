"""River crossing: actors and their agents in one boat; no actor near others' agents without the own one.

Rules and moves as in Shojaee et al. 2025, appendix A.1; the problem of the jealous husbands (Alcuin, 8th century). A
boat for two serves up to 3 pairs, one for three up to 5, one for four any number; what cannot be solved, such as the
paper's own 6 pairs in a boat for three, is never made.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product
from random import Random
from typing import Any, ClassVar, TypeAlias

from verifier.rewards.puzzles.puzzle import IllegalMove, Puzzle, distinct, is_whole, shown
from verifier.rewards.puzzles.shortest import breadth_first

LEFT, RIGHT = 0, 1
BANKS = ("left", "right")
LARGEST_BOAT = 5  # that is drawn: larger ones leave little to think about

Crossing: TypeAlias = tuple[frozenset[str], int]
"""Who is on the left bank, and where the boat is."""
Counts: TypeAlias = tuple[int, int, int, int, int]
"""Of how many pairs both, the actor alone, the agent alone, and nobody is on the left; and where the boat is."""


@dataclass(frozen=True)
class River(Puzzle[Crossing]):
    """`pairs` actors a_1 … with agents A_1 …; the boat carries one to `boat` people, and is on the bank `side`.

    Those in `left` are on the left bank, all others on the right one. Whether it can be solved is not checked.
    """

    pairs: int
    boat: int
    left: list[str]
    side: str = "left"

    name: ClassVar[str] = "river"
    sizes: ClassVar[range] = range(2, 21)
    dial: ClassVar[str] = "pairs of an actor and an agent"

    def __post_init__(self) -> None:
        if not (is_whole(self.pairs, 2, 20) and is_whole(self.boat, 2, 2 * self.pairs) and self.side in BANKS):
            raise ValueError("river needs 2 to 20 pairs, a boat for 2 or more of them, and the side where it is")
        if not isinstance(self.left, list) or not all(isinstance(name, str) for name in self.left):
            raise ValueError("river needs a list of who is on the left bank")
        if strangers := set(self.left) - self._everybody:
            raise ValueError(f"there is no {shown(min(strangers))} among {self.pairs} pairs")
        if len(set(self.left)) < max(1, len(self.left)):
            raise ValueError("nobody is on the left bank, or somebody twice")
        for bank, people in (("left", frozenset(self.left)), ("right", self._everybody - set(self.left))):
            if alone := exposed(people):
                raise ValueError(f"on the {bank} bank {alone} is with the agent of another actor from the beginning")

    @classmethod
    def instances(cls, size: int, random: Random) -> "Iterator[River]":
        """All on the left with the smallest boat that serves, then larger ones; then half-way positions of these."""
        boats = range(smallest_boat(size), min(LARGEST_BOAT, 2 * size - 1) + 1)
        everybody = sorted(_people(size))
        classic = [cls(size, boat, everybody) for boat in reversed(boats)]
        ways = [(boat, sorted(_reached(size, boat))) for boat in boats]

        def draw() -> River | None:
            if classic:
                return classic.pop()
            boat, positions = random.choice(ways)
            *counts, away, side = random.choice(positions)
            if away == size:
                return None
            kinds = [
                kind for kind, count in zip(("aA", "a", "A", ""), (*counts, away), strict=True) for _ in range(count)
            ]
            random.shuffle(kinds)
            left = [f"{letter}_{number}" for number, kind in enumerate(kinds, start=1) for letter in kind]
            return cls(size, boat, sorted(left), BANKS[side])

        return distinct(draw, lambda made: (made.boat, *made.left, made.side))

    def prompt(self) -> str:
        """See `Puzzle`."""
        left = frozenset(self.left)
        return (
            f"{self.pairs} actors ({_listed(self._of('a'))}) and their {self.pairs} agents ({_listed(self._of('A'))}; "
            f"A_1 is the agent of a_1, and so on) cross a river in a boat that carries up to {self.boat} people and "
            "never crosses empty. Wherever an actor is together with the agent of another one, on a bank or in the "
            "boat, the own agent must be there too.\n\n"
            f"At the beginning, on the left bank: {_listed(left)}; on the right bank: "
            f"{_listed(self._everybody - left)}; the boat is on the {self.side} bank.\n"
            "Find crossings that bring all of them to the right bank.\n\n"
            'Give them as one JSON list with the people in the boat at each crossing, for example [["a_1", "A_1"], '
            f'["A_1"]]: the first crosses from the {self.side} bank, the second back to it, and so on.'
        )

    def shortest(self) -> int:
        """Found over how many pairs are where: who they are makes no difference."""
        left = set(self.left)
        there = [(actor in left, agent in left) for actor, agent in zip(self._of("a"), self._of("A"), strict=True)]
        counts = [there.count(kind) for kind in ((True, True), (True, False), (False, True), (False, False))]
        begin: Counts = (counts[0], counts[1], counts[2], counts[3], BANKS.index(self.side))
        reached = breadth_first(begin, lambda state: _next(state, self.boat))
        if (ends := (0, 0, 0, self.pairs, RIGHT)) not in reached:
            raise ValueError("it cannot be solved")
        return reached[ends]

    def begin(self) -> Crossing:
        """See `Puzzle`."""
        return frozenset(self.left), BANKS.index(self.side)

    def after(self, state: Crossing, move: Any) -> Crossing:
        """See `Puzzle`."""
        left, side = state
        if not isinstance(move, list) or not all(isinstance(name, str) for name in move):
            raise IllegalMove(f"{shown(move)} is not a list of people")
        if not 1 <= len(move) <= self.boat:
            raise IllegalMove(f"{len(move)} people are in the boat, which carries 1 to {self.boat}")
        crossing = frozenset(move)
        if strangers := crossing - self._everybody:
            raise IllegalMove(f"there is no {shown(min(strangers))}")
        if len(crossing) < len(move):
            raise IllegalMove("somebody is in the boat twice")
        here = left if side == LEFT else self._everybody - left
        if absent := sorted(crossing - here):
            raise IllegalMove(f"{absent[0]} is not on the {BANKS[side]} bank, where the boat is")
        left = left - crossing if side == LEFT else left | crossing
        for place, people in (
            ("in the boat", crossing),
            ("on the left bank", left),
            ("on the right bank", self._everybody - left),
        ):
            if alone := exposed(people):
                raise IllegalMove(f"{place} {alone} is with the agent of another actor, without the own one")
        return left, 1 - side

    def lacking(self, state: Crossing) -> str:
        """See `Puzzle`."""
        left = state[0]
        return f"{len(left)} of {2 * self.pairs} people are on the left bank: {_listed(left)[:80]}" if left else ""

    @property
    def _everybody(self) -> frozenset[str]:
        return _people(self.pairs)

    def _of(self, letter: str) -> list[str]:
        return [f"{letter}_{number}" for number in range(1, self.pairs + 1)]


def smallest_boat(pairs: int) -> int:
    """The fewest places with which so many pairs can cross."""
    return 2 if pairs <= 3 else 3 if pairs <= 5 else 4


def exposed(people: frozenset[str]) -> str:
    """An actor among these who is with an agent, but not with the own one; empty if there is none."""
    agents = {name for name in people if name.startswith("A")}
    return min((name for name in people - agents if agents and name.upper() not in agents), default="")


@cache
def _people(pairs: int) -> frozenset[str]:
    return frozenset(f"{letter}_{number}" for letter in "aA" for number in range(1, pairs + 1))


def _reached(pairs: int, boat: int) -> dict[Counts, int]:
    """Where one can get from the beginning; a crossing can be taken back, so from there the end can be reached too."""
    return breadth_first((pairs, 0, 0, 0, LEFT), lambda state: _next(state, boat))


def _next(state: Counts, boat: int) -> Iterator[Counts]:
    """Where one crossing leads, each perhaps more than once."""
    *here, side = state
    if side == RIGHT:  # the same seen from the other bank: both and nobody change places, and so do the other two
        here = here[::-1]
    both, actors, agents, nobody = here
    # whole pairs; their actors alone; their agents alone; actors whose agent is across; agents whose actor is
    most = (both, both, both, actors, agents)
    for pair, actor, agent, last_actor, last_agent in product(*(range(min(boat, many) + 1) for many in most)):
        if not 1 <= 2 * pair + actor + agent + last_actor + last_agent <= boat or pair + actor + agent > both:
            continue
        if actor + last_actor and pair + agent + last_agent:
            continue  # in the boat
        both_then, nobody_then = both - pair - actor - agent, nobody + pair + last_actor + last_agent
        actors_then, agents_then = actors + agent - last_actor, agents + actor - last_agent
        if actors_then and both_then + agents_then:
            continue  # on this bank
        if agents_then and nobody_then + actors_then:
            continue  # on the other one
        there = [both_then, actors_then, agents_then, nobody_then]
        if side == RIGHT:
            there.reverse()
        yield there[0], there[1], there[2], there[3], 1 - side


def _listed(people: frozenset[str] | list[str]) -> str:
    """By kind and number, not a_10 before a_2."""
    return ", ".join(sorted(people, key=lambda name: (name[0] == "A", int(name[2:])))) or "nobody"
