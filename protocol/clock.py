"""Time as the roles see it: monotonic seconds, never sent over the wire (durations are)."""

import time
from dataclasses import dataclass, field


def now() -> float:
    """Seconds on this process's monotonic clock."""
    return time.monotonic()


def pause(seconds: float) -> None:
    """Do nothing for a while."""
    time.sleep(seconds)


@dataclass(slots=True)
class Deadline:
    """A moment after which a wait must end. `seconds` is the whole allowance, for the error text."""

    seconds: float
    _end: float = field(init=False)

    def __post_init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Start the allowance anew from now."""
        self._end = now() + self.seconds

    def extend(self, seconds: float) -> None:
        """Allow some more."""
        self._end += seconds

    @property
    def remaining(self) -> float:
        """Seconds left, never negative."""
        return max(0.0, self._end - now())

    @property
    def passed(self) -> bool:
        """Whether the allowance is used up."""
        return now() >= self._end


class Ticker:
    """Says `True` once an interval: `if heartbeat.due(): ...`. The first call is due at once."""

    def __init__(self, interval: float) -> None:
        self.interval = interval
        self._next = 0.0

    def due(self) -> bool:
        """Whether an interval has passed since the last time this returned `True`."""
        moment = now()
        if moment < self._next:
            return False
        self._next = moment + self.interval
        return True
