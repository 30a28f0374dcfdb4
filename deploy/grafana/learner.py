"""Learner: the loss and how far it is off-policy, the step's time, the devices."""

from deploy.grafana.model import Dashboard, Panel, Query, Row

CHOSEN = '{run=~"$run"}'
RECENT = '{run=~"$run"}[$__rate_interval]'


def gauge(name: str, legend: str) -> Query:
    """The learner's own value, as it stands."""
    return Query(f"{name}{CHOSEN}", legend)


def quantile(share: float, histogram: str, legend: str) -> Query:
    """A quantile of the last minutes."""
    return Query(f"histogram_quantile({share}, sum by (le) (rate({histogram}_bucket{RECENT})))", legend)


def mean(histogram: str, label: str) -> Query:
    """The mean of the last minutes for each value of a label."""
    total, count = (f"sum by ({label}) (rate({histogram}_{part}{RECENT}))" for part in ("sum", "count"))
    return Query(f"{total} / {count}", f"{{{{{label}}}}}")


LOSS = Row(
    "Loss and gradient",
    (
        Panel(
            title="Policy loss",
            says="Of the last step. It is no measure of progress: advantages of a group sum to 0.",
            unit="number",
            lowest=None,
            queries=(gauge("learner_loss", "{{run}}"),),
        ),
        Panel(
            title="Gradient norm",
            says="Before it is scaled down to optimizer.max_grad_norm.",
            unit="number",
            queries=(gauge("learner_grad_norm", "{{run}}"),),
        ),
        Panel(
            title="Learning rate",
            says="Of the last step.",
            unit="number",
            queries=(gauge("learner_learning_rate", "{{run}}"),),
        ),
        Panel(
            title="Entropy",
            says="Mean entropy of the policy on the last batch.",
            unit="nats",
            queries=(gauge("learner_entropy_nats", "{{run}}"),),
        ),
        Panel(
            title="Clipped and rejected tokens",
            says="Share of the tokens of an advantage's sign whose gradient was cut, or that a correction rejected.",
            unit="share",
            queries=(
                gauge("learner_clip_ratio", "clipped"),
                gauge("learner_clip_positive_ratio", "clipped, A > 0"),
                gauge("learner_clip_negative_ratio", "clipped, A < 0"),
                gauge("learner_mask_ratio", "rejected"),
                gauge("learner_mask_positive_ratio", "rejected, A > 0"),
                gauge("learner_mask_negative_ratio", "rejected, A < 0"),
            ),
        ),
        Panel(
            title="Updates",
            says="Optimizer updates within ten minutes, and those that left the weights as they were, by reason.",
            unit="count",
            queries=(
                Query(f"sum(increase(learner_updates_total{CHOSEN}[10m]))", "all"),
                Query(f"sum by (reason) (increase(learner_updates_skipped_total{CHOSEN}[10m]))", "skipped: {{reason}}"),
            ),
        ),
    ),
)

