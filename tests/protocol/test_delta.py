"""A delta makes the new shard of the base, bit by bit, and what is no delta changes nothing."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import delta
from protocol.delta import HEADER, WIDE, Bytes, DamagedDelta


def shard(seed: int, size: int) -> Bytes:
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)


def applied(base: Bytes, coded: Bytes) -> Bytes:
    copy = base.copy()
    delta.apply(copy, coded)
    return copy


@given(base=st.binary(max_size=300), seed=st.integers(0, 99), share=st.floats(0, 1))
def test_any_bytes_arrive_bit_by_bit(base: bytes, seed: int, share: float) -> None:
    old = np.frombuffer(base, dtype=np.uint8)
    random = np.random.default_rng(seed)
    new = np.where(random.random(len(old)) < share, random.integers(0, 256, len(old), dtype=np.uint8), old)
    coded = delta.encode(old, new)
    if np.array_equal(old, new):
        assert len(coded) == 0
    else:
        np.testing.assert_array_equal(applied(old, coded), new)


@given(places=st.sets(st.integers(0, 4999), min_size=1, max_size=40), seed=st.integers(0, 99))
def test_words_far_apart_and_steps_of_any_size_arrive(places: set[int], seed: int) -> None:
    old = shard(seed, 10_000)
    new = old.copy()
    steps = np.random.default_rng(seed).integers(1, 2**16, len(places)).astype(np.uint16)
    new.view(np.uint16)[sorted(places)] += steps
    np.testing.assert_array_equal(applied(old, delta.encode(old, new)), new)


@pytest.mark.parametrize("gap", [0, WIDE - 1, WIDE, WIDE + 1, 70_000])
@pytest.mark.parametrize("step", [1, -1, 127, 128, -127, -128, 2**15 - 1, -(2**15)])
def test_the_edges_of_the_byte_arrive(gap: int, step: int) -> None:
    old = np.zeros(300_000, dtype=np.uint8)
    new = old.copy()
    new.view(np.int16)[[gap, 2 * gap + 1]] = step
    np.testing.assert_array_equal(applied(old, delta.encode(old, new)), new)


def test_a_word_that_moves_by_a_unit_costs_two_bytes_at_most() -> None:
    old = shard(0, 2**20)
    new = old.copy()
    new.view(np.uint16)[np.random.default_rng(1).random(2**19) < 0.02] += 1
    changed = int((old.view(np.uint16) != new.view(np.uint16)).sum())
    assert len(delta.encode(old, new)) < 1.2 * changed


def test_steps_not_values_are_coded_so_that_a_wrong_base_makes_a_wrong_shard() -> None:
    old, new = shard(0, 1000), shard(1, 1000)
    coded = delta.encode(old, new)
    assert not np.array_equal(applied(shard(2, 1000), coded), new)


@settings(max_examples=200)
@given(data=st.data())
def test_damaged_bytes_are_refused_or_stay_inside_the_shard(data: st.DataObject) -> None:
    old, new = shard(0, 3001), shard(0, 3001)
    new[7::50] ^= 3
    coded = delta.encode(old, new).copy()
    for place in data.draw(st.lists(st.integers(0, len(coded) - 1), min_size=1, max_size=4)):
        coded[place] = data.draw(st.integers(0, 255))
    coded = coded[: data.draw(st.integers(0, len(coded)))]
    guarded = np.full(3101, 7, dtype=np.uint8)
    guarded[50:3051] = old
    try:
        delta.apply(guarded[50:3051], coded)
    except DamagedDelta:
        np.testing.assert_array_equal(guarded[50:3051], old)
    assert (guarded[:50] == 7).all()
    assert (guarded[3051:] == 7).all()


def test_a_header_that_promises_too_much_is_refused_before_anything_is_unpacked() -> None:
    coded = np.frombuffer(HEADER.pack(2**32 - 1, 0, 0) + b"\0" * 20, dtype=np.uint8)
    with pytest.raises(DamagedDelta, match="4294967295 changed words"):
        delta.apply(shard(0, 100), coded)


def test_a_delta_of_a_longer_shard_is_refused() -> None:
    old, new = np.zeros(1000, dtype=np.uint8), np.zeros(1000, dtype=np.uint8)
    new[998] = 1
    short = np.zeros(500, dtype=np.uint8)
    with pytest.raises(DamagedDelta, match="word 499 lies behind the end of a shard of 250 words"):
        delta.apply(short, delta.encode(old, new))
