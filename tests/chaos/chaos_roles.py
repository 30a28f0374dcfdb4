"""The roles of a run as light processes, which start in milliseconds and can be killed by the hundred.

Broker and verifier are the real ones, started as `python -m …` starts them. Actor and learner are made of the real
lines, loops, leases, weight servers and checkpoint directories; only the engine and the training are played: what they
make follows from the seeds of the samples alone, so that a test knows the truth of every token and of every reward.
"""

import json
import logging
import os
import runpy
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from actor_doubles import CountingEngine

import learner.link
import protocol.line
import protocol.weights
from actors.link import Link as ActorLink
from actors.loop import Actor
from actors.requests import Finished, ImpossiblePrompt
from actors.weights.receiver import WeightReceiver
from learner.checkpoint import files as checkpoint_files
from learner.checkpoint.progress import Progress, Totals
from learner.claim import claim
from learner.group_ranges import merged
from learner.link import Link as LearnerLink
from learner.publish.server import WeightServer
from learner.publish.store import Store
from learner.publish.version import seal
from protocol.errors import ProtocolError
from protocol.line import Line
from protocol.messages import (
    Goodbye,
    GroupBatch,
    Heartbeat,
    Hello,
    TensorSpec,
    Verdict,
    VerifyDone,
    VerifyJob,
    VerifyRequest,
    WeightManifest,
)

ROOM = 12  # rollouts of an actor
JOBS = 16  # of a verifier
STEP_SECONDS = 0.002  # of the engine
WEIGHT_BYTES, SHARD_BYTES = 2**18, 2**14
WELCOME_SECONDS = 30.0
BATCH_SECONDS = 60.0
RETRY_SECONDS, TAKEN_SECONDS = 0.1, 3.0
CHECKPOINTS_KEPT = 2
HOPELESS = "no check of this text ever succeeds"


# ------------------------------------------------------------ the truth


def completion(seed: int) -> np.ndarray:
    """The tokens that every engine samples for a seed, [T] int32."""
    return ((seed + 7 * np.arange(3 + seed % 9)) % 1000).astype(np.int32)


def text_of(token_ids: Sequence[int]) -> str:
    return " ".join(map(str, token_ids))


def reward_of(text: str) -> float | None:
    """The reward of a text, never 0; None: every check of it is void."""
    place = sum(map(int, text.split())) % 10
    return place / 10 if place else None


# ------------------------------------------------------------ processes


