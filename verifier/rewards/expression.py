"""Reward expressions: a weighted sum of named rewards, `0.5*accuracy + 0.5*format`. Parsed here, never evaluated."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from verifier.rewards import REWARDS

_TERM = re.compile(r"\s*(?:(?P<weight>[0-9]+(?:\.[0-9]+)?|\.[0-9]+)\s*\*\s*)?(?P<name>[A-Za-z_][A-Za-z_0-9]*)\s*")


class BadExpression(ValueError):
    """A reward expression that cannot be read. The text names the culprit."""


@dataclass(frozen=True, slots=True)
class Expression:
    """Weights by reward name, in the order written."""

    weights: Mapping[str, float]

    def value(self, parts: Mapping[str, float]) -> float:
        """The weighted sum of all parts."""
        return sum(weight * parts[name] for name, weight in self.weights.items())


@lru_cache(maxsize=1024)
def parse(text: str) -> Expression:
    """The expression in `text`: `term + term + …` with `term` = `[weight *] name`. Raises `BadExpression`."""
    weights: dict[str, float] = {}
    for term in text.split("+"):
        if not (match := _TERM.fullmatch(term)):
            raise BadExpression(
                f"reward {text!r}: cannot read {term.strip()!r}; write a sum such as 0.5*accuracy + 0.5*format"
            )
        name = match["name"]
        if name not in REWARDS:
            raise BadExpression(f"reward {text!r}: there is no reward {name!r}, there are {', '.join(sorted(REWARDS))}")
        if name in weights:
            raise BadExpression(f"reward {text!r}: names {name} twice")
        weights[name] = float(match["weight"] or 1.0)
    return Expression(weights)
