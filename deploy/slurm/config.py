"""One tree of options for a run on a cluster: what the roles read, and what Slurm is asked for."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from deploy.local.config import check_model, check_roles, union
from learner.config import LearnerConfig
from protocol.options import option

CONTAINERS = ("pyxis", "apptainer")
ROLES = ("learner", "actor", "verifier")
TIME = re.compile(r"(\d+-)?\d+(:\d+){0,2}")
MEMORY = re.compile(r"\d+[KMGT]?")
NAME = re.compile(r"[\w.-]+")
LEAVING_SECONDS = 60  # beyond what a peer takes to finish what it has begun
NOTICE = {  # where a role's notice comes from
    "learner": "slurm.notice_seconds",
    "actor": f"actor.drain_seconds and {LEAVING_SECONDS} s",
    "verifier": f"{LEAVING_SECONDS} s",
}
LEAST_NOTICE = 60  # seconds: Slurm looks at time limits about twice a minute


@dataclass(kw_only=True, slots=True)
class ClusterConfig:
    """What holds for all jobs of the run."""

    partition: str = option("", "partition of all jobs that name none of their own; empty: the cluster's default")
    account: str = option("", "account that is charged; empty: the user's default")
    qos: str = option("", "quality of service; empty: the default")
    options: list[str] = option([], "further options of sbatch for every job, such as `--constraint=h100`")
    site: str = option("", "shell file that every job reads first: modules, environment; copied beside the run")
    python: str = option("", "python on the nodes; empty: this one, or `python3` in a container")
    container_image: str = option("", "image in which the roles run; empty: none")
    container: str = option("pyxis", "what starts the image: `pyxis` (srun --container-image) or `apptainer`")
    container_mounts: list[str] = option(
        [], "further directories that a container sees, as `/here` or `/here:/there`; the run's own is always one"
    )
    shared: bool = option(
        False, "all nodes see `run.dir`, though it lies where each of them has a directory of its own, such as /tmp"
    )
    notice_seconds: int = option(
        300, "before its time limit a learner is told so long to write a checkpoint; then it goes back into the queue"
    )


@dataclass(kw_only=True, slots=True)
class JobConfig:
    """What one job of a role is given; of the learner, on each of its nodes."""

    partition: str = option("", "partition; empty: `slurm.partition`")
    time: str = option("", "time limit, such as `4:00:00` or `2-00:00:00`; empty: the partition's")
    gres: str = option("", "generic resources, such as `gpu:8` or `gpu:h100:1`; empty: none")
    cpus: int = option(1, "CPUs")
    memory: str = option("", "memory, such as `64G`; empty: the partition's default")
    options: list[str] = option([], "further options of sbatch, such as `--exclusive`")


@dataclass(kw_only=True, slots=True)
class JobsConfig:
    """The jobs of a run, by role."""

    learner: JobConfig = field(default_factory=JobConfig, metadata={"doc": "learner and broker"})
    actor: JobConfig = field(default_factory=JobConfig, metadata={"doc": "each actor"})
    verifier: JobConfig = field(default_factory=JobConfig, metadata={"doc": "each verifier"})


@dataclass(kw_only=True, slots=True)
class NodesLearnerConfig(LearnerConfig):
    """The learner's options, and over how many nodes it is spread."""

    nodes: int = option(1, "nodes of the learner; `learner.ranks` are spread evenly over them, one a node by default")


@dataclass(kw_only=True, slots=True)
class SlurmLauncherConfig:
    """What `python -m deploy.slurm up` itself decides."""

    broker: str = option(
        "tcp://node:*",
        "address on which the broker listens; `node` stands for that of its node, `*` takes a free port, a network "
        "interface such as `tcp://ib0:5555` is taken too",
    )
    metrics_port: int = option(0, "port of the broker's /metrics, /targets and /status; 0: a free one")
    model: str = option("", "HF checkpoint directory to train from; empty: the one that the cold start makes")
    cold_start: bool = option(False, "make the model by supervised training first, in a job of its own")
    actors: int = option(1, "actors")
    verifiers: int = option(1, "verifiers")
    overwrite: bool = option(False, "clear a run directory that holds a run already, instead of refusing it")
    resume: bool = option(False, "go on with the run of this directory, which was drained or has ended early")
    restarts: int = option(5, "times that each job which failed goes back into the queue")
    restart_reset_seconds: float = option(
        60.0, "a job that ran for so long had worked: its failures count anew; a learner that fails earlier has failed"
    )
    start_seconds: float = option(120.0, "longest wait for the broker to listen")
    learner: NodesLearnerConfig = field(default_factory=NodesLearnerConfig)
    slurm: ClusterConfig = field(default_factory=ClusterConfig)
    jobs: JobsConfig = field(default_factory=JobsConfig)


SlurmRoot = union("SlurmRoot", SlurmLauncherConfig)


def settle(tree: DictConfig) -> SlurmLauncherConfig:
    """The tree as an object; its paths are absolute afterwards. Raises `ValueError` on what cannot work."""
    tree.run.dir = str(Path(tree.run.dir).absolute())
    if tree.model:
        tree.model = str(Path(tree.model).absolute())
    config = OmegaConf.to_object(tree)
    assert isinstance(config, SlurmLauncherConfig)
    check(tree, config)
    return config


