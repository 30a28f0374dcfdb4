"""Mathematical objects compared by math-verify and sympy: the only file that hands a model's text to them.

Both may compute for ever on a short text, so this runs in a worker, under its deadline and memory limit. What is
refused here beforehand (depth, size, towers of powers, uncomputed sums) is refused in microseconds and says why.
"""

import logging
import math
import re
from collections.abc import Callable
from fractions import Fraction
from functools import cache, lru_cache
from itertools import pairwise
from typing import Any

from verifier.rewards.literals import APPROXIMATION, Tolerance, same_number
from verifier.rewards.score import BadAnswer, BadTask, blamed_on_answer, blamed_on_task

MAX_DEPTH = 24  # of brackets
MAX_INTEGER_DIGITS = 500
MAX_SYMBOLIC_POWER = 200
MAX_FACTORIAL = 300
MAX_TERMS = 2000  # nodes of the tree
DIGITS = 50  # at which two constants are compared
AGREEMENT = Fraction(1, 10**40)  # relative distance at which two irrational constants count as one
ROUNDING = 12  # decimals, where math-verify rounds
POINTS: tuple[Callable[[int], tuple[int, int]], ...] = (  # the value of the n-th letter there, as a fraction
    lambda place: (1009 + 577 * place, 1013),
    lambda place: (-1 - 389 * place, 769 + 2 * place),
    lambda place: ((-1) ** place * (1301 + 211 * place), 457 + place),
    lambda place: (3 + 5 * place, 1021 + 3 * place),
)
ENOUGH_POINTS = 2

_LONG_INTEGER = re.compile(rf"[0-9]{{{MAX_INTEGER_DIGITS + 1}}}")
_UNCOMPUTED = {"Integral", "Sum", "Product", "Limit", "Derivative"}
_OPENS, _CLOSES = "{([", "})]"


def load() -> None:
    """Import math-verify and fill its tables: 1 s, which no check should pay for."""
    for expected, found in (("x", "(x+1)/2"), ("(1,2]", "1<x"), ("\\sqrt{2}", "1.4"), ("\\frac{1}{2}", "\\{1,2\\}")):
        equal(expected, found, Tolerance())


def equal(reference: str, answer: str, tolerance: Tolerance) -> bool:
    """Whether `answer` is the same object as `reference`. Raises `BadAnswer` and `BadTask`."""
    expected = parsed_reference(reference)
    with blamed_on_answer():
        refuse_deep(answer)
        found = _parsed(answer)
        if not found:
            raise BadAnswer(f"not mathematics: {answer[:80]!r}")
        _refuse_uncomputed(expected, found)
        for expression in found:
            _refuse_large(expression)
        return _same(expected, found, tolerance)


@lru_cache(maxsize=1024)
def parsed_reference(reference: str) -> list[Any]:
    """The reference as math-verify reads it. Raises `BadTask`."""
    with blamed_on_task(f"the reference {reference[:80]!r} cannot be parsed"):
        expected = _parsed(reference)
    if not expected:
        raise BadTask(f"the reference {reference[:80]!r} is not mathematics")
    return expected


def _parsed(formula: str) -> list[Any]:
    r"""`formula` as the content of one `\boxed{}`, so that nothing less than the whole of it is read."""
    library = _library()
    extraction = [library.LatexExtractionConfig(boxed_match_priority=0)]
    parsed: list[Any] = library.parse(
        f"\\boxed{{{formula}}}",
        extraction_config=extraction,
        fallback_mode="no_fallback",
        extraction_mode="first_match",
        parsing_timeout=None,
        raise_on_error=True,
    )
    return parsed


@cache
def _library() -> Any:
    """math-verify, which imports sympy: never in the service's process."""
    import math_verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # warns that its time-outs are off
    return math_verify


# ---------------------------------------------------------------- what is refused before it is computed


def refuse_deep(formula: str) -> None:
    """Raises `BadAnswer` for what a recursive parser would choke on."""
    depth, braces = 0, 0
    for character in formula:
        if character in _OPENS:
            depth += 1
            braces += character == "{"
            if depth > MAX_DEPTH:
                raise BadAnswer(f"brackets nested deeper than {MAX_DEPTH}")
        elif character in _CLOSES:
            depth = max(0, depth - 1)
            braces -= character == "}"
            if braces < 0:
                raise BadAnswer("braces that close what was not opened")
    if _LONG_INTEGER.search(formula):
        raise BadAnswer(f"a number of more than {MAX_INTEGER_DIGITS} digits")


def _refuse_uncomputed(expected: list[Any], found: list[Any]) -> None:
    """An answer that repeats the question, such as the integral that is asked for, commits to no value."""
    extra = _operators(found) - _operators(expected)
    if extra:
        raise BadAnswer(f"left uncomputed: {', '.join(sorted(extra))}")


def _operators(expressions: list[Any]) -> set[str]:
    import sympy

    nodes = (node for each in expressions for node in sympy.preorder_traversal(each))
    return {type(node).__name__ for node in nodes} & _UNCOMPUTED


