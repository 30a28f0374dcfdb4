"""What every puzzle is: a beginning, moves that its rules allow or forbid, and an end."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import asdict
from random import Random
from typing import Any, ClassVar, Generic, Self, TypeVar

State = TypeVar("State")


class IllegalMove(ValueError):
    """The rules forbid it. The text says which of them, and why."""


class Puzzle(ABC, Generic[State]):
    """One instance, which can be solved: a frozen dataclass of plain values. Raises `ValueError` for any other.

    States are values that no move changes.
    """

    name: ClassVar[str]
    sizes: ClassVar[range]
    """The complexity dial: what `instances` takes."""

    @classmethod
    @abstractmethod
    def instances(cls, size: int, random: Random) -> Iterator[Self]:
        """Different instances of a size, the classic one first; some families have only a few."""

    @abstractmethod
    def prompt(self) -> str:
        """The rules, the beginning, the end, and how moves are written."""

    @abstractmethod
    def shortest(self) -> int:
        """The fewest moves that solve it."""

    @abstractmethod
    def begin(self) -> State:
        """Before the first move."""

    @abstractmethod
    def after(self, state: State, move: Any) -> State:
        """After a move, whatever the model wrote as such. Raises `IllegalMove`."""

    @abstractmethod
    def lacking(self, state: State) -> str:
        """What is not yet as it should be, in words; empty if the puzzle is solved."""

    def parameters(self) -> dict[str, Any]:
        """What makes this instance, in plain JSON: `type(self)(**parameters)` is it again."""
        return asdict(self)  # type: ignore[call-overload, no-any-return]  # each of them is a dataclass


def three(move: Any, first: type, names: str) -> tuple[Any, int, int]:
    """A move of a thing and two places. Raises `IllegalMove`."""
    if isinstance(move, list) and len(move) == 3 and type(move[0]) is first and {type(at) for at in move[1:]} == {int}:
        return move[0], move[1], move[2]
    raise IllegalMove(f"{str(move)[:80]} is not a list of {names}")
