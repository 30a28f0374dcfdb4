"""What an actor tells Prometheus."""

from typing import get_args

from prometheus_client import Counter, Gauge, Histogram

from actors.requests import Impossible
from protocol.messages import FinishReason

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)

generated_tokens = Counter("actor_generated_tokens_total", "Completion tokens sampled")
rollouts = Counter("actor_rollouts_total", "Rollouts sent: stop, length", ["finish_reason"])
rollout_tokens = Histogram(
    "actor_rollout_tokens", "Completion tokens of a rollout that was sent", buckets=[2**power for power in range(2, 18)]
)
mixed_version_rollouts = Counter(
    "actor_mixed_version_rollouts_total", "Rollouts sent that more than one version sampled"
)
running_rollouts = Gauge("actor_running_rollouts", "Rollouts that the next step decodes")
waiting_rollouts = Gauge("actor_waiting_rollouts", "Rollouts leased that have no place in the batch yet")
kv_used = Gauge("actor_kv_cache_used_ratio", "Share of the KV cache in use")
idle_seconds = Counter("actor_idle_seconds_total", "Time without anything to decode")
step_seconds = Histogram("actor_step_seconds", "One engine step", buckets=_SECONDS)
policy_version = Gauge("actor_policy_version", "Version that the engine samples from")
weight_swap_seconds = Histogram(
    "actor_weight_swap_seconds", "Pause of decoding while a new version is loaded", buckets=_SECONDS
)
weight_fetch_seconds = Histogram(
    "actor_weight_fetch_seconds", "From the first request for a version to its last shard", buckets=_SECONDS
)
weights_fetched_bytes = Counter("actor_weights_fetched_bytes_total", "Bytes of weight shards that arrived")
weight_shards_corrupt = Counter("actor_weight_shards_corrupt_total", "Weight shards fetched again, checksum wrong")
weights_relayed_bytes = Counter("actor_weights_relayed_bytes_total", "Bytes of weight shards sent to other actors")
weight_sources_lost = Counter(
    "actor_weight_sources_lost_total", "Actors, of which weights were fetched, that fell silent"
)
weight_versions_not_broadcast = Counter(
    "actor_weight_versions_not_broadcast_total", "Versions that a broadcast did not bring, fetched instead"
)
weight_versions_given_up = Counter("actor_weight_versions_given_up_total", "Versions that did not come, or not in time")
leases_overdue = Counter("actor_leases_overdue_total", "Leases aborted at their deadline")
leases_failed = Counter("actor_leases_failed_total", "Leases that no actor can fulfil", ["reason"])
messages_rejected = Counter("actor_messages_rejected_total", "Messages that could not be taken")

# A rise from nothing is no rise to Prometheus.
for reason in get_args(FinishReason):
    rollouts.labels(reason)
for reason in get_args(Impossible):
    leases_failed.labels(reason)