def enter(log: Path, role: Callable[..., None], *arguments: Any, **options: Any) -> None:
    """What a new process does first, and then its role."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(output, stream)
    logging.basicConfig(level=logging.INFO, format=f"%(asctime)s {os.getpid()} %(name)s %(levelname)s %(message)s")
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    protocol.line.RETRY_SECONDS, protocol.line.TAKEN_SECONDS = RETRY_SECONDS, TAKEN_SECONDS
    protocol.weights.LEAST_SHARD = SHARD_BYTES
    role(*arguments, **options)


def module(name: str, *arguments: str) -> None:
    """`python -m name arguments…`."""
    logging.root.handlers.clear()
    sys.argv = [name, *arguments]
    runpy.run_module(name, run_name="__main__", alter_sys=True)


def hello(role: Any, name: str) -> Hello:
    return Hello(
        role=role,
        name=name,
        host="127.0.0.1",
        pid=os.getpid(),
        metrics_port=0,
        versions={},
        session=secrets.token_hex(8),
    )


class SeededEngine(CountingEngine):
    """Samples `completion(seed)`, a token a step for every request; refuses prompts that call themselves impossible."""

    def add(self, request_id: str, prompt_ids: Sequence[int], seed: int) -> None:
        if "impossible" in "".join(map(chr, prompt_ids)):
            raise ImpossiblePrompt("prompt_impossible", "it says so")
        super().add(request_id, prompt_ids, seed)
        self._requests[request_id] = (len(completion(seed)), [])

    def step(self) -> list[Finished]:
        time.sleep(STEP_SECONDS)
        return super().step()

    def _finished(self, request_id: str, versions: list[int]) -> Finished:
        return replace(super()._finished(request_id, versions), token_ids=completion(self.seeds.pop(request_id)))


def actor(address: str, name: str, room: int = ROOM) -> None:
    """The real loop and line around a played engine."""
    link = ActorLink(address, hello("actor", name), welcome_seconds=WELCOME_SECONDS)
    with link.kept_alive("the engine to start"):
        engine = SeededEngine()
    weights = WeightReceiver(seconds=30.0)
    try:
        over = Actor(link, engine, weights, room=room, drain_seconds=5.0).run()
        assert over is not None
        logging.info("leaving: %s", over.reason)
    except ProtocolError as error:
        sys.exit(f"actor: {error}")
    finally:
        link.line.close()
        weights.close()


@dataclass(frozen=True)
class Manners:
    """How a played verifier behaves: the share of its checks that fail, and the jobs that it never answers."""

    void_rate: float = 0.1
    deaf: bool = False  # answers no job at all
    forgets: int = 0  # answers every job but this many, the first


def verifier(address: str, name: str, manners: Manners = Manners()) -> None:
    """A line and a function: for scenarios in which the real verifier's start would take most of the time."""
    forgotten = 0
    chance = np.random.default_rng(os.getpid())
    standing = VerifyRequest(capacity=JOBS)
    try:
        line = Line(address, hello("verifier", name), welcome_seconds=WELCOME_SECONDS, standing=lambda: [standing])
        line.say(standing)
        while line.over is None:
            line.dealer.readable(0.02)
            while (job := line.receive()) is not None:
                assert isinstance(job, VerifyJob)
                if manners.deaf or forgotten < manners.forgets:
                    forgotten += 1
                    continue
                reward = reward_of(job.text)
                failed = reward is None or chance.random() < manners.void_rate
                line.say_surely(
                    VerifyDone(
                        job_id=job.job_id,
                        group_id=job.group_id,
                        sample_index=job.sample_index,
                        verdict=Verdict(
                            reward=None if failed else reward, parts={}, reason=HOPELESS * failed, seconds=0.0
                        ),
                    )
                )
            line.tick(Heartbeat)
    except ProtocolError as error:
        sys.exit(f"verifier: {error}")
    line.close()


# ------------------------------------------------------------ the learner


