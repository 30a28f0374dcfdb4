"""S-expressions of SMT-LIB 2.6 (section 3.1): read strictly, and written so that every reader reads the same.

What a model wrote never reaches z3 as it was: it is read here, checked, and printed anew.
"""

import re
from collections.abc import Iterator
from typing import TypeAlias, Union

Expression: TypeAlias = Union[str, "list[Expression]"]
"""An atom, or a list of expressions."""

MOST_DEPTH = 200
_TOKEN = re.compile(
    r"""(?P<blank>[ \t\r\n]+|;[^\n]*)|(?P<bracket>[()])|(?P<string>"(?:[^"]|"")*")|(?P<quoted>\|[^|\\]*\|)"""
    r"""|(?P<atom>[A-Za-z0-9~!@$%^&*_+=<>.?/:#-]+)"""
)


def read(text: str) -> list[Expression]:
    """All expressions of `text`. Raises `ValueError` with what is wrong and where."""
    stack: list[list[Expression]] = [[]]
    at = 0
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            raise ValueError(f"no SMT-LIB at {text[at : at + 20]!r}")
        at = found.end()
        match found[0]:
            case "(":
                stack.append([])
                if len(stack) > MOST_DEPTH:
                    raise ValueError(f"brackets nest deeper than {MOST_DEPTH}")
            case ")":
                done = stack.pop()
                if not stack:
                    raise ValueError("a bracket closes that was not opened")
                stack[-1].append(done)
            case token if found.lastgroup != "blank":
                stack[-1].append(token)
    if len(stack) != 1:
        raise ValueError("a bracket is not closed")
    return stack[0]


def write(expression: Expression) -> str:
    """As text on one line."""
    if isinstance(expression, str):
        return expression
    return f"({' '.join(map(write, expression))})"


def atoms(expression: Expression) -> Iterator[str]:
    """Every atom in it."""
    if isinstance(expression, str):
        yield expression
        return
    for part in expression:
        yield from atoms(part)


def renamed(expression: Expression, names: dict[str, str]) -> Expression:
    """With each atom that is in `names` under its new name, wherever it stands."""
    if isinstance(expression, str):
        return names.get(expression, expression)
    return [renamed(part, names) for part in expression]
