"""One tree of options for a whole run: the union of what the roles read, and the launcher's own.

A section that two roles read is one section here (`run`, `model`), so that they cannot disagree. `projection` gives
each role the part that it reads. Supervised training has an optimizer and a policy section of its own, which are
`sft_optimizer` and `sft_policy` here and `optimizer` and `policy` for the role.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, make_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from omegaconf import DictConfig, OmegaConf

import actors.config
import learner.broker.config
import learner.config
import learner.sft.config
import verifier.config
from actors.config import ActorRoot
from learner.broker.config import BrokerRoot
from learner.config import LearnerRoot
from learner.sft.config import SftRoot
from protocol.options import option
from verifier.config import VerifierRoot

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

ROOTS: Mapping[str, type] = {
    "broker": BrokerRoot,
    "learner": LearnerRoot,
    "actor": ActorRoot,
    "verifier": VerifierRoot,
    "sft": SftRoot,
}
CHECKS: Mapping[str, Callable[[Any], None]] = {
    "broker": learner.broker.config.check,
    "learner": learner.config.check,
    "actor": actors.config.check,
    "verifier": verifier.config.check,
    "sft": learner.sft.config.check,
}
RENAMED = {  # (role, its section) → the section of this tree
    ("sft", "optimizer"): "sft_optimizer",
    ("sft", "policy"): "sft_policy",
}
Launcher = TypeVar("Launcher", bound="DataclassInstance")

PLACEMENTS = ("auto", "none")
VIEWS = ("auto", "rich", "plain", "none")
LONGEST_PAUSE = 30.0  # seconds between the death of a process and its next start


@dataclass(kw_only=True, slots=True)
class LauncherConfig:
    """What `python -m deploy.local` itself decides; its fields stand at the root of the tree."""

    broker: str = option("tcp://127.0.0.1:*", "address on which the broker listens; `*` takes a free port")
    metrics_port: int = option(
        0, "port of the broker's /metrics, /targets and /status; the other roles take free ones, which /targets names"
    )
    model: str = option("", "HF checkpoint directory to train from; empty: the one that the cold start makes")
    cold_start: bool = option(False, "make the model by supervised training first, unless the run has it already")
    actors: int = option(1, "actor processes")
    verifiers: int = option(1, "verifier processes")
    placement: str = option(
        "auto", "`auto`: the learner on the first core, actors on the others; `none`: the system decides"
    )
    overwrite: bool = option(False, "clear a run directory that holds a run already, instead of refusing it")
    resume: bool = option(
        False, "go on with the run of this directory from its newest training checkpoint; its cold start stays"
    )
    restarts: int = option(
        5, "times that each process which a signal killed is started again; 0: the first death ends the run"
    )
    restart_seconds: float = option(
        1.0, "pause before a restart; it doubles with each death of the process, up to 30 seconds"
    )
    restart_reset_seconds: float = option(
        60.0,
        "a process that lived for so long had worked: its pauses begin anew, and it is restarted after an error too",
    )
    view: str = option("auto", "`rich`, `plain` or `none`; `auto`: rich on a terminal, else plain lines")
    report: bool = option(True, "write plots and report.html at the end")
    start_seconds: float = option(60.0, "longest wait for the broker to listen")
    end_seconds: float = option(20.0, "time for every role to end by itself once the run is over")


def union(name: str, launcher: type[Launcher]) -> type[Launcher]:
    """A class with the fields of `launcher` and every root field of every role that it does not decide itself."""
    own = {each.name for each in fields(launcher)}
    added: dict[str, tuple[str, Any, Any]] = {}
    for role, root in ROOTS.items():
        for each in fields(root):
            section = RENAMED.get((role, each.name), each.name)
            if section in own:
                continue
            if section in added and added[section][1] != each.type:
                raise TypeError(f"{root.__name__}.{each.name} is {each.type}, another role has {added[section][1]}")
            added.setdefault(section, (section, each.type, _copy(each)))
    return make_dataclass(name, added.values(), bases=(launcher,), kw_only=True, slots=True)


def _copy(each: "Field[Any]") -> Any:
    if each.default_factory is not MISSING:
        return field(default_factory=each.default_factory, metadata=each.metadata)
    return field(default=each.default, metadata=each.metadata)


LocalRoot = union("LocalRoot", LauncherConfig)


def run_directory(tree: DictConfig) -> Path:
    """Where the run keeps its files."""
    return Path(tree.run.dir)


def model_directory(tree: DictConfig) -> Path:
    """The checkpoint from which the run starts."""
    return Path(tree.model) if tree.model else Path(tree.sft.out) / "model"


def projection(tree: DictConfig, role: str, **replaced: str | int) -> dict[str, Any]:
    """The part of the tree that `role` reads, resolved, with root fields `replaced` where the role has them."""
    plain = OmegaConf.to_container(tree, resolve=True)
    assert isinstance(plain, dict)
    replaced = {"model": str(model_directory(tree)), **replaced}
    if role != "broker":
        plain["metrics_port"] = 0  # one port cannot serve them all
    part = {}
    for each in fields(ROOTS[role]):
        section = RENAMED.get((role, each.name), each.name)
        part[each.name] = replaced.get(section, plain[section])
    return part


def launcher(tree: DictConfig) -> LauncherConfig:
    """The tree as an object, of which the launcher reads its own fields. Raises `ValueError` on what it cannot do."""
    config = OmegaConf.to_object(tree)
    assert isinstance(config, LauncherConfig)
    check(tree, config)
    return config


def check(tree: DictConfig, config: LauncherConfig) -> None:
    """Refuse before anything starts what the launcher or any role would refuse. Raises `ValueError`."""
    for name, value, allowed in (("placement", config.placement, PLACEMENTS), ("view", config.view, VIEWS)):
        if value not in allowed:
            raise ValueError(f"{name}={value}: must be one of {', '.join(allowed)}")
    for name in ("actors", "verifiers"):
        if getattr(config, name) < 0:
            raise ValueError(f"{name}={getattr(config, name)}: must be 0 (they join by hand) or more")
    if config.restarts < 0:
        raise ValueError(f"restarts={config.restarts}: must be 0 (the first death ends the run) or more")
    if not 0 <= config.restart_seconds <= LONGEST_PAUSE:
        raise ValueError(
            f"restart_seconds={config.restart_seconds}: must lie in [0, {LONGEST_PAUSE:g}], the longest pause"
        )
    for name in ("start_seconds", "end_seconds", "restart_reset_seconds"):
        if getattr(config, name) <= 0:
            raise ValueError(f"{name}={getattr(config, name)}: must be more than 0 seconds")
    if config.resume and config.overwrite:
        raise ValueError("resume=true with overwrite=true: the run to go on with would be cleared; give one of them")
    check_model(config.model, cold_start=config.cold_start)
    check_roles(tree, cold_start=config.cold_start)


def check_model(model: str, *, cold_start: bool) -> None:
    """Refuse a run without a model to begin with, or with two. Raises `ValueError`."""
    if cold_start and model:
        raise ValueError(f"model={model} with cold_start=true: the cold start makes the model; give one of them")
    if not cold_start and not model:
        raise ValueError("no model to train: give model=<HF checkpoint directory>, or cold_start=true to make one")
    if model and not (Path(model) / "config.json").is_file():
        raise ValueError(f"model={model}: must be a directory with an HF checkpoint, but has no config.json")


def check_roles(tree: DictConfig, *, cold_start: bool) -> None:
    """Refuse what any role would refuse of its part of the tree. Raises `ValueError`."""
    for role, refuse in CHECKS.items():
        if role == "sft" and not cold_start:
            continue
        part = OmegaConf.merge(OmegaConf.structured(ROOTS[role]), projection(tree, role))
        try:
            refuse(OmegaConf.to_object(part))
        except ValueError as error:
            raise ValueError(_in_this_tree(role, str(error))) from None


def _in_this_tree(role: str, problem: str) -> str:
    """`problem` with the names that sections have here."""
    for (renamed_role, section), name in RENAMED.items():
        if role == renamed_role:
            problem = re.sub(rf"(?<![\w.]){section}\.", f"{name}.", problem)
    return problem
