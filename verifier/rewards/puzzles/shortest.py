"""The fewest steps from a beginning to an end."""

from collections.abc import Callable, Hashable, Iterable
from heapq import heappop, heappush
from typing import TypeVar

State = TypeVar("State", bound=Hashable)


def breadth_first(begin: State, following: Callable[[State], Iterable[State]]) -> dict[State, int]:
    """All states that can be reached, each with the fewest steps to it, the nearest first."""
    steps = {begin: 0}
    waiting = [begin]
    for state in waiting:
        for each in following(state):
            if each not in steps:
                steps[each] = steps[state] + 1
                waiting.append(each)
    return steps


def best_first(begin: State, following: Callable[[State], Iterable[State]], least: Callable[[State], int]) -> int:
    """Steps to the nearest state from which `least` is 0, by A*. Raises `ValueError` when none can be reached.

    `least` is a number of steps that are still needed at least, and falls by at most 1 with each step: so a state that
    is taken up has been reached by the fewest steps. Among equals the one that seems nearest to the end is taken up.
    """
    fewest = {begin: 0}
    waiting = [(least(begin), least(begin), begin)]
    while waiting:
        bound, left, state = heappop(waiting)
        steps = bound - left
        if left == 0:
            return steps
        if steps > fewest[state]:
            continue  # reached by fewer steps meanwhile
        for each in following(state):
            if steps + 1 < fewest.get(each, steps + 2):
                fewest[each] = steps + 1
                further = least(each)
                heappush(waiting, (steps + 1 + further, further, each))
    raise ValueError("it cannot be solved")
