"""A log that nobody can flood or forge: so many lines a second, and what peers say in it stays on its line."""

import logging

from learner.broker.rates import Bucket
from protocol.clock import now

LINES_PER_SECOND = 100.0
BURST_SECONDS = 20.0  # a cluster that joins at once is told in full
LONGEST_LINE = 4096
LAST_WORD = "last_word"  # marks a record that is written in any case


class Quiet(logging.Filter):
    """Lets through what is within the rate, and says how many lines it left out."""

    def __init__(self, rate: float = LINES_PER_SECOND, burst_seconds: float = BURST_SECONDS) -> None:
        super().__init__()
        self._bucket = Bucket(rate, burst_seconds)
        self._left_out = 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether `record` is written."""
        if not self._bucket.takes(now()) and not getattr(record, LAST_WORD, False):
            self._left_out += 1
            return False
        line = _one_line(record.getMessage())
        if self._left_out:
            line = f"{line} ({self._left_out} lines before this one were left out)"
            self._left_out = 0
        record.msg, record.args = line, ()
        return True


def _one_line(text: str) -> str:
    """`text` without control characters, cut where it is too long."""
    cut = text if len(text) <= LONGEST_LINE else f"{text[:LONGEST_LINE]}…"
    return cut if cut.isprintable() else "".join(each if each.isprintable() else ascii(each)[1:-1] for each in cut)
