r"""Reward `math`: golden pairs, what must not pass, and properties of numbers.

Each line is reference and answer as a completion would commit to it.
"""

import time
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verifier.rewards import symbolic
from verifier.rewards.literals import read_literal, same_number, terminates
from verifier.rewards.mathematics import math_reward
from verifier.rewards.notation import chain, cleaned, words
from verifier.rewards.score import BadAnswer, BadTask
from verifier.rewards.units import split_unit


def value(reference: str, answer: str, **parameters: Any) -> float:
    try:
        return math_reward(f"<answer>{answer}</answer>", reference, {"math": parameters}).value
    except BadAnswer:
        return 0.0


EQUAL = [
    # numbers
    ("5", "5"),
    ("5", "+5.00"),
    ("1000", "1,000"),
    ("1000", "1{,}000"),
    ("1000", "1\\,000"),
    ("1000", "10^{3}"),
    ("1000", "1e3"),
    ("3 \\times 10^{5}", "300000"),
    ("0.0003", "3\\cdot10^{-4}"),
    ("\\frac{1}{2}", "0.5"),
    ("\\frac12", "1/2"),
    ("\\dfrac{2}{4}", "0.50"),
    ("-\\frac{1}{2}", "-.5"),
    ("\\frac{3}{2}", "1\\frac{1}{2}"),
    ("3/2", "1 1/2"),
    ("\\frac{1}{3}", "0.333333"),
    ("\\frac{1}{3}", "0.\\overline{3}"),
    ("\\frac{1}{6}", "0.1\\overline{6}"),
    ("\\sqrt{2}", "1.41421356"),
    ("\\sqrt{2}", "√2"),
    ("\\sqrt{2}", "sqrt(2)"),
    ("\\frac{\\sqrt{2}}{2}", "\\frac{1}{\\sqrt{2}}"),
    ("2\\sqrt{3}", "\\sqrt{12}"),
    ("\\pi", "π"),
    ("\\pi", "3.14159265"),
    ("2\\pi", "2*pi"),
    ("\\frac{\\pi}{4}", "\\arctan(1)"),
    ("-1", "−1"),
    ("6", "3!"),
    ("10", "\\binom{5}{2}"),
    ("3", "\\log_2 8"),
    ("-1", "e^{i\\pi}"),
    ("3+4i", "4i+3"),
    ("\\infty", "∞"),
    ("-\\infty", "-\\infty"),
    ("5", "$5$"),
    ("5", "\\(5\\)"),
    ("5", "5."),
    ("5", "\\boxed{5}"),
    ("5", "x = 5"),
    ("5", "2+3 = 5"),
    ("\\sqrt{2}", "\\sqrt{2} \\approx 1.414"),
    ("0.25", "\\frac{1}{4} = 0.25 = 25\\%"),
    # percentages
    ("50\\%", "50%"),
    ("50\\%", "50"),
    ("50\\%", "0.5"),
    ("50", "50\\%"),
    ("0.5", "50\\%"),
    # formulas
    ("(x+1)^2", "x^2+2x+1"),
    ("x+1", "1+x"),
    ("1", "\\sin^2 x + \\cos^2 x"),
    ("\\frac{x}{2}", "0.5x"),
    ("x^{2}", "x²"),
    ("y = 2x+1", "y-1 = 2x"),
    ("2x+1", "y = 2x+1"),
    ("x = 5", "5"),
    ("x = 5", "x = 2+3 = 5"),
    ("f(x)=x^2", "x^2"),
    ("5m", "5 m"),
    # sets, tuples, intervals, matrices
    ("\\{1, 2\\}", "\\{2, 1\\}"),
    ("\\{1, 2\\}", "1, 2"),
    ("\\{1, 2\\}", "\\{1, 2.0, 1\\}"),
    ("\\{\\sqrt{2}, 1\\}", "1, \\sqrt 2"),
    ("\\pm 3", "3, -3"),
    ("x = \\pm 3", "\\{-3, 3\\}"),
    ("\\emptyset", "\\{\\}"),
    ("\\emptyset", "∅"),
    ("(1, 2)", "\\left( 1, 2 \\right)"),
    ("(1, 2)", "(1.0, \\frac{4}{2})"),
    ("(1, 2, 3)", "(1,2,3)"),
    ("(1,2),(3,4)", "(3,4),(1,2)"),
    ("x=3, y=4", "y=4, x=3"),
    ("[1, 2)", "\\left[1, 2\\right)"),
    ("[1, 2)", "x \\in [1, 2)"),
    ("[1, 2)", "1 \\le x < 2"),
    ("[1, 2)", "1 ≤ x < 2"),
    ("(-\\infty, 3)", "x < 3"),
    ("x \\ge 3", "[3, \\infty)"),
    ("x < 5", "5 > x"),
    ("(-\\infty,3)\\cup[4,\\infty)", "[4,\\infty) ∪ (-∞, 3)"),
    ("\\mathbb{R}", "(-\\infty, \\infty)"),
    ("\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}", "\\begin{bmatrix} 1 & 2 \\\\ 3 & 4 \\end{bmatrix}"),
    ("\\begin{pmatrix}\\frac12\\\\2\\end{pmatrix}", "\\begin{pmatrix}0.5\\\\2\\end{pmatrix}"),
    # units
    ("5", "5 \\text{ units}"),
    ("5", "5\\text{ cm}"),
    ("5", "5 apples"),
    ("5\\text{ cm}", "5"),
    ("5\\text{ cm}", "5 cm"),
    ("5 cm", "50\\,\\mathrm{mm}"),
    ("5 cm", "0.05 m"),
    ("1\\text{ m}^2", "10000 cm^2"),
    ("1\\text{ m}^2", "1 square meter"),
    ("36\\text{ km/h}", "10 \\text{ m/s}"),
    ("36\\text{ km/h}", "10 meters per second"),
    ("1\\text{ L}", "1000 \\text{ cm}^3"),
    ("90^\\circ", "90"),
    ("90^\\circ", "90°"),
    ("90^\\circ", "90 \\text{ degrees}"),
    ("\\$5.50", "5.50"),
    ("\\$5.50", "$5.5"),
    ("\\$5", "5 dollars"),
    ("\\$5", "500 cents"),
    ("\\frac{1}{2}\\text{ hour}", "30 minutes"),
    # words and choices
    ("\\text{east}", "East"),
    ("\\text{east}", "\\text{ east }"),
    ("\\text{(A)}", "A"),
    ("A", "(A)"),
    ("A", "\\text{A}"),
    ("A", "a"),
    ("no solution", "No solution"),
    ("Monday", "\\textbf{Monday}"),
]


