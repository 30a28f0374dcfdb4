"""The verifier's options."""

import os
from dataclasses import dataclass, field
from urllib.parse import urlsplit

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
    lean_server: str = option("", "address of a Kimina Lean Server, for proofs in Lean: http://host:port")
    lean_key_file: str = option("", "file that holds the server's API key; empty: it wants none")


REQUIREMENTS = ("strict", "best_effort")


@dataclass(kw_only=True, slots=True)
class SandboxConfig:
    """The walls round workers and round model-written code; `verifier/README.md` says what they hold."""

    require: str = option(
        "strict",
        "`strict`: no namespaces or no system-call filter, no service; `best_effort`: go on with what there is",
    )
    memory_bytes: int = option(2**30, "most memory that a task may give to model-written code")
    disk_bytes: int = option(64 * 2**20, "most that it may write to files, which count as memory")
    seconds: float = option(600.0, "longest time, of the CPU and of the clock, that a task may give it")
    processes: int = option(64, "most processes and threads")
    readable: list[str] = option([], "files and folders that it may read besides the interpreter and its libraries")


@dataclass(kw_only=True, slots=True)
class VerifierRoot:
    """All that `python -m verifier` reads."""

    broker: str = option("tcp://127.0.0.1:5555", "address of the broker, or `file:` and the path of its broker.json")
    metrics_port: int = option(0, "port of the Prometheus exporter; 0: a free one")
    verifier: VerifierConfig = field(default_factory=VerifierConfig)
    sandbox: SandboxConfig = field(default_factory=SandboxConfig)
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
    _check_server(verifier)
    sandbox = config.sandbox
    if sandbox.require not in REQUIREMENTS:
        raise ValueError(f"sandbox.require={sandbox.require}: must be one of {', '.join(REQUIREMENTS)}")
    for name in ("disk_bytes", "seconds", "processes"):
        if getattr(sandbox, name) <= 0:
            raise ValueError(f"sandbox.{name}={getattr(sandbox, name)}: must be above 0")
    if sandbox.memory_bytes < 64 * 2**20:
        raise ValueError(f"sandbox.memory_bytes={sandbox.memory_bytes}: a Python interpreter needs at least 64 MiB")
    for path in sandbox.readable:
        if not os.path.isabs(path) or not os.path.exists(path):
            raise ValueError(f"sandbox.readable: {path!r} must be the absolute path of something that exists")


def _check_server(verifier: VerifierConfig) -> None:
    if verifier.lean_server:
        address = urlsplit(verifier.lean_server)
        if address.scheme not in ("http", "https") or not address.hostname:
            raise ValueError(
                f"verifier.lean_server={verifier.lean_server}: must be http://host:port or https://host:port"
            )
    if verifier.lean_key_file and not os.path.isfile(verifier.lean_key_file):
        raise ValueError(f"verifier.lean_key_file={verifier.lean_key_file}: there is no such file")
