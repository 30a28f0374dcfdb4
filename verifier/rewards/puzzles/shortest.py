"""The fewest steps from a beginning to an end."""

from collections.abc import Callable, Hashable, Iterable
from heapq import heappop, heappush
from itertools import count
from typing import TypeVar

State = TypeVar("State", bound=Hashable)


def breadth_first(begin: State, following: Callable[[State], Iterable[State]], ends: Callable[[State], bool]) -> int:
    """Steps to the nearest state that `ends`. Raises `ValueError` when none can be reached."""
    seen, level, steps = {begin}, [begin], 0
    while level:
        if any(map(ends, level)):
            return steps
        further = []
        for state in level:
            for each in following(state):
                if each not in seen:
                    seen.add(each)
                    further.append(each)
        level, steps = further, steps + 1
    raise ValueError("it cannot be solved")


def best_first(begin: State, following: Callable[[State], Iterable[State]], least: Callable[[State], int]) -> int:
    """Steps to the nearest state from which `least` is 0, by A*. Raises `ValueError` when none can be reached.

    `least` is a number of steps that are still needed at least, and falls by at most 1 with each step.
    """
    order = count()
    taken = {begin: 0}
    waiting = [(least(begin), next(order), begin)]
    while waiting:
        bound, _, state = heappop(waiting)
        steps, left = taken[state], least(state)
        if left == 0:
            return steps
        if bound > steps + left:
            continue  # reached by fewer steps meanwhile
        for each in following(state):
            if steps + 1 < taken.get(each, steps + 2):
                taken[each] = steps + 1
                heappush(waiting, (steps + 1 + least(each), next(order), each))
    raise ValueError("it cannot be solved")