@pytest.mark.parametrize(("reference", "answer"), EQUAL)
def test_an_answer_in_any_accepted_form_is_right(reference: str, answer: str) -> None:
    assert value(reference, answer) == 1.0


DIFFERENT = [
    ("5", "6"),
    ("5", "-5"),
    ("5", "5.0000001"),
    ("17", "16.9999999999"),
    ("0.0000001", "0.0000002"),
    ("10000000", "10000000.5"),
    ("\\frac{1}{3}", "0.333"),
    ("\\frac{1}{3}", "\\frac{333333}{1000001}"),
    ("\\pi", "3.14"),
    ("\\pi", "\\frac{22}{7}"),
    ("\\sqrt{2}", "1.4"),
    ("3", "\\pi"),
    ("5", "5, 6"),
    ("5", "5 \\text{ or } 6"),
    ("5", "6 = 5"),
    ("5", "x = 6 = 5"),
    ("5", "5 = 6"),
    ("5", "5 \\approx 6"),
    ("5", "x = 5, x = 6"),
    ("x = 5", "y = 5"),
    ("x = 5", "x = 6"),
    ("x = 5", "x = 6 = 5"),
    ("x = 5", "6 = 5"),
    ("5", "4 < 5"),
    ("5", "x \\le 5"),
    ("5", "5x"),
    ("5", "x"),
    ("5", "the answer is 5"),
    ("5", "\\text{5 or 6}"),
    ("5", "5?"),
    ("5", "5}\\text{ or }{6"),
    ("50\\%", "5"),
    ("50\\%", "0.5\\%"),
    ("0.5", "5\\%"),
    ("\\frac{1}{3}", "\\int_0^1 x^2 dx"),
    ("55", "\\sum_{k=1}^{10} k"),
    ("1", "\\lim_{x \\to 0} \\frac{\\sin x}{x}"),
    ("2x", "\\frac{d}{dx} x^2"),
    ("(x+1)^2", "x^2+x+1"),
    ("x^2+C", "x^2"),
    ("y = 2x+1", "y = 2x"),
    ("\\{1, 2\\}", "\\{1\\}"),
    ("\\{1, 2\\}", "1, 2, 3"),
    ("\\{0.0000001, 1\\}", "\\{0.0000002, 1\\}"),
    ("\\pm 3", "3"),
    ("(1, 2)", "(2, 1)"),
    ("(1, 2)", "(1, 2, 3)"),
    ("(1, 2, 3)", "(1, 3, 2)"),
    ("(0.0000001, 1, 2)", "(0.0000002, 1, 2)"),
    ("x=3, y=4", "x=4, y=3"),
    ("[1, 2)", "[1, 2]"),
    ("[1, 2)", "(1, 2)"),
    ("[1, 2)", "1 < x < 2"),
    ("[1, 2)", "[1, 2.0000001)"),
    ("x < 5", "x \\le 5"),
    ("x < 5", "x > 5"),
    ("\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}", "\\begin{pmatrix}1&3\\\\2&4\\end{pmatrix}"),
    ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\begin{pmatrix}1&2\\end{pmatrix}"),
    ("5\\text{ cm}", "5 m"),
    ("5\\text{ cm}", "5 kg"),
    ("5\\text{ cm}", "5\\text{ cm}^2"),
    ("5\\text{ m}^2", "500\\text{ cm}^2"),
    ("36\\text{ km/h}", "36 \\text{ m/s}"),
    ("\\$5", "5 cents"),
    ("\\text{east}", "teas"),
    ("\\text{east}", "\\text{west}"),
    ("east", "teas"),
    ("A", "B"),
    ("A", "A or B"),
    ("A", "AB"),
    ("\\infty", "-\\infty"),
    ("5", "\\infty"),
    ("5", "\\frac{5}{0}"),
    ("5", "\\frac{0}{0}"),
    ("5", "\\text{nan}"),
    ("5", "nan"),
    ("5", "True"),
    ("5", "__import__('os').system('true') or 5"),
    ("5", "eval('5')"),
    ("5", "<answer>5"),
    ("5", "\\input{/etc/passwd} 5"),
]


