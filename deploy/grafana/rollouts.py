"""Rollouts: what each actor does."""

from deploy.grafana.model import Dashboard, Panel, Query, Row

CHOSEN = '{run=~"$run",process=~"$process"}'
BUCKETS = '{run=~"$run",process=~"$process"}[$__rate_interval]'


def quantile(share: float, histogram: str, legend: str) -> Query:
    """A quantile over all chosen actors."""
    return Query(f"histogram_quantile({share}, sum by (le) (rate({histogram}_bucket{BUCKETS})))", legend)


SAMPLING = Row(
    "Sampling",
    (
        Panel(
            title="Tokens a second, by actor",
            says="Completion tokens that each engine samples.",
            unit="tokens/s",
            queries=(Query(f"rate(actor_generated_tokens_total{BUCKETS})", "{{process}}"),),
        ),
        Panel(
            title="Busy",
            says="Share of its time in which each engine works, or has nothing to decode; the rest is weights.",
            unit="share",
            highest=1.0,
            queries=(
                Query(f"process:actor_busy:ratio1m{CHOSEN}", "{{process}}"),
                Query(f"rate(actor_idle_seconds_total{BUCKETS})", "idle {{process}}"),
            ),
        ),
        Panel(
            title="One engine step",
            says="Half of the steps, and all but one in a hundred, take no longer.",
            unit="seconds",
            queries=(
                quantile(0.5, "actor_step_seconds", "median"),
                quantile(0.99, "actor_step_seconds", "99th percentile"),
            ),
        ),
        Panel(
            title="Rollouts in the engine",
            says="Those that the next step decodes, and those that have no place in the batch yet.",
            unit="count",
            queries=(
                Query(f"actor_running_rollouts{CHOSEN}", "running {{process}}"),
                Query(f"actor_waiting_rollouts{CHOSEN}", "waiting {{process}}"),
            ),
        ),
        Panel(
            title="KV cache in use",
            says="At 100 % rollouts are pre-empted and computed again: lower engine.max_num_seqs or give more memory.",
            unit="share",
            highest=1.0,
            queries=(Query(f"actor_kv_cache_used_ratio{CHOSEN}", "{{process}}"),),
        ),
        Panel(
            title="Rollouts sent",
            says="A second, by how they ended; `length` was cut at sampling.max_tokens.",
            unit="per second",
            kind="stack",
            queries=(Query(f"sum by (finish_reason) (rate(actor_rollouts_total{BUCKETS}))", "{{finish_reason}}"),),
        ),
    ),
)

LENGTHS = Row(
    "Lengths",
    (
        Panel(
            title="Completion length",
            says="Of the rollouts that were sent. Much between median and 99th percentile is what asynchrony is for.",
            unit="tokens",
            width=12,
            queries=(
                quantile(0.5, "actor_rollout_tokens", "median"),
                quantile(0.9, "actor_rollout_tokens", "90th percentile"),
                quantile(0.99, "actor_rollout_tokens", "99th percentile"),
            ),
        ),
        Panel(
            title="Mean completion length, by actor",
            says="All actors sample the same tasks, so they should agree.",
            unit="tokens",
            width=12,
            queries=(
                Query(
                    f"rate(actor_rollout_tokens_sum{BUCKETS}) / rate(actor_rollout_tokens_count{BUCKETS})",
                    "{{process}}",
                ),
            ),
        ),
    ),
)

VERSIONS = Row(
    "Versions and weights",
    (
        Panel(
            title="Policy version, by actor",
            says="What each engine samples from, and what the learner has.",
            unit="steps",
            queries=(
                Query(f"actor_policy_version{CHOSEN}", "{{process}}"),
                Query('learner_policy_version{run=~"$run"}', "learner"),
            ),
        ),
        Panel(
            title="Versions behind the learner",
            says="The alert WeightsNotArriving fires above the staleness bound.",
            unit="steps",
            lowest=None,
            queries=(Query(f"process:weights_behind:steps{CHOSEN}", "{{process}}"),),
        ),
        Panel(
            title="Rollouts of more than one version",
            says="Share of the rollouts whose weights changed while they were sampled.",
            unit="share",
            highest=1.0,
            queries=(
                Query(
                    f"sum(rate(actor_mixed_version_rollouts_total{BUCKETS}))"
                    f" / sum(rate(actor_rollouts_total{BUCKETS}))",
                    "mixed",
                ),
            ),
        ),
        Panel(
            title="Pause of decoding for new weights",
            says="From the last step with the old weights to the first with the new ones.",
            unit="seconds",
            queries=(
                quantile(0.5, "actor_weight_swap_seconds", "median"),
                quantile(0.99, "actor_weight_swap_seconds", "99th percentile"),
            ),
        ),
        Panel(
            title="Fetch of new weights",
            says="Beside the decoding: from the first request for a version to its last shard.",
            unit="seconds",
            queries=(
                quantile(0.5, "actor_weight_fetch_seconds", "median"),
                quantile(0.99, "actor_weight_fetch_seconds", "99th percentile"),
            ),
        ),
        Panel(
            title="Weights over the wire",
            says="Shards that arrive, and those passed on to other actors. None where weights come by shared memory.",
            unit="bytes/s",
            queries=(
                Query(f"rate(actor_weights_fetched_bytes_total{BUCKETS})", "fetched {{process}}"),
                Query(f"rate(actor_weights_relayed_bytes_total{BUCKETS})", "relayed {{process}}"),
            ),
        ),
    ),
)

TROUBLE = Row(
    "What went wrong",
    (
        Panel(
            title="Weights that did not arrive",
            says="Within ten minutes: shards with a wrong checksum, sources that fell silent, versions given up.",
            unit="count",
            queries=(
                Query(f"sum(increase(actor_weight_shards_corrupt_total{CHOSEN}[10m]))", "corrupt shards"),
                Query(f"sum(increase(actor_weight_sources_lost_total{CHOSEN}[10m]))", "sources lost"),
                Query(f"sum(increase(actor_weight_versions_not_broadcast_total{CHOSEN}[10m]))", "broadcasts failed"),
                Query(f"sum(increase(actor_weight_versions_given_up_total{CHOSEN}[10m]))", "versions given up"),
            ),
        ),
        Panel(
            title="Leases that failed",
            says="Within ten minutes: aborted at their deadline, or given back, their prompt cannot be sampled.",
            unit="count",
            queries=(
                Query(f"sum(increase(actor_leases_overdue_total{CHOSEN}[10m]))", "overdue"),
                Query(f"sum by (reason) (increase(actor_leases_failed_total{CHOSEN}[10m]))", "{{reason}}"),
            ),
        ),
        Panel(
            title="Messages that could not be taken",
            says="Within ten minutes. Above 0 the roles are of different versions, or strangers speak.",
            unit="count",
            queries=(Query(f"sum(increase(actor_messages_rejected_total{CHOSEN}[10m]))", "rejected"),),
        ),
    ),
)

DASHBOARD = Dashboard(
    name="rollouts",
    title="Rollouts",
    says="What each actor does: pace, lengths, versions, memory.",
    process="actor",
    rows=(SAMPLING, LENGTHS, VERSIONS, TROUBLE),
)
