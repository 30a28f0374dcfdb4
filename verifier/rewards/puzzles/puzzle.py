"""What every puzzle is: a beginning, moves that its rules allow or forbid, and an end."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import asdict
from random import Random
from typing import Any, ClassVar, Generic, TypeVar

State = TypeVar("State")
Made = TypeVar("Made")

REPEATS = 1000  # draws in a row that bring nothing new: the instances of a size are exhausted, or as good as


class IllegalMove(ValueError):
    """The rules forbid it. The text says which of them, and why."""


class Puzzle(ABC, Generic[State]):
    """One instance: a frozen dataclass of plain values. Raises `ValueError` for values that describe none.

    States are values that no move changes.
    """

    name: ClassVar[str]
    sizes: ClassVar[range]
    """The complexity dial: what `instances` takes."""
    dial: ClassVar[str]
    """What a size counts."""

    @classmethod
    @abstractmethod
    def instances(cls, size: int, random: Random) -> "Iterator[Puzzle[State]]":
        """Different instances of a size, the classic ones first, all of which can be solved; some sizes have few."""

    @abstractmethod
    def prompt(self) -> str:
        """The rules, the beginning, the end, and how moves are written."""

    @abstractmethod
    def shortest(self) -> int:
        """The fewest moves that solve it, at least 1. Raises `ValueError` when none do."""

    @abstractmethod
    def begin(self) -> State:
        """Before the first move."""

    @abstractmethod
    def after(self, state: State, move: Any) -> State:
        """After a move, whatever the model wrote as such, in time linear in its size. Raises `IllegalMove`."""

    @abstractmethod
    def lacking(self, state: State) -> str:
        """What is not yet as it should be, in words; empty if the puzzle is solved."""

    def parameters(self) -> dict[str, Any]:
        """What makes this instance, in plain JSON: `type(self)(**parameters)` is it again."""
        return asdict(self)  # type: ignore[call-overload, no-any-return]  # each of them is a dataclass


def distinct(draw: Callable[[], Made | None], key: Callable[[Made], object]) -> Iterator[Made]:
    """What `draw` makes, each once, by its key, None left out; ends when `REPEATS` draws in a row bring nothing new."""
    seen: set[object] = set()
    repeats = 0
    while repeats < REPEATS:
        made = draw()
        if made is None or key(made) in seen:
            repeats += 1
            continue
        seen.add(key(made))
        repeats = 0
        yield made


def three(move: Any, first: type, names: str) -> tuple[Any, int, int]:
    """A move of a thing and two places. Raises `IllegalMove`."""
    if isinstance(move, list) and len(move) == 3 and type(move[0]) is first and {type(at) for at in move[1:]} == {int}:
        return move[0], move[1], move[2]
    raise IllegalMove(f"{shown(move)} is not a list of {names}")


def shown(found: Any) -> str:
    """What a model wrote, short and in ASCII. What is nested is not opened: it may be deeper than the stack."""
    if isinstance(found, dict) or (isinstance(found, list) and any(isinstance(each, list | dict) for each in found)):
        return f"a {type(found).__name__} of {len(found)}"
    return json.dumps(found)[:80]


def is_whole(value: Any, least: int, most: int) -> bool:
    """Whether a value of a task is a whole number in a range, both ends included; true and false are none."""
    return type(value) is int and least <= value <= most
