"""`python -m learner.broker model=… task.name=… broker=tcp://127.0.0.1:5555`: the broker of one run."""

import gc
import json
import logging
import os
import resource
import signal
import sys
from pathlib import Path
from urllib.parse import urlsplit

import hydra
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from learner.broker.config import BrokerRoot, check, identity, journal_path
from learner.broker.http import StatusServer
from learner.broker.journal import Journal, JournalFailed
from learner.broker.quiet import Quiet
from learner.broker.service import Broker
from learner.broker.sizes import LEARNER
from learner.broker.tasks import open_tasks
from protocol import security
from protocol.sockets import Router

log = logging.getLogger("broker")


ConfigStore.instance().store(name="broker_schema", node=BrokerRoot)


@hydra.main(version_base="1.3", config_path="../../deploy/conf", config_name="broker")
def main(tree: DictConfig) -> None:
    """Listen, say where in RUN/broker.json, serve until the run is over."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    logging.getLogger().handlers[0].addFilter(Quiet())
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)  # a peer each
    config = OmegaConf.to_object(tree)
    assert isinstance(config, BrokerRoot)
    try:
        check(config)
        security.lock(config.security, config.broker, "broker")
        tasks = open_tasks(config.task, config.run.seed)
        journal = open_journal(config)
        router = Router(config.broker, largest=LEARNER)
    except (ValueError, OSError, JournalFailed) as error:
        sys.exit(f"broker: {error}")
    host = urlsplit(router.address).hostname or "127.0.0.1"
    http = StatusServer(host, config.metrics_port)
    address_file = Path(config.run.dir) / "broker.json"
    _write(address_file, {"broker": router.address, "http": http.address, "pid": os.getpid()})
    broker = Broker(config, tasks, router, http, journal)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(
            number, lambda received, _: broker.end(f"broker got {signal.Signals(received).name}", finished=False)
        )
    if config.journal.on_sigterm == "rest":
        signal.signal(
            signal.SIGTERM, signal.SIG_DFL
        )  # as kill -9, after which the journal knows all that anybody heard
    log.info("listening on %s, status at %s/status", router.address, http.address)
    _spare_the_collector()
    try:
        over = broker.run()
    except JournalFailed as error:
        sys.exit(f"broker: {error}")
    finally:
        address_file.unlink(missing_ok=True)
        http.close()
        router.close()
        journal.close()
    sys.exit(0 if over.finished else f"broker: the run ended early: {over.reason}")


def open_journal(config: BrokerRoot) -> Journal:
    """The journal of this run. Raises `JournalFailed` when it is of another one."""
    return Journal(journal_path(config.journal.path, config.run.dir), identity(config), sync=config.journal.sync)


def _spare_the_collector() -> None:
    """Look for reference cycles when there are many more objects than before, and not for every few hundred.

    Rollouts live long and form no cycles. To look through all of them, as Python does time and again, took a third of
    a loaded broker's time, and up to half a second at once.
    """
    gc.freeze()
    gc.set_threshold(100_000, 50, 1000)


def _write(path: Path, content: dict[str, object]) -> None:
    """Write `content` so that a reader sees all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content))
    partial.replace(path)


if __name__ == "__main__":
    main()
