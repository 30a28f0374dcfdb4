r"""Physical units at the end of an answer: `5 cm`, `5\text{ cm}^2`, `60\,\mathrm{km/h}`, `\$5`.

A unit is what is written as text, or as letters after a space, and is in the table. Multiples of a dimension are
converted exactly, so that `50 mm` is `5 cm`. Temperatures other than kelvin are no multiples and convert to nothing.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeAlias

Dimension: TypeAlias = tuple[tuple[str, int], ...]  # base and power, by name of the base

_METRE, _GRAM, _SECOND = "metre", "gram", "second"
_BASES: dict[str, dict[str, Fraction]] = {
    _METRE: {
        "m meter meters metre metres": Fraction(1),
        "mm millimeter millimeters millimetre millimetres": Fraction(1, 1000),
        "cm centimeter centimeters centimetre centimetres": Fraction(1, 100),
        "dm decimeter decimeters decimetre decimetres": Fraction(1, 10),
        "km kilometer kilometers kilometre kilometres": Fraction(1000),
        "in inch inches": Fraction(254, 10_000),
        "ft foot feet": Fraction(3048, 10_000),
        "yd yard yards": Fraction(9144, 10_000),
        "mi mile miles": Fraction(1_609_344, 1000),
    },
    _GRAM: {
        "g gram grams": Fraction(1),
        "mg milligram milligrams": Fraction(1, 1000),
        "kg kilogram kilograms": Fraction(1000),
        "t tonne tonnes": Fraction(1_000_000),
        "lb lbs pound pounds": Fraction(45_359_237, 100_000),
        "oz ounce ounces": Fraction(45_359_237, 1_600_000),
    },
    _SECOND: {
        "s sec second seconds": Fraction(1),
        "ms millisecond milliseconds": Fraction(1, 1000),
        "min minute minutes": Fraction(60),
        "h hr hour hours": Fraction(3600),
        "day days": Fraction(86_400),
        "week weeks": Fraction(604_800),
        "year years": Fraction(31_536_000),
        "month months": Fraction(2_628_000),
    },
    "degree": {"^\\circ ^{\\circ} degree degrees": Fraction(1)},
    "dollar": {"$ \\$ dollar dollars usd": Fraction(1), "cent cents": Fraction(1, 100)},
    "euro": {"€ euro euros eur": Fraction(1)},
    "pound sterling": {"£ gbp": Fraction(1)},
    "kelvin": {"kelvin": Fraction(1)},
    "ampere": {"ampere amperes amp amps": Fraction(1)},
    "mole": {"mol mole moles": Fraction(1)},
}
_COMPOUND: dict[str, tuple[Fraction, Dimension]] = {
    "l liter liters litre litres": (Fraction(1, 1000), ((_METRE, 3),)),
    "ml milliliter milliliters millilitre millilitres": (Fraction(1, 1_000_000), ((_METRE, 3),)),
    "mph": (Fraction(1_609_344, 3_600_000), ((_METRE, 1), (_SECOND, -1))),
    "kph kmh": (Fraction(1000, 3600), ((_METRE, 1), (_SECOND, -1))),
    "n newton newtons": (Fraction(1000), ((_GRAM, 1), (_METRE, 1), (_SECOND, -2))),
    "j joule joules": (Fraction(1000), ((_GRAM, 1), (_METRE, 2), (_SECOND, -2))),
    "kj kilojoule kilojoules": (Fraction(1_000_000), ((_GRAM, 1), (_METRE, 2), (_SECOND, -2))),
    "w watt watts": (Fraction(1000), ((_GRAM, 1), (_METRE, 2), (_SECOND, -3))),
    "kw kilowatt kilowatts": (Fraction(1_000_000), ((_GRAM, 1), (_METRE, 2), (_SECOND, -3))),
    "pa pascal pascals": (Fraction(1000), ((_GRAM, 1), (_METRE, -1), (_SECOND, -2))),
    "hz hertz": (Fraction(1), ((_SECOND, -1),)),
}
_KNOWN: dict[str, tuple[Fraction, Dimension]] = {
    name: (factor, ((base, 1),))
    for base, table in _BASES.items()
    for names, factor in table.items()
    for name in names.split()
} | {name: unit for names, unit in _COMPOUND.items() for name in names.split()}

_POWER = r"(?:\s*\^\s*(?:\{?(-?[1-4])\}?))?"
_CURRENCY = re.compile(r"(-?)\s*(\\\$|\$|€|£)\s*(?=[0-9.])")
_TAIL = re.compile(
    r"(?P<number>.*?[0-9}).])"
    r"(?:(?P<circle>\s*\^\s*(?:\{\s*\\circ\s*\}|\\circ))"
    r"|\s*\\(?:text|textrm|mathrm|mbox|rm)\s*\{(?P<text>[^{}]*)\}(?P<outer>\s*\^\s*\{?-?[1-4]\}?)?"
    r"|\s+(?P<plain>[A-Za-z€£][A-Za-z/ ^0-9{}*-]*))"
    r"\s*",
    re.DOTALL,
)
_FACTOR = re.compile(rf"(?:(square|sq|cubic)\s+)?([A-Za-z€£$\\]+){_POWER}(?:\s+(squared|cubed))?")
_NAMED_POWERS = {"square": 2, "sq": 2, "squared": 2, "cubic": 3, "cubed": 3}


@dataclass(frozen=True, slots=True)
class Quantity:
    """A formula and its unit as a multiple of the base units; `known` is False for text that is in no table."""

    formula: str
    factor: Fraction
    dimension: Dimension
    known: bool = True

    def same_dimension(self, other: "Quantity") -> bool:
        """Whether both can be compared."""
        return self.dimension == other.dimension


def split_unit(formula: str) -> Quantity | None:
    """Number and unit of `formula`, or None if it has no unit. Text that is no unit counts as an unknown one."""
    if currency := _CURRENCY.match(formula):
        factor, dimension = _KNOWN[currency[2]]
        return Quantity(currency[1] + formula[currency.end() :].strip(), factor, dimension)
    if not (tail := _TAIL.fullmatch(formula)):
        return None
    if tail["circle"]:
        return Quantity(tail["number"].strip(), *_KNOWN["degree"])
    written = tail["text"] if tail["text"] is not None else tail["plain"]
    unit = _read(written.strip() + (tail["outer"] or "").replace(" ", ""))
    if unit:
        return Quantity(tail["number"].strip(), *unit)
    if tail["text"] is not None and tail["text"].strip():
        return Quantity(tail["number"].strip(), Fraction(1), (), known=False)
    return None


def _read(text: str) -> tuple[Fraction, Dimension] | None:
    """`km/h`, `m/s^2`, `square feet`, `metres per second` as a factor and a dimension."""
    factor = Fraction(1)
    powers: dict[str, int] = {}
    for place, side in enumerate(re.split(r"/|\bper\b", text.strip().rstrip("."))):
        sign = 1 if place == 0 else -1
        for piece in re.split(r"[*·]", side):
            if not (match := _FACTOR.fullmatch(piece.strip())):
                return None
            before, name, power, after = match.groups()
            if (unit := _KNOWN.get(name) or _KNOWN.get(name.lower())) is None:
                return None
            exponent = sign * int(power or 1) * _NAMED_POWERS.get(before or after, 1)
            factor *= unit[0] ** exponent
            for base, own in unit[1]:
                powers[base] = powers.get(base, 0) + own * exponent
    return factor, tuple(sorted((base, power) for base, power in powers.items() if power))
