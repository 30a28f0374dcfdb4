"""What the broker tells Prometheus. Counters follow the stream's own counts, gauges its present state."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from learner.broker.journal import Journal
from learner.broker.membership import Members
from learner.broker.stream import Stream
from protocol.connections import Connections

REASONS = ("crowd", "unproven", "bytes", "flood", "refused", "deaf")  # why a connection is cut off


class BrokerCollector(Collector):
    """Reads stream and members at every scrape, so that nothing is counted in two places."""

    def __init__(self, stream: Stream, members: Members, journal: Journal, connections: Connections) -> None:
        self.stream = stream
        self.journal = journal
        self.members = members
        self.connections = connections
        self.messages = 0
        self.rejected_messages = 0
        self.fingerprint_mismatches = 0
        self.flooding_messages = 0

    def collect(self) -> Iterable[Metric]:
        """One sample of every metric."""
        stream, counts = self.stream, self.stream.counts
        yield _gauge("broker_policy_version", "The learner's policy version", stream.version)
        yield _gauge("broker_groups_ready", "Finished groups that wait for the learner", stream.ready)
        yield _gauge("broker_groups_buffered", "Live groups, from lease to consumption", len(stream.groups))
        yield _gauge("broker_leases_running", "Leases that actors hold", len(stream.leases))
        yield _gauge("broker_groups_admitted", "Groups leased since the start and not dropped", stream.granted)
        yield _gauge("broker_admission_limit_groups", "Groups that may be leased by now", stream.admission_limit)
        yield _gauge("broker_verify_queued", "Rollouts that wait for a verifier with room", stream.verify_queued)
        yield _gauge("broker_verify_running", "Verify jobs that verifiers hold", len(stream.jobs))
        yield _counter("broker_groups_consumed", "Groups trained", stream.consumed_groups)
        yield _counter("broker_generated_tokens", "Completion tokens that arrived", counts["generated_tokens"])
        yield _counter("broker_rollouts", "Rollouts that arrived", counts["rollouts"])
        yield _counter("broker_duplicates", "Rollouts and verdicts that came twice or too late", counts["duplicates"])
        yield _counter("broker_verdicts", "Verdicts that arrived", counts["verdicts"])
        yield _counter("broker_void_verdicts", "Verdicts without a reward", counts["void_verdicts"])
        yield _counter(
            "broker_resample_limit_reached",
            "Groups of equal rewards that were kept because the batch had lost stream.resample_limit of them",
            counts["resample_limit_reached"],
        )
        yield _gauge("broker_tasks_retired", "Tasks that are not leased any more", len(stream.retirement.retired))
        yield _counter("broker_tasks_skipped", "Times that a retired task was passed over", counts["tasks_skipped"])
        yield _counter("broker_journal_bytes", "Tasks, rollouts and verdicts written", self.journal.bytes_written)
        yield _gauge("broker_journal_file_bytes", "Size of the journal's file", self.journal.file_bytes)
        yield _counter("broker_groups_late", "Groups trained older than max_staleness", counts["late_groups"])
        yield _counter(
            "broker_fingerprint_mismatches",
            "Rollouts and versions whose weights are not those published under their number: must stay 0",
            self.fingerprint_mismatches,
        )
        yield _counter("broker_messages_rejected", "Messages that could not be taken", self.rejected_messages)
        yield _counter("broker_messages_flooding", "Messages beyond the rate of their peer", self.flooding_messages)
        yield _counter("broker_messages", "Messages that came, whatever became of them", self.messages)
        yield from self._connections()
        dropped = CounterMetricFamily("broker_groups_dropped", "Groups dropped", labels=["reason"])
        for reason, count in sorted(stream.dropped.items()):
            dropped.add_metric([reason], count)
        yield dropped
        peers = GaugeMetricFamily("broker_peers", "Live processes", labels=["role"])
        for role in ("learner", "actor", "verifier"):
            peers.add_metric([role], len(self.members.of(role)))
        yield peers

    def _connections(self) -> Iterable[Metric]:
        connections = self.connections
        yield _gauge("broker_connections", "Open TCP connections", connections.count)
        yield _gauge("broker_connections_unproven", "Open connections that did not say Hello", connections.unproven)
        yield _counter("broker_handshakes_failed", "Connections without the right keys", connections.failed_handshakes)
        cut_off = CounterMetricFamily("broker_connections_cut", "Connections that the broker ended", labels=["reason"])
        for reason in REASONS:
            cut_off.add_metric([reason], connections.cut_off[reason])
        yield cut_off


def registry(collector: BrokerCollector) -> CollectorRegistry:
    """A registry that holds the broker's metrics alone."""
    own = CollectorRegistry()
    own.register(collector)
    return own


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value=value)


def _counter(name: str, text: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(name, text, value=value)
