"""What actors report of versions that they loaded, and whether it is what was published."""

import logging
import threading
from collections import Counter
from dataclasses import dataclass, field

from learner import metrics
from protocol.messages import Loaded

log = logging.getLogger("learner")

REMEMBERED = 64  # versions


@dataclass(slots=True)
class VersionLoads:
    """The actors that sample from one version."""

    ways: Counter[str] = field(default_factory=Counter)  # by which it came
    nbytes: int = 0  # that went over wires for it, relays included
    fetch_seconds: float = 0.0  # the longest
    pause_seconds: float = 0.0  # the longest


class Loads:
    """Reports by version. Safe to use from several threads."""

    def __init__(self) -> None:
        self._published: dict[int, str] = {}  # fingerprints
        self._loads: dict[int, VersionLoads] = {}
        self._lock = threading.Lock()

    def published(self, version: int, fingerprint: str) -> None:
        """A version is out."""
        with self._lock:
            self._published[version] = fingerprint
            self._loads[version] = VersionLoads()
            for old in list(self._loads)[:-REMEMBERED]:
                del self._loads[old], self._published[old]

    def add(self, report: Loaded) -> None:
        """An actor samples from what it says. Weights that were not published so are an alarm."""
        with self._lock:
            known = self._published.get(report.version)
            if known is not None and known != report.fingerprint:
                metrics.FINGERPRINT_MISMATCHES.inc()
                log.error(
                    "an actor samples from version %d with the fingerprint %s, published was %s: its rollouts are "
                    "refused; are there two learners?",
                    *(report.version, report.fingerprint, known),
                )
                return
            metrics.ACTOR_PAUSE.observe(report.pause_seconds)
            metrics.ACTOR_FETCH.labels(report.way).observe(report.fetch_seconds)
            if known is None:
                return
            loads = self._loads[report.version]
            loads.ways[report.way] += 1
            loads.nbytes += report.nbytes
            loads.fetch_seconds = max(loads.fetch_seconds, report.fetch_seconds)
            loads.pause_seconds = max(loads.pause_seconds, report.pause_seconds)

    def of(self, version: int) -> VersionLoads:
        """What has been said of a version so far."""
        with self._lock:
            return self._loads.get(version, VersionLoads())
