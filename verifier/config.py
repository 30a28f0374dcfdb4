"""The verifier's options."""

from dataclasses import dataclass, field

from protocol.options import option
from protocol.security import SecurityConfig, check_security


@dataclass(kw_only=True, slots=True)
class VerifierConfig:
    """The verifier's pool."""

    name: str = option("", "unique name in the run; empty: verifier-<host>-<pid>")
    workers: int = option(1, "worker processes")
    welcome_seconds: float = option(30.0, "longest wait for the broker to answer Hello")
    backlog: int = option(32, "jobs held a worker, running one included")
    memory_bytes: int = option(
        2 * 2**30, "address space of one worker; more is an error of the check, not of the service"
    )
    checks_per_worker: int = option(10000, "checks after which a worker is replaced")


@dataclass(kw_only=True, slots=True)
class VerifierRoot:
    """All that `python -m verifier` reads."""

    broker: str = option("tcp://127.0.0.1:5555", "address of the broker, or `file:` and the path of its broker.json")
    metrics_port: int = option(0, "port of the Prometheus exporter; 0: a free one")
    verifier: VerifierConfig = field(default_factory=VerifierConfig)
    security: SecurityConfig = field(default_factory=SecurityConfig)


def check(config: VerifierRoot) -> None:
    """Refuse, with the reason, what could not work. Raises `ValueError`."""
    check_security(config.security)
    verifier = config.verifier
    for name in ("workers", "backlog", "checks_per_worker"):
        if getattr(verifier, name) < 1:
            raise ValueError(f"verifier.{name}={getattr(verifier, name)}: must be at least 1")
    if verifier.memory_bytes < 256 * 2**20:
        raise ValueError(f"verifier.memory_bytes={verifier.memory_bytes}: Python with sympy needs at least 256 MiB")
    if verifier.welcome_seconds <= 0:
        raise ValueError(f"verifier.welcome_seconds={verifier.welcome_seconds}: must be above 0")