OFF_POLICY = Row(
    "How far off-policy?",
    (
        Panel(
            title="Importance weights",
            says="Of the tokens of the last batch: least, median, 99th percentile and greatest.",
            unit="number",
            logarithmic=True,
            queries=(gauge("learner_importance_weight_ratio", "{{quantile}}"),),
        ),
        Panel(
            title="Effective sample size",
            says="What a batch is worth, as a share of itself: by whole sequences, and by capped token weights.",
            unit="share",
            highest=1.0,
            queries=(
                gauge("learner_ess_ratio", "sequences"),
                gauge("learner_ess_truncated_ratio", "capped tokens"),
            ),
        ),
        Panel(
            title="KL of behaviour and current policy",
            says=(
                "Two estimates; on tokens of this version (numerics of the two engines) and of older ones (drift); "
                "and the distance to the reference, where there is one."
            ),
            unit="nats",
            lowest=None,
            queries=(
                gauge("learner_kl_k1_nats", "k1"),
                gauge("learner_kl_nats", "k3"),
                gauge("learner_mismatch_nats", "mismatch (staleness 0)"),
                gauge("learner_drift_nats", "drift (older)"),
                gauge("learner_reference_kl_nats", "reference"),
            ),
        ),
        Panel(
            title="KL by staleness",
            says="k3 estimate on the tokens of each staleness: it should rise with age, and be small at 0.",
            unit="nats",
            lowest=None,
            queries=(gauge("learner_stale_kl_nats", "{{staleness}}"),),
        ),
        Panel(
            title="Effective sample size by staleness",
            says="Of capped token weights.",
            unit="share",
            highest=1.0,
            queries=(gauge("learner_stale_ess_ratio", "{{staleness}}"),),
        ),
        Panel(
            title="χ² of importance weights",
            says="Mean squared distance from 1: of all tokens, and by staleness.",
            unit="number",
            queries=(gauge("learner_chi2_ratio", "all"), gauge("learner_stale_chi2_ratio", "{{staleness}}")),
        ),
        Panel(
            title="Tokens by staleness",
            says="Of the last batch.",
            unit="tokens",
            kind="bars",
            queries=(gauge("learner_stale_tokens", "{{staleness}}"),),
        ),
        Panel(
            title="Clipped share by staleness",
            says="Of the last batch.",
            unit="share",
            queries=(gauge("learner_stale_clip_ratio", "{{staleness}}"),),
        ),
        Panel(
            title="Rejected share by staleness",
            says="Of the last batch.",
            unit="share",
            queries=(gauge("learner_stale_mask_ratio", "{{staleness}}"),),
        ),
    ),
)

SIGNAL = Row(
    "The batch",
    (
        Panel(
            title="Staleness of rollouts",
            says="Of the oldest token of each trained rollout.",
            unit="steps",
            queries=(
                quantile(0.5, "learner_rollout_staleness_steps", "median"),
                quantile(0.99, "learner_rollout_staleness_steps", "99th percentile"),
            ),
        ),
        Panel(
            title="Signal",
            says="Share of groups of equal rewards, which teach nothing, and of truncated completions.",
            unit="share",
            highest=1.0,
            queries=(
                gauge("learner_zero_variance_ratio", "groups of equal rewards"),
                gauge("learner_truncated_ratio", "truncated completions"),
            ),
        ),
        Panel(
            title="Length bias",
            says="Mean length of what is trained over that of what is sampled: away from 1 long rollouts are lost.",
            unit="number",
            lowest=None,
            queries=(gauge("learner_length_bias_ratio", "{{run}}"),),
        ),
        Panel(
            title="Groups",
            says="Trained, and left out because they teach nothing, within ten minutes.",
            unit="count",
            width=12,
            queries=(
                Query(f"sum(increase(learner_groups_trained_total{CHOSEN}[10m]))", "trained"),
                Query(f"sum by (reason) (increase(learner_groups_filtered_total{CHOSEN}[10m]))", "{{reason}}"),
                Query(f"sum(increase(learner_rollouts_filtered_total{CHOSEN}[10m]))", "truncated rollouts left out"),
            ),
        ),
        Panel(
            title="Groups left out, by length of the prompt",
            says="Up to a power of two tokens. Prompts of one length that never teach are too easy or too hard.",
            unit="count",
            kind="bars",
            width=12,
            queries=(
                Query(
                    'sum by (prompt_tokens) (learner_groups_filtered_total{reason="zero_variance",run=~"$run"})',
                    "{{prompt_tokens}}",
                ),
            ),
        ),
    ),
)

