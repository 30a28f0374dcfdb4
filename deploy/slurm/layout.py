"""RUN/slurm: the scripts, and what jobs and commands leave for each other on the shared file system.

| file | who writes it | what it says |
|---|---|---|
| `*.sbatch`, `role.sh`, `site.sh` | `up` | what the jobs do |
| `run.json` | `up` | the run's name, by which its jobs are found |
| `token` | `up` | that a node sees this directory and no other of the same name |
| `versions.json` | the broker's step | with which versions the run works |
| `learner.job` | the learner's job | its number |
| `state/<name>` | each job | what it said last |
| `failures/<name>` | each job | a line for each failure that counts |
| `leaving/<name>` | `scale` | this actor or verifier is to leave, and not to come back |
| `over` | whoever ends the run | why nobody is to go back into the queue |
"""

import json
import secrets
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from omegaconf import DictConfig

from deploy.local import layout
from deploy.local.config import model_directory
from deploy.slurm import scripts
from deploy.slurm.config import SlurmLauncherConfig, roles_tree

FOLDER = "slurm"
OWN = ("/tmp", "/var/tmp", "/dev/shm", "/run")  # of which each node has its own
IN_MEMORY = ("tmpfs", "ramfs", "devtmpfs")


@dataclass(frozen=True, slots=True)
class Run:
    """A run that was set up for Slurm."""

    name: str
    directory: Path
    notice_seconds: int

    @property
    def slurm(self) -> Path:
        """What jobs and commands leave for each other."""
        return self.directory / FOLDER

    def job_name(self, role: str) -> str:
        """By which Slurm knows the jobs of a role."""
        return scripts.job_name(role, self.name, self.directory)

    @property
    def job_names(self) -> dict[str, str]:
        """The role of each job name."""
        return {self.job_name(role): role for role in scripts.JOBS}


def demand_shared(directory: Path, *, shared: bool) -> None:
    """Raises `ValueError` when each node has a directory of its own there, unless it is said to be `shared`."""
    if shared:
        return
    real = directory.resolve()
    own = next((each for each in OWN if real.is_relative_to(each)), None)
    kind = _file_system(real)
    if own or kind in IN_MEMORY:
        where = f"below {own}" if own else f"on {kind}"
        raise ValueError(
            f"run.dir={directory}: lies {where}, of which every node has its own; choose a directory on a file system "
            "that all nodes share, or say slurm.shared=true if they share this one"
        )


def _file_system(directory: Path) -> str:
    """The kind of file system on which `directory` lies or would lie; empty where that cannot be told."""
    try:
        lines = Path("/proc/self/mounts").read_text().splitlines()
    except OSError:
        return ""
    mounts = [(words[1], words[2]) for words in map(str.split, lines) if len(words) > 2]
    above = [(len(point), kind) for point, kind in mounts if directory.is_relative_to(point)]
    return max(above)[1] if above else ""


def write(tree: DictConfig, config: SlurmLauncherConfig, *, interpreter: str, working_directory: Path) -> Run:
    """Write all that the jobs read. The directory has been claimed."""
    roles = roles_tree(tree)
    run = Run(tree.run.name, Path(tree.run.dir), config.slurm.notice_seconds)
    for folder in ("state", "failures", "leaving"):
        shutil.rmtree(run.slurm / folder, ignore_errors=True)
        (run.slurm / folder).mkdir(parents=True)
    (run.directory / "logs").mkdir(exist_ok=True)
    for stale in ("over", "learner.job", "versions.json"):
        (run.slurm / stale).unlink(missing_ok=True)
    layout.lock_doors(roles)
    tree.security.key_directory = roles.security.key_directory
    layout.write_launch(tree, "slurm")
    peers = f"file:{run.directory / 'broker.json'}"
    layout.write_config(roles, ["broker"])
    layout.write_config(roles, ["learner", "actor", "verifier"], broker=peers)
    if config.cold_start:
        layout.write_config(roles, ["sft"])
    token = secrets.token_hex(8)
    (run.slurm / "token").write_text(f"{token}\n")
    if config.slurm.site:
        shutil.copyfile(config.slurm.site, run.slurm / "site.sh")
    rendered = scripts.render(
        config,
        run=run.name,
        directory=run.directory,
        token=token,
        interpreter=interpreter,
        working_directory=working_directory,
        drain_seconds=tree.actor.drain_seconds,
    )
    for name, text in rendered.items():
        (run.slurm / name).write_text(text)
    content = asdict(run) | {"directory": str(run.directory)}
    (run.slurm / "run.json").write_text(json.dumps(content, indent=2) + "\n")
    return run


def model_is_made(tree: DictConfig) -> bool:
    """Whether the cold start is done."""
    done = Path(tree.run.dir) / FOLDER / "cold_start.done"
    return done.exists() and (model_directory(tree) / "config.json").is_file()


def read(directory: Path) -> Run:
    """The run in `directory`. Raises `ValueError` when it was not set up for Slurm."""
    path = directory / FOLDER / "run.json"
    try:
        content = json.loads(path.read_text())
        return Run(str(content["name"]), Path(content["directory"]), int(content["notice_seconds"]))
    except FileNotFoundError:
        raise ValueError(f"{directory}: no run of `python -m deploy.slurm up` ({path.name} is missing)") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: is garbled: {error}") from None


def find(root: Path) -> list[Path]:
    """The directories below `root` that hold a run of Slurm's, newest first."""
    found = root.glob(f"*/{FOLDER}/run.json")
    return [path.parent.parent for path in sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)]
