"""The service's side of the reward model: jobs wait here while a batch is judged, and then make the next one.

Nothing waits but `await_ready`, for the first start. A process that dies, or needs longer for a batch than its jobs
allow one check, is started anew; its jobs have failed, and batches become half as large where they took too long.
"""

import json
import logging
import os
import select
import socket
import subprocess
import sys
from collections import deque
from dataclasses import asdict

from protocol.clock import Deadline, now
from protocol.messages import VerifyJob
from verifier import metrics
from verifier.channel import Channel, ChannelClosed
from verifier.config import RewardModelConfig
from verifier.pool import MODEL, PoolBroken
from verifier.reports import BadReport, Checked, unpack

log = logging.getLogger("verifier")

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # products of matrices add up in the same order each time
}
FAILED_STARTS = 3  # in a row


class ModelScorer:
    """A `pool.Scorer` over one process. At most `fits` jobs go into a batch."""

    def __init__(self, config: RewardModelConfig) -> None:
        self._config = config
        self._waiting: deque[tuple[int, VerifyJob]] = deque()
        self._batch: list[tuple[int, VerifyJob]] = []
        self._done: list[tuple[int, Checked]] = []
        self.fits = config.batch_jobs
        self._failed_starts = 0
        self._ready = False
        self._start()

    def await_ready(self) -> None:
        """Wait for the first process to have loaded the model. Raises `ValueError` with the reason if it cannot."""
        limit = Deadline(self._config.load_seconds)
        while not self._ready and not limit.passed:
            select.select([self._channel], [], [], limit.remaining)
            try:
                self._hear()
            except ChannelClosed:
                raise ValueError("the reward model's process ended while it loaded: the log says more") from None
        if not self._ready:
            raise ValueError(f"the reward model was not loaded after {self._config.load_seconds:g} s")

    # ------------------------------------------------------------ as the pool sees it

    def add(self, key: int, job: VerifyJob) -> None:
        """See `pool.Scorer`."""
        self._waiting.append((key, job))

    def turn(self) -> list[tuple[int, Checked]]:
        """See `pool.Scorer`. Raises `PoolBroken` when the process cannot be started again."""
        try:
            self._hear()
            if self._deadline.passed and (self._batch or not self._ready):
                self._overrun()
            elif self._ready and not self._batch and self._waiting:
                self._send()
        except (ChannelClosed, BadReport) as error:
            self._again(f"the reward model's process was lost: {error}")
        except ValueError as error:
            raise PoolBroken(str(error)) from None
        done, self._done = self._done, []
        return done

    def watched(self) -> list[tuple[int, bool]]:
        """See `pool.Scorer`."""
        return [(self._channel.fileno(), self._channel.unsent)]

    def close(self) -> None:
        """See `pool.Scorer`."""
        self._channel.close()
        self._process.kill()  # it holds nothing that would be lost
        self._process.wait()

    # ------------------------------------------------------------ the process

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        options = json.dumps(asdict(self._config))
        with theirs:
            self._process = subprocess.Popen(
                [*_PYTHON, options, str(theirs.fileno()), str(os.getpid())],
                pass_fds=[theirs.fileno()],
                env={**os.environ, "OMP_NUM_THREADS": str(self._config.threads), **ENVIRONMENT},
                stdin=subprocess.DEVNULL,
            )
        self._channel = Channel(ours)
        self._ready = False
        self._deadline = Deadline(self._config.load_seconds)

    def _again(self, why: str) -> None:
        """Start another process; what the old one was at has failed."""
        log.warning("%s; starting it again", why)
        self._failed_starts += not self._ready
        if self._failed_starts >= FAILED_STARTS:
            raise PoolBroken(f"{why}, {FAILED_STARTS} times in a row before it was ready: the log says more")
        seconds = now() - self._since if self._batch else 0.0
        batch, self._batch = self._batch, []
        self._done += [(key, Checked(job.job_id, MODEL, None, "failed", why, seconds, 0.0)) for key, job in batch]
        self.close()
        self._start()

    def _overrun(self) -> None:
        if self._batch:
            self.fits = max(1, len(self._batch) // 2)
        self._again(f"the reward model took longer than {self._deadline.seconds:g} s")

    def _hear(self) -> None:
        self._channel.flush()
        for message in self._channel.receive():
            match message:
                case ["ready", str(device)]:
                    self._ready, self._failed_starts = True, 0
                    log.info("the reward model in %s is loaded, on %s", self._config.path, device)
                case ["cannot", str(why)]:
                    raise ValueError(why)
                case ["batch", list(found), float(seconds)] if len(found) == len(self._batch) > 0:
                    self._take(found, seconds)
                case _:
                    raise BadReport("it spoke nonsense")

    def _send(self) -> None:
        self._batch = [self._waiting.popleft() for _ in range(min(self.fits, len(self._waiting)))]
        self._deadline = Deadline(max(job.deadline_seconds for _, job in self._batch))
        self._since = now()
        metrics.model_batch_jobs.observe(len(self._batch))
        self._channel.send([[job.text, job.metadata] for _, job in self._batch])

    def _take(self, found: list[tuple[float | None, str, str, int]], seconds: float) -> None:
        share = seconds / len(self._batch)
        done = []
        for (key, job), (value, outcome, reason, tokens) in zip(self._batch, found, strict=True):
            check = unpack(["checked", job.job_id, MODEL, value, outcome, reason, share, 0.0])
            assert isinstance(check, Checked)
            done.append((key, check))
            metrics.model_tokens.inc(tokens)
        self._done += done
        self._batch = []


_PYTHON = [sys.executable, "-m", "verifier.scoring.process"]
