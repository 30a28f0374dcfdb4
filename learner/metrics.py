"""What the learner tells Prometheus."""

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from learner.credit import Credited
from learner.step import StepResult
from protocol.messages import GroupBatch

REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)

STEP_SECONDS = Histogram(
    "learner_step_seconds",
    "Time of one step by phase: receive, credit, pack, train, publish, checkpoint",
    ["phase"],
    buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000),
    registry=REGISTRY,
)
CHECKPOINT_SECONDS = Histogram(
    "learner_checkpoint_seconds",
    "Time of a training checkpoint by part: wait (for the one before), copy, write (in the background)",
    ["part"],
    buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000),
    registry=REGISTRY,
)
CHECKPOINT_WAITS = Counter(
    "learner_checkpoint_waits", "Times that training waited until a checkpoint was written", registry=REGISTRY
)
DISK = Gauge("learner_disk_bytes", "Size of the disk of the run's directory", registry=REGISTRY)
DISK_FREE = Gauge("learner_disk_free_bytes", "Free on the disk of the run's directory", registry=REGISTRY)
PUBLISH_STALL = Histogram(
    "learner_publish_stall_seconds",
    "Time for which training waits, a weight version: for the one before, and for the copy",
    buckets=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30),
    registry=REGISTRY,
)
PUBLISH_WAITS = Counter(
    "learner_publish_waits", "Weight versions that waited until the one before was announced", registry=REGISTRY
)
PUBLISH_SECONDS = Histogram(
    "learner_publish_background_seconds",
    "Time of a weight version beside the training, by part: gather, delta, seal",
    ["part"],
    buckets=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100),
    registry=REGISTRY,
)
WEIGHTS_SERVED = Counter(
    "learner_weights_served_bytes",
    "Bytes of weights sent over the wire by encoding: full, delta, group (one broadcast to all its members)",
    ["encoding"],
    registry=REGISTRY,
)
GROUPS_DISSOLVED = Counter(
    "learner_weight_groups_dissolved",
    "Groups of actors that received weights by broadcast and lost a member or their time",
    registry=REGISTRY,
)
ACTOR_PAUSE = Histogram(
    "learner_actor_pause_seconds",
    "Time for which an actor sampled nothing while it loaded a version",
    buckets=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30),
    registry=REGISTRY,
)
ACTOR_FETCH = Histogram(
    "learner_actor_fetch_seconds",
    "Time from an actor's request for a version to its last byte verified, by way: shared_memory, zmq, relay, group",
    ["way"],
    buckets=(0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100),
    registry=REGISTRY,
)
FINGERPRINT_MISMATCHES = Counter(
    "learner_fingerprint_mismatches",
    "Reports of actors that sample from other weights than those published under that version: must stay 0",
    registry=REGISTRY,
)
POLICY_VERSION = Gauge("learner_policy_version", "Optimizer steps behind the weights", registry=REGISTRY)
TRAINED_FLOP = Counter("learner_trained_flop", "FLOP that training on the batches takes the model", registry=REGISTRY)
TRAINED_TOKENS = Counter("learner_trained_tokens", "Completion tokens trained", registry=REGISTRY)
GROUPS_TRAINED = Counter("learner_groups_trained", "Groups trained", registry=REGISTRY)
GROUPS_FILTERED = Counter(
    "learner_groups_filtered",
    "Groups that taught nothing (singleton, zero_variance), by prompt length up to a power of two tokens",
    ["reason", "prompt_tokens"],
    registry=REGISTRY,
)
ROLLOUTS_FILTERED = Counter("learner_rollouts_filtered", "Truncated rollouts left out of the loss", registry=REGISTRY)
UPDATES = Counter("learner_updates", "Optimizer updates, those skipped included", registry=REGISTRY)
UPDATES_SKIPPED = Counter(
    "learner_updates_skipped",
    "Updates that left the weights as they were: gradient not_finite, or zero (no_signal)",
    ["reason"],
    registry=REGISTRY,
)
STALENESS = Histogram(
    "learner_rollout_staleness_steps",
    "Staleness of trained tokens, oldest token of each rollout",
    buckets=(0, 1, 2, 3, 4, 6, 8, 12, 16, 32, 64),
    registry=REGISTRY,
)
_STEP_GAUGES = {
    "reward_mean": Gauge("learner_reward_mean", "Mean reward of the last batch", registry=REGISTRY),
    "reward_std": Gauge("learner_reward_std", "Standard deviation of the rewards of the last batch", registry=REGISTRY),
    "accuracy": Gauge("learner_accuracy_ratio", "Share of the last batch that is right", registry=REGISTRY),
    "majority_accuracy": Gauge(
        "learner_majority_accuracy_ratio",
        "Share of groups in which the answer of most rollouts is right",
        registry=REGISTRY,
    ),
    "length_mean": Gauge(
        "learner_completion_tokens_mean", "Mean completion length of the last batch", registry=REGISTRY
    ),
    "length_max": Gauge("learner_completion_tokens_max", "Longest completion of the last batch", registry=REGISTRY),
    "length_correct_mean": Gauge(
        "learner_right_completion_tokens_mean", "Mean length of the completions that are right", registry=REGISTRY
    ),
    "length_wrong_mean": Gauge(
        "learner_wrong_completion_tokens_mean", "Mean length of the completions that are wrong", registry=REGISTRY
    ),
    "staleness_mean": Gauge(
        "learner_staleness_steps_mean", "Mean staleness of the tokens of the last batch", registry=REGISTRY
    ),
    "staleness_max": Gauge(
        "learner_staleness_steps_max", "Greatest staleness of a token of the last batch", registry=REGISTRY
    ),
    "mfu": Gauge(
        "learner_mfu_ratio",
        "FLOP of the last batch over what the devices could do in the time of its training phase",
        registry=REGISTRY,
    ),
    "entropy": Gauge("learner_entropy_nats", "Mean entropy of the policy on the last batch", registry=REGISTRY),
    "loss": Gauge("learner_loss", "Policy loss of the last step", registry=REGISTRY),
    "grad_norm": Gauge("learner_grad_norm", "Gradient norm before clipping", registry=REGISTRY),
    "lr": Gauge("learner_learning_rate", "Learning rate of the last step", registry=REGISTRY),
    "clip_fraction": Gauge(
        "learner_clip_ratio", "Share of tokens whose gradient was cut or weight capped", registry=REGISTRY
    ),
    "clip_fraction_positive": Gauge(
        "learner_clip_positive_ratio", "The same among tokens of positive advantage", registry=REGISTRY
    ),
    "clip_fraction_negative": Gauge(
        "learner_clip_negative_ratio", "The same among tokens of negative advantage", registry=REGISTRY
    ),
    "mask_fraction": Gauge("learner_mask_ratio", "Share of tokens that a correction rejected", registry=REGISTRY),
    "mask_fraction_positive": Gauge(
        "learner_mask_positive_ratio", "The same among tokens of positive advantage", registry=REGISTRY
    ),
    "mask_fraction_negative": Gauge(
        "learner_mask_negative_ratio", "The same among tokens of negative advantage", registry=REGISTRY
    ),
    "kl_k1": Gauge("learner_kl_k1_nats", "KL of behaviour and current policy, k1 estimate", registry=REGISTRY),
    "kl_k3": Gauge("learner_kl_nats", "KL of behaviour and current policy, k3 estimate", registry=REGISTRY),
    "kl_k3_lag0": Gauge(
        "learner_mismatch_nats", "The same on tokens of staleness 0: numerics of the two engines", registry=REGISTRY
    ),
    "kl_k3_stale": Gauge("learner_drift_nats", "The same on tokens of staleness above 0", registry=REGISTRY),
    "chi2": Gauge("learner_chi2_ratio", "Mean squared distance of importance weights from 1", registry=REGISTRY),
    "reference_kl": Gauge("learner_reference_kl_nats", "KL of current and reference policy", registry=REGISTRY),
    "ess": Gauge("learner_ess_ratio", "Effective sample size of sequence weights over their number", registry=REGISTRY),
    "ess_truncated": Gauge(
        "learner_ess_truncated_ratio",
        "Effective sample size of capped token weights over their number",
        registry=REGISTRY,
    ),
    "length_bias": Gauge(
        "learner_length_bias_ratio", "Mean length of consumed rollouts over that of generated ones", registry=REGISTRY
    ),
    "truncated_fraction": Gauge("learner_truncated_ratio", "Share of truncated completions", registry=REGISTRY),
    "zero_variance_fraction": Gauge(
        "learner_zero_variance_ratio", "Share of groups of equal rewards", registry=REGISTRY
    ),
}