WEIGHTS = Row(
    "Weights",
    (
        Panel(
            title="Training waits for a version",
            says="Seconds of a version: for the one before, and for the copy.",
            unit="seconds",
            queries=(
                quantile(0.5, "learner_publish_stall_seconds", "median"),
                quantile(0.99, "learner_publish_stall_seconds", "99th percentile"),
            ),
        ),
        Panel(
            title="A version in the background",
            says="Seconds beside the training, by part.",
            unit="seconds",
            kind="stack",
            queries=(mean("learner_publish_background_seconds", "part"),),
        ),
        Panel(
            title="Weights served",
            says="Bytes over the wire by encoding; what goes by shared memory is not among them.",
            unit="bytes/s",
            kind="stack",
            queries=(Query(f"sum by (encoding) (rate(learner_weights_served_bytes_total{RECENT}))", "{{encoding}}"),),
        ),
        Panel(
            title="Until a version is there",
            says="From an actor's first request to its last byte, by way, as the actors report it.",
            unit="seconds",
            queries=(mean("learner_actor_fetch_seconds", "way"),),
        ),
        Panel(
            title="Actors pause for a version",
            says="For so long they sample nothing, as they report it.",
            unit="seconds",
            queries=(
                quantile(0.5, "learner_actor_pause_seconds", "median"),
                quantile(0.99, "learner_actor_pause_seconds", "99th percentile"),
            ),
        ),
        Panel(
            title="What must not be",
            says=(
                "Within ten minutes: weights that are not those of their version (alert WrongWeights), versions that "
                "waited for the one before, for which the network is too slow, and groups that lost a member."
            ),
            unit="count",
            queries=(
                Query(f"sum(increase(learner_fingerprint_mismatches_total{CHOSEN}[10m]))", "wrong, the learner says"),
                Query(f"sum(increase(broker_fingerprint_mismatches_total{CHOSEN}[10m]))", "wrong, the broker says"),
                Query(f"sum(increase(learner_publish_waits_total{CHOSEN}[10m]))", "waited"),
                Query(f"sum(increase(learner_weight_groups_dissolved_total{CHOSEN}[10m]))", "groups dissolved"),
            ),
        ),
    ),
)

TIME = Row(
    "Time and devices",
    (
        Panel(
            title="Step breakdown",
            says="Seconds of a step by phase. `receive` is waiting for a batch.",
            unit="seconds",
            kind="stack",
            queries=(Query('run_phase:step_seconds:mean10m{run=~"$run"}', "{{phase}}"),),
        ),
        Panel(
            title="Model FLOP utilisation",
            says="FLOP of a batch over what the devices could do in the time of its training phase.",
            unit="share",
            queries=(gauge("learner_mfu_ratio", "{{run}}"),),
        ),
        Panel(
            title="FLOP",
            says="That training takes the model, waiting included.",
            unit="flop/s",
            queries=(Query(f"rate(learner_trained_flop_total{RECENT})", "{{run}}"),),
        ),
        Panel(
            title="Tokens trained",
            says="Completion tokens, waiting included.",
            unit="tokens/s",
            queries=(Query(f"rate(learner_trained_tokens_total{RECENT})", "{{run}}"),),
        ),
        Panel(
            title="Checkpoints",
            says="Seconds of a training checkpoint by part; training waits for `wait` and `copy` alone.",
            unit="seconds",
            queries=(
                Query(
                    f"sum by (part) (learner_checkpoint_seconds_sum{CHOSEN})"
                    f" / sum by (part) (learner_checkpoint_seconds_count{CHOSEN})",
                    "{{part}}",
                ),
            ),
        ),
        Panel(
            title="Waits for a checkpoint",
            says="Times within ten minutes that training waited until the one before was written: write fewer.",
            unit="count",
            queries=(Query(f"sum(increase(learner_checkpoint_waits_total{CHOSEN}[10m]))", "waits"),),
        ),
        Panel(
            title="Memory",
            says="Of the learner's first rank on the host.",
            unit="bytes",
            width=12,
            queries=(Query('process_resident_memory_bytes{job="learner",run=~"$run"}', "{{process}}"),),
        ),
        Panel(
            title="Disk of the run's directory",
            says="Checkpoints and logs go here. The alert DiskFillsUp looks four hours ahead.",
            unit="bytes",
            width=12,
            queries=(gauge("learner_disk_free_bytes", "free"), gauge("learner_disk_bytes", "size")),
        ),
    ),
)

DASHBOARD = Dashboard(
    name="learner",
    title="Learner",
    says="Loss, ratio, effective sample size, KL by staleness, step breakdown, MFU.",
    rows=(LOSS, OFF_POLICY, SIGNAL, WEIGHTS, TIME),
)