@pytest.mark.parametrize(("reference", "answer"), DIFFERENT)
def test_what_is_wrong_or_undecided_is_worth_nothing(reference: str, answer: str) -> None:
    assert value(reference, answer) == 0.0


@pytest.mark.parametrize(
    "text",
    [
        "5",
        "The reference is 5.",
        "<think>5</think>",
        "<think>\\boxed{5}</think> so it is",
        "<think>the answer is \\boxed{5}",
        "<think><answer>5</answer>",
        "<answer>5",
        "5</answer>",
        "<answer>5</answer><answer>6</answer>",
        "<answer>5</answer></think><answer>6</answer><answer>5</answer>",
        "\\boxed{5} \\boxed{6}",
        "\\boxed{5",
        "\\boxed{5}} \\boxed{",
        "<answer>\\boxed{5} or \\boxed{6}</answer>",
        "<answer></answer> \\boxed{5}",
        "User: is it 5? Assistant: <answer>6</answer> <answer>5</answer>",
    ],
)
def test_who_quotes_the_reference_without_committing_to_it_gets_nothing(text: str) -> None:
    try:
        assert math_reward(text, "5", {}).value == 0.0
    except BadAnswer:
        return


@pytest.mark.parametrize(
    ("boxes", "text", "reference", "right"),
    [
        ("one", "\\boxed{5}, that is \\boxed{5}", "5", True),
        ("one", "\\boxed{5}, no, \\boxed{6}", "6", False),
        ("last", "\\boxed{5}, no, \\boxed{6}", "6", True),
        ("last", "\\boxed{6}, no, \\boxed{5}", "6", False),
        ("all", "\\boxed{5} and \\boxed{6}", "5, 6", True),
        ("all", "\\boxed{6} and \\boxed{5}", "\\{5, 6\\}", True),
        ("all", "\\boxed{5} and \\boxed{6}", "5", False),
        ("one", "\\boxed{\\frac{\\boxed{1}}{2}}", "\\frac{\\boxed{1}}{2}", True),
    ],
)
def test_which_of_several_boxes_counts_is_said_by_the_task(boxes: str, text: str, reference: str, right: bool) -> None:
    try:
        assert math_reward(text, reference, {"math": {"boxes": boxes}}).value == right
    except BadAnswer:
        assert not right


