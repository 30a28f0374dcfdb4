"""The arithmetic of a run in its steady state. Pure; seconds, tokens, and means over a long time.

Symbols: B groups a step, G rollouts a group, L mean tokens of a rollout, η max_staleness, q share of groups dropped;
an actor's step of b rollouts takes t(b) = f + s·b, a learner's step T = o + B·G·L/r.

While the learner trains the batch of version v, at most (η + v + 1)·B groups are leased and (v + 1)·B were handed out,
so that at most W = η·B·G rollouts are on their way. A busy learner consumes D = B·G·L/T tokens a second, of which
D/(1 − q) must be generated. N actors that decode b rollouts each generate N·b/t(b), with N·b ≤ W (Little's law: a
rollout takes L·t(b), so that no more than W/(L·t(b)) of them end in a second). More rollouts a step are cheaper, so the
fewest actors decode as many as they may: b = max_num_seqs if the window is wide enough for it, else the b for which the
window itself is the limit, N·b = W, hence t(b) = W·(1 − q)/D. Where that is less than f no number of actors will do:
one rollout alone takes longer than the staleness bound allows.
"""

import math

from deploy.plan.rates import Rates


def step_seconds(rates: Rates) -> float:
    """T: a learner step with nothing to wait for."""
    tokens = rates.stream.rollouts_per_step * rates.length_mean
    return rates.learner.step_seconds + tokens / rates.learner.tokens_per_second


def demand(rates: Rates) -> float:
    """D/(1 − q): tokens a second to be generated for a learner that never waits."""
    tokens = rates.stream.rollouts_per_step * rates.length_mean
    return tokens / step_seconds(rates) / (1 - rates.stream.dropped_share)


def window(rates: Rates) -> int:
    """W: rollouts that may be on their way while the learner trains."""
    return rates.stream.max_staleness * rates.stream.rollouts_per_step


def actors_needed(rates: Rates) -> int | None:
    """The fewest actors that keep the learner busy, were all rollouts alike; None: no number of them does."""
    actor, wanted, full = rates.actor, demand(rates), actors_with_full_batches(rates)
    if full * actor.max_num_seqs <= window(rates):
        return full
    seconds = window(rates) / wanted  # of an engine step, when the window is full
    if seconds <= actor.seconds(1):
        return None
    if actor.rollout_seconds == 0:
        return full
    return max(full, math.ceil(window(rates) * actor.rollout_seconds / (seconds - actor.step_seconds) - 1e-9))


def actors_with_full_batches(rates: Rates) -> int:
    """The fewest actors that generate what the learner wants, were there always enough to decode."""
    return math.ceil(demand(rates) / rates.actor.tokens_per_second(rates.actor.max_num_seqs) - 1e-9)


def verifiers_needed(rates: Rates, load: float = 0.7) -> int:
    """Verifiers whose workers are busy for `load` of the time, so that checks hardly queue."""
    checks = demand(rates) / rates.length_mean  # a second
    return max(1, math.ceil(checks * rates.verifier.check_seconds / load / rates.verifier.workers - 1e-9))


def bound(rates: Rates, actors: int) -> float:
    """Steps a second that no schedule exceeds: the slower of the learner, and of the actors with full batches."""
    per_step = rates.stream.rollouts_per_step * rates.length_mean / (1 - rates.stream.dropped_share)
    generated = actors * rates.actor.tokens_per_second(rates.actor.max_num_seqs)
    return min(1 / step_seconds(rates), generated / per_step)


def staleness_needed(rates: Rates, longest: int) -> int:
    """The least η for which a rollout of `longest` tokens, decoded by full engines, comes before the learner waits."""
    seconds = longest * rates.actor.seconds(rates.actor.max_num_seqs) + rates.actor.fetch_seconds
    return math.ceil((seconds + rates.verifier.check_seconds) / step_seconds(rates) - 1e-9)


def cost_an_hour(actors: int, verifiers: int, *, learner_hour: float, actor_hour: float, verifier_hour: float) -> float:
    """Of all of them together, in the currency of the prices."""
    return learner_hour + actors * actor_hour + verifiers * verifier_hour


def cost_a_million(cost_hour: float, tokens_per_second: float) -> float:
    """Of a million trained tokens."""
    return cost_hour / 3600 / tokens_per_second * 1e6 if tokens_per_second else math.inf
