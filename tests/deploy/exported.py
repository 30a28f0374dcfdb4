"""Every metric that a role exports, read from the role itself."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import prometheus_client
from prometheus_client.metrics_core import Metric
from stream_world import NumberedTasks

import actors.metrics
import learner.metrics
import verifier.metrics
from learner.broker.config import StreamConfig
from learner.broker.journal import Journal
from learner.broker.membership import Members
from learner.broker.metrics import BrokerCollector, registry
from learner.broker.stream import Stream
from protocol.sockets import Router

PREFIX = {"broker": "broker_", "learner": "learner_", "actor": "actor_", "verifier": "verifier_"}
SUFFIXES = {
    "counter": ("_total",),
    "gauge": ("",),
    "histogram": ("_bucket", "_count", "_sum"),
}


@dataclass(frozen=True, slots=True)
class Exported:
    """A family of metrics as Prometheus hears of it."""

    role: str
    name: str  # without the `_total` of a counter
    kind: str
    help: str

    def series(self) -> set[str]:
        """The names by which queries ask for it."""
        return {self.name + suffix for suffix in SUFFIXES[self.kind]}


def exported(directory: Path) -> Iterator[Exported]:
    """The metrics of all roles; those of Python and of the process are the library's, and not among them."""
    assert actors.metrics  # registers in the library's own registry
    assert verifier.metrics  # as well
    journal = Journal(directory / "journal.sqlite", {})
    router = Router("tcp://127.0.0.1:*")
    broker = BrokerCollector(Stream(NumberedTasks(), StreamConfig(), 0), Members(), journal, router.connections)
    for role, found in {
        "broker": registry(broker),
        "learner": learner.metrics.REGISTRY,
        "actor": prometheus_client.REGISTRY,
        "verifier": prometheus_client.REGISTRY,
    }.items():
        families: list[Metric] = list(found.collect())
        for family in families:
            if family.name.startswith(PREFIX[role]):
                yield Exported(role, family.name, family.type, family.documentation)
    router.close()
    journal.close()
