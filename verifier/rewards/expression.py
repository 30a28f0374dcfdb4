"""Reward expressions: how the parts of a verdict become one reward. Parsed here, never evaluated as code.

    0.5*accuracy + 0.5*format                  a weighted sum
    format * math                              gated: the answer counts only in the asked-for form
    math * (format >= 1) - 0.2*(1 - language)  a part may be compared with a number: 1 if so, 0 if not
    max(exact_match, 0.5*token_f1)             the greater, or the lesser by `min`

| binds tighter downwards    | written                                          |
|----------------------------|--------------------------------------------------|
| sum                        | `a + b - c`                                      |
| product                    | `a * b`                                          |
| comparison with a number   | `a >= 0.5`, also `>`, `<=`, `<`                  |
| atom                       | a reward's name, `0.25`, `-a`, `( … )`, `min(a, b)`, `max(a, b)` |

Every reward that is named is applied, once, and its part is in the verdict whatever the others are.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

from verifier.rewards import REWARDS

Value: TypeAlias = Callable[[Mapping[str, float]], float]

_TOKEN = re.compile(r"\s*(?:([0-9]{1,6}(?:\.[0-9]{1,6})?|\.[0-9]{1,6})|([A-Za-z_][A-Za-z_0-9]*)|([<>]=?|[-+*(),]))")
_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    ">=": lambda one, other: one >= other,
    ">": lambda one, other: one > other,
    "<=": lambda one, other: one <= other,
    "<": lambda one, other: one < other,
}
_CHOICES: dict[str, Callable[..., float]] = {"min": min, "max": max}


class BadExpression(ValueError):
    """A reward expression that cannot be read. The text names the culprit."""


@dataclass(frozen=True, slots=True)
class Expression:
    """The rewards that an expression names, in the order written, each once; and how their values become one."""

    names: tuple[str, ...]
    value: Value


@lru_cache(maxsize=1024)
def parse(text: str) -> Expression:
    """The expression in `text`, as the table above has it. Raises `BadExpression`."""
    return _Parser(text).whole()


class _Parser:
    """Recursive descent over at most a `Name`'s length of text."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._place = 0
        self._names: dict[str, None] = {}

    def whole(self) -> Expression:
        """The whole text as one sum."""
        value = self._sum()
        if self._text[self._place :].strip():
            raise self._bad()
        if not self._names:
            raise BadExpression(f"reward {self._text!r}: names no reward")
        return Expression(tuple(self._names), value)

    def _next(self) -> re.Match[str] | None:
        return _TOKEN.match(self._text, self._place)

    def _sign(self, *signs: str) -> str:
        """The next token if it is one of these, else nothing."""
        if (match := self._next()) and match[3] in signs:
            self._place = match.end()
            return match[3]
        return ""

    def _expect(self, sign: str) -> None:
        if not self._sign(sign):
            raise self._bad(f"{sign!r} is missing")

    def _bad(self, problem: str = "") -> BadExpression:
        rest = self._text[self._place :].strip()
        return BadExpression(
            f"reward {self._text!r}: cannot read {rest!r}{f', {problem}' if problem else ''}; "
            "write a sum or a product such as 0.5*accuracy + 0.5*format"
        )

    def _sum(self) -> Value:
        value = self._product()
        while sign := self._sign("+", "-"):
            value = _added(value, self._product(), 1.0 if sign == "+" else -1.0)
        return value

    def _product(self) -> Value:
        value = self._compared()
        while self._sign("*"):
            value = _multiplied(value, self._compared())
        return value

    def _compared(self) -> Value:
        value = self._atom()
        if sign := self._sign(*_COMPARISONS):
            if not (match := self._next()) or match[1] is None:
                raise self._bad("a number is missing")
            self._place = match.end()
            return _gated(value, _COMPARISONS[sign], float(match[1]))
        return value

    def _atom(self) -> Value:
        if self._sign("-"):
            return _multiplied(lambda parts: -1.0, self._atom())
        if self._sign("("):
            value = self._sum()
            self._expect(")")
            return value
        match = self._next()
        if match is None or match[3]:
            raise self._bad()
        self._place = match.end()
        if match[1]:
            number = float(match[1])
            return lambda parts: number
        name = match[2]
        if name in _CHOICES and self._sign("("):
            return self._choice(_CHOICES[name])
        if name not in REWARDS:
            known = ", ".join(sorted(REWARDS))
            raise BadExpression(f"reward {self._text!r}: there is no reward {name!r}, there are {known}")
        self._names[name] = None
        return lambda parts: parts[name]

    def _choice(self, choose: Callable[..., float]) -> Value:
        values = [self._sum()]
        while self._sign(","):
            values.append(self._sum())
        self._expect(")")
        return lambda parts: choose([value(parts) for value in values])


def _added(one: Value, other: Value, sign: float) -> Value:
    return lambda parts: one(parts) + sign * other(parts)


def _multiplied(one: Value, other: Value) -> Value:
    return lambda parts: one(parts) * other(parts)


def _gated(value: Value, compare: Callable[[float, float], bool], number: float) -> Value:
    return lambda parts: float(compare(value(parts), number))
