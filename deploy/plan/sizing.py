"""The search for the fewest actors that keep a learner busy: the arithmetic says where to begin, simulation decides."""

from collections.abc import Callable

from deploy.plan import capacity
from deploy.plan.rates import Rates
from deploy.plan.simulation import Outcome

MOST = 1 << 14  # actors that are tried
PLATEAU = 0.01  # of the learner's time: what twice the actors must gain, else more of them are no help

Simulate = Callable[[int], Outcome]  # number of actors → what it gives


def fewest_actors(rates: Rates, target: float, simulate: Simulate) -> Outcome:
    """The outcome with the fewest actors with which the learner is busy for `target` of the time.

    Where no number of them achieves that, the fewest that come within `PLATEAU` of what any number does.
    """
    tried: dict[int, Outcome] = {}

    def busy(actors: int) -> float:
        if actors not in tried:
            tried[actors] = simulate(actors)
        return tried[actors].learner_busy

    most = capacity.actors_needed(rates) or capacity.actors_with_full_batches(rates)
    while busy(most) < target and 2 * most <= MOST:
        if busy(2 * most) < busy(most) + PLATEAU:
            target = busy(most) - PLATEAU
            break
        most *= 2
    least = 0  # too few
    while most - least > max(1, most // 50):
        middle = (least + most) // 2
        if busy(middle) >= target:
            most = middle
        else:
            least = middle
    busy(most)
    return tried[most]
