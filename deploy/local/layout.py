"""The run's directory: refused, cleared, and given the configuration of every role."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from omegaconf import DictConfig, OmegaConf

from deploy.local import presence, restarts
from deploy.local.config import projection, run_directory
from protocol.security import make, wanted

WRITTEN = (  # all that a run leaves; nothing else in the directory is ever removed
    "metrics.jsonl",
    "samples.jsonl",
    "summary.json",
    "report.html",
    "broker.json",
    "restarts.jsonl",
    "scale.json",
    "learner.lock",
    "config",
    "keys",
    "logs",
    "plots",
    "tensorboard",
    "wandb",
    "wandb.json",
    "checkpoint",
    "checkpoints",
    "cold_start",
    "slurm",
)
SIGNS_OF_A_RUN = ("summary.json", "metrics.jsonl", "checkpoints")
WHOLE_CHECKPOINTS = "checkpoints/step_*/progress.json"  # the file that is written last; the learner reads the rest
HEADER = "# Written by the launcher.\n"


def claim(directory: Path, journal: Path, *, overwrite: bool, resume: bool = False) -> None:
    """Make the directory ready for a new run, whose broker keeps `journal`, or for its own to be resumed.

    Raises `ValueError` when a run is going on in it, when it holds one already, or none to resume.
    """
    if presence.at_work(directory):
        raise ValueError(f"{directory}: a launcher is at work there; choose another run.name")
    if (pid := running_broker(directory)) is not None:
        raise ValueError(f"{directory}: a run is going on there, its broker is process {pid}; choose another run.name")
    if resume:
        if not has_checkpoint(directory) and not journal.is_file():
            raise ValueError(
                f"resume=true: {directory} holds neither a whole checkpoint nor a journal to go on from; start it anew "
                "with overwrite=true"
            )
        forget_broker(directory)
        return
    if overwrite:
        for path in (*(directory / name for name in WRITTEN), *_files(journal)):
            _remove(path)
    for sign in SIGNS_OF_A_RUN:
        if (directory / sign).exists():
            raise ValueError(
                f"{directory} holds a run already ({sign}): choose another run.name, go on with it with resume=true, "
                "or clear it with overwrite=true"
            )
    directory.mkdir(parents=True, exist_ok=True)
    forget_broker(directory)
    for path in (directory / restarts.FILE, *_files(journal)):
        _remove(path)  # of a run that ended before its first step


def has_checkpoint(directory: Path) -> bool:
    """Whether the learner can go on from one; else a journal alone hands out again what it trained."""
    return any(directory.glob(WHOLE_CHECKPOINTS))


def _files(journal: Path) -> list[Path]:
    """Of a journal: itself, its log, the log's index, the lock."""
    log, index = (journal.with_name(journal.name + suffix) for suffix in ("-wal", "-shm"))
    return [journal, log, index, journal.with_suffix(".lock")]


def broker_address(directory: Path, pid: int) -> tuple[str, int] | None:
    """Where the broker with this process id listens, and the port of its HTTP side; None until it has said so.

    A broker that was killed leaves its own broker.json behind, which tells nothing of the next.
    """
    try:
        content = json.loads((directory / "broker.json").read_text())
    except (FileNotFoundError, ValueError):
        return None
    if content["pid"] != pid:
        return None
    return content["broker"], urlsplit(content["http"]).port or 0


def forget_broker(directory: Path) -> None:
    """Remove the address of a broker that has ended."""
    _remove(directory / "broker.json")


def running_broker(directory: Path) -> int | None:
    """The living broker that broker.json tells of; a broker that was killed leaves the file behind."""
    try:
        pid = json.loads((directory / "broker.json").read_text())["pid"]
        command = Path(f"/proc/{int(pid)}/cmdline").read_bytes()
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return int(pid) if b"broker" in command else None


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def config_directory(tree: DictConfig) -> Path:
    """Where each role finds its part of the tree."""
    return run_directory(tree) / "config"


def role_config_text(tree: DictConfig, role: str, **replaced: str | int) -> str:
    """What `run_<role>.yaml` holds: the role's schema overlaid by its part of the tree."""
    return _text([f"{role}_schema", "hydra_quiet", "_self_"], projection(tree, role, **replaced))


def write_config(tree: DictConfig, roles: Iterable[str], **replaced: str | int) -> None:
    """Write `run_<role>.yaml` of each role. The names differ from the defaults', which would win over them."""
    directory = config_directory(tree)
    directory.mkdir(parents=True, exist_ok=True)
    for role in roles:
        (directory / f"run_{role}.yaml").write_text(role_config_text(tree, role, **replaced))


def lock_doors(tree: DictConfig) -> None:
    """Keys of the run's own, where sockets are to be locked and none are given."""
    security = tree.security
    if security.key_directory or not wanted(security.mode, tree.broker):
        return
    directory = run_directory(tree) / "keys"
    if not directory.is_dir():
        make(directory)
    security.key_directory = str(directory)


def write_launch(tree: DictConfig, launcher: str = "local") -> None:
    """Write `run_local.yaml`, the whole tree resolved, from which the launcher can be started again."""
    plain = OmegaConf.to_container(tree, resolve=True)
    directory = config_directory(tree)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"run_{launcher}.yaml").write_text(_text([f"{launcher}_schema", "hydra_quiet", "_self_"], plain))


def _text(defaults: list[str], content: Any) -> str:
    return HEADER + OmegaConf.to_yaml({"defaults": defaults}) + OmegaConf.to_yaml(content)
