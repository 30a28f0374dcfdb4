"""Reward `math`: whether the committed answer is the same mathematical object as the reference.

| answer                                    | compared                                                                |
|-------------------------------------------|-------------------------------------------------------------------------|
| the reference letter by letter            | right, and not looked at further                                        |
| numbers written out, percentages          | exactly, without a computer algebra system (`literals`)                 |
| a quantity with a unit                    | converted (`units`)                                                     |
| words, a letter of a choice               | as words, whatever their case                                           |
| a chain `a = b = c`                       | every member must be right: who names two values commits to none        |
| anything else: formulas, sets, intervals, | by sympy and math-verify (`symbolic`)                                   |
| tuples, matrices, equations, inequalities |                                                                         |

Sources: math-verify (Hugging Face, 2025) for what LaTeX means; the Minerva protocol (Lewkowycz et al. 2022, appendix G)
for what is a matter of notation.
"""

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from verifier.rewards import symbolic
from verifier.rewards.answer import BOXES, committed_answer
from verifier.rewards.literals import EXACT, Literal, Tolerance, read_literal, same_number
from verifier.rewards.notation import Chain, chain, cleaned, words
from verifier.rewards.parameters import Parameters
from verifier.rewards.score import BadAnswer, BadTask, Score
from verifier.rewards.units import split_unit

MAX_ANSWER_CHARACTERS = 1000  # longer ones are the reference letter by letter, or wrong
UNITS = ("checked", "required", "ignored")
PARAMETERS = ("absolute_tolerance", "relative_tolerance", "units", "boxes")
ABOUT = Tolerance(relative=Fraction(1, 100))  # how far what stands behind `≈` may be off


def math_reward(text: str, reference: str, metadata: Mapping[str, Any]) -> Score:
    """1 if the answer equals `reference`, else 0; `BadAnswer` if there is none to compare.

    `metadata["math"]` may hold
    - `absolute_tolerance`, `relative_tolerance`: how far numbers may be off, 0 and 0 if not given; then a decimal must
      be exact where the reference can be written as one, and right to six digits where it cannot (1/3, √2);
    - `units`: `checked` (the default: a unit may be left out, but not wrong), `required` (nor left out), `ignored`;
    - `boxes`: which of several `\\boxed{}` counts: `one` (the default: they must all say the same), `last`, or `all`
      together, as a list.
    """
    options = Parameters.of(metadata, "math", PARAMETERS)
    tolerance = Tolerance(
        Fraction(options.number("absolute_tolerance", 0.0, most=1e300)),
        Fraction(options.number("relative_tolerance", 0.0, most=1.0)),
    )
    units, boxes = options.choice("units", "checked", UNITS), options.choice("boxes", "one", BOXES)
    expected = checked_reference(reference)
    answer = committed_answer(text, boxes=boxes)
    if answer == reference.strip():
        return Score(1.0, "the reference")
    if same(expected, answer, tolerance, units):
        return Score(1.0, "equal")
    return Score(0.0, f"wrong: {answer[:80]!r}")


def checked_reference(reference: str) -> str:
    """The reference in one notation. Raises `BadTask` if it is not mathematics, whatever the answer will be."""
    if not reference.strip():
        raise BadTask("the reference is empty")
    expected = cleaned(reference)
    if words(expected) is None and read_literal(expected) is None and split_unit(expected) is None:
        symbolic.parsed_reference(expected)
    return expected


def same(expected: str, answer: str, tolerance: Tolerance = EXACT, units: str = "checked") -> bool:
    """Whether `answer` equals the reference `expected`, which is cleaned already. Raises `BadAnswer`."""
    if len(answer) > MAX_ANSWER_CHARACTERS:
        raise BadAnswer(f"the answer has {len(answer)} characters, more than {MAX_ANSWER_CHARACTERS} are not read")
    found = cleaned(answer)
    if found == expected:
        return True
    if (said := words(expected)) is not None:
        heard = words(found)
        if heard == said or found.strip(" .()").casefold() == said:
            return True
        if heard is not None or "\\text" in expected:
            return False
    one, other = chain(expected), chain(found)
    if one.single and not other.single and (other.name or not one.name or len(other.members) > 2):
        return _chain(one.members[0][1], other, tolerance, units)
    if one.single and other.single and (one.name == other.name or not (one.name and other.name)):
        return _quantity(one.members[0][1], other.members[0][1], tolerance, units)
    return _quantity(expected, found, tolerance, units)


def _chain(expected: str, found: Chain, tolerance: Tolerance, units: str) -> bool:
    """Every member is right, or about right behind an `≈`; one at least is right."""
    members = [member for _, member in found.members]
    right = [_quantity(expected, member, tolerance, units) for member in members]
    about = any(relation == "\\approx" for relation, _ in found.members)
    return any(right) and all(
        exactly or (about and _quantity(expected, member, ABOUT, units))
        for exactly, member in zip(right, members, strict=True)
    )


def _quantity(expected: str, found: str, tolerance: Tolerance, units: str) -> bool:
    """Units first, then what they are the units of."""
    reference, answer = split_unit(expected), split_unit(found)
    if reference is None:
        if answer is not None and _formula(expected, answer.formula, tolerance):
            return True
        if answer is not None and read_literal(expected):
            return False  # the number is wrong, whatever follows it
        return _formula(expected, found, tolerance)  # `5 m` may be a product
    if answer is None or units == "ignored" or not reference.known or not answer.known:
        if units == "required" and (answer is None or answer.known != reference.known):
            raise BadAnswer("the unit is missing")
        return _formula(reference.formula, found if answer is None else answer.formula, tolerance)
    if not answer.same_dimension(reference):
        return False
    ratio = answer.factor / reference.factor
    if ratio == 1:
        return _formula(reference.formula, answer.formula, tolerance)
    scaled = f"({answer.formula}) \\cdot \\frac{{{ratio.numerator}}}{{{ratio.denominator}}}"
    if literal := read_literal(answer.formula):
        scaled = _written(literal.value * ratio)
    return _formula(reference.formula, scaled, tolerance)


def _written(value: Fraction) -> str:
    return str(value.numerator) if value.denominator == 1 else f"\\frac{{{value.numerator}}}{{{value.denominator}}}"


def _formula(expected: str, found: str, tolerance: Tolerance) -> bool:
    reference, answer = read_literal(expected), read_literal(found)
    if reference and answer:
        return _literals(reference, answer, tolerance)
    bare = [formula.removesuffix("%").removesuffix("\\").strip() for formula in (expected, found)]
    return symbolic.equal(bare[0], bare[1], tolerance)


def _literals(reference: Literal, answer: Literal, tolerance: Tolerance) -> bool:
    """The sign `%` may be left out, or used for what it means: 50 %, 50 and 0.5 are right for 50 %."""
    right = same_number(reference.value, answer.value, tolerance)
    if right or reference.percent == answer.percent:
        return right
    if reference.percent:
        return same_number(reference.value / 100, answer.value, tolerance)
    return same_number(reference.value, answer.value / 100, tolerance)
