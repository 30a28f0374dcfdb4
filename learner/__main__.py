"""`python -m learner broker=tcp://host:port model=…`, alone or under `torchrun --nproc-per-node N -m learner`."""

import logging
import os
import secrets
import signal
import socket
import sys
from functools import partial
from pathlib import Path

import hydra
import torch
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from prometheus_client import start_http_server

from learner import distributed, exchange, metrics, optimizer
from learner.checkpoint import files as checkpoint_files
from learner.checkpoint.checkpoints import Checkpoints
from learner.checkpoint.progress import Progress
from learner.claim import claim
from learner.config import LearnerRoot, check
from learner.distributed import Ranks
from learner.link import WELCOME_SECONDS, Link
from learner.loop import Learner, stop_reason
from learner.optimizer import Optimizer
from learner.policy import model
from learner.policy.model import Policy
from learner.policy.reference import load_reference
from learner.publish.publisher import Publisher
from learner.publish.server import WeightServer
from learner.publish.store import Store
from learner.record import Record, open_record, resume_record, versions
from learner.sinks import open_sinks
from protocol import security
from protocol.address import awaited
from protocol.errors import ProtocolError
from protocol.messages import Hello, Message, RunSpec, Welcome
from protocol.sockets import own_address

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
        security.lock(config.security, config.broker, "learner")
        if config.learner.threads:
            torch.set_num_threads(config.learner.threads)
        ranks = distributed.start(
            config.learner.device, config.learner.batch_wait_seconds, config.policy.tensor_parallel
        )
        run(config, ranks)
    except (ValueError, OSError, ProtocolError) as error:
        sys.exit(f"learner: {error}")
    except KeyboardInterrupt:
        sys.exit("learner: stopped by a signal")
    distributed.stop()


def run(config: LearnerRoot, ranks: Ranks) -> None:
    """Load the policy, then train; rank 0 holds the line to the broker."""
    settings = config.learner
    if ranks.first:
        claim(Path(config.run.dir))
    policy = model.load(Path(config.model), ranks, config.policy)
    steps = optimizer.build(policy, config.optimizer)
    reference = load_reference(config, ranks)
    checkpoints = Checkpoints(
        Path(config.run.dir) / checkpoint_files.FOLDER,
        ranks,
        Path(config.model),
        keep=config.checkpoint.keep,
        write_seconds=config.checkpoint.write_seconds,
        reference=reference if config.loss.kl_replace_every else None,
    )
    restored = restore(config, checkpoints, policy, steps)
    publisher = partial(
        Publisher,
        policy,
        ranks,
        config.weights,
        dtype=getattr(torch, settings.publish_dtype) if settings.publish_dtype else None,
    )
    if not ranks.first:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # rank 0 tells them when it is over
        with publisher() as published:
            run_spec = _run_spec(None, ranks)
            Learner(
                config, run_spec, ranks, policy, steps, reference, None, None, published, checkpoints, restored
            ).train()
        return
    signal.signal(signal.SIGTERM, _interrupt)  # until it trains
    broker = awaited(config.broker, WELCOME_SECONDS)
    address = own_address(broker)
    port = start_http_server(config.metrics_port, addr=address, registry=metrics.REGISTRY)[0].server_port
    record = _record(config, restored)
    metrics.show_disk(record.directory)
    server = partial(
        WeightServer,
        fanout=config.weights.fanout,
        shared_memory=config.weights.shared_memory,
        group=config.weights.group,
        group_seconds=config.weights.group_seconds,
        device=ranks.device,
    )
    with (
        open_sinks(config, restored.policy_version) as record.sinks,
        Link(broker, _hello(address, port)) as link,
        server(Store(settings.versions_kept), address) as weights,
        publisher(server=weights, announce=link.announce) as published,
    ):
        run_spec = _run_spec(link.welcome, ranks)
        learner = Learner(
            config, run_spec, ranks, policy, steps, reference, link, record, published, checkpoints, restored
        )
        signal.signal(signal.SIGTERM, lambda *_: link.interrupt("the learner got SIGTERM"))
        reason = learner.train()
        link.goodbye(reason, finished=True)
    log.info("finished: %s", reason)


def restore(config: LearnerRoot, checkpoints: Checkpoints, policy: Policy, steps: Optimizer) -> Progress:
    """Where the run begins: at its newest checkpoint, if it is to be resumed. Collective.

    Raises `ValueError` when a new run would mix with an old one, and, where a checkpoint is required, when there is
    none or nothing is left to do.
    """
    directory, newest = config.run.dir, checkpoints.latest()
    if not config.checkpoint.resume:
        if newest is not None:
            raise ValueError(
                f"run.dir={directory}: holds checkpoints of an earlier run; choose another run.name, remove them, or "
                "go on with it by checkpoint.resume=true"
            )
        return Progress()
    if newest is None and not config.checkpoint.required:
        log.info("%s holds no whole checkpoint: beginning anew", directory)
        return Progress()
    if newest is None:
        raise ValueError(f"checkpoint.resume=true: run.dir={directory} holds no whole checkpoint to go on from")
    restored = checkpoints.restore(policy, steps, newest)
    reason = stop_reason(config.learner, restored.policy_version, restored.rewards)
    if reason and config.checkpoint.required:
        raise ValueError(
            f"checkpoint.resume=true: nothing is left to do after {newest}: {reason}; raise learner.steps or "
            "learner.target_reward, or write its model by `python -m learner.export`"
        )
    log.info("going on from %s", newest)
    return restored


def _record(config: LearnerRoot, restored: Progress) -> Record:
    directory, samples = Path(config.run.dir), config.learner.samples_per_step
    if config.checkpoint.resume:
        return resume_record(directory, samples, restored.policy_version)
    return open_record(directory, samples)


def _hello(address: str, port: int) -> Hello:
    return Hello(
        role="learner",
        name="learner",
        host=socket.gethostname(),
        pid=os.getpid(),
        metrics_port=port,
        metrics_host=address,
        versions=versions(),
        session=secrets.token_hex(8),
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
