"""How many messages a peer may send: a bucket of tokens that fills at a steady rate. Pure; time comes in."""

from dataclasses import dataclass


@dataclass(slots=True)
class Bucket:
    """`rate` messages a second, and as many at once as gather in `burst_seconds`."""

    rate: float
    burst_seconds: float
    filled: float = -1.0  # messages that it may send now; full at first
    at: float = 0.0

    def takes(self, now: float) -> bool:
        """Whether one more message is within the rate."""
        most = self.rate * self.burst_seconds
        self.filled = most if self.filled < 0 else min(most, self.filled + (now - self.at) * self.rate)
        self.at = now
        if self.filled < 1:
            return False
        self.filled -= 1
        return True
