"""The planner's options. What is left empty is as it was measured; without a measurement it must be given."""

import math
import random
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from deploy.plan import records
from deploy.plan.rates import ActorRate, LearnerRate, Rates, Stream, VerifierRate, check
from deploy.plan.simulation import Faults
from protocol.options import option

DRAWS = 10_000  # lengths drawn from a distribution that is given by its mean
HOUR = 3600.0


@dataclass(kw_only=True, slots=True)
class ActorOptions:
    """An engine step that decodes b rollouts takes `step_seconds + rollout_seconds·b`."""

    step_seconds: float | None = option(None, "seconds of an engine step, however little it decodes")
    rollout_seconds: float | None = option(None, "seconds more for each rollout that it decodes")
    max_num_seqs: int | None = option(None, "rollouts decoded at the same time")
    room: int | None = option(None, "rollouts that an actor holds; without a measurement 1.5 × max_num_seqs")
    fetch_seconds: float | None = option(None, "seconds from the publishing of a version until an actor has it")
    swap_seconds: float | None = option(None, "seconds for which decoding stops when a version is loaded")


@dataclass(kw_only=True, slots=True)
class VerifierOptions:
    """A verifier process."""

    check_seconds: float | None = option(None, "seconds of one check")
    workers: int | None = option(None, "checks at the same time")


@dataclass(kw_only=True, slots=True)
class LearnerOptions:
    """All ranks of the learner together."""

    tokens_per_second: float | None = option(None, "completion tokens trained a second while it does not wait")
    step_seconds: float | None = option(None, "seconds of a step besides")


@dataclass(kw_only=True, slots=True)
class StreamOptions:
    """As in the run's own `stream`."""

    group_size: int | None = option(None, "rollouts a task (G)")
    groups_per_step: int | None = option(None, "groups a learner step")
    max_staleness: int | None = option(None, "learner steps between sampling a token and training on it, at most")
    dropped_share: float | None = option(None, "share of finished groups that are dropped and leased anew")
    silence_seconds: float | None = option(None, "time after which a silent actor is taken for dead")
    lease_attempts: int | None = option(None, "leases a group may use up before it is dropped")


@dataclass(kw_only=True, slots=True)
class LengthOptions:
    """Completion tokens of a rollout: log-normal if `mean` is given, else as measured."""

    mean: float | None = option(None, "mean")
    variation: float = option(0.7, "standard deviation divided by the mean")
    longest: int = option(0, "sampling.max_tokens; 0: no bound")


@dataclass(kw_only=True, slots=True)
class FaultOptions:
    """What goes wrong."""

    slow_share: float = option(0.0, "share of the actors that are slow for good")
    slow_factor: float = option(2.0, "times as long as the others that they take")
    actor_failure_hours: float = option(0.0, "mean hours until an actor dies; 0: none does")
    restart_seconds: float = option(60.0, "seconds until one that died is back")


@dataclass(kw_only=True, slots=True)
class PriceOptions:
    """In any currency, an hour."""

    learner_hour: float = option(0.0, "the learner and the broker, all ranks together")
    actor_hour: float = option(0.0, "one actor")
    verifier_hour: float = option(0.0, "one verifier")


@dataclass(kw_only=True, slots=True)
class PlanRoot:
    """All that `python -m deploy.plan` reads."""

    rates: str = option("", "run directory, or rates.json of one, from which the speeds are taken")
    actors: int = option(0, "actors to simulate; 0: find the fewest that keep the learner busy")
    verifiers: int = option(0, "verifiers to simulate; 0: as many as keep their queue short")
    busy: float = option(0.95, "share of the time for which the learner is to be busy, when the actors are to be found")
    steps: int = option(20, "learner steps to simulate, after a warm-up")
    seed: int = option(0, "seed of lengths and failures")
    out: str = option("", "JSON file for the result; empty: none")
    actor: ActorOptions = field(default_factory=ActorOptions)
    verifier: VerifierOptions = field(default_factory=VerifierOptions)
    learner: LearnerOptions = field(default_factory=LearnerOptions)
    stream: StreamOptions = field(default_factory=StreamOptions)
    lengths: LengthOptions = field(default_factory=LengthOptions)
    faults: FaultOptions = field(default_factory=FaultOptions)
    prices: PriceOptions = field(default_factory=PriceOptions)


