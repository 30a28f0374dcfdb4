"""Where else the numbers of a step go: TensorBoard's and Weights & Biases' files, beside metrics.jsonl and Prometheus.

Both are off by default and extras of the package. They get every number of a step's line of metrics.jsonl, under the
names that it has there, nested ones with a slash: `parts/accuracy`, `by_staleness/2/kl_k3`.
"""

import json
import math
import secrets
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from learner.config import LearnerRoot

Row: TypeAlias = Mapping[str, Any]  # a line of metrics.jsonl


class Sink(Protocol):
    """Takes the rows of the steps, in order."""

    def step(self, row: Row) -> None:
        """Keep the numbers of one step."""


def numbers(row: Mapping[Any, Any], prefix: str = "") -> dict[str, float]:
    """Every number of a row by its path; what is no number, or not finite, is left out."""
    found: dict[str, float] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            found |= numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            found[f"{prefix}{name}"] = value
    return found


@contextmanager
def open_sinks(config: LearnerRoot, policy_version: int) -> Iterator[tuple[Sink, ...]]:
    """The sinks that are wanted, for a run that goes on at `policy_version`; closed, and so complete, afterwards.

    Raises `ValueError` when a package is not installed, or Weights & Biases refuses the run.
    """
    directory, options = Path(config.run.dir), config.sinks
    for name, wanted in (("tensorboard", options.tensorboard), ("wandb", options.wandb != "off")):
        if wanted:
            _demand(name)
    with ExitStack() as stack:
        sinks: list[Sink] = []
        if options.tensorboard:
            sinks.append(stack.enter_context(_tensorboard(directory, policy_version)))
        if options.wandb != "off":
            sinks.append(stack.enter_context(_wandb(config, directory)))
        yield tuple(sinks)


def _demand(package: str) -> None:
    try:
        version(package)
    except PackageNotFoundError:
        raise ValueError(
            f"sinks.{package}: {package} is not installed; get it by `pip install 'offbeat[{package}]'`"
        ) from None


class TensorBoard:
    """Scalars in the run's `tensorboard` directory; after a resumption its own later steps are hidden."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def step(self, row: Row) -> None:
        """One scalar a number; on the disk before the next step."""
        for name, value in numbers(row).items():
            self._writer.add_scalar(name, value, row["step"])
        self._writer.flush()


@contextmanager
def _tensorboard(directory: Path, policy_version: int) -> Iterator[TensorBoard]:
    purge = policy_version + 1 if policy_version else None
    package = import_module("torch.utils.tensorboard")
    with package.SummaryWriter(str(directory / "tensorboard"), purge_step=purge) as writer:
        yield TensorBoard(writer)


class WeightsAndBiases:
    """Scalars in a run of Weights & Biases, over the learner's own `step`."""

    def __init__(self, run: Any) -> None:
        self._run = run

    def step(self, row: Row) -> None:
        """One entry of the history."""
        self._run.log(numbers(row))


@contextmanager
def _wandb(config: LearnerRoot, directory: Path) -> Iterator[WeightsAndBiases]:
    wandb = import_module("wandb")
    told = asdict(config)
    del told["security"]  # where keys lie is nobody's business
    try:
        run = wandb.init(
            project=config.sinks.wandb_project,
            name=config.run.name,
            id=_wandb_id(directory),
            dir=str(directory),
            mode=config.sinks.wandb,
            resume="allow" if config.sinks.wandb == "online" else None,
            config=told,
            settings=wandb.Settings(console="off", disable_git=True, disable_code=True, silent=True),
        )
    except wandb.errors.Error as error:
        raise ValueError(f"sinks.wandb={config.sinks.wandb}: {error}") from None
    run.define_metric("*", step_metric="step")
    failed = 1
    try:
        yield WeightsAndBiases(run)
        failed = 0
    finally:
        run.finish(exit_code=failed)


def _wandb_id(directory: Path) -> str:
    """The id under which Weights & Biases knows this run, the same when it is resumed."""
    path = directory / "wandb.json"
    if not path.exists():
        path.write_text(json.dumps({"id": secrets.token_hex(4)}) + "\n")
    return str(json.loads(path.read_text())["id"])