def roles_tree(tree: DictConfig) -> DictConfig:
    """The tree without what only Slurm is asked for: what the roles' parts are taken from."""
    plain = OmegaConf.to_container(tree, resolve=True)
    assert isinstance(plain, dict)
    del plain["slurm"], plain["jobs"], plain["learner"]["nodes"]
    return OmegaConf.create(plain)


def ranks_per_node(config: SlurmLauncherConfig) -> int:
    """Ranks of the learner on each of its nodes."""
    return config.learner.ranks // config.learner.nodes


def python(config: SlurmLauncherConfig, here: str) -> str:
    """The interpreter on the nodes; `here` is the one that runs this."""
    return config.slurm.python or ("python3" if config.slurm.container_image else here)


def job(config: SlurmLauncherConfig, role: str) -> JobConfig:
    """What a job of `role` is given."""
    found: JobConfig = getattr(config.jobs, role)
    return found


def notice(config: SlurmLauncherConfig, role: str, drain_seconds: float) -> int:
    """Seconds before its time limit at which a job of `role` is told of it."""
    if role == "learner":
        return config.slurm.notice_seconds
    return round(drain_seconds if role == "actor" else 0) + LEAVING_SECONDS


def seconds(time: str) -> int:
    """A time limit as Slurm reads it: `30` minutes, `30:00`, `4:00:00`, `2-12` days and hours, `2-00:00:00`."""
    days, dash, rest = time.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if dash:
        hours, minutes, left = (*parts, 0, 0)[:3]
    elif len(parts) == 3:
        hours, minutes, left = parts
    else:
        hours, (minutes, left) = 0, (*parts, 0)[:2]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + left


def check(tree: DictConfig, config: SlurmLauncherConfig) -> None:
    """Refuse what cannot work, before Slurm is asked for anything. Raises `ValueError`."""
    _check_counts(config)
    _check_cluster(tree, config)
    for role in ROLES:
        _check_job(role, job(config, role), notice(config, role, tree.actor.drain_seconds))
    if config.resume and config.overwrite:
        raise ValueError("resume=true with overwrite=true: the run to go on with would be cleared; give one of them")
    if not tree.checkpoint.every:
        raise ValueError(
            "checkpoint.every=0: a learner that Slurm requeues could not go on; give the steps between two"
        )
    check_model(config.model, cold_start=config.cold_start)
    check_roles(roles_tree(tree), cold_start=config.cold_start)


def _check_counts(config: SlurmLauncherConfig) -> None:
    for name in ("actors", "verifiers", "restarts"):
        if getattr(config, name) < 0:
            raise ValueError(f"{name}={getattr(config, name)}: must be 0 or more")
    nodes, ranks = config.learner.nodes, config.learner.ranks
    if nodes < 1:
        raise ValueError(f"learner.nodes={nodes}: must be at least 1")
    if ranks < nodes or ranks % nodes:
        raise ValueError(f"learner.ranks={ranks}: must be a multiple of learner.nodes={nodes}, the same on every node")
    for name in ("start_seconds", "restart_reset_seconds"):
        if getattr(config, name) <= 0:
            raise ValueError(f"{name}={getattr(config, name)}: must be more than 0 seconds")


def _check_cluster(tree: DictConfig, config: SlurmLauncherConfig) -> None:
    cluster = config.slurm
    if not NAME.fullmatch(str(tree.run.name)):
        raise ValueError(f"run.name={tree.run.name}: becomes part of the jobs' names: letters, digits and _ . - only")
    if re.search(r"[\s'\"$`\\%]", tree.run.dir):
        raise ValueError(f"run.dir={tree.run.dir}: Slurm and shells would misread it: no blanks, quotes, $, %, \\ or `")
    if cluster.container not in CONTAINERS:
        raise ValueError(f"slurm.container={cluster.container}: must be one of {', '.join(CONTAINERS)}")
    if cluster.site and not Path(cluster.site).is_file():
        raise ValueError(f"slurm.site={cluster.site}: there is no such file; it is a shell file that every job reads")
    if cluster.notice_seconds < LEAST_NOTICE:
        raise ValueError(
            f"slurm.notice_seconds={cluster.notice_seconds}: must be at least {LEAST_NOTICE}: Slurm is not exact"
        )
    if not config.broker.startswith("tcp://"):
        raise ValueError(f"broker={config.broker}: must be as tcp://node:5555, or tcp://node:* for a free port")
    for name, options in (("slurm", cluster.options), *((f"jobs.{role}", job(config, role).options) for role in ROLES)):
        for each in options:
            if not each.startswith("-") or "\n" in each:
                raise ValueError(f"{name}.options: {each!r} is no option of sbatch: it must begin with a dash")


def _check_job(role: str, asked: JobConfig, notice_seconds: int) -> None:
    if asked.cpus < 1:
        raise ValueError(f"jobs.{role}.cpus={asked.cpus}: must be at least 1")
    if asked.time and not TIME.fullmatch(asked.time):
        raise ValueError(f"jobs.{role}.time={asked.time}: must be as 30 (minutes), 4:00:00 or 2-00:00:00")
    if asked.time and seconds(asked.time) < 3 * notice_seconds:
        raise ValueError(
            f"jobs.{role}.time={asked.time}: must be at least {3 * notice_seconds} s, three times the notice that "
            f"it is given of it ({NOTICE[role]}), or little is left to work in"
        )
    if asked.memory and not MEMORY.fullmatch(asked.memory):
        raise ValueError(f"jobs.{role}.memory={asked.memory}: must be as 64G")
