"""The arithmetic, held against cases that a hand can reckon, and against the simulation."""

import math
from dataclasses import replace

import pytest
from plan_rates import rates

from deploy.plan import capacity
from deploy.plan.simulation import Simulation


def test_a_learner_step_is_its_tokens_and_what_comes_on_top() -> None:
    assert capacity.step_seconds(rates(length=100, group_size=4, groups=8, trained=1600.0, overhead=0.5)) == 2.5


def test_dropped_groups_are_generated_too() -> None:
    plain = rates(length=100, trained=1000.0)
    assert capacity.demand(plain) == 1000.0
    assert capacity.demand(replace(plain, stream=replace(plain.stream, dropped_share=0.2))) == pytest.approx(1250.0)


def test_with_a_wide_window_actors_decode_full_batches() -> None:
    # 10 rollouts in a step of 0.1 s: 100 tokens/s an actor, of which the learner wants 1,000
    wide = rates(staleness=8, groups=32, step=0.0, rollout=0.01, batch=10, trained=1000.0)
    assert capacity.actors_needed(wide) == 10


def test_with_a_narrow_window_more_actors_decode_less_each() -> None:
    # 32 rollouts on their way: t(b) must be 32/1000 s, which leaves 0.012 s for b = 1.2 rollouts
    narrow = rates(staleness=1, groups=8, group_size=4, step=0.02, rollout=0.01, batch=10, trained=1000.0)
    assert capacity.actors_needed(narrow) == math.ceil(32 / 1.2)


def test_a_window_that_is_too_narrow_cannot_be_mended_by_actors() -> None:
    assert capacity.actors_needed(rates(staleness=0)) is None
    assert capacity.actors_needed(rates(staleness=1, groups=1, group_size=4, step=0.02, trained=1000.0)) is None


def test_verifiers_keep_a_third_of_their_time_free() -> None:
    assert capacity.verifiers_needed(rates(length=100, trained=1000.0, check_seconds=0.7)) == 10
    assert capacity.verifiers_needed(rates(length=100, trained=1000.0, check_seconds=0.7, workers=4)) == 3
    assert capacity.verifiers_needed(rates(check_seconds=0.0)) == 1


def test_the_staleness_that_a_long_rollout_needs() -> None:
    # full engines take 0.02 + 10·0.01 s a token; a learner step 3.2 s
    measured = rates(length=100, group_size=4, groups=8, step=0.02, rollout=0.01, batch=10, trained=1000.0)
    assert capacity.staleness_needed(measured, 26) == 1
    assert capacity.staleness_needed(measured, 100) == 4


def test_costs() -> None:
    hour = capacity.cost_an_hour(10, 2, learner_hour=20.0, actor_hour=3.0, verifier_hour=0.5)
    assert hour == 51.0
    assert capacity.cost_a_million(36.0, 10_000.0) == pytest.approx(1.0)
    assert capacity.cost_a_million(36.0, 0.0) == math.inf


@pytest.mark.parametrize("actors", [1, 2, 5, 20])
@pytest.mark.parametrize("staleness", [0, 1, 4])
def test_no_simulation_beats_the_bound(actors: int, staleness: int) -> None:
    measured = rates(staleness=staleness, step=0.01, rollout=0.001, batch=16, trained=3000.0, length=40)
    outcome = Simulation(measured, actors=actors, verifiers=1).run(20)
    assert outcome.steps_per_second <= 1.02 * capacity.bound(measured, actors)


@pytest.mark.parametrize("staleness", [1, 2, 6])
def test_with_rollouts_that_are_alike_the_arithmetic_is_nearly_the_simulations_answer(staleness: int) -> None:
    measured = rates(staleness=staleness, groups=64, group_size=4, step=0.004, rollout=0.001, batch=32, trained=4000.0)
    needed = capacity.actors_needed(measured)
    assert needed is not None
    busy = {
        count: Simulation(measured, actors=count, verifiers=1).run(30).learner_busy
        for count in (needed // 2, 2 * needed)
    }
    assert busy[needed // 2] < 0.8
    assert busy[2 * needed] > 0.95
