"""What is measured of a run, or given by hand: the speeds of its parts and the shape of its stream."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

FILE = "rates.json"  # in the run's directory


@dataclass(frozen=True, kw_only=True, slots=True)
class ActorRate:
    """An engine step that decodes b rollouts, a token each, takes `step_seconds + rollout_seconds * b`."""

    step_seconds: float  # of a step, however little it decodes
    rollout_seconds: float  # more for each rollout that it decodes
    max_num_seqs: int  # rollouts that a step decodes at most
    room: int  # rollouts that an actor holds at most, waiting ones included
    fetch_seconds: float = 0.0  # from the publishing of a version until an actor has it
    swap_seconds: float = 0.0  # for which decoding stops when a version is loaded

    def seconds(self, rollouts: float) -> float:
        """One step that decodes so many."""
        return self.step_seconds + self.rollout_seconds * rollouts

    def tokens_per_second(self, rollouts: float) -> float:
        """While it decodes so many."""
        return rollouts / self.seconds(rollouts) if rollouts else 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifierRate:
    """A verifier process."""

    check_seconds: float  # of one rollout, on one worker
    workers: int  # checks at the same time


@dataclass(frozen=True, kw_only=True, slots=True)
class LearnerRate:
    """A learner step that trains n completion tokens takes `step_seconds + n / tokens_per_second`."""

    tokens_per_second: float
    step_seconds: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Stream:
    """The broker's part."""

    group_size: int
    groups_per_step: int
    max_staleness: int
    dropped_share: float = 0.0  # of the finished groups that are dropped: equal rewards, void ones
    silence_seconds: float = 30.0  # after which an actor is taken for dead
    lease_attempts: int = 3  # leases that a group may use up before it is dropped

    @property
    def rollouts_per_step(self) -> int:
        """Rollouts that a batch holds."""
        return self.group_size * self.groups_per_step


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """All that a plan needs."""

    actor: ActorRate
    verifier: VerifierRate
    learner: LearnerRate
    stream: Stream
    lengths: tuple[int, ...]  # completion tokens of rollouts, a sample of their distribution
    notes: tuple[str, ...] = ()  # what was assumed for want of a measurement

    @property
    def length_mean(self) -> float:
        """Completion tokens of a rollout."""
        return sum(self.lengths) / len(self.lengths)


PARTS = {"actor": ActorRate, "verifier": VerifierRate, "learner": LearnerRate, "stream": Stream}


def write(rates: Rates, path: Path) -> None:
    """Write them as JSON."""
    path.write_text(json.dumps(asdict(rates), indent=2) + "\n")


def read(path: Path) -> Rates:
    """What `write` wrote. Raises `ValueError` with the field that is missing or unknown."""
    try:
        return parse(json.loads(path.read_text()))
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path}: is no file of rates: {error!r}; `python -m deploy.plan measure RUN` writes one"
        ) from None


def parse(content: dict[str, Any]) -> Rates:
    """Rates from the dictionary of one. Raises `ValueError`, `TypeError` or `KeyError` for what is none."""
    parts: dict[str, Any] = {name: _part(kind, content[name]) for name, kind in PARTS.items()}
    return check(Rates(**parts, lengths=tuple(map(int, content["lengths"])), notes=tuple(map(str, content["notes"]))))


def _part(kind: type, content: dict[str, Any]) -> Any:
    unknown = set(content) - {each.name for each in fields(kind)}
    if unknown:
        raise ValueError(f"{kind.__name__} has no {', '.join(sorted(unknown))}")
    return kind(**content)


def check(rates: Rates) -> Rates:
    """The same rates. Raises `ValueError` for what no run can have."""
    positive = {
        "actor.max_num_seqs": rates.actor.max_num_seqs,
        "actor.room": rates.actor.room,
        "actor.step_seconds + actor.rollout_seconds": rates.actor.seconds(1),
        "verifier.workers": rates.verifier.workers,
        "learner.tokens_per_second": rates.learner.tokens_per_second,
        "stream.group_size": rates.stream.group_size,
        "stream.groups_per_step": rates.stream.groups_per_step,
        "stream.lease_attempts": rates.stream.lease_attempts,
        "the shortest length": min(rates.lengths, default=0),
    }
    not_negative = {
        "actor.step_seconds": rates.actor.step_seconds,
        "actor.rollout_seconds": rates.actor.rollout_seconds,
        "actor.fetch_seconds": rates.actor.fetch_seconds,
        "actor.swap_seconds": rates.actor.swap_seconds,
        "verifier.check_seconds": rates.verifier.check_seconds,
        "learner.step_seconds": rates.learner.step_seconds,
        "stream.max_staleness": rates.stream.max_staleness,
        "stream.silence_seconds": rates.stream.silence_seconds,
    }
    for name, value in positive.items():
        if not value > 0:
            raise ValueError(f"{name}={value}: must be above 0")
    for name, value in not_negative.items():
        if not value >= 0:
            raise ValueError(f"{name}={value}: must be 0 or more")
    if not 0 <= rates.stream.dropped_share < 1:
        raise ValueError(f"stream.dropped_share={rates.stream.dropped_share}: must lie in [0, 1)")
    return rates
