"""`python -m verifier broker=tcp://host:port`: join a run as a verifier."""

import logging
import os
import platform
import secrets
import signal
import socket
import sys
from types import FrameType

import hydra
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from prometheus_client import start_http_server

from protocol import security
from protocol.address import awaited
from protocol.errors import ProtocolError
from protocol.messages import Hello
from protocol.sockets import own_address
from verifier import metrics
from verifier.config import VerifierRoot, check
from verifier.pool import Pool, PoolBroken
from verifier.relay import Relay
from verifier.rewards.proof import programs
from verifier.sandbox.program import Limits
from verifier.sandbox.run import SandboxError
from verifier.sandbox.sandbox import Sandbox
from verifier.sandbox.walls import WALLS, Walls
from verifier.service import Service
from verifier.starter import Zygote

log = logging.getLogger("verifier")
ConfigStore.instance().store(name="verifier_schema", node=VerifierRoot)


@hydra.main(version_base="1.3", config_path="../deploy/conf", config_name="verifier")
def main(tree: DictConfig) -> None:
    """Read the configuration, refuse what cannot be, check until the run is over."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    config = OmegaConf.to_object(tree)
    assert isinstance(config, VerifierRoot)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave_at_once)
    try:
        check(config)
        security.lock(config.security, config.broker, "verifier")
        address = own_address(awaited(config.broker, config.verifier.welcome_seconds))
        port = start_http_server(config.metrics_port, addr=address)[0].server_port
    except (ValueError, OSError, ProtocolError) as error:
        sys.exit(f"verifier: {error}")
    verifier = config.verifier
    sandbox = _sandbox(config)
    strict = config.sandbox.require == "strict"
    relay = Relay(verifier.lean_server, verifier.lean_key_file) if verifier.lean_server else None
    starter = Zygote(verifier.memory_bytes, verifier.workers, sandbox=sandbox, relay=relay, strict=strict)
    try:
        _say(sandbox.walls, starter.walls)
        pool = Pool(starter, workers=verifier.workers, checks_per_worker=verifier.checks_per_worker, sandbox=sandbox)
        service = Service(
            config.broker,
            pool,
            _hello(config, address, port),
            capacity=verifier.workers * verifier.backlog,
            welcome_seconds=verifier.welcome_seconds,
        )
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda received, _: service.stop(f"got {signal.Signals(received).name}"))
        service.run()
    except (ValueError, ProtocolError, PoolBroken, SandboxError) as error:
        sys.exit(f"verifier: {error}")
    finally:
        starter.close()
        sandbox.close()
        if relay is not None:
            relay.close()


def _sandbox(config: VerifierRoot) -> Sandbox:
    """For model-written code: two programs a worker, as unit tests need, and two that are on their way out."""
    wanted = config.sandbox
    most = Limits(
        cpu_seconds=wanted.seconds,
        wall_seconds=wanted.seconds,
        memory_bytes=wanted.memory_bytes,
        disk_bytes=wanted.disk_bytes,
        processes=wanted.processes,
    )
    return Sandbox(
        slots=2 * config.verifier.workers + 2,
        most=most,
        readable=[*wanted.readable, *programs.readable()],
        strict=wanted.require == "strict",
    )


def _say(programs: Walls, workers: Walls) -> None:
    """What this host gives and what it does not, in the log and to Prometheus."""
    for name, walls in (("model-written code", programs), ("workers", workers)):
        level = logging.WARNING if walls.gap() else logging.INFO
        log.log(level, "sandbox of %s: %s", name, walls.described())
    for wall in WALLS:
        metrics.sandbox_walls.labels(wall=wall).set(wall in programs and wall in workers)


def _leave_at_once(received: int, frame: FrameType | None) -> None:
    """Before the loop runs there is nothing to finish."""
    raise SystemExit(0)


def _hello(config: VerifierRoot, address: str, port: int) -> Hello:
    host = socket.gethostname()
    return Hello(
        role="verifier",
        name=config.verifier.name or f"verifier-{host}-{os.getpid()}",
        host=host,
        pid=os.getpid(),
        metrics_port=port,
        metrics_host=address,
        versions={"python": platform.python_version()},
        session=secrets.token_hex(8),
    )


if __name__ == "__main__":
    main()
