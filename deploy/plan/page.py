"""What the planner prints."""

from collections.abc import Sequence

from deploy.plan import capacity
from deploy.plan.config import PlanRoot, PriceOptions
from deploy.plan.measure import told
from deploy.plan.rates import Rates
from deploy.plan.simulation import Outcome

HEAD = ("actors", "verifiers", "learner busy", "actors busy", "decoding", "tokens/s", "s a step", "stale", "most")


def neighbours(actors: int) -> list[int]:
    """Numbers to compare with."""
    return sorted({max(1, actors // 2), max(1, round(0.8 * actors)), round(1.25 * actors), 2 * actors} - {actors})


def lines(rates: Rates, found: Outcome, others: Sequence[Outcome], config: PlanRoot) -> list[str]:
    """The whole answer."""
    stream = rates.stream
    text = [
        f"measured: {told(rates)}",
        f"stream: {stream.groups_per_step} groups of {stream.group_size} a step, max_staleness {stream.max_staleness}, "
        f"{stream.dropped_share:.1%} of the groups dropped",
        f"a learner that never waits takes {capacity.step_seconds(rates):.3g} s a step and wants "
        f"{capacity.demand(rates):,.0f} tokens/s",
        f"arithmetic: {_arithmetic(rates)}",
        "",
    ]
    text += table(sorted([found, *others], key=lambda outcome: outcome.actors), config.prices)
    text += ["", f"→ {answer(rates, found, config)}"]
    return text


def _arithmetic(rates: Rates) -> str:
    needed, verifiers = capacity.actors_needed(rates), capacity.verifiers_needed(rates)
    if needed is None:
        return (
            f"no number of actors: of {capacity.window(rates)} rollouts that may be on their way at once, each would "
            f"have to be faster than one alone (stream.max_staleness={rates.stream.max_staleness})"
        )
    return f"{_count(needed, 'actor')} and {_count(verifiers, 'verifier')}, were all rollouts alike"


def answer(rates: Rates, found: Outcome, config: PlanRoot) -> str:
    """The recommendation, or what the given numbers come to, in a sentence."""
    numbers = f"{_count(found.actors, 'actor')} and {_count(found.verifiers, 'verifier')}"
    result = (
        f"the learner is busy {found.learner_busy:.0%} of the time, trains {found.trained_tokens_per_second:,.0f} "
        f"tokens/s on tokens {found.staleness_mean:.2f} steps old ({found.staleness_max} at most)"
    )
    lost = f"; {found.actors_lost} actors died, with {found.rollouts_lost:,} rollouts" if found.actors_lost else ""
    if config.actors or found.learner_busy >= config.busy:
        return f"{numbers}: {result}{lost}"
    longest = max(rates.lengths)
    enough = capacity.staleness_needed(rates, longest)
    why = (
        f"the longest rollouts ({longest:,} tokens) would need stream.max_staleness={enough} not to be waited for"
        if enough > rates.stream.max_staleness
        else "more actors do not help: look at verifiers, failures and slow actors"
    )
    return f"{numbers}, and no more: {result}{lost}; {why}"


def table(outcomes: Sequence[Outcome], prices: PriceOptions) -> list[str]:
    """A line for each number of actors; prices only if there are any."""
    priced = any((prices.learner_hour, prices.actor_hour, prices.verifier_hour))
    rows = [(*HEAD, *(("cost/h", "cost/M tokens") if priced else ()))]
    for outcome in outcomes:
        cells = [
            f"{outcome.actors:,}",
            f"{outcome.verifiers:,}",
            f"{outcome.learner_busy:.1%}",
            f"{outcome.actors_busy:.1%}",
            f"{outcome.rollouts_decoding:.1f}",
            f"{outcome.trained_tokens_per_second:,.0f}",
            f"{1 / outcome.steps_per_second:.3g}",
            f"{outcome.staleness_mean:.2f}",
            f"{outcome.staleness_max}",
        ]
        if priced:
            hour = capacity.cost_an_hour(
                outcome.actors,
                outcome.verifiers,
                learner_hour=prices.learner_hour,
                actor_hour=prices.actor_hour,
                verifier_hour=prices.verifier_hour,
            )
            cells += [f"{hour:,.2f}", f"{capacity.cost_a_million(hour, outcome.trained_tokens_per_second):,.3f}"]
        rows.append(tuple(cells))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
