"""Broker: leases, admission, groups, peers, the journal."""

from deploy.grafana.model import Dashboard, Panel, Query, Row

CHOSEN = '{run=~"$run"}'
RECENT = '{run=~"$run"}[$__rate_interval]'


def value(name: str, legend: str) -> Query:
    """The broker's own value, as it stands."""
    return Query(f"{name}{CHOSEN}", legend)


def last_minutes(name: str, legend: str) -> Query:
    """By how much a counter rose within ten minutes."""
    return Query(f"sum(increase({name}{CHOSEN}[10m]))", legend)


GROUPS = Row(
    "Groups",
    (
        Panel(
            title="Live groups",
            says="From lease to consumption; ready ones wait for the learner.",
            unit="count",
            queries=(
                value("broker_groups_buffered", "live"),
                value("broker_groups_ready", "ready"),
                value("broker_leases_running", "leases that actors hold"),
            ),
        ),
        Panel(
            title="Admission",
            says="Groups leased so far, and how many may be: where the two meet, the actors wait for the learner.",
            unit="count",
            queries=(
                value("broker_groups_admitted", "leased"),
                value("broker_admission_limit_groups", "limit"),
                value("broker_groups_consumed_total", "trained"),
            ),
        ),
        Panel(
            title="Policy version and bound",
            says="The learner's version as the broker knows it, and by how many steps a token may lie behind.",
            unit="steps",
            queries=(
                value("broker_policy_version", "version"),
                value("broker_max_staleness_steps", "bound on the staleness"),
            ),
        ),
        Panel(
            title="Groups dropped",
            says="Within ten minutes, by reason; each lease ends once, trained or dropped.",
            unit="count",
            queries=(Query(f"sum by (reason) (increase(broker_groups_dropped_total{CHOSEN}[10m]))", "{{reason}}"),),
        ),
        Panel(
            title="Late groups and kept ones",
            says=(
                "Within ten minutes: trained beyond the staleness bound, and of equal rewards but kept because the "
                "batch had lost stream.resample_limit of them."
            ),
            unit="count",
            queries=(
                last_minutes("broker_groups_late_total", "late"),
                last_minutes("broker_groups_kept_at_resample_limit_total", "kept at the limit"),
            ),
        ),
        Panel(
            title="Retired tasks",
            says="Tasks that are not leased any more, always solved, and how often one was passed over in ten minutes.",
            unit="count",
            queries=(
                value("broker_tasks_retired", "retired"),
                last_minutes("broker_tasks_skipped_total", "passed over"),
            ),
        ),
    ),
)

TRAFFIC = Row(
    "Traffic",
    (
        Panel(
            title="Tokens that arrive",
            says="Completion tokens, a second.",
            unit="tokens/s",
            queries=(Query(f"rate(broker_generated_tokens_total{RECENT})", "{{run}}"),),
        ),
        Panel(
            title="Rollouts and verdicts",
            says="A second. Void verdicts are checked again.",
            unit="per second",
            queries=(
                Query(f"rate(broker_rollouts_total{RECENT})", "rollouts"),
                Query(f"rate(broker_verdicts_total{RECENT})", "verdicts"),
                Query(f"rate(broker_void_verdicts_total{RECENT})", "void"),
            ),
        ),
        Panel(
            title="Verify jobs",
            says="Rollouts that wait for a verifier with room, and those that verifiers hold.",
            unit="count",
            queries=(
                value("broker_verify_jobs_queued", "queued"),
                value("broker_verify_jobs_running", "held by verifiers"),
            ),
        ),
        Panel(
            title="Odd messages",
            says="Within ten minutes: came twice or too late (routine after a restart), not understood, or too many.",
            unit="count",
            queries=(
                last_minutes("broker_duplicates_total", "twice or too late"),
                last_minutes("broker_messages_rejected_total", "rejected"),
                last_minutes("broker_messages_flooding_total", "flooding"),
            ),
        ),
        Panel(
            title="CPU",
            says="Share of one core; the broker has one thread for all, so near 100 % it limits the run.",
            unit="share",
            queries=(Query('rate(process_cpu_seconds_total{job="broker",run=~"$run"}[$__rate_interval])', "{{run}}"),),
        ),
        Panel(
            title="Memory",
            says="Tokens of all live groups are held here.",
            unit="bytes",
            queries=(Query('process_resident_memory_bytes{job="broker",run=~"$run"}', "{{run}}"),),
        ),
    ),
)

PEERS = Row(
    "Peers",
    (
        Panel(
            title="Live processes",
            says="By role.",
            unit="count",
            queries=(Query(f"sum by (role) (broker_peers{CHOSEN})", "{{role}}"),),
        ),
        Panel(
            title="Processes that wait",
            says="For another, by role; /status says for what.",
            unit="count",
            queries=(Query(f"sum by (role) (broker_peers_waiting{CHOSEN})", "{{role}}"),),
        ),
        Panel(
            title="Processes that are gone",
            says="Within ten minutes, by reason. `left` said goodbye; the alert ActorLost is about the others.",
            unit="count",
            queries=(Query(f"sum by (reason) (increase(broker_peers_lost_total{CHOSEN}[10m]))", "{{reason}}"),),
        ),
        Panel(
            title="Connections",
            says="Open ones, and those among them that did not say Hello yet: many of these are strangers.",
            unit="count",
            queries=(value("broker_connections", "open"), value("broker_connections_unproven", "unproven")),
        ),
        Panel(
            title="Connections cut off",
            says="Within ten minutes, by reason; and those that came without the right keys.",
            unit="count",
            queries=(
                Query(f"sum by (reason) (increase(broker_connections_cut_total{CHOSEN}[10m]))", "{{reason}}"),
                last_minutes("broker_handshakes_failed_total", "wrong keys"),
            ),
        ),
        Panel(
            title="Messages",
            says="That come, whatever becomes of them.",
            unit="per second",
            queries=(Query(f"rate(broker_messages_total{RECENT})", "{{run}}"),),
        ),
    ),
)

JOURNAL = Row(
    "Journal",
    (
        Panel(
            title="Written",
            says="Bytes a second.",
            unit="bytes/s",
            queries=(Query(f"rate(broker_journal_bytes_total{RECENT})", "{{run}}"),),
        ),
        Panel(
            title="Size of the file",
            says="It is compacted as groups are consumed.",
            unit="bytes",
            queries=(value("broker_journal_file_bytes", "{{run}}"),),
        ),
        Panel(
            title="Disk of the journal",
            says="The alert DiskFillsUp looks four hours ahead.",
            unit="bytes",
            queries=(value("broker_disk_free_bytes", "free"), value("broker_disk_bytes", "size")),
        ),
        Panel(
            title="Not written for",
            says="0 is well; the run ends after journal.full_seconds.",
            unit="seconds",
            width=24,
            height=5,
            queries=(value("broker_journal_unwritten_seconds", "{{run}}"),),
        ),
    ),
)

DASHBOARD = Dashboard(
    name="broker",
    title="Broker",
    says="Leases, admission, groups, peers and the journal.",
    rows=(GROUPS, TRAFFIC, PEERS, JOURNAL),
)
