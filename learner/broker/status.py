"""What the broker shows over HTTP besides its metrics: who takes part, how far the stream is, what to scrape."""

import socket

from learner.broker.membership import Members
from learner.broker.stream import Stream
from protocol.messages import RunSpec

EVERY_ADDRESS = ("0.0.0.0", "[::]")  # of a host, at which none of them can be reached from another
COUNTS = (
    "generated_tokens",
    "rollouts",
    "verdicts",
    "void_verdicts",
    "resample_limit_reached",
    "tasks_skipped",
)


def status(spec: RunSpec, stream: Stream, members: Members, waiting_for: str, now: float) -> dict[str, object]:
    """`/status`, for people and for the live view."""
    return {
        "run": spec.name,
        "policy_version": stream.version,
        "waiting_for": waiting_for,
        "peers": [
            {
                "name": peer.name,
                "role": peer.hello.role,
                "host": peer.hello.host,
                "pid": peer.hello.pid,
                "metrics_port": peer.hello.metrics_port,
                "waiting_for": peer.heartbeat.waiting_for,
                "policy_version": peer.heartbeat.policy_version,
                "gauges": peer.heartbeat.gauges,
                "silent_seconds": round(now - peer.last_heard, 3),
            }
            for peer in members
        ],
        "stream": {
            "leases_running": len(stream.leases.running),
            "groups_granted": stream.granted,
            "groups_accepted": stream.consumed_groups + stream.ready,
            "groups_trained": stream.consumed_groups,
            "groups_ready": stream.ready,
            "groups_dropped": dict(stream.dropped),
            "admission_limit": stream.admission_limit,
            "verify_queued": stream.jobs.queued,
            "verify_running": len(stream.jobs.running),
            "tasks_retired": len(stream.retirement.retired),
            **{name: stream.counts[name] for name in COUNTS},
        },
    }


def targets(spec: RunSpec, members: Members, address: str) -> list[dict[str, object]]:
    """`/targets`, Prometheus's HTTP service discovery: every live process, and the broker at `address` itself."""
    host, _, port = address.removeprefix("http://").rpartition(":")
    own = f"{socket.gethostname() if host in EVERY_ADDRESS else host}:{port}"
    return [
        _target(own, "broker", "broker", spec),
        *(
            _target(f"{hello.metrics_host or hello.host}:{hello.metrics_port}", hello.role, hello.name, spec)
            for hello in (peer.hello for peer in members)
            if hello.metrics_port
        ),
    ]


def _target(address: str, role: str, name: str, spec: RunSpec) -> dict[str, object]:
    return {"targets": [address], "labels": {"job": role, "process": name, "run": spec.name}}
