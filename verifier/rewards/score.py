"""What a reward says, and the line between a bad completion (data: 0) and a bad task or broken check (void)."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias


@dataclass(frozen=True, slots=True)
class Score:
    """How good a completion is, in 0..1, and why."""

    value: float
    reason: str


class BadTask(ValueError):
    """The task is at fault, not the completion: no completion can be judged, the check is void."""


class BadAnswer(ValueError):
    """The completion is at fault: it scores 0. The text is the reason."""


Reward: TypeAlias = Callable[[str, str, Mapping[str, Any]], Score]
"""`reward(text, reference, metadata)`: judges the completion `text`. Raises `BadTask`, `BadAnswer`, or, for what is
the host's fault, `SandboxError` or `Unavailable`; nothing else on purpose: any other error is a bug of the reward, and
void."""


@contextmanager
def blamed_on_answer() -> Iterator[None]:
    """Around a third party's code that has taken the reference and now reads the model's text.

    What it raises there, of whatever type, is the text's doing: `BadAnswer`. Running out of memory is told apart.
    """
    try:
        yield
    except (BadAnswer, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        raise BadAnswer(f"the checker cannot take the answer: {described(error)}") from error


@contextmanager
def blamed_on_task(what: str) -> Iterator[None]:
    """Around a third party's code that reads the reference: what it raises is the task's fault."""
    try:
        yield
    except Exception as error:
        raise BadTask(f"{what}: {described(error)}") from error


def described(error: BaseException) -> str:
    """Type and text of an error, short."""
    return f"{type(error).__name__}: {error}"[:300]
