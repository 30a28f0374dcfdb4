"""What a verifier tells Prometheus."""

from typing import get_args

from prometheus_client import Counter, Gauge, Histogram

from verifier.reports import Outcome
from verifier.sandbox.program import ENDED

_SECONDS = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30)

checks = Counter(
    "verifier_checks_total", "Rewards applied to a text: scored, timeout, memory, void, failed", ["reward", "outcome"]
)
check_seconds = Histogram(
    "verifier_check_seconds", "One reward applied to one text, in seconds", ["reward"], buckets=_SECONDS
)
wait_seconds = Histogram(
    "verifier_wait_seconds", "From a job's arrival to the start of its first check, in seconds", buckets=_SECONDS
)
retries = Counter(
    "verifier_checks_retried_total",
    "Checks tried again after the host failed them: sandbox, lost, starved, model",
    ["reason"],
)
model_batch_jobs = Histogram(
    "verifier_model_batch_jobs", "Jobs that the reward model judged together", buckets=(1, 2, 4, 8, 16, 32, 64)
)
model_tokens = Counter("verifier_model_tokens_total", "Tokens that the reward model read, padding left out")
verdicts = Counter("verifier_verdicts_total", "Verdicts sent: reward, void", ["outcome"])
workers_ended = Counter(
    "verifier_workers_killed_total", "Workers ended and replaced: timeout, memory, starved, lost, renewed", ["reason"]
)
sandbox_walls = Gauge("verifier_sandbox_wall", "Whether a wall of the sandbox stands on this host: 1 or 0", ["wall"])
sandbox_runs = Counter(
    "verifier_sandbox_runs_total",
    "Programs run in the sandbox: exit, signal, cpu, wall, memory, output (or ended by the check for that), aborted",
    ["ended"],
)
jobs_queued = Gauge("verifier_jobs_queued", "Jobs that no worker has begun")
jobs_running = Gauge("verifier_jobs_running", "Jobs that a worker or the reward model is at")
messages_rejected = Counter("verifier_messages_rejected_total", "Messages that could not be taken")


def meet(reward: str) -> None:
    """A reward is applied, perhaps for the first time: all its series are there, from 0."""
    for outcome in get_args(Outcome):
        checks.labels(reward=reward, outcome=outcome)


# A rise from nothing is no rise to Prometheus.
for outcome in ("reward", "void"):
    verdicts.labels(outcome=outcome)
for ended in ENDED:
    sandbox_runs.labels(ended=ended)
for reason in ("sandbox", "lost", "starved", "model"):
    retries.labels(reason=reason)
for reason in ("timeout", "memory", "starved", "lost", "renewed"):
    workers_ended.labels(reason=reason)
