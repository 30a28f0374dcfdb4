"""Whether what a program gave is what was expected. Both are plain data; nothing of the program's compares them."""

import math
from decimal import Decimal, InvalidOperation
from typing import Any

TOLERANCE = 1e-6  # relative, of a returned float: sums differ with their order


def same_text(given: str, expected: str, tolerance: float = 0.0) -> bool:
    """Line by line, without white space at the ends of lines and empty lines at the end.

    With `tolerance` above 0, tokens that are both numbers may differ by that much, relative or absolute.
    """
    given_lines, expected_lines = _lines(given), _lines(expected)
    if given_lines == expected_lines:
        return True
    if tolerance <= 0 or len(given_lines) != len(expected_lines):
        return False
    return all(
        len(ours := line.split()) == len(theirs := other.split())
        and all(_close(one, two, tolerance) for one, two in zip(ours, theirs, strict=True))
        for line, other in zip(given_lines, expected_lines, strict=True)
    )


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().split("\n")]


def _close(one: str, two: str, tolerance: float) -> bool:
    if one == two:
        return True
    try:
        first, second = Decimal(one), Decimal(two)
    except InvalidOperation:
        return False
    if not (first.is_finite() and second.is_finite()) or max(len(one), len(two)) > 400:
        return False
    return math.isclose(float(first), float(second), rel_tol=tolerance, abs_tol=tolerance)


def same_value(given: Any, expected: Any) -> bool:
    """The same data: lists and tuples alike, floats within `TOLERANCE`, but True is not 1 and "1" is not 1."""
    if isinstance(expected, list | tuple):
        return isinstance(given, list | tuple) and len(given) == len(expected) and all(map(same_value, given, expected))
    if isinstance(expected, dict):
        return (
            isinstance(given, dict)
            and given.keys() == expected.keys()
            and all(same_value(given[key], value) for key, value in expected.items())
        )
    if isinstance(expected, bool) or isinstance(given, bool):
        return isinstance(given, bool) and given is expected
    if isinstance(expected, float) or isinstance(given, float):
        return _same_number(given, expected)
    return type(given) is type(expected) and bool(given == expected)


def _same_number(given: Any, expected: Any) -> bool:
    if not isinstance(given, int | float) or not isinstance(expected, int | float):
        return False
    if isinstance(given, float) and isinstance(expected, float) and math.isnan(given) and math.isnan(expected):
        return True
    try:
        return math.isclose(given, expected, rel_tol=TOLERANCE, abs_tol=1e-9)
    except OverflowError:
        return False
