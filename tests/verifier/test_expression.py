"""Reward expressions against Python's own arithmetic, and what is refused."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verifier.rewards.expression import BadExpression, parse

PARTS = {"accuracy": 0.25, "format": 1.0, "length": 0.5, "math": 0.0}


@pytest.mark.parametrize(
    ("text", "names", "value"),
    [
        ("accuracy", ("accuracy",), 0.25),
        ("0.5*accuracy + 0.5*format", ("accuracy", "format"), 0.625),
        (" .25 * accuracy+format ", ("accuracy", "format"), 1.0625),
        ("2*reasoning_gym", ("reasoning_gym",), 2.0),
        ("format * math", ("format", "math"), 0.0),
        ("accuracy*format*length", ("accuracy", "format", "length"), 0.125),
        ("format - length", ("format", "length"), 0.5),
        ("format - length - accuracy", ("format", "length", "accuracy"), 0.25),
        ("format - (length - accuracy)", ("format", "length", "accuracy"), 0.75),
        ("accuracy + accuracy", ("accuracy",), 0.5),
        ("-accuracy", ("accuracy",), -0.25),
        ("1 - 2*accuracy", ("accuracy",), 0.5),
        ("(accuracy + format) * length", ("accuracy", "format", "length"), 0.625),
        ("format * (accuracy >= 0.25)", ("format", "accuracy"), 1.0),
        ("format * accuracy > 0.25", ("format", "accuracy"), 0.0),
        ("(format * accuracy) < 1", ("format", "accuracy"), 1.0),
        ("math <= 0", ("math",), 1.0),
        ("max(math, 0.5*accuracy)", ("math", "accuracy"), 0.125),
        ("min(format, length, accuracy) + 1", ("format", "length", "accuracy"), 1.25),
        ("accuracy - 1 * (format < 1)", ("accuracy", "format"), 0.25),
    ],
)
def test_an_expression_names_its_parts_and_makes_one_number_of_them(
    text: str, names: tuple[str, ...], value: float
) -> None:
    expression = parse(text)
    assert expression.names == names
    assert expression.value(PARTS | {"reasoning_gym": 1.0}) == value


@pytest.mark.parametrize(
    ("text", "culprit"),
    [
        ("", "cannot read ''"),
        ("accuracy +", "cannot read ''"),
        ("accuracy format", "cannot read 'format'"),
        ("accuracy ** 2", r"cannot read '\* 2'"),
        ("accuracy / 2", "cannot read '/ 2'"),
        ("(accuracy", r"'\)' is missing"),
        ("accuracy)", r"cannot read '\)'"),
        ("accuracy >= format", "a number is missing"),
        ("min()", r"cannot read '\)'"),
        ("min", "there is no reward 'min'"),
        ("abs(accuracy)", "there is no reward 'abs'"),
        ("__import__('os')", "there is no reward '__import__'"),
        ("1e9*accuracy", "cannot read 'e9"),
        ("99999999*accuracy", "cannot read '9"),
        ("accuracy.real", r"cannot read '\.real'"),
        ("1", "names no reward"),
        ("beauty", "there is no reward 'beauty', there are accuracy, "),
        ("accuracy == 1", "cannot read '== 1'"),
        ("accuracy if format else 0", "cannot read 'if"),
        ("(" * 100 + "accuracy", r"'\)' is missing"),
    ],
)
def test_any_other_expression_is_refused_with_its_culprit(text: str, culprit: str) -> None:
    with pytest.raises(BadExpression, match=culprit):
        parse(text)


def leaves() -> st.SearchStrategy[str]:
    return st.sampled_from(sorted(PARTS)) | st.integers(0, 99).map(str) | st.decimals(0, 9, places=2).map(str)


def grown(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    pairs = st.tuples(inner, inner)
    return st.one_of(
        pairs.map(" + ".join),
        pairs.map("-".join),
        pairs.map(lambda pair: f"({pair[0]})*({pair[1]})"),
        inner.map("-({})".format),
        st.tuples(inner, st.sampled_from([">=", ">", "<=", "<"])).map(lambda pair: f"(({pair[0]}) {pair[1]} 0.5)"),
        pairs.map(lambda pair: f"min({pair[0]}, {pair[1]})"),
        pairs.map(lambda pair: f"max({pair[0]}, {pair[1]})"),
    )


@settings(max_examples=300)
@given(st.recursive(leaves(), grown, max_leaves=12))
def test_the_value_is_what_python_would_make_of_it(text: str) -> None:
    truth = eval(text, {"__builtins__": {}, "min": min, "max": max}, dict(PARTS))
    if not set(PARTS) & set(text.replace("(", " ").replace(")", " ").replace(",", " ").replace("*", " ").split()):
        text = f"{text} + 0*math"
    assert parse(text).value(PARTS) == pytest.approx(float(truth))


@given(st.text(max_size=256))
def test_any_text_is_an_expression_or_is_refused(text: str) -> None:
    try:
        parse(text)
    except BadExpression:
        return
