"""The simulated run: the broker's own rules, what can be reckoned by hand, and what must be true of every run."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plan_rates import rates

from deploy.plan import simulation
from deploy.plan.simulation import Faults, Outcome, Simulation
from learner.broker import admission

NONE = Faults()
LONG_TAIL = tuple([10] * 90 + [40] * 9 + [200])


def run(steps: int = 20, actors: int = 2, verifiers: int = 1, faults: Faults = NONE, **given: object) -> Outcome:
    """A simulated run with these rates."""
    return Simulation(rates(**given), actors=actors, verifiers=verifiers, faults=faults).run(steps)  # type: ignore[arg-type]


@given(st.integers(0, 20), st.integers(0, 4), st.integers(1, 9), st.lists(st.integers(0, 20), max_size=60))
def test_admission_and_order_are_the_brokers(version: int, staleness: int, groups: int, left: list[int]) -> None:
    shape = {"max_staleness": staleness, "groups_per_step": groups}
    assert simulation.limit(version, staleness, groups) == admission.limit(version=version, **shape)
    mine = simulation.in_time(Counter(left), version, staleness, groups)
    assert mine == admission.in_time(left, version=version, **shape)


def test_a_learner_with_plenty_of_actors_never_waits() -> None:
    outcome = run(actors=8, staleness=2, trained=2000.0)
    assert outcome.learner_busy == pytest.approx(1.0)
    assert outcome.trained_tokens_per_second == pytest.approx(2000.0)
    assert outcome.staleness_max <= 2


def test_one_slow_actor_is_the_bound_whatever_the_learner_can() -> None:
    # full batches of 16 take 0.026 s
    outcome = run(actors=1, staleness=4, trained=1e6)
    assert outcome.generated_tokens_per_second == pytest.approx(16 / 0.026, rel=0.02)
    assert outcome.actors_busy == pytest.approx(1.0, abs=0.01)
    assert outcome.rollouts_decoding == pytest.approx(16, abs=0.2)


def test_without_staleness_a_step_is_generating_then_fetching_checking_and_training() -> None:
    # one batch of 16 rollouts of 50 tokens: 50·0.026 s; the last check ends 16·0.01 s later
    outcome = run(
        actors=1, staleness=0, groups=4, check_seconds=0.01, fetch=0.5, swap=0.1, trained=800.0, overhead=0.25
    )
    seconds = 0.5 + 0.1 + 50 * 0.026 + 16 * 0.01 + 0.25 + 16 * 50 / 800
    assert 1 / outcome.steps_per_second == pytest.approx(seconds)
    assert (round(outcome.staleness_mean, 9), outcome.staleness_max) == (0, 0)


@pytest.mark.parametrize("staleness", [0, 1, 2, 5])
@pytest.mark.parametrize(
    "faults", [Faults(), Faults(slow_share=0.5, slow_factor=3, actor_failure_seconds=20, restart_seconds=2)]
)
def test_no_token_is_older_than_the_bound_whatever_happens(staleness: int, faults: Faults) -> None:
    outcome = run(actors=4, staleness=staleness, lengths=LONG_TAIL, fetch=0.05, swap=0.01, dropped=0.1, faults=faults)
    assert outcome.staleness_max <= staleness
    assert -1e-9 <= outcome.staleness_mean <= staleness + 1e-9
    assert outcome.actors_busy <= 1.0 + 1e-9
    assert outcome.learner_busy <= 1.0 + 1e-9


def test_the_same_seed_is_the_same_run() -> None:
    faults = Faults(actor_failure_seconds=5.0)
    assert run(lengths=LONG_TAIL, faults=faults) == run(lengths=LONG_TAIL, faults=faults)


def test_staleness_buys_throughput_where_lengths_have_a_tail() -> None:
    rates_of = [run(actors=4, staleness=bound, lengths=LONG_TAIL).steps_per_second for bound in (0, 1, 3)]
    assert rates_of[0] < rates_of[1] < rates_of[2]


def test_slow_actors_cost_no_more_than_they_would_have_sampled_when_the_bound_is_wide() -> None:
    fair = run(actors=10, staleness=30, trained=1e6, steps=60)
    slowed = run(actors=10, staleness=30, steps=60, trained=1e6, faults=Faults(slow_share=0.2, slow_factor=4.0))
    assert 0.7 * fair.steps_per_second < slowed.steps_per_second < 0.9 * fair.steps_per_second


def test_slow_actors_hold_everyone_up_when_the_bound_is_tight() -> None:
    fair = run(actors=10, staleness=2, trained=1e6)
    slowed = run(actors=10, staleness=2, trained=1e6, faults=Faults(slow_share=0.2, slow_factor=4.0))
    assert slowed.steps_per_second < 0.6 * fair.steps_per_second


def test_what_a_dead_actor_held_is_generated_again_and_nothing_stands_still() -> None:
    outcome = run(actors=4, faults=Faults(actor_failure_seconds=5.0, restart_seconds=2.0), steps=100)
    assert outcome.actors_lost > 10
    assert outcome.rollouts_lost > 0
    assert outcome.generated_tokens_per_second > outcome.trained_tokens_per_second


def test_a_group_that_nobody_lives_to_finish_is_dropped_after_its_leases() -> None:
    # a rollout takes 50·0.026 s, an actor lives for half a second
    outcome = run(actors=8, faults=Faults(actor_failure_seconds=0.5, restart_seconds=0.1), steps=3)
    assert outcome.groups_lost > 10


def test_verifiers_that_are_too_few_are_the_bound() -> None:
    outcome = run(actors=8, check_seconds=0.1, trained=1e6)
    assert outcome.verifiers_busy == pytest.approx(1.0, abs=0.01)
    assert outcome.steps_per_second == pytest.approx(1 / (0.1 * 64), rel=0.02)


def test_groups_that_are_dropped_are_generated_and_not_trained() -> None:
    outcome = run(actors=8, dropped=0.5, steps=100)
    assert outcome.trained_tokens_per_second / outcome.generated_tokens_per_second == pytest.approx(0.5, abs=0.03)


def test_a_group_larger_than_an_actors_room_is_sampled_all_the_same() -> None:
    assert run(group_size=64, groups=2, batch=16).steps_per_second > 0


def test_a_run_without_actors_is_a_standstill_and_says_so() -> None:
    with pytest.raises(ValueError, match="standstill at version 0"):
        run(actors=0)


def test_a_thousand_actors_are_simulated_in_seconds() -> None:
    measured = replace(rates(groups=1024, group_size=8, staleness=8, trained=2e5, batch=64), lengths=LONG_TAIL)
    outcome = Simulation(measured, actors=1000, verifiers=1).run(5)
    assert outcome.learner_busy > 0.9
