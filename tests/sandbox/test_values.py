"""Values cross the wall as plain data: what honest programs use comes through, what hostile ones send is refused."""

import json
import math
from collections import Counter, OrderedDict, defaultdict, namedtuple
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verifier.sandbox import values
from verifier.sandbox.values import Unsendable

HASHABLE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3),
    max_leaves=5,
)
VALUES = st.recursive(
    HASHABLE | st.complex_numbers(allow_nan=False),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(HASHABLE, inner, max_size=4)
        | st.sets(HASHABLE, max_size=4)
        | st.tuples(inner)
    ),
    max_leaves=20,
)


@given(VALUES)
def test_a_value_comes_back_as_it_was(value: Any) -> None:
    found = values.load(values.dump(value))
    assert found == value
    assert type(found) is type(value)
    assert b"\n" not in values.dump(value)


@pytest.mark.parametrize("value", [math.nan, [math.nan, math.inf, -math.inf], complex(math.nan, 1), -0.0])
def test_numbers_that_are_none_come_through(value: Any) -> None:
    assert repr(values.load(values.dump(value))) == repr(value)


def test_what_is_almost_plain_becomes_plain() -> None:
    point = namedtuple("point", "x y")
    for value, plain in [
        (Counter("aab"), {"a": 2, "b": 1}),
        (OrderedDict(a=1), {"a": 1}),
        (defaultdict(list, a=[1]), {"a": [1]}),
        (point(1, 2), (1, 2)),
        (bytearray(b"x"), b"x"),
        (range(1, 9, 2), range(1, 9, 2)),
    ]:
        found = values.load(values.dump(value))
        assert found == plain
        assert type(found) is type(plain)
    assert list(values.load(values.dump(iter([1, 2])))) == [1, 2]
    assert list(values.load(values.dump(x * x for x in range(4)))) == [0, 1, 4, 9]


def test_a_disguise_does_not_come_along() -> None:
    class Number(int):
        def __eq__(self, other: object) -> bool:
            return True

        def __hash__(self) -> int:
            return 0

        def __index__(self) -> int:
            return 3

        def __repr__(self) -> str:
            return "3"

    class Text(str):
        def __eq__(self, other: object) -> bool:
            return True

        def __hash__(self) -> int:
            return 0

        def __str__(self) -> str:
            return "right"

    assert values.load(values.dump(Number(-1))) == -1
    assert values.load(values.dump(Text("wrong"))) == "wrong"


def endless() -> Any:
    while True:
        yield 0


def circle() -> list[Any]:
    found: list[Any] = []
    found.append(found)
    return found


@pytest.mark.parametrize("thing", [object(), print, json, int, endless(), circle(), [{"a": lambda: 1}], ValueError()])
def test_a_thing_is_no_value(thing: Any) -> None:
    with pytest.raises(Unsendable):
        values.dump(thing)


@given(st.binary(max_size=200))
def test_whatever_comes_is_a_value_or_a_value_error(line: bytes) -> None:
    try:
        values.load(line)
    except ValueError:
        return


@pytest.mark.parametrize(
    "line",
    [
        "",
        "nonsense",
        "[",
        "[" * 100_000,
        '{"a": 1, "b": 2}',
        '{"list": []}',
        '{"int": 5}',
        '{"int": "1g"}',
        '{"float": []}',
        '{"bytes": "?"}',
        '{"bytes": 5}',
        '{"tuple": 5}',
        '{"set": [[]]}',
        '{"dict": [1]}',
        '{"dict": [[[], 1]]}',
        '{"complex": [1, 2, 3]}',
        '{"range": [1, 2, 0]}',
        '{"__class__": "os.system"}',
        "9" * 5000,
        '{"tuple":' * 300 + "[]" + "}" * 300,
    ],
)
def test_nonsense_is_a_value_error(line: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 any text will do
        values.load(line.encode())
