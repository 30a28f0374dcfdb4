"""Numbers as people write them, read exactly and without a computer algebra system.

Read are integers, decimals, fractions, mixed numbers, powers of ten and percentages, with commas or LaTeX's spaces
between thousands. What is read is bounded: at most `MAX_DIGITS` digits, exponents of ten up to `MAX_EXPONENT`.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

MAX_DIGITS = 1000
MAX_EXPONENT = 400
APPROXIMATION = Fraction(1, 10**6)  # how close a decimal must come, relative, to a number that no decimal can write

_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)"
_DECIMAL = rf"(?:{_DIGITS}(?:\.[0-9]*)?|\.[0-9]+)"
_PATTERN = re.compile(
    rf"(?P<sign>[-+]?)\s*"
    rf"(?:(?P<whole>[0-9]+)\s*(?:\\frac\{{(?P<mixed_top>[0-9]+)\}}\{{(?P<mixed_bottom>[0-9]+)\}}"
    rf"|\s(?P<plain_top>[0-9]+)/(?P<plain_bottom>[0-9]+))"
    rf"|\\frac\{{(?P<top_sign>-?)(?P<top>{_DECIMAL})\}}\{{(?P<bottom>{_DECIMAL})\}}"
    rf"|(?P<over>{_DECIMAL})\s*/\s*(?P<under>{_DECIMAL})"
    rf"|(?P<repeating>[0-9]*)\.(?P<before>[0-9]*)\\overline\{{(?P<again>[0-9]+)\}}"
    rf"|(?P<decimal>{_DECIMAL})(?:[eE](?P<e>[-+]?[0-9]{{1,3}})|\s*(?:\\times|\\cdot|\*)\s*10\^(?P<power>[0-9]"
    rf"|\{{[-+]?[0-9]{{1,3}}\}}))?)"
    rf"\s*(?P<percent>\\?%)?"
)


@dataclass(frozen=True, slots=True)
class Literal:
    """A number that was written out. `value` leaves the percent sign out: 50 for 50 %."""

    value: Fraction
    percent: bool = False


def read_literal(text: str) -> Literal | None:
    """The number that `text` is, or None if it is anything else, too long, or a division by zero."""
    if len(text) > MAX_DIGITS or not (match := _PATTERN.fullmatch(text.strip())):
        return None
    part = {name: found for name, found in match.groupdict().items() if found is not None}
    value = _value(part)
    if value is None:
        return None
    return Literal(-value if part["sign"] == "-" else value, "percent" in part)


def _value(part: dict[str, str]) -> Fraction | None:
    """The number without its sign; None where it cannot be."""
    if "whole" in part:
        over, under = _either(part, "mixed_top", "plain_top"), _either(part, "mixed_bottom", "plain_bottom")
        return None if int(under) == 0 else int(part["whole"]) + Fraction(int(over), int(under))
    if "top" in part or "over" in part:
        top, bottom = _exact(_either(part, "top", "over")), _exact(_either(part, "bottom", "under"))
        if bottom == 0:
            return None
        return -top / bottom if part.get("top_sign") == "-" else top / bottom
    if "again" in part:
        before, again = part["before"], part["again"]
        period = Fraction(int(again), 10 ** len(before) * (10 ** len(again) - 1))
        return _exact(f"{part['repeating'] or '0'}.{before}") + period
    exponent = int(_either(part, "e", "power", default="0").strip("{}"))
    return None if abs(exponent) > MAX_EXPONENT else _exact(part["decimal"]) * Fraction(10) ** exponent


def _either(part: dict[str, str], first: str, second: str, default: str = "") -> str:
    return part.get(first, part.get(second, default))


def _exact(decimal: str) -> Fraction:
    return Fraction(decimal.replace(",", "").removesuffix(".") or "0")


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far a number may be from what is expected: the wider of both. 0 and 0: not at all."""

    absolute: Fraction = Fraction(0)
    relative: Fraction = Fraction(0)

    def __bool__(self) -> bool:
        return bool(self.absolute or self.relative)


EXACT = Tolerance()


def same_number(expected: Fraction, found: Fraction, tolerance: Tolerance = EXACT) -> bool:
    """Whether `found` is `expected`, within the tolerance or, without one, exactly.

    A number that no decimal can write, such as 1/3, is met by a decimal within a relative `APPROXIMATION`; one that
    can be written, such as 0.25 or 17, is not: 16.9999999 is not 17.
    """
    distance = abs(expected - found)
    if tolerance:
        return distance <= max(tolerance.absolute, tolerance.relative * abs(expected))
    if not terminates(expected) and terminates(found):
        return distance <= APPROXIMATION * abs(expected)
    return distance == 0


def terminates(value: Fraction) -> bool:
    """Whether a decimal of finite length writes it: its denominator has no prime factor but 2 and 5."""
    bottom = value.denominator
    bottom >>= (bottom & -bottom).bit_length() - 1
    for power in (5**256, 5**64, 5**16, 5**4, 5):
        while bottom % power == 0:
            bottom //= power
    return bottom == 1
