"""What the learner tells Prometheus."""

from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from protocol.messages import GroupBatch

REGISTRY = CollectorRegistry()

STEP_SECONDS = Histogram(
    "learner_step_seconds",
    "Time of one step by phase: receive, prepare, train, publish, checkpoint",
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
POLICY_VERSION = Gauge("learner_policy_version", "Optimizer steps behind the weights", registry=REGISTRY)
TRAINED_TOKENS = Counter("learner_trained_tokens", "Completion tokens trained", registry=REGISTRY)
GROUPS_TRAINED = Counter("learner_groups_trained", "Groups trained", registry=REGISTRY)
STEPS_SKIPPED = Counter("learner_steps_skipped", "Steps whose gradient was not finite", registry=REGISTRY)
STALENESS = Histogram(
    "learner_rollout_staleness_steps",
    "Staleness of trained tokens, oldest token of each rollout",
    buckets=(0, 1, 2, 3, 4, 6, 8, 12, 16, 32, 64),
    registry=REGISTRY,
)
_STEP_GAUGES = {
    "reward_mean": Gauge("learner_reward_mean", "Mean reward of the last batch", registry=REGISTRY),
    "length_mean": Gauge(
        "learner_completion_tokens_mean", "Mean completion length of the last batch", registry=REGISTRY
    ),
    "entropy": Gauge("learner_entropy_nats", "Mean entropy of the policy on the last batch", registry=REGISTRY),
    "loss": Gauge("learner_loss", "Policy loss of the last step", registry=REGISTRY),
    "grad_norm": Gauge("learner_grad_norm", "Gradient norm before clipping", registry=REGISTRY),
    "lr": Gauge("learner_learning_rate", "Learning rate of the last step", registry=REGISTRY),
    "clip_fraction": Gauge("learner_clip_fraction", "Share of tokens whose ratio was clipped", registry=REGISTRY),
    "kl_k3": Gauge("learner_kl_nats", "KL of behaviour and current policy, k3 estimate", registry=REGISTRY),
    "ess": Gauge("learner_ess_ratio", "Effective sample size of sequence weights over their number", registry=REGISTRY),
    "truncated_fraction": Gauge("learner_truncated_ratio", "Share of truncated completions", registry=REGISTRY),
    "zero_variance_fraction": Gauge(
        "learner_zero_variance_ratio", "Share of groups of equal rewards", registry=REGISTRY
    ),
}


def show(row: Mapping[str, Any], trained: GroupBatch, policy_version: int, applied: bool) -> None:
    """Count a step and set the gauges to its row of metrics.jsonl."""
    POLICY_VERSION.set(policy_version)
    GROUPS_TRAINED.inc(len(trained.groups))
    STEPS_SKIPPED.inc(not applied)
    for group in trained.groups:
        for item in group.scored:
            TRAINED_TOKENS.inc(len(item.rollout.token_ids))
            STALENESS.observe(trained.policy_version - item.rollout.version_spans[0].version)
    for name, gauge in _STEP_GAUGES.items():
        if row[name] is not None:
            gauge.set(row[name])
