"""River crossing: actors and their agents in one boat; no actor near others' agents without the own one.

The problem of the jealous husbands (Alcuin, 8th century). Two fit for up to 3 pairs, three for up to 5, four for any.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from random import Random
from typing import Any, ClassVar, Self, TypeAlias

from verifier.rewards.puzzles.puzzle import IllegalMove, Puzzle
from verifier.rewards.puzzles.shortest import breadth_first

LEFT, RIGHT = 0, 1
Banks: TypeAlias = tuple[frozenset[str], int]
"""Who is still on the left bank, and where the boat is."""
Pairs: TypeAlias = tuple[int, int, int, int, int]
"""How many pairs are both on the left, actor left, agent left, both on the right; and where the boat is."""


@dataclass(frozen=True)
class River(Puzzle[Banks]):
    """`pairs` actors a_1 … with agents A_1 …; the boat carries one to `boat` people."""

    pairs: int
    boat: int

    name: ClassVar[str] = "river"
    sizes: ClassVar[range] = range(2, 21)

    def __post_init__(self) -> None:
        if self.pairs not in self.sizes or not smallest_boat(self.pairs) <= self.boat <= 2 * self.pairs:
            raise ValueError("river needs 2 to 20 pairs, and a boat with which all can cross: for 2 up to 3, 3 up to 5")

    @classmethod
    def instances(cls, size: int, random: Random) -> Iterator[Self]:
        """With the smallest boat that serves, then with larger ones."""
        yield from (cls(size, boat) for boat in range(smallest_boat(size), min(5, 2 * size) + 1))

    def prompt(self) -> str:
        """See `Puzzle`."""
        actors, agents = (", ".join(f"{kind}_{number + 1}" for number in range(self.pairs)) for kind in "aA")
        return (
            f"{self.pairs} actors ({actors}) and their {self.pairs} agents ({agents}; A_1 is the agent of a_1, and so "
            f"on) are on the left bank of a river, with a boat that carries up to {self.boat} people and never crosses "
            "empty. Wherever an actor is together with the agent of another one, on a bank or in the boat, the own "
            "agent must be there too.\n\nFind crossings that bring all of them to the right bank.\n\n"
            'Give them as one JSON list with the people in the boat at each crossing, for example [["a_1", "A_1"], '
            '["A_1"]]: the first crosses to the right, the second back to the left, and so on.'
        )

    def shortest(self) -> int:
        """Found over how many pairs are where: who they are makes no difference."""
        return breadth_first((self.pairs, 0, 0, 0, LEFT), self._next, lambda state: state[3] == self.pairs)

    def begin(self) -> Banks:
        """See `Puzzle`."""
        return frozenset(f"{kind}_{number + 1}" for kind in "aA" for number in range(self.pairs)), LEFT

    def after(self, state: Banks, move: Any) -> Banks:
        """See `Puzzle`."""
        left, side = state
        if not isinstance(move, list) or not all(isinstance(name, str) for name in move):
            raise IllegalMove(f"{str(move)[:80]} is not a list of people")
        crossing, everybody = frozenset(move), self.begin()[0]
        if not 1 <= len(move) <= self.boat:
            raise IllegalMove(f"{len(move)} people are in the boat, which carries 1 to {self.boat}")
        if len(crossing) < len(move):
            raise IllegalMove("somebody is in the boat twice")
        if strangers := sorted(crossing - everybody):
            raise IllegalMove(f"there is no {strangers[0][:20]!r}")
        here = left if side == LEFT else everybody - left
        if absent := sorted(crossing - here):
            raise IllegalMove(f"{absent[0]} is not on the {('left', 'right')[side]} bank, where the boat is")
        left = left - crossing if side == LEFT else left | crossing
        places = (("in the boat", crossing), ("on the left bank", left), ("on the right bank", everybody - left))
        for place, people in places:
            if alone := exposed(people):
                raise IllegalMove(f"{place} {alone} is with the agent of another actor, without the own one")
        return left, 1 - side

    def lacking(self, state: Banks) -> str:
        """See `Puzzle`."""
        left = sorted(state[0])
        return f"{len(left)} are on the left bank: {', '.join(left)[:80]}" if left else ""

    def _next(self, state: Pairs) -> Iterator[Pairs]:
        *pairs, side = state
        if side == RIGHT:  # the same seen from the other bank: left and right change places
            pairs = pairs[::-1]
        both, actors, agents, away = pairs
        for together, alone, sent, after_agent, after_actor in product(*_up_to(self.boat, both, actors, agents)):
            crossing = 2 * together + alone + sent + after_agent + after_actor
            if not 1 <= crossing <= self.boat or together + alone + sent > both:
                continue
            if alone + after_agent and together + sent + after_actor:
                continue  # in the boat
            now = (
                both - together - alone - sent,
                actors + sent - after_agent,
                agents + alone - after_actor,
                away + together + after_agent + after_actor,
            )
            if (now[1] and now[0] + now[2]) or (now[2] and now[1] + now[3]):
                continue  # on the banks
            yield (*(now if side == LEFT else now[::-1]), 1 - side)


def smallest_boat(pairs: int) -> int:
    """The fewest places with which so many pairs can cross."""
    return 2 if pairs <= 3 else 3 if pairs <= 5 else 4


def exposed(people: frozenset[str]) -> str:
    """An actor among these who is with an agent, but not with the own one; empty if there is none."""
    agents = {name for name in people if name.startswith("A")}
    return next((name for name in sorted(people - agents) if agents and name.upper() not in agents), "")


def _up_to(boat: int, both: int, actors: int, agents: int) -> list[range]:
    """How many may cross: pairs, actors and agents of whole pairs, actors and agents whose other one is away."""
    most = (both, both, both, actors, agents)
    return [range(min(boat, many) + 1) for many in most]
