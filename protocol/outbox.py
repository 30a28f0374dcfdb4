"""What must arrive: messages numbered in the order in which they are said, kept until the broker has them for good."""

from collections import deque
from collections.abc import Iterator
from dataclasses import replace

from protocol.messages import Sure


class Outbox:
    """Messages that were not acknowledged, oldest first. Their number is bounded by what the sender is owed."""

    def __init__(self) -> None:
        self._kept: deque[Sure] = deque()
        self._last = 0

    def __len__(self) -> int:
        return len(self._kept)

    def __iter__(self) -> Iterator[Sure]:
        return iter(tuple(self._kept))

    def add(self, message: Sure) -> Sure:
        """Number `message` and keep it; the numbered one is to be sent."""
        self._last += 1
        numbered = replace(message, seq=self._last)
        self._kept.append(numbered)
        return numbered

    def acknowledged(self, seq: int) -> None:
        """Forget everything up to `seq`."""
        while self._kept and self._kept[0].seq <= seq:
            self._kept.popleft()