for _gauge in _STEP_GAUGES.values():
    _gauge.set(math.nan)  # unknown before the first step, and nothing that an alert could take for too low

# A rise from nothing is no rise to Prometheus.
for _reason in ("not_finite", "no_signal"):
    UPDATES_SKIPPED.labels(_reason)
for _encoding in ("full", "delta"):
    WEIGHTS_SERVED.labels(_encoding)

_PARTS = Gauge("learner_reward_part_mean", "Mean of each part of the reward", ["part"], registry=REGISTRY)
_REFLECTIVE = Gauge(
    "learner_reflective_words_mean", "Reflective words a completion of the last batch", ["word"], registry=REGISTRY
)
_RATIO = Gauge(
    "learner_importance_weight_ratio", "Importance weights: min, p50, p99, max", ["quantile"], registry=REGISTRY
)
_STALE_GAUGES = {
    "kl_k3": Gauge(
        "learner_stale_kl_nats", "KL of behaviour and current policy by staleness", ["staleness"], registry=REGISTRY
    ),
    "chi2": Gauge(
        "learner_stale_chi2_ratio", "Squared distance of weights from 1, by staleness", ["staleness"], registry=REGISTRY
    ),
    "ess": Gauge(
        "learner_stale_ess_ratio", "Effective share of token weights by staleness", ["staleness"], registry=REGISTRY
    ),
    "clip_fraction": Gauge(
        "learner_stale_clip_ratio", "Clipped share of tokens by staleness", ["staleness"], registry=REGISTRY
    ),
    "mask_fraction": Gauge(
        "learner_stale_mask_ratio", "Rejected share of tokens by staleness", ["staleness"], registry=REGISTRY
    ),
    "tokens": Gauge("learner_stale_tokens", "Tokens of the last batch by staleness", ["staleness"], registry=REGISTRY),
}