@pytest.mark.parametrize(
    ("parameters", "reference", "answer", "right"),
    [
        ({"relative_tolerance": 0.01}, "100", "101", True),
        ({"relative_tolerance": 0.01}, "100", "101.5", False),
        ({"absolute_tolerance": 0.5}, "100", "100.5", True),
        ({"absolute_tolerance": 0.5}, "100", "100.6", False),
        ({"relative_tolerance": 0.01}, "\\pi", "3.14", True),
        ({"relative_tolerance": 0.01}, "\\pi", "\\frac{22}{7}", True),
        ({"relative_tolerance": 0.01}, "\\{100, 200\\}", "\\{201, 99.5\\}", True),
        ({"relative_tolerance": 0.01}, "(1, 2, 3)", "(1.001, 2, 3)", True),
        ({"relative_tolerance": 0.01}, "(1, 2, 3)", "(1.1, 2, 3)", False),
        ({"relative_tolerance": 0.01}, "[1, 2]", "[1.001, 2]", True),
        ({"relative_tolerance": 0.01}, "5 \\text{ m}", "501 cm", True),
        ({"units": "required"}, "5 \\text{ cm}", "5", False),
        ({"units": "required"}, "5 \\text{ cm}", "50 mm", True),
        ({"units": "required"}, "5", "5", True),
        ({"units": "ignored"}, "5 \\text{ cm}", "5 m", True),
    ],
)
def test_parameters_of_the_task_say_how_strict_to_be(
    parameters: dict[str, Any], reference: str, answer: str, right: bool
) -> None:
    assert value(reference, answer, **parameters) == right


@pytest.mark.parametrize(
    ("reference", "metadata", "culprit"),
    [
        (" ", {}, "the reference is empty"),
        ("} {", {}, "is not mathematics"),
        ("5", {"math": 3}, "metadata.math must be an object"),
        ("5", {"math": {"tolerance": 1}}, "metadata.math.tolerance: no such parameter"),
        ("5", {"math": {"relative_tolerance": -1}}, "metadata.math.relative_tolerance='-1'"),
        ("5", {"math": {"relative_tolerance": float("nan")}}, "metadata.math.relative_tolerance='nan'"),
        ("5", {"math": {"relative_tolerance": True}}, "metadata.math.relative_tolerance='True'"),
        ("5", {"math": {"units": "metric"}}, "metadata.math.units='metric'"),
        ("5", {"math": {"boxes": ["last"]}}, "metadata.math.boxes"),
    ],
)
def test_a_bad_task_is_not_the_completions_fault(reference: str, metadata: dict[str, Any], culprit: str) -> None:
    with pytest.raises(BadTask, match=culprit):
        math_reward("no answer", reference, metadata)


