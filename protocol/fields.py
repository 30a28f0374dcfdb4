"""Marks for the fields of a message: what a value must satisfy beyond its type. Used as `Annotated[type, Mark]`."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Range:
    """Lowest and highest allowed number, both included."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class MaxLength:
    """Longest allowed text, in characters."""

    characters: int


@dataclass(frozen=True, slots=True)
class Array:
    """An ndarray that travels as a raw frame: its dtype and number of dimensions."""

    dtype: str
    ndim: int


@dataclass(frozen=True, slots=True)
class Json:
    """A free object of JSON values, nested at most `max_depth` deep."""

    max_depth: int