class Ledger:
    """What a learner did, a line of JSON each, on the disk before anybody else hears of it."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        size = os.fstat(self._file).st_size
        if size and os.pread(self._file, 1, size - 1) != b"\n":
            os.write(self._file, b"\n")  # the one before was killed while it wrote

    def write(self, event: str, version: int, **more: Any) -> None:
        os.write(self._file, json.dumps({"event": event, "version": version, **more}).encode() + b"\n")
        os.fsync(self._file)


def as_line(batch: GroupBatch) -> dict[str, Any]:
    """All of a batch that must be the same when it is made anew, and the oldest version that sampled any of it."""
    scored = [(group, each) for group in batch.groups for each in group.scored]
    return {
        "groups": [group.group_id for group in batch.groups],
        "samples": [
            [
                group.group_id,
                each.rollout.sample_index,
                each.rollout.text,
                each.verdict.reward,
                group.task.task_id,
                each.rollout.token_ids.tolist(),
                each.rollout.token_versions.tolist(),
            ]
            for group, each in scored
        ],
        "lease_versions": [group.lease_version for group in batch.groups],
    }


class Weights:
    """The real weight server. Half of all learners let their actors read shared memory, the others send shards."""

    def __init__(self, nonce: int) -> None:
        self.nonce = nonce
        self.store = Store(kept=3)
        self.server = WeightServer(self.store, "127.0.0.1", fanout=2, shared_memory=nonce % 2 == 0)

    def publish(self, version: int) -> WeightManifest:
        """Weights that no other process would make of the same version."""
        segment = self.store.segment(WEIGHT_BYTES)
        segment.data[:] = np.random.default_rng((version, self.nonce)).integers(0, 256, WEIGHT_BYTES, dtype=np.uint8)
        tensors = (TensorSpec(name="w", dtype="uint8", shape=(WEIGHT_BYTES,), offset=0, nbytes=WEIGHT_BYTES),)
        published = seal(version, tensors, segment, self.server.address)
        self.store.add(published, ())
        return published.manifest


class PlayedLearner:
    """The real link and checkpoint directories, in the order of `learner.loop`; training is a line in a ledger."""

    def __init__(self, address: str, directory: Path, every: int, train_seconds: float, batch_seconds: float) -> None:
        self.directory = directory / checkpoint_files.FOLDER
        self.stop = directory / "stop"
        self.every = every
        self.train_seconds = train_seconds
        self.batch_seconds = batch_seconds
        self.ledger = Ledger(directory / "ledger.jsonl")
        self.nonce = os.getpid()
        self.chance = np.random.default_rng(self.nonce)
        checkpoint_files.sweep(self.directory)
        whole = checkpoint_files.whole(self.directory)
        self.progress = checkpoint_files.verify(whole[-1]) if whole else Progress()
        self.writer = ThreadPoolExecutor(1)
        self.written: Future[None] | None = None
        self.weights = Weights(self.nonce)
        self.link = LearnerLink(address, hello("learner", "learner"))

    def run(self) -> None:
        with self.link as link, self.weights.server:
            version, consumed = self.progress.policy_version, self.progress.consumed
            self.ledger.write("begins", version)
            link.resume(version, consumed, checkpoints=self.every > 0, counted=Totals().counted())
            link.announce(self.weights.publish(version))
            reason = "the test has seen enough"
            while not self.stop.exists():
                received = link.next_batch(version, self.batch_seconds)
                if isinstance(received, Goodbye):
                    reason = received.reason
                    break
                self.ledger.write("trains", version, **as_line(received))
                self.train()
                group_ids = tuple(group.group_id for group in received.groups)
                consumed = merged(consumed, group_ids)
                version += 1
                link.announce(self.weights.publish(version))
                link.consumed(version, group_ids)
                if self.every and version % self.every == 0:
                    self.save(Progress(policy_version=version, consumed=consumed))
            self.finish()
            link.goodbye(reason, finished=True)
        self.ledger.write("ends", version)

    def train(self) -> None:
        time.sleep(self.train_seconds * self.chance.random())

    def save(self, progress: Progress) -> None:
        self.finish()
        self.written = self.writer.submit(self.write, progress)

    def finish(self) -> None:
        if self.written:
            self.written.result()

    def write(self, progress: Progress) -> None:
        path = checkpoint_files.path_of(self.directory, progress.policy_version)
        partial = path.with_name(path.name + checkpoint_files.PARTIAL)
        partial.mkdir(parents=True)
        for number in range(20):
            (partial / f"part_{number}").write_bytes(self.chance.bytes(2**14))
        checkpoint_files.seal(partial, path, progress)
        checkpoint_files.prune(self.directory, CHECKPOINTS_KEPT)
        self.link.checkpointed(progress.policy_version)


def played_learner(
    address: str,
    directory: Path,
    every: int = 3,
    train_seconds: float = 0.02,
    batch_seconds: float = BATCH_SECONDS,
    hangs: bool = False,
) -> None:
    try:
        claim(directory)
        played = PlayedLearner(address, directory, every, train_seconds, batch_seconds)
        if hangs:
            learner.link.STUCK_SECONDS = 1.0
            played.train = threading.Event().wait  # type: ignore[method-assign, assignment]
        played.run()
    except (ValueError, OSError, ProtocolError) as error:
        sys.exit(f"learner: {error}")
