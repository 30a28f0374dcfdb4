"""What a task's metadata says to one family: `metadata["length"] = {"longest": 4000, …}`, checked key by key."""

import math
from collections.abc import Collection, Mapping
from typing import Any

from verifier.rewards.score import BadTask


class Parameters:
    """Named values of a task, `where` in its metadata. A name that is not known is a bad task; None is not there."""

    def __init__(self, found: Any, where: str, known: Collection[str]) -> None:
        if not isinstance(found, Mapping):
            raise BadTask(f"{where} must be an object, got {type(found).__name__}")
        self._found = {name: value for name, value in found.items() if value is not None}
        self._where = where
        if strange := sorted(self._found.keys() - set(known), key=str):
            raise BadTask(f"{where}.{strange[0]}: no such parameter; there are {', '.join(sorted(known)) or 'none'}")

    @classmethod
    def of(cls, metadata: Mapping[str, Any], family: str, known: Collection[str]) -> "Parameters":
        """Those of one family; none if the metadata does not name it."""
        return cls(metadata.get(family, {}), f"metadata.{family}", known)

    def choice(self, name: str, default: str, choices: Collection[str]) -> str:
        """One of a few words."""
        value = self._found.get(name, default)
        if not isinstance(value, str) or value not in choices:
            raise self.bad(name, f"must be one of {', '.join(choices)}")
        return value

    def number(self, name: str, default: float | None = None, *, least: float = 0.0, most: float = math.inf) -> float:
        """A number in a range. Without a default it must be there."""
        value = self._found.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise self.bad(name, f"must be a number of {least:g} to {most:g}")
        return float(value)

    def whole(self, name: str, default: int | None = None, *, least: int = 0, most: int = 10**9) -> int:
        """A whole number in a range. Without a default it must be there."""
        value = self._found.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self.bad(name, f"must be a whole number of {least} to {most}")
        return value

    def truth(self, name: str, default: bool) -> bool:
        """True or False."""
        value = self._found.get(name, default)
        if not isinstance(value, bool):
            raise self.bad(name, "must be true or false")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        """A text that is not empty. Without a default it must be there."""
        value = self._found.get(name, default)
        if not isinstance(value, str) or not value:
            raise self.bad(name, "must be a text")
        return value

    def texts(self, name: str) -> list[str]:
        """A list of texts, empty if it is not there."""
        value = self._found.get(name, [])
        if not isinstance(value, list | tuple) or not all(isinstance(item, str) and item for item in value):
            raise self.bad(name, "must be a list of texts")
        return list(value)

    def some_texts(self, name: str) -> list[str]:
        """A list of at least one text."""
        if not (found := self.texts(name)):
            raise self.bad(name, "must be a list of at least one text")
        return found

    def bad(self, name: str, problem: str) -> BadTask:
        """The error that says what is wrong with a parameter."""
        if name not in self._found:
            return BadTask(f"{self._where}.{name} is missing: {problem}")
        return BadTask(f"{self._where}.{name}={str(self._found[name])[:80]!r}: {problem}")
