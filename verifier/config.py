"""The verifier's options."""

from dataclasses import dataclass, field

from protocol.options import option


@dataclass(kw_only=True, slots=True)
class VerifierConfig:
    """The verifier's pool."""

    name: str = option("", "unique name in the run; empty: verifier-<host>-<pid>")
    workers: int = option(1, "worker processes")
    backlog: int = option(32, "jobs held a worker, running one included")
    memory_bytes: int = option(
        2 * 2**30, "address space of one worker; more is an error of the check, not of the service"
    )
    checks_per_worker: int = option(10000, "checks after which a worker is replaced")


@dataclass(kw_only=True, slots=True)
class VerifierRoot:
    """All that `python -m verifier` reads."""

    broker: str = option("tcp://127.0.0.1:5555", "address of the broker")
    metrics_port: int = option(0, "port of the Prometheus exporter; 0: a free one")
    verifier: VerifierConfig = field(default_factory=VerifierConfig)