def _refuse_large(expression: Any) -> None:
    import sympy

    for count, node in enumerate(sympy.preorder_traversal(expression)):
        if count > MAX_TERMS:
            raise BadAnswer(f"a formula of more than {MAX_TERMS} terms")
        if isinstance(node, sympy.Pow):
            base, exponent = _magnitude(node.base), _magnitude(node.exp)
            if base is None and exponent is not None and exponent > math.log10(MAX_SYMBOLIC_POWER):
                raise BadAnswer(f"a power above {MAX_SYMBOLIC_POWER}")
            if base is not None and (exponent or 0.0) + math.log10(max(abs(base), 1e-9)) > math.log10(1000):
                raise BadAnswer("a tower of powers")
        large = isinstance(node, sympy.factorial | sympy.binomial | sympy.gamma | sympy.factorial2)
        if large and (_magnitude(node.args[0]) or 0.0) > math.log10(MAX_FACTORIAL):
            raise BadAnswer(f"a factorial above {MAX_FACTORIAL}!")


def _magnitude(expression: Any) -> float | None:
    """log10 of what the size of a number without symbols is at most; None with symbols."""
    import sympy

    if expression.free_symbols:
        return None
    if isinstance(expression, sympy.Integer | sympy.Rational | sympy.Float):
        top, bottom = (abs(int(part)) for part in sympy.Rational(expression).as_numer_denom())
        return math.log10(top) - math.log10(bottom) if top else -1.0
    if isinstance(expression, sympy.Mul):
        return sum(_magnitude(each) or 0.0 for each in expression.args)
    if isinstance(expression, sympy.Add):
        return max((_magnitude(each) or 0.0 for each in expression.args), default=0.0) + math.log10(
            len(expression.args)
        )
    if isinstance(expression, sympy.Pow):
        exponent = _magnitude(expression.exp) or 0.0
        return (_magnitude(expression.base) or 0.0) * 10 ** min(exponent, 100.0)
    if isinstance(expression, sympy.factorial):
        argument = 10 ** min(_magnitude(expression.args[0]) or 0.0, 100.0)
        return argument * math.log10(argument + 1)
    return 1.0  # functions and constants: the deadline bounds what this does not see


# ---------------------------------------------------------------- comparison


def _same(expected: list[Any], found: list[Any], tolerance: Tolerance) -> bool:
    for one in expected:
        for other in found:
            if (decided := _same_object(_plain(one), _plain(other), tolerance)) is not None:
                return decided
    return _verify(expected, found) or _verify(_complex(expected), _complex(found))


def _verify(expected: list[Any], found: list[Any]) -> bool:
    """By math-verify. Its own time-outs return a silent False and need SIGALRM: they are off, the deadline holds."""
    options = {"float_rounding": ROUNDING, "timeout_seconds": None, "raise_on_error": True}
    return bool(expected) and bool(found) and bool(_library().verify(expected, found, **options))


def _complex(expressions: list[Any]) -> list[Any]:
    """With the imaginary unit for the letter i; empty if there is no such letter."""
    import sympy

    letters = [
        {symbol: sympy.I for symbol in each.free_symbols if symbol.name == "i"}
        for each in expressions
        if isinstance(each, sympy.Basic)
    ]
    if not any(letters):
        return expressions if not any(isinstance(each, str) for each in expressions) else []
    return [each.xreplace(letter) for each, letter in zip(expressions, letters, strict=True)]


def _plain(expression: Any) -> Any:
    """Decimals as the fractions that they are, a chain of inequalities in one letter as an interval."""
    import sympy

    if isinstance(expression, sympy.Basic) and (decimals := expression.atoms(sympy.Float)):
        expression = expression.xreplace({each: sympy.Rational(str(each)) for each in decimals})
    if isinstance(expression, sympy.And) and len(expression.free_symbols) == 1:
        parts = [_half_line(each) for each in expression.args]
        return expression if None in parts else sympy.Intersection(*parts)
    if isinstance(expression, sympy.Rel) and not isinstance(expression, sympy.Eq | sympy.Ne):
        half = _half_line(expression)
        return expression if half is None else half
    return expression


def _half_line(relation: Any) -> Any:
    """`x < 5` as an interval; None where it is no comparison of a letter with a number."""
    import sympy

    if not isinstance(relation, sympy.LessThan | sympy.StrictLessThan | sympy.GreaterThan | sympy.StrictGreaterThan):
        return None
    open_end = isinstance(relation, sympy.StrictLessThan | sympy.StrictGreaterThan)
    low, high = relation.lts, relation.gts
    if isinstance(low, sympy.Symbol) and high.is_number:
        return sympy.Interval(-sympy.oo, high, True, open_end)
    if isinstance(high, sympy.Symbol) and low.is_number:
        return sympy.Interval(low, sympy.oo, open_end, True)
    return None


