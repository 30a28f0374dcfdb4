"""The search: its answer is enough, and one much smaller is not."""

import pytest
from plan_rates import rates

from deploy.plan.rates import Rates
from deploy.plan.simulation import Outcome, Simulation
from deploy.plan.sizing import fewest_actors


def found(measured: Rates, target: float = 0.95) -> tuple[Outcome, list[int]]:
    """The answer, and what was tried for it."""
    tried = []

    def simulate(actors: int) -> Outcome:
        tried.append(actors)
        return Simulation(measured, actors=actors, verifiers=1).run(20)

    return fewest_actors(measured, target, simulate), tried


@pytest.mark.parametrize("trained", [500.0, 2000.0, 8000.0])
def test_the_fewest_actors_are_enough_and_one_less_is_not(trained: float) -> None:
    measured = rates(staleness=3, groups=32, trained=trained, batch=16)
    outcome, tried = found(measured)
    assert outcome.learner_busy >= 0.95
    assert (
        outcome.actors == 1 or Simulation(measured, actors=outcome.actors - 1, verifiers=1).run(20).learner_busy < 0.95
    )
    assert len(tried) == len(set(tried)) <= 12


def test_where_no_number_is_enough_the_search_ends_where_more_gain_nothing() -> None:
    measured = rates(staleness=0, groups=8)
    outcome, _ = found(measured)
    assert outcome.learner_busy < 0.95
    more = Simulation(measured, actors=4 * outcome.actors, verifiers=1).run(20)
    assert more.learner_busy < outcome.learner_busy + 0.05
