"""A broker with a weight server, played by the test, and an engine that counts instead of sampling."""

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import numpy as np

from actors.requests import Finished, ImpossiblePrompt, Tensors
from protocol.clock import Deadline
from protocol.messages import (
    Ack,
    Heartbeat,
    Hello,
    Lease,
    Loaded,
    Message,
    RunSpec,
    Sampling,
    Shard,
    ShardRequest,
    ShardSpec,
    Source,
    SourceRequest,
    Task,
    TensorSpec,
    VersionSpan,
    WeightManifest,
    Welcome,
)
from protocol.sockets import Rejected, Router
from protocol.weights import checksum, fingerprint

ARRIVAL_SECONDS = 30.0  # for what must come

M = TypeVar("M")


class BrokerDouble:
    """Answers Hello and shard requests by itself; everything else is up to the test."""

    def __init__(self, model: str = "nowhere", *, heartbeat: float = 0.1, silence: float = 30.0) -> None:
        self.router = Router("tcp://127.0.0.1:*")
        self.weights = Router("tcp://127.0.0.1:*")
        self.shards: dict[int, np.ndarray] = {}
        self.loaded: list[Loaded] = []
        self.peer = b""
        self.hello: Hello | None = None
        self.echo = True  # answers heartbeats
        self.received: list[Message | Rejected] = []  # what `expect` passed over, too
        sampling = Sampling(temperature=1.0, top_p=1.0, max_tokens=24)
        self.welcome = Welcome(
            run=RunSpec(
                name="test", model=model, seed=0, group_size=4, groups_per_step=2, max_staleness=1, sampling=sampling
            ),
            policy_version=0,
            heartbeat_seconds=heartbeat,
            silence_seconds=silence,
            return_seconds=2 * silence,
        )

    def close(self) -> None:
        self.router.close()
        self.weights.close()

    def turn(self) -> Message | Rejected | None:
        """Serve weights, take one message of the actor."""
        while (request := self.weights.receive()) is not None:
            peer, asked = request
            if isinstance(asked, SourceRequest):
                self.weights.send(peer, Source(version=asked.version, endpoint=""))
            elif isinstance(asked, Loaded):
                self.loaded.append(asked)
            else:
                assert isinstance(asked, ShardRequest)
                self.weights.send(peer, Shard(version=asked.version, shard=0, data=self.shards[asked.version]))
        received = self.router.receive(0.005)
        if received is None:
            return None
        self.peer, message = received
        self.received.append(message)
        if isinstance(message, Hello):
            self.hello = message
            self.router.send(self.peer, self.welcome)
        elif isinstance(message, Heartbeat) and self.echo:
            self.router.send(self.peer, Heartbeat())
        elif getattr(message, "seq", 0):
            self.router.send(self.peer, Ack(seq=message.seq))  # type: ignore[union-attr]
        return message

    def expect(self, kind: type[M], accept: Callable[[M], bool] = lambda message: True) -> M:
        """The next message of this kind that is acceptable; fails when none comes."""
        deadline = Deadline(ARRIVAL_SECONDS)
        while not deadline.passed:
            message = self.turn()
            if isinstance(message, kind) and accept(message):
                return message
        raise AssertionError(f"no {kind.__name__} came; received: {self.received[-20:]}")

    def send(self, message: Message) -> None:
        assert self.router.send(self.peer, message)

    def publish(self, manifest: WeightManifest, data: np.ndarray) -> None:
        """Offer a version of one shard."""
        self.shards[manifest.version] = data
        self.send(manifest)

    def publish_counter(self, version: int, endpoint: str = "") -> str:
        """Offer a version that only a `CountingEngine` can load; its fingerprint."""
        data = np.full(8, version, dtype=np.uint8)
        tensors = (TensorSpec(name="weight", dtype="uint8", shape=(8,), offset=0, nbytes=8),)
        shards = (ShardSpec(nbytes=8, checksum=checksum(data)),)
        manifest = WeightManifest(
            version=version,
            fingerprint=fingerprint(tensors, shards),
            endpoint=endpoint or self.weights.address,
            tensors=tensors,
            shards=shards,
        )
        self.publish(manifest, data)
        return manifest.fingerprint


def lease(
    number: int, prompt: str = "12+34=", *, samples: int = 4, min_version: int = 0, seconds: float = 60.0
) -> Lease:
    """A lease of group `100 + number`."""
    return Lease(
        lease_id=number,
        group_id=100 + number,
        task=Task(task_id=f"task-{number}", prompt=prompt, reward="accuracy", reference="46"),
        sample_indexes=tuple(range(samples)),
        seeds=tuple(1000 * number + index for index in range(samples)),
        min_version=min_version,
        deadline_seconds=seconds,
    )


class CountingEngine:
    """Gives each request the tokens 1, 2, 3, …, as many as its prompt has; each token's logprob is −its version."""

    def __init__(self) -> None:
        self.version: int | None = None
        self.go_on = threading.Event()  # while it is cleared, steps sample nothing
        self.go_on.set()
        self.loaded: list[tuple[int, bytes]] = []
        self.seeds: dict[str, int] = {}
        self.generated_tokens = 0
        self.waiting = 0
        self.kv_used = 0.25
        self.broken = False
        self._fingerprints: dict[int, str] = {}
        self._requests: dict[str, tuple[int, list[int]]] = {}  # length, version of each token so far

    @property
    def running(self) -> int:
        return len(self._requests)

    def encode(self, text: str) -> list[int]:
        return [ord(character) for character in text]

    def decode(self, token_ids: Sequence[int]) -> str:
        return " ".join(map(str, token_ids))

    def add(self, request_id: str, prompt_ids: Sequence[int], seed: int) -> None:
        if not prompt_ids:
            raise ImpossiblePrompt("prompt_empty", "it has no tokens")
        self.seeds[request_id] = seed
        self._requests[request_id] = (len(prompt_ids), [])

    def abort(self, request_ids: Iterable[str]) -> None:
        for request_id in request_ids:
            del self._requests[request_id]

    def step(self) -> list[Finished]:
        assert self.version is not None, "no engine samples before it has weights"
        if not self.go_on.wait(0.002):
            return []
        finished = []
        for request_id, (length, versions) in list(self._requests.items()):
            versions.append(self.version)
            self.generated_tokens += 1
            if len(versions) == length:
                del self._requests[request_id]
                finished.append(self._finished(request_id, versions))
        return finished

    def _finished(self, request_id: str, versions: list[int]) -> Finished:
        logprobs = -np.array(versions, dtype=np.float32)
        return Finished(
            request_id=request_id,
            token_ids=np.arange(1, len(versions) + 1, dtype=np.int32),
            behaviour_logprobs=logprobs * np.nan if self.broken else logprobs,
            version_spans=tuple(
                VersionSpan(version=version, tokens=versions.count(version), fingerprint=self._fingerprints[version])
                for version in sorted(set(versions))
            ),
            finish_reason="stop",
        )

    def load(self, version: int, fingerprint: str, tensors: Tensors) -> None:
        self.version = version
        self._fingerprints[version] = fingerprint
        self.loaded.append((version, b"".join(data.tobytes() for _, data in tensors)))
