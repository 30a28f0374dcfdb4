"""`python -m learner broker=tcp://host:port model=…`, alone or under `torchrun --nproc-per-node N -m learner`."""

import logging
import os
import signal
import socket
import sys
from pathlib import Path

import hydra
import torch
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from prometheus_client import start_http_server

from learner import distributed, exchange, metrics, model, optimizer
from learner.config import LearnerRoot, check
from learner.distributed import Ranks
from learner.link import Link
from learner.loop import Learner
from learner.record import open_record, versions
from learner.reference import load_reference
from protocol.errors import ProtocolError
from protocol.messages import Hello, Message, RunSpec, Welcome

log = logging.getLogger("learner")

ConfigStore.instance().store(name="learner_schema", node=LearnerRoot)


@hydra.main(version_base="1.3", config_path="../deploy/conf", config_name="learner")
def main(tree: DictConfig) -> None:
    """Join the run as its learner and train to the end."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    config = OmegaConf.to_object(tree)
    assert isinstance(config, LearnerRoot)
    try:
        check(config)
        if config.learner.threads:
            torch.set_num_threads(config.learner.threads)
        ranks = distributed.start(config.learner.device, config.learner.batch_wait_seconds)
        run(config, ranks)
    except (ValueError, OSError, ProtocolError) as error:
        sys.exit(f"learner: {error}")
    except KeyboardInterrupt:
        sys.exit("learner: stopped by a signal")
    distributed.stop()


def run(config: LearnerRoot, ranks: Ranks) -> None:
    """Load the policy, then train; rank 0 holds the line to the broker."""
    settings = config.learner
    policy = model.load(Path(config.model), ranks, config.policy)
    steps = optimizer.build(policy, config.optimizer)
    reference = load_reference(config, ranks)
    if not ranks.first:
        Learner(config, _run_spec(None, ranks), ranks, policy, steps, reference, None, None).train()
        return
    signal.signal(signal.SIGTERM, _interrupt)  # on rank 0 alone: it says goodbye, the others have nothing to say
    port = start_http_server(config.metrics_port, addr="127.0.0.1", registry=metrics.REGISTRY)[0].server_port
    record = open_record(Path(config.run.dir), settings.samples_per_step)
    with Link(config.broker, _hello(port), versions_kept=settings.versions_kept) as link:
        learner = Learner(config, _run_spec(link.welcome, ranks), ranks, policy, steps, reference, link, record)
        reason = learner.train()
        link.goodbye(reason, finished=True)
    log.info("finished: %s", reason)


def _hello(port: int) -> Hello:
    return Hello(
        role="learner",
        name="learner",
        host=socket.gethostname(),
        pid=os.getpid(),
        metrics_port=port,
        versions=versions(),
    )


def _run_spec(welcome: Welcome | None, ranks: Ranks) -> RunSpec:
    """What the broker told rank 0, on every rank."""
    shared: Message = exchange.broadcast(welcome, ranks.device)
    assert isinstance(shared, Welcome)
    return shared.run


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
