"""Ranges of group ids hold what a set would hold."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner.group_ranges import count, merged
from protocol.codec import decode, encode
from protocol.errors import MalformedMessage
from protocol.messages import GroupRange, Resume


def expanded(ranges: tuple[GroupRange, ...]) -> list[int]:
    return [group_id for each in ranges for group_id in range(each.first, each.last + 1)]


@given(st.lists(st.sets(st.integers(0, 60), max_size=8), max_size=8))
def test_merging_batches_is_uniting_sets_and_leaves_a_gap_between_any_two_ranges(batches: list[set[int]]) -> None:
    ranges: tuple[GroupRange, ...] = ()
    seen: set[int] = set()
    for batch in batches:
        new = batch - seen
        ranges, seen = merged(ranges, new), seen | new
    assert expanded(ranges) == sorted(seen)
    assert count(ranges) == len(seen)
    assert all(after.first > before.last + 1 for before, after in pairwise(ranges))
    message = Resume(policy_version=1, consumed=ranges)
    assert decode(encode(message)) == message


@pytest.mark.parametrize("again", [[4], [9, 9], [7, 8, 3]])
def test_a_group_that_is_consumed_twice_is_an_error(again: list[int]) -> None:
    with pytest.raises(ValueError, match=r"group \d would be consumed twice"):
        merged((GroupRange(first=2, last=5),), again)


@pytest.mark.parametrize(
    ("pairs", "field"),
    [
        ([(0, 3), (4, 5)], "consumed\\[1\\].first"),
        ([(0, 1), (7, 9), (8, 12)], "consumed\\[2\\].first"),
        ([(5, 6), (0, 1)], "consumed\\[1\\].first"),
        ([(3, 1)], "last"),
    ],
)
def test_ranges_that_touch_overlap_or_end_before_they_begin_are_malformed(
    pairs: list[tuple[int, int]], field: str
) -> None:
    with pytest.raises(MalformedMessage, match=field):
        Resume(policy_version=1, consumed=tuple(GroupRange(first=first, last=last) for first, last in pairs))
