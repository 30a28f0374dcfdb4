"""What the broker tells Prometheus. Counters follow the stream's own counts, gauges its present state."""

import shutil
import time
from collections import Counter
from collections.abc import Iterable
from typing import get_args

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from learner.broker.journal import Journal
from learner.broker.membership import Members
from learner.broker.stream import Stream
from protocol.connections import Connections
from protocol.messages import Role

LOST = ("left", "silent", "replaced", "refused", "deaf", "wrong_key")  # why a peer is no peer any more
DROPPED = (
    *("lease_expired", "actors_lost", "void", "zero_variance", "straggler", "run_ended"),
    *("prompt_empty", "prompt_too_long", "prompt_not_tokenisable"),
)
CUT = ("crowd", "unproven", "bytes", "flood", "refused", "deaf")  # why a connection is cut off


class BrokerCollector(Collector):
    """Reads stream and members at every scrape, so that nothing is counted in two places."""

    def __init__(self, stream: Stream, members: Members, journal: Journal, connections: Connections) -> None:
        self.stream = stream
        self.journal = journal
        self.members = members
        self.lost: Counter[tuple[str, str]] = Counter()  # peers by role and reason
        self.unwritten_seconds = 0.0  # for which the journal could not be written
        self._stands_at = (-1, -1)  # version and groups trained
        self._stands_since = 0.0  # in seconds since 1970
        self.connections = connections
        self.messages = 0
        self.rejected_messages = 0
        self.fingerprint_mismatches = 0
        self.flooding_messages = 0

    def collect(self) -> Iterable[Metric]:
        """One sample of every metric."""
        stream, counts = self.stream, self.stream.counts
        yield _gauge("broker_policy_version", "The learner's policy version", stream.version)
        yield _gauge("broker_max_staleness_steps", "Bound on the staleness", stream.config.max_staleness)
        yield _gauge("broker_progress_timestamp_seconds", "When a batch was last trained", self._last_progress())
        yield _gauge("broker_groups_ready", "Finished groups that wait for the learner", stream.ready)
        yield _gauge("broker_groups_buffered", "Live groups, from lease to consumption", len(stream.groups))
        yield _gauge("broker_leases_running", "Leases that actors hold", len(stream.leases.running))
        yield _gauge("broker_groups_admitted", "Groups leased since the start and not dropped", stream.granted)
        yield _gauge("broker_admission_limit_groups", "Groups that may be leased by now", stream.admission_limit)
        yield _gauge("broker_verify_jobs_queued", "Rollouts that wait for a verifier with room", stream.jobs.queued)
        yield _gauge("broker_verify_jobs_running", "Verify jobs that verifiers hold", len(stream.jobs.running))
        yield _counter("broker_groups_consumed", "Groups trained", stream.consumed_groups)
        yield _counter("broker_generated_tokens", "Completion tokens that arrived", counts["generated_tokens"])
        yield _counter("broker_rollouts", "Rollouts that arrived", counts["rollouts"])
        yield _counter("broker_duplicates", "Rollouts and verdicts that came twice or too late", counts["duplicates"])
        yield _counter("broker_verdicts", "Verdicts that arrived", counts["verdicts"])
        yield _counter("broker_void_verdicts", "Verdicts without a reward", counts["void_verdicts"])
        yield _counter(
            "broker_groups_kept_at_resample_limit",
            "Groups of equal rewards that were kept because the batch had lost stream.resample_limit of them",
            counts["resample_limit_reached"],
        )
        yield _gauge("broker_tasks_retired", "Tasks that are not leased any more", len(stream.retirement.retired))
        yield _counter("broker_tasks_skipped", "Times that a retired task was passed over", counts["tasks_skipped"])
        yield _counter("broker_journal_bytes", "Tasks, rollouts and verdicts written", self.journal.bytes_written)
        yield _gauge("broker_journal_file_bytes", "Size of the journal's file", self.journal.file_bytes)
        yield _gauge(
            "broker_journal_unwritten_seconds",
            "For how long the journal could not be written; 0: it can",
            self.unwritten_seconds,
        )
        disk = shutil.disk_usage(self.journal.path.parent)
        yield _gauge("broker_disk_free_bytes", "Free on the journal's disk", disk.free)
        yield _gauge("broker_disk_bytes", "Size of the journal's disk", disk.total)
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
        for reason in sorted({*DROPPED, *stream.dropped}):
            dropped.add_metric([reason], stream.dropped[reason])
        yield dropped
        yield from self._peers()

    def _peers(self) -> Iterable[Metric]:
        """Every pair of labels is there from the start: a rise from nothing is no rise to Prometheus."""
        peers = GaugeMetricFamily("broker_peers", "Live processes", labels=["role"])
        waiting = GaugeMetricFamily("broker_peers_waiting", "Live processes that wait for others", labels=["role"])
        lost = CounterMetricFamily(
            "broker_peers_lost", f"Processes that are gone: {', '.join(LOST)}", labels=["role", "reason"]
        )
        for role in get_args(Role):
            here = self.members.of(role)
            peers.add_metric([role], len(here))
            waiting.add_metric([role], sum(bool(peer.heartbeat.waiting_for) for peer in here))
            for reason in LOST:
                lost.add_metric([role, reason], self.lost[role, reason])
        return peers, waiting, lost

    def _last_progress(self) -> float:
        """Since when the learner stands where it stands, to within the interval between two scrapes."""
        stands_at = (self.stream.version, self.stream.consumed_groups)
        if stands_at != self._stands_at:
            self._stands_at, self._stands_since = stands_at, time.time()
        return self._stands_since

    def _connections(self) -> Iterable[Metric]:
        connections = self.connections
        yield _gauge("broker_connections", "Open TCP connections", connections.count)
        yield _gauge("broker_connections_unproven", "Open connections that did not say Hello", connections.unproven)
        yield _counter("broker_handshakes_failed", "Connections without the right keys", connections.failed_handshakes)
        cut_off = CounterMetricFamily("broker_connections_cut", "Connections that the broker ended", labels=["reason"])
        for reason in CUT:
            cut_off.add_metric([reason], connections.cut_off[reason])
        yield cut_off


def registry(collector: BrokerCollector) -> CollectorRegistry:
    """A registry that holds the broker's metrics alone, and those of its process."""
    own = CollectorRegistry()
    ProcessCollector(registry=own)
    own.register(collector)
    return own


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value=value)


def _counter(name: str, text: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(name, text, value=value)
