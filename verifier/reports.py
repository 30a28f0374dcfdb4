"""What a worker reports to the pool. Everything a worker says is checked: hostile text runs beside it."""

import math
from dataclasses import astuple, dataclass, replace
from typing import Any, Literal, TypeAlias, get_args

Outcome: TypeAlias = Literal["scored", "timeout", "memory", "void", "failed"]
"""How a check ended: judged; stopped at its deadline or at its memory limit, both 0; not judged at all, since it cannot
be (void), or since the host failed it (failed), which may go better the next time."""

UNJUDGED = ("void", "failed")
MAX_REASON_CHARACTERS = 1000


class BadReport(ValueError):
    """A report that no honest worker sends."""


@dataclass(frozen=True, slots=True)
class Ready:
    """First of all: the worker's process, and the CPU seconds that it has used."""

    pid: int
    cpu_seconds: float


@dataclass(frozen=True, slots=True)
class Checked:
    """One named reward has been applied to the text of one job. `value` is None when it was not judged."""

    job_id: int
    reward: str
    value: float | None
    outcome: Outcome
    reason: str
    seconds: float  # of wall clock, for this check
    cpu_seconds: float  # of the process, since its start


def pack(report: Ready | Checked) -> list[Any]:
    """`report` for the channel."""
    if isinstance(report, Ready):
        return ["ready", *astuple(report)]
    return ["checked", *astuple(replace(report, reason=report.reason[:MAX_REASON_CHARACTERS]))]


def unpack(value: Any) -> Ready | Checked:
    """The report in `value`. Raises `BadReport`."""
    match value:
        case ["ready", int(pid), float(cpu)] if pid > 0 and math.isfinite(cpu):
            return Ready(pid, cpu)
        case ["checked", int(), str(), float() | None as score, str(outcome), str(), float(wall), float(cpu)] if (
            math.isfinite(wall)
            and math.isfinite(cpu)
            and outcome in get_args(Outcome)
            and (outcome in UNJUDGED if score is None else outcome not in UNJUDGED and 0.0 <= score <= 1.0)
        ):
            return Checked(*value[1:])
    raise BadReport(f"a worker reported {str(value)[:200]}")
