"""`python -m verifier broker=tcp://host:port`: join a run as a verifier."""

import logging
import os
import platform
import secrets
import signal
import socket
import subprocess
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
from verifier.cores import cores
from verifier.pool import Pool, PoolBroken
from verifier.relay import Relay
from verifier.rewards.custom import await_sandboxed
from verifier.rewards.custom_source import CustomFunction, find
from verifier.rewards.proof import programs
from verifier.sandbox.program import Limits
from verifier.sandbox.run import SandboxError
from verifier.sandbox.sandbox import Sandbox
from verifier.sandbox.walls import WALLS, Walls
from verifier.scoring.scorer import ModelScorer
from verifier.service import Service
from verifier.starter import Zygote

log = logging.getLogger("verifier")

CUSTOM_SECONDS = 120.0  # for the module of a user's function to be imported at the start
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
        custom = _custom(config)
        security.lock(config.security, config.broker, "verifier")
        address = own_address(awaited(config.broker, config.verifier.welcome_seconds))
        port = start_http_server(config.metrics_port, addr=address)[0].server_port
    except (ValueError, OSError, ProtocolError, subprocess.TimeoutExpired) as error:
        sys.exit(f"verifier: {error}")
    verifier = config.verifier
    verifier.workers = verifier.workers or cores()
    sandbox = _sandbox(config)
    strict = config.sandbox.require == "strict"
    scorer = ModelScorer(config.reward_model) if config.reward_model.path else None
    relay = Relay(verifier.lean_server, verifier.lean_key_file) if verifier.lean_server else None
    starter = Zygote(
        verifier.memory_bytes, verifier.workers, sandbox=sandbox, custom=custom, relay=relay, strict=strict
    )
    try:
        _say(sandbox.walls, starter.walls)
        if scorer:
            scorer.await_ready()
        if custom and not custom.trusted:
            await_sandboxed(sandbox.link(), custom, min(CUSTOM_SECONDS, config.sandbox.seconds))
        pool = Pool(
            starter,
            workers=verifier.workers,
            checks_per_worker=verifier.checks_per_worker,
            sandbox=sandbox,
            scorer=scorer,
            patience_seconds=verifier.patience_seconds,
            retries=verifier.retries,
        )
        service = Service(
            config.broker,
            pool,
            _hello(config, address, port),
            capacity=max(verifier.workers * verifier.backlog, 2 * config.reward_model.batch_jobs if scorer else 0),
            welcome_seconds=verifier.welcome_seconds,
            drain_seconds=verifier.drain_seconds,
        )
        signal.signal(signal.SIGTERM, lambda *_: service.drain("got SIGTERM"))
        signal.signal(signal.SIGINT, lambda *_: service.stop("got SIGINT"))
        service.run()
    except (ValueError, ProtocolError, PoolBroken, SandboxError) as error:
        sys.exit(f"verifier: {error}")
    finally:
        if scorer:
            scorer.close()
        starter.close()
        sandbox.close()
        if relay is not None:
            relay.close()


def _custom(config: VerifierRoot) -> CustomFunction | None:
    """The user's function, if there is one. A trusted one is imported in a process of its own, to know that it can be.

    Raises `ValueError`.
    """
    wanted = config.custom
    if not wanted.function:
        return None
    packages = [folder for folder in config.sandbox.readable if os.path.isdir(folder)]
    memory = config.sandbox.memory_bytes
    found = find(wanted.function, wanted.path, trusted=wanted.trusted, packages=packages, memory_bytes=memory)
    if found.trusted:
        place = [*found.packages, found.folder]
        program = (
            f"import sys; sys.path[:0] = {place!r}; from {found.module} import {found.name} as judge; "
            "sys.exit(None if callable(judge) else 'it cannot be called')"
        )
        trial = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, timeout=CUSTOM_SECONDS, check=False
        )
        if trial.returncode:
            last = (trial.stderr.strip().splitlines() or [f"exit code {trial.returncode}"])[-1]
            raise ValueError(f"{found.option} cannot be imported: {last}")
    return found


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