NEEDED = {  # without a measurement; all else has a default then
    "actor": ("step_seconds", "rollout_seconds", "max_num_seqs"),
    "verifier": ("check_seconds",),
    "learner": ("tokens_per_second",),
    "stream": ("group_size", "groups_per_step", "max_staleness"),
}


def planned(config: PlanRoot) -> Rates:
    """The rates to plan with: measured ones overlaid by those that are given. Raises `ValueError`."""
    check_options(config)
    if not config.rates:
        return check(_given(config))
    if not Path(config.rates).exists():
        raise ValueError(f"rates={config.rates}: must be a run directory or the rates.json of one, is not there")
    measured = records.read(Path(config.rates))
    drawn = lengths(config.lengths, config.seed) if config.lengths.mean is not None else measured.lengths
    return check(
        Rates(
            actor=replace(measured.actor, **_said(config.actor)),
            verifier=replace(measured.verifier, **_said(config.verifier)),
            learner=replace(measured.learner, **_said(config.learner)),
            stream=replace(measured.stream, **_said(config.stream)),
            lengths=drawn,
            notes=measured.notes,
        )
    )


def faults(options: FaultOptions) -> Faults:
    """As the simulation takes them."""
    return Faults(
        slow_share=options.slow_share,
        slow_factor=options.slow_factor,
        actor_failure_seconds=HOUR * options.actor_failure_hours,
        restart_seconds=options.restart_seconds,
    )


def lengths(options: LengthOptions, seed: int) -> tuple[int, ...]:
    """Draws from the log-normal distribution with this mean and variation, cut at `longest`."""
    assert options.mean is not None
    variance = math.log(1 + options.variation**2)
    mean, longest = math.log(options.mean) - variance / 2, options.longest or math.inf
    generator = random.Random(seed)
    return tuple(int(min(max(1, round(generator.lognormvariate(mean, variance**0.5))), longest)) for _ in range(DRAWS))


def _given(config: PlanRoot) -> Rates:
    """Without a measurement."""
    missing = [
        f"{part}.{name}="
        for part, names in NEEDED.items()
        for name in names
        if getattr(getattr(config, part), name) is None
    ]
    missing += ["lengths.mean="] if config.lengths.mean is None else []
    if missing:
        raise ValueError(f"give a measured run (rates=runs/mine), or by hand also {' '.join(missing)}")
    actor = {"room": (config.actor.max_num_seqs or 0) * 3 // 2, **_said(config.actor)}
    return Rates(
        actor=ActorRate(**actor),
        verifier=VerifierRate(**{"workers": 1, **_said(config.verifier)}),
        learner=LearnerRate(**_said(config.learner)),
        stream=Stream(**_said(config.stream)),
        lengths=lengths(config.lengths, config.seed),
    )


def _said(options: Any) -> dict[str, Any]:
    """The options that were given."""
    return {each.name: value for each in fields(options) if (value := getattr(options, each.name)) is not None}


def check_options(config: PlanRoot) -> None:
    """Refuse what cannot be planned. Raises `ValueError`."""
    for name in ("actors", "verifiers"):
        if getattr(config, name) < 0:
            raise ValueError(f"{name}={getattr(config, name)}: must be 0 (to be found) or more")
    if config.steps < 2:
        raise ValueError(f"steps={config.steps}: must be 2 or more")
    if not 0 < config.busy < 1:
        raise ValueError(f"busy={config.busy}: must lie in (0, 1)")
    if config.lengths.mean is not None and config.lengths.mean < 1:
        raise ValueError(f"lengths.mean={config.lengths.mean}: must be 1 token or more")
    if config.lengths.variation < 0:
        raise ValueError(f"lengths.variation={config.lengths.variation}: must be 0 or more")
    if not 0 <= config.faults.slow_share <= 1:
        raise ValueError(f"faults.slow_share={config.faults.slow_share}: must lie in [0, 1]")
    if config.faults.slow_factor < 1:
        raise ValueError(f"faults.slow_factor={config.faults.slow_factor}: must be 1 or more")
    for name in ("actor_failure_hours", "restart_seconds"):
        if getattr(config.faults, name) < 0:
            raise ValueError(f"faults.{name}={getattr(config.faults, name)}: must be 0 or more")
    for each in fields(config.prices):
        if getattr(config.prices, each.name) < 0:
            raise ValueError(f"prices.{each.name}={getattr(config.prices, each.name)}: must be 0 or more")