PATHOLOGICAL = [
    "9^{9^9}",
    "9^{9^{9^{9}}}",
    "2^{2^{35}}",
    "10^{10^{10}} \\mod 7",
    "(x+1)^{5000}",
    "\\sqrt{(x+1)^{5000}}",
    "((9!)!)!",
    "100000!",
    "\\binom{10^9}{10^8}",
    "(" * 490 + "1" + ")" * 490,
    "(" * 490,
    "{" * 30 + "1" + "}" * 30,
    "\\frac{1}{" * 90 + "2" + "}" * 90,
    "\\sqrt{" * 120 + "2" + "}" * 120,
    "9" * 600,
    "0." + "3" * 998,
    "1e" + "9" * 20,
    "+".join(["x"] * 400),
    "\\int_0^1 \\sin(x^x)^{x^x} dx",
    "\\sum_{n=1}^{10^{10}} n!",
    "\\prod_{n=1}^{10^{10}} n",
    "\\overline{" * 50 + "3" + "}" * 50,
    "=" * 900,
    "1=" * 450 + "1",
    "$" * 999,
    "\\text{" * 150,
    "5 " + "m*" * 400,
]


@pytest.mark.parametrize("answer", PATHOLOGICAL, ids=range(len(PATHOLOGICAL)))
def test_a_pathological_answer_is_refused_before_it_is_computed(answer: str) -> None:
    symbolic.load()
    begun = time.process_time()
    assert value("5", answer) == 0.0
    assert time.process_time() - begun < 2.0


# ---------------------------------------------------------------- properties

whole = st.integers(-(10**30), 10**30)
fractions = st.fractions(min_value=-(10**6), max_value=10**6, max_denominator=10**6)


@given(whole)
def test_every_integer_reads_as_itself_with_and_without_commas(number: int) -> None:
    for text in (str(number), f"{number:,}", f"{number}.0", f"  {number} "):
        found = read_literal(text)
        assert found is not None
        assert found.value == number


@given(fractions)
def test_every_fraction_reads_as_itself_in_each_notation(number: Fraction) -> None:
    top, bottom = number.numerator, number.denominator
    sign = "-" if top < 0 else ""
    for text in (f"{top}/{bottom}", f"{sign}\\frac{{{abs(top)}}}{{{bottom}}}", f"\\frac{{{top}}}{{{bottom}}}"):
        found = read_literal(text)
        assert found is not None
        assert found.value == number


@given(st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**9), max_value=10**9, places=6))
def test_every_decimal_terminates_and_is_itself_only(number: Any) -> None:
    found = read_literal(f"{number:f}")
    assert found is not None
    assert found.value == Fraction(number)
    assert terminates(found.value)
    assert same_number(found.value, found.value)
    assert not same_number(found.value, found.value + Fraction(1, 10**12))


@given(fractions)
def test_a_number_terminates_if_and_only_if_a_long_division_does(number: Fraction) -> None:
    seen, rest = set(), number.numerator % number.denominator
    while rest and rest not in seen and len(seen) < 60:
        seen.add(rest)
        rest = rest * 10 % number.denominator
    if len(seen) < 60:
        assert terminates(number) == (rest == 0)


@given(fractions.filter(lambda number: not terminates(number)))
def test_seven_digits_are_enough_for_what_no_decimal_writes_and_four_are_not(number: Fraction) -> None:
    assert same_number(number, Fraction(f"{float(number):.6e}"))
    four = Fraction(f"{float(number):.3e}")
    if abs(four - number) > abs(number) / 10**6:
        assert not same_number(number, four)


@settings(max_examples=200)
@given(st.text(alphabet="0123456789.,/\\frac{}-+%e ^*timesx=$~()[]", max_size=40))
def test_reading_any_text_ends_without_an_error(text: str) -> None:
    tidy = cleaned(text)
    assert isinstance(tidy, str)
    read_literal(tidy)
    split_unit(tidy)
    words(tidy)
    assert chain(tidy).members


@settings(max_examples=100)
@given(fractions, fractions)
def test_numbers_are_right_exactly_when_they_are_equal(one: Fraction, other: Fraction) -> None:
    expected = one == other or (
        not terminates(one) and terminates(other) and abs(one - other) <= abs(one) / Fraction(10**6)
    )
    assert value(str(one), str(other)) == float(expected)
