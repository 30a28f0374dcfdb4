"""How much a connection may say: a bucket that fills at a steady rate. Pure; time comes in."""

from collections import OrderedDict
from dataclasses import dataclass

FREE_BYTES = 16 * 2**10  # a message of more counts as several
REMEMBERED = 10_000  # strangers whose buckets are kept, those that were heard of last


@dataclass(slots=True)
class Bucket:
    """`rate` messages a second, and as many at once as gather in `burst_seconds`."""

    rate: float
    burst_seconds: float
    filled: float = -1.0  # messages that it may send now; full at first
    at: float = 0.0

    def takes(self, now: float, messages: float = 1.0) -> bool:
        """Whether so many more are within the rate; one that is more than a burst waits for a full bucket."""
        most = self.rate * self.burst_seconds
        self.filled = most if self.filled < 0 else min(most, self.filled + (now - self.at) * self.rate)
        self.at = now
        if self.filled < min(messages, most) - 1e-6:  # what rounding takes off
            return False
        self.filled = max(0.0, self.filled - messages)
        return True


def weight(size: int) -> float:
    """The messages as which one of `size` bytes counts: at least one, and one for each `FREE_BYTES`."""
    return max(1.0, size / FREE_BYTES)


class Strangers:
    """A bucket for each connection that did not say Hello, so that one that floods takes nothing from another."""

    def __init__(self, rate: float, burst_seconds: float) -> None:
        self._rate = rate
        self._burst_seconds = burst_seconds
        self._buckets: OrderedDict[bytes, Bucket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def bucket(self, identity: bytes) -> Bucket:
        """The bucket of one connection."""
        bucket = self._buckets.pop(identity, None) or Bucket(self._rate, self._burst_seconds)
        self._buckets[identity] = bucket
        if len(self._buckets) > REMEMBERED:
            self._buckets.popitem(last=False)
        return bucket
