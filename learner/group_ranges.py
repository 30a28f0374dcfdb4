"""Sets of group ids as compact ranges: ascending, with a gap between any two.

Groups are consumed almost in order, so that a run of any length needs a few ranges.
"""

from collections.abc import Iterable

from protocol.messages import GroupRange


def merged(ranges: Iterable[GroupRange], group_ids: Iterable[int]) -> tuple[GroupRange, ...]:
    """`ranges` and `group_ids` in one. Raises `ValueError` for a group that is in both, or twice in the latter."""
    spans = [(each.first, each.last) for each in ranges] + [(group_id, group_id) for group_id in group_ids]
    joined: list[tuple[int, int]] = []
    for first, last in sorted(spans):
        if joined and first <= joined[-1][1]:
            raise ValueError(f"group {first} would be consumed twice")
        if joined and first == joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], last)
        else:
            joined.append((first, last))
    return tuple(GroupRange(first=first, last=last) for first, last in joined)


def count(ranges: Iterable[GroupRange]) -> int:
    """How many groups the ranges hold."""
    return sum(each.last - each.first + 1 for each in ranges)


def holds(ranges: Iterable[GroupRange], group_id: int) -> bool:
    """Whether a group is in one of the ranges."""
    return any(each.first <= group_id <= each.last for each in ranges)