def _same_object(expected: Any, found: Any, tolerance: Tolerance) -> bool | None:
    """Whether both are equal, decided number by number; None where this cannot decide."""
    import sympy

    if not isinstance(expected, sympy.Basic | sympy.MatrixBase) or not isinstance(
        found, sympy.Basic | sympy.MatrixBase
    ):
        return None
    if isinstance(expected, sympy.Interval) and isinstance(found, sympy.Interval):
        if (expected.left_open, expected.right_open) != (found.left_open, found.right_open):
            return False
        return _all((expected.start, expected.end), (found.start, found.end), tolerance)
    if isinstance(expected, sympy.MatrixBase) and isinstance(found, sympy.MatrixBase):
        if expected.shape != found.shape:
            return False
        return _all(expected.flat(), found.flat(), tolerance)
    if isinstance(expected, sympy.Tuple) and isinstance(found, sympy.Tuple):
        return _all(expected.args, found.args, tolerance) if len(expected) == len(found) else False
    if isinstance(expected, sympy.FiniteSet) and isinstance(found, sympy.FiniteSet):
        return _same_set(expected, found, tolerance)
    if isinstance(expected, sympy.Set) and isinstance(found, sympy.Set) and not tolerance:
        return True if expected == found else None
    return _same_value(expected, found, tolerance)


def _all(expected: Any, found: Any, tolerance: Tolerance) -> bool | None:
    decided = [_same_object(one, other, tolerance) for one, other in zip(expected, found, strict=True)]
    if False in decided:
        return False
    return None if None in decided else True


def _same_set(expected: Any, found: Any, tolerance: Tolerance) -> bool | None:
    """Numbers in order of size; sets of anything else are math-verify's."""
    both = [_sorted(expected.args), _sorted(found.args)]
    if None in both:
        return None
    one, other = both
    assert one is not None
    assert other is not None
    if len(one) != len(other):
        return False
    return _all(one, other, tolerance)


def _sorted(values: Any) -> list[Any] | None:
    if not all(value.is_number and value.is_extended_real for value in values):
        return None
    ordered = sorted(values, key=lambda value: value.evalf(DIGITS))
    return [value for before, value in pairwise([None, *ordered]) if before is None or before != value]


def _same_value(expected: Any, found: Any, tolerance: Tolerance) -> bool | None:
    """Two real numbers, or two real functions of their letters; None for anything else."""
    import sympy

    if not (isinstance(expected, sympy.Expr) and isinstance(found, sympy.Expr)):
        return None
    if not (expected.is_number and found.is_number):
        return _same_function(expected, found)
    if expected in (sympy.oo, -sympy.oo) or found in (sympy.oo, -sympy.oo):
        return bool(expected == found)
    exact = [_fraction(expected), _fraction(found)]
    if exact[0] is not None and exact[1] is not None:
        return same_number(exact[0], exact[1], tolerance)
    values = [_evaluated(expected), _evaluated(found)]
    if values[0] is None or values[1] is None:
        return None
    distance, size = abs(values[0] - values[1]), abs(values[0])
    if tolerance:
        return distance <= max(tolerance.absolute, tolerance.relative * size)
    if exact[0] is None and exact[1] is not None:
        return distance <= APPROXIMATION * size  # a decimal for what no decimal can write
    return distance <= AGREEMENT * max(size, Fraction(1, 10**9))


def _same_function(expected: Any, found: Any) -> bool | None:
    """Whether two expressions agree wherever both are real numbers, tried at `POINTS` (Schwartz 1980, Zippel 1979).

    None where fewer than `ENOUGH_POINTS` say something. A million times cheaper than to simplify the difference, which
    on a hostile expression takes hours.
    """
    import sympy

    letters = sorted(expected.free_symbols | found.free_symbols, key=str)
    if any(letter.name == "i" for letter in letters):
        return None  # it may be the imaginary unit
    agreed = 0
    for point in POINTS:
        at = {letter: sympy.Rational(*point(place)) for place, letter in enumerate(letters)}
        values = [_evaluated(each.subs(at, simultaneous=True)) for each in (expected, found)]
        if values[0] is None or values[1] is None:
            continue
        if abs(values[0] - values[1]) > AGREEMENT * max(abs(values[0]), Fraction(1, 10**9)):
            return False
        agreed += 1
    return True if agreed >= ENOUGH_POINTS else None


def _fraction(number: Any) -> Fraction | None:
    import sympy

    number = number.doit() if not number.is_Atom else number
    if isinstance(number, sympy.Rational | sympy.Float) and number.is_finite:
        return Fraction(*map(int, sympy.Rational(str(number)).as_numer_denom()))
    return None


def _evaluated(number: Any) -> Fraction | None:
    """To `DIGITS` digits; None if it is not a finite real."""
    import sympy

    value = number.evalf(DIGITS)
    if not isinstance(value, sympy.Float | sympy.Rational) or not value.is_finite:
        return None
    return Fraction(*map(int, sympy.Rational(value).as_numer_denom()))
