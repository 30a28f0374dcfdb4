"""How far a run has come, as a training checkpoint keeps it beside the tensors."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from protocol.errors import MalformedMessage
from protocol.messages import GroupRange, StreamStats


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """Counted since the run began, over all its restarts."""

    trained_tokens: int = 0
    groups_trained: int = 0
    groups_filtered: Mapping[str, int] = field(default_factory=dict)  # by the learner, by reason
    groups_dropped: Mapping[str, int] = field(default_factory=dict)  # by the broker, by reason
    consumed_tokens: int = 0  # of all rollouts of all batches, filtered ones too
    consumed_rollouts: int = 0
    generated_tokens: int = 0  # as the broker counts them, like the next three
    generated_rollouts: int = 0
    verdicts: int = 0
    void_verdicts: int = 0

    def counted(self) -> StreamStats:
        """The broker's part of it, for a broker that knows nothing of the run."""
        return StreamStats(
            generated_tokens=self.generated_tokens,
            rollouts=self.generated_rollouts,
            verdicts=self.verdicts,
            void_verdicts=self.void_verdicts,
            groups_dropped=dict(self.groups_dropped),
            actors=0,
            verifiers=0,
        )


COUNTED = {name: dict if isinstance(value, dict) else int for name, value in asdict(Totals()).items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where a run stands between two steps. The default is a run that has not begun."""

    policy_version: int = 0
    optimizer_steps: int = 0  # updates behind the moments and the learning rate, skipped ones included
    consumed: tuple[GroupRange, ...] = ()  # the data cursor: groups that are trained
    totals: Totals = field(default_factory=Totals)
    rewards: tuple[float, ...] = ()  # mean rewards of the last steps, oldest first: `learner.target_window` of them
    seconds: float = 0.0  # of the run so far, pauses between its parts left out


def as_json(progress: Progress) -> dict[str, Any]:
    """`progress` in JSON's own types, ranges as [first, last]."""
    return asdict(progress) | {"consumed": [[each.first, each.last] for each in progress.consumed]}


def from_json(content: Mapping[str, Any]) -> Progress:
    """What `as_json` gave. Raises `ValueError` that names the field at fault."""
    totals = _field(content, "totals", dict)
    try:
        consumed = tuple(GroupRange(first=first, last=last) for first, last in _field(content, "consumed", list))
    except (TypeError, ValueError, MalformedMessage) as error:
        raise ValueError(f"field 'consumed' must hold pairs [first, last]: {error}") from None
    return Progress(
        policy_version=_field(content, "policy_version", int),
        optimizer_steps=_field(content, "optimizer_steps", int),
        consumed=consumed,
        totals=Totals(**{name: _field(totals, name, kind) for name, kind in COUNTED.items()}),
        rewards=tuple(map(float, _field(content, "rewards", list))),
        seconds=float(_field(content, "seconds", int, float)),
    )


def _field(content: Mapping[str, Any], name: str, *kinds: type) -> Any:
    value = content.get(name)
    if not isinstance(value, kinds) or isinstance(value, bool):
        raise ValueError(f"field {name!r} must be {' or '.join(kind.__name__ for kind in kinds)}, is {value!r:.80}")
    return value
