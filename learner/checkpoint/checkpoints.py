"""Training checkpoints: a run goes on from one as if it had never stopped, on as many ranks as it likes.

`save` copies weights, moments and random states to CPU memory, the only part for which training waits, and a thread
writes the copy, over a process group of its own, while the next steps train. One write is under way at a time: a save
that finds the one before unfinished waits for it, at most `write_seconds`, and says so. A write that failed is raised
by the next call.
"""

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from transformers import PretrainedConfig

from learner import export, metrics
from learner.checkpoint import files as checkpoint_files
from learner.checkpoint import tensors as checkpoint_tensors
from learner.checkpoint.progress import Progress
from learner.checkpoint.tensors import Tensors
from learner.distributed import Ranks
from learner.optimizer import Optimizer
from learner.policy.model import Policy

log = logging.getLogger("learner")


class Checkpoints:
    """The training checkpoints in `directory`, the newest `keep` of them. Every method but `finish` is collective.

    All ranks see the same directory. `source` is the HF checkpoint from which the run began: its tokenizer goes along.
    `reference` is given when it changes in the course of a run: then it is part of a checkpoint.
    """

    def __init__(
        self,
        directory: Path,
        ranks: Ranks,
        source: Path,
        *,
        keep: int,
        write_seconds: float,
        reference: Policy | None = None,
    ) -> None:
        self.directory = directory
        self.ranks = ranks
        self.source = source
        self.reference = reference
        self.keep = keep
        self.write_seconds = write_seconds
        if ranks.first:
            checkpoint_files.sweep(directory)
        group = dist.new_group(backend="gloo", timeout=timedelta(seconds=write_seconds))
        assert group is not None, "every rank is in it"
        self._group: dist.ProcessGroup = group
        self._writer = ThreadPoolExecutor(1, "checkpoint", initializer=self._bind)
        self._under_way: tuple[Path, Future[None]] | None = None
        self.written: Callable[[int], None] = lambda policy_version: None  # told, in the thread, of each that is whole
        self.newest = 0  # the policy version that was saved or restored last; version 0 is the model itself

    def save(self, policy: Policy, optimizer: Optimizer, progress: Progress) -> None:
        """Keep this moment; returns when it is copied. Raises `OSError` when the save before failed."""
        with metrics.CHECKPOINT_SECONDS.labels("wait").time():
            self.finish()
        with metrics.CHECKPOINT_SECONDS.labels("copy").time():
            tensors = checkpoint_tensors.snapshot(policy, optimizer, self.reference, self.ranks)
        path = checkpoint_files.path_of(self.directory, progress.policy_version)
        self.newest = progress.policy_version
        self._under_way = (path, self._writer.submit(self._write, path, tensors, progress, policy.network.config))

    def finish(self) -> None:
        """Wait until the last save is on the disk. Raises `OSError` with its path when it is not."""
        if self._under_way is None:
            return
        (path, future), self._under_way = self._under_way, None
        if not future.done():
            metrics.CHECKPOINT_WAITS.inc()
            log.info("waiting until %s is written", path)
        try:
            error = future.exception(self.write_seconds)
        except TimeoutError:
            raise OSError(f"{path}: is not written after {self.write_seconds:.0f} s of waiting") from None
        if error is not None:
            raise OSError(f"{path}: could not be written: {_cause(error)}") from error

    def latest(self) -> Path | None:
        """The newest checkpoint that was written to its end, the same on every rank; None when there is none."""
        version = torch.tensor([-1])
        if self.ranks.first and (found := checkpoint_files.whole(self.directory)):
            version[0] = checkpoint_files.version_of(found[-1])
        dist.broadcast(version, src=0, group=self._group)
        return checkpoint_files.path_of(self.directory, int(version)) if version >= 0 else None

    def restore(self, policy: Policy, optimizer: Optimizer, path: Path) -> Progress:
        """Make `policy` and `optimizer` what they were, and say how far the run had come.

        Raises `ValueError` when the checkpoint is damaged, with the file, or of another model.
        """
        progress = checkpoint_files.verify(path)
        checkpoint_tensors.read(path, policy, optimizer, self.reference, self.ranks, self._group)
        optimizer.steps = progress.optimizer_steps
        self.newest = progress.policy_version
        return progress

    def _bind(self) -> None:
        """A new thread would use the first GPU whatever its process uses."""
        if self.ranks.device.type == "cuda":
            torch.cuda.set_device(self.ranks.device)

    def _write(self, path: Path, tensors: Tensors, progress: Progress, config: PretrainedConfig) -> None:
        """In the thread: everything under another name first; rank 0 makes it a checkpoint when all have written."""
        began = time.perf_counter()
        partial = path.with_name(path.name + checkpoint_files.PARTIAL)
        checkpoint_tensors.write(partial, tensors, self._group)
        if self.ranks.first:
            export.describe_model(partial / checkpoint_files.HF, config, self.source)
            checkpoint_files.seal(partial, path, progress)
            checkpoint_files.prune(self.directory, self.keep)
            self.written(progress.policy_version)
        seconds = time.perf_counter() - began
        metrics.CHECKPOINT_SECONDS.labels("write").observe(seconds)
        log.info("%s written in %.2f s", path, seconds)


def _cause(error: BaseException) -> BaseException:
    """Of what several ranks report, the first."""
    if isinstance(error, CheckpointException) and error.failures:
        return next(iter(error.failures.values()))[0]
    return error