def show_disk(directory: Path) -> None:
    """Tell of the disk on which `directory` lies, from now on."""
    DISK.set_function(lambda: shutil.disk_usage(directory).total)
    DISK_FREE.set_function(lambda: shutil.disk_usage(directory).free)


def show(row: Mapping[str, Any], received: GroupBatch, credited: Credited, result: StepResult) -> None:
    """Count a step and set the gauges to its row of metrics.jsonl."""
    POLICY_VERSION.set(row["policy_version"])
    GROUPS_TRAINED.inc(len(received.groups) - sum(credited.groups_filtered.values()))
    TRAINED_TOKENS.inc(credited.tokens)
    TRAINED_FLOP.inc(row["trained_flop"])
    ROLLOUTS_FILTERED.inc(credited.rollouts_filtered)
    GROUPS_FILTERED.labels("singleton", "").inc(credited.groups_filtered.get("singleton", 0))
    for length, groups in credited.zero_variance_by_prompt.items():
        GROUPS_FILTERED.labels("zero_variance", str(length)).inc(groups)
    UPDATES.inc(result.updates)
    for reason, count in result.skipped.items():
        UPDATES_SKIPPED.labels(reason).inc(count)
    for group in received.groups:
        for item in group.scored:
            STALENESS.observe(received.policy_version - item.rollout.version_spans[0].version)
    for name, gauge in _STEP_GAUGES.items():
        gauge.set(math.nan if row[name] is None else row[name])
    for gauge, values in ((_PARTS, row["parts"]), (_REFLECTIVE, row["reflective_words"]), (_RATIO, row["ratio"])):
        gauge.clear()
        for name, value in (values or {}).items():
            gauge.labels(name).set(value)
    for name, gauge in _STALE_GAUGES.items():
        gauge.clear()
        for bucket, figures in row["by_staleness"].items():
            gauge.labels(bucket).set(figures[name])
