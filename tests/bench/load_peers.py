"""Simulated peers of a broker, many in one process: real sockets and real messages with nothing behind them.

`python -m tests.bench.load_peers` answers requests (`Crew` as JSON) of `tests.bench.broker_load`. Every actor has a
connection of its own, keeps the heartbeat, takes leases and delivers rollouts of canned tokens; verifiers answer at
once; the learner trains a batch in no time, publishes a manifest as long as that of a real model, and says what its
checkpoints hold. What is sent often is encoded once, and of what arrives only what matters is read, so that the peers
cost less than the broker. A rollout's text begins with the moment at which it was sent (`CLOCK_MONOTONIC`, the same in
all processes of a machine): whoever sees it next knows how long it took.
"""

import heapq
import itertools
import secrets
import select
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from random import Random
from typing import Any

import msgpack
import numpy as np
import zmq

from protocol.codec import Frame, encode
from protocol.messages import (
    BatchRequest,
    Checkpointed,
    Consumed,
    Goodbye,
    Heartbeat,
    Hello,
    LeaseRequest,
    Message,
    Resume,
    Role,
    Rollout,
    RolloutDone,
    ShardSpec,
    TensorSpec,
    Verdict,
    VerifyDone,
    VerifyRequest,
    VersionSpan,
    WeightManifest,
)
from protocol.sockets import Dealer
from tests.bench.workers import serve

PROMPT_TOKENS = 64
TEXT = "The sum of the digits is carried over. "  # repeated to four characters a token
STAMP = 20  # characters of a rollout's text that say when it was sent
LAYERS, WIDTH, SHARD_BYTES = 24, 896, 64 * 2**20  # of the model whose weights are "published"
CHECKPOINT_STEPS = 20
VERIFIER_CAPACITY = 256


@dataclass(kw_only=True, slots=True)
class Crew:
    """The peers of one process, and the moments between which they are measured."""

    broker: str
    actors: int = 0
    first: int = 0  # number of the first actor
    capacity: int = 16  # rollouts of an actor
    group_size: int = 8
    tokens: int = 512  # of a completion
    seconds: float = 0.0  # from a lease to a rollout, on average; 0: at once
    verifiers: int = 0
    learner: bool = False
    begin: float
    end: float


@dataclass(slots=True)
class Seen:
    """What a crew has measured: latencies in seconds, and what was counted between `begin` and `end`."""

    lease: list[float] = field(default_factory=list)  # from room for a group to its lease
    job: list[float] = field(default_factory=list)  # from a rollout to its verify job
    batch: list[float] = field(default_factory=list)  # from what a batch still missed to the batch
    group: list[float] = field(default_factory=list)  # from a group's last rollout to the batch that it is in
    groups: int = 0
    rollouts: int = 0
    steps: int = 0
    cpu_seconds: float = 0.0
    unserved: int = 0  # leases that actors wait for at the end
    longest_wait: float = 0.0  # of those


class Canned:
    """A message that is sent again and again with other numbers in its `body`; its arrays are encoded once."""

    def __init__(self, message: Message) -> None:
        header, *self.arrays = encode(message)
        self.header = msgpack.unpackb(header)
        self.body: dict[str, Any] = self.header["body"]

    def frames(self) -> list[Frame]:
        """As `encode` would make them."""
        return [msgpack.packb(self.header), *self.arrays]


class Peer:
    """One connection to the broker. `on` maps a kind of message to what is done about it."""

    role: Role

    def __init__(self, fleet: "Fleet", name: str) -> None:
        self.fleet = fleet
        self.dealer = Dealer(fleet.crew.broker)
        self.sent = 0  # the last `seq`
        self.on: dict[str, Callable[[dict[str, Any], float], None]] = {"welcome": self._welcome, "refusal": _refused}
        self.say(
            Hello(
                role=self.role,
                name=name,
                host="127.0.0.1",
                pid=1,
                metrics_port=0,
                versions={},
                session=secrets.token_hex(8),
            )
        )

    def say(self, message: Message) -> None:
        """Send a message that is not sent often."""
        self.dealer.send(message)

    def send(self, frames: list[Frame]) -> None:
        """Send what is encoded already."""
        self.dealer.socket.send_multipart(frames)

    def number(self) -> int:
        """The next `seq`."""
        self.sent += 1
        return self.sent

    def drain(self) -> None:
        """Take all that has arrived."""
        receive, again = self.dealer.socket.recv_multipart, zmq.NOBLOCK
        while True:
            try:
                header = receive(again)[0]
            except zmq.Again:
                return
            self.take(header, time.monotonic())

    def take(self, header: bytes, moment: float) -> None:
        """One message has arrived."""
        content = msgpack.unpackb(header)
        if handler := self.on.get(content["kind"]):
            handler(content["body"], moment)

    def _welcome(self, body: dict[str, Any], moment: float) -> None:
        self.fleet.joined(self, body["heartbeat_seconds"] / 2)
        self.begin()

    def begin(self) -> None:
        """The broker has taken this peer in."""


def _refused(body: dict[str, Any], moment: float) -> None:
    raise RuntimeError(f"the broker refused a message: {body['field']}: {body['problem']}")


class Actor(Peer):
    """Holds `capacity` rollouts, each for about `seconds`, and measures how long it waits for a lease."""

    role = "actor"

    def __init__(self, fleet: "Fleet", name: str) -> None:
        super().__init__(fleet, name)
        self.version, self.fingerprint = -1, ""
        self.held = 0
        self.leases = 0
        self.early: list[tuple[dict[str, Any], int]] = []  # samples whose weights have not come
        self.waits: deque[float] = deque()  # since when there has been room for a group, once a group
        self.on["lease"] = self._lease

    def take(self, header: bytes, moment: float) -> None:
        """Of a manifest, which is long, only the first fields are read."""
        if b"weight_manifest" not in header[:40]:
            super().take(header, moment)
            return
        fields = msgpack.Unpacker()
        fields.feed(header[:256])
        for _ in range(2):  # the header's map, up to its key `body`, then the body's
            fields.read_map_header()
            _, _, key, value, *_ = (fields.unpack() for _ in range(5))
        first = self.version < 0
        self.version, self.fingerprint = value, fields.unpack()
        assert key == "version"
        early, self.early = self.early, []
        for lease, sample in early:
            self.deliver(lease, sample, moment)
        if first:
            self.say(LeaseRequest(capacity=self.fleet.crew.capacity))
            self._wait(moment)

    def _wait(self, moment: float) -> None:
        crew = self.fleet.crew
        while crew.capacity - self.held >= crew.group_size * (len(self.waits) + 1):
            self.waits.append(moment)

    def _lease(self, lease: dict[str, Any], moment: float) -> None:
        if self.waits:
            self.fleet.note(self.fleet.seen.lease, moment - self.waits.popleft(), moment)
        crew, samples = self.fleet.crew, lease["sample_indexes"]
        first = self.leases < crew.capacity // crew.group_size
        self.held += len(samples)
        self.leases += 1
        for sample in samples:
            if crew.seconds:
                self.fleet.at(moment + self.fleet.sampling_seconds(first), self, (lease, sample))
            else:
                self.deliver(lease, sample, moment)

    def deliver(self, lease: dict[str, Any], sample: int, moment: float) -> None:
        """A rollout is done, unless it has to wait for its weights."""
        if lease["min_version"] > self.version:
            self.early.append((lease, sample))
            return
        canned = self.fleet.rollout
        rollout = canned.body["rollout"]
        canned.body["seq"], canned.body["lease_id"] = self.number(), lease["lease_id"]
        rollout["group_id"], rollout["sample_index"] = lease["group_id"], sample
        rollout["text"] = f"{time.monotonic():{STAMP}.6f}" + self.fleet.text
        span = rollout["version_spans"][0]
        span["version"], span["fingerprint"] = self.version, self.fingerprint
        self.send(canned.frames())
        self.fleet.seen.rollouts += self.fleet.measuring(moment)
        self.held -= 1
        self._wait(moment)


class Verifier(Peer):
    """Judges at once: every other sample passes."""

    role = "verifier"

    def __init__(self, fleet: "Fleet", name: str) -> None:
        super().__init__(fleet, name)
        self.on["verify_job"] = self._job

    def begin(self) -> None:
        """Ask for jobs."""
        self.say(VerifyRequest(capacity=VERIFIER_CAPACITY))

    def _job(self, job: dict[str, Any], moment: float) -> None:
        self.fleet.note(self.fleet.seen.job, moment - float(job["text"][:STAMP]), moment)
        canned = self.fleet.verdict
        canned.body["seq"], canned.body["job_id"] = self.number(), job["job_id"]
        canned.body["group_id"], canned.body["sample_index"] = job["group_id"], job["sample_index"]
        canned.body["verdict"]["reward"] = float(job["sample_index"] % 2)
        self.send(canned.frames())


class Learner(Peer):
    """Takes batch after batch; a checkpoint every `CHECKPOINT_STEPS`."""

    role = "learner"

    def __init__(self, fleet: "Fleet", name: str) -> None:
        super().__init__(fleet, name)
        self.asked = 0.0
        self.on["group_batch"] = self._batch

    def begin(self) -> None:
        """A run begins."""
        self.say(Resume(seq=self.number(), policy_version=0, consumed=(), checkpoints=True))
        self._publish(0)
        self._ask(0)

    def _publish(self, version: int) -> None:
        canned = self.fleet.manifest
        canned.body |= {"seq": self.number(), "version": version, "fingerprint": f"{version:032}"}
        self.send(canned.frames())

    def _ask(self, version: int) -> None:
        self.say(BatchRequest(policy_version=version))
        self.asked = time.monotonic()

    def _batch(self, batch: dict[str, Any], moment: float) -> None:
        seen, note = self.fleet.seen, self.fleet.note
        complete = [
            max(float(each["rollout"]["text"][:STAMP]) for each in group["scored"]) for group in batch["groups"]
        ]
        note(seen.batch, moment - max(self.asked, *complete), moment)
        for last in complete:
            note(seen.group, moment - last, moment)
        if self.fleet.measuring(moment):
            seen.groups += len(complete)
            seen.steps += 1
        version = batch["policy_version"] + 1
        self._publish(version)
        group_ids = tuple(group["group_id"] for group in batch["groups"])
        self.say(Consumed(seq=self.number(), policy_version=version, group_ids=group_ids))
        if version % CHECKPOINT_STEPS == 0:
            self.say(Checkpointed(seq=self.number(), policy_version=version))
        self._ask(version)


class Fleet:
    """All peers of one process and the loop that serves them."""

    def __init__(self, crew: Crew) -> None:
        self.crew = crew
        self.seen = Seen()
        self.chance = Random(crew.first)
        self.text = (TEXT * crew.tokens)[: 4 * crew.tokens - STAMP]
        self.rollout, self.verdict, self.manifest = canned_rollout(crew.tokens), canned_verdict(), canned_manifest()
        self.heartbeat = encode(Heartbeat())
        self._timers: list[tuple[float, int, Actor, tuple[dict[str, Any], int]]] = []
        self._count = itertools.count()
        self._beats: deque[tuple[float, Peer, float]] = deque()  # when, who, and the interval
        self._poll = select.epoll()
        zmq.Context.instance().set(zmq.MAX_SOCKETS, crew.actors + crew.verifiers + 16)
        self.peers: dict[int, Peer] = {}
        if crew.learner:
            self._add(Learner(self, "learner"))
        for index in range(crew.verifiers):
            self._add(Verifier(self, f"verifier-{index}"))
        for index in range(crew.first, crew.first + crew.actors):
            self._add(Actor(self, f"actor-{index}"))

    def _add(self, peer: Peer) -> None:
        self.peers[peer.dealer.fileno()] = peer
        self._poll.register(peer.dealer.fileno(), select.EPOLLIN)

    def joined(self, peer: Peer, interval: float) -> None:
        """From now on `peer` keeps the heartbeat."""
        self._beats.append((time.monotonic() + interval, peer, interval))

    def at(self, moment: float, actor: Actor, rollout: tuple[dict[str, Any], int]) -> None:
        """Let `actor` deliver a rollout at `moment`."""
        heapq.heappush(self._timers, (moment, next(self._count), actor, rollout))

    def sampling_seconds(self, first: bool) -> float:
        """How long a rollout takes; an actor's first ones end at any moment, as if the run had gone on for long."""
        return self.crew.seconds * self.chance.uniform(0.5, 1.5) * (self.chance.random() if first else 1.0)

    def measuring(self, moment: float) -> bool:
        """Whether `moment` counts."""
        return self.crew.begin <= moment < self.crew.end

    def note(self, latencies: list[float], seconds: float, moment: float) -> None:
        """Write a latency down if it counts."""
        if self.measuring(moment):
            latencies.append(seconds)

    def run(self) -> Seen:
        """Serve until the end."""
        cpu = 0.0
        for peer in self.peers.values():
            peer.drain()  # a socket signals what comes after it was found empty
        while (moment := time.monotonic()) < self.crew.end:
            if not cpu and moment >= self.crew.begin:
                if len(self._beats) < len(self.peers):
                    raise RuntimeError(f"{len(self._beats)} of {len(self.peers)} peers have joined: allow more warm-up")
                cpu = time.process_time()
            touched = {number for number, _ in self._poll.poll(self._timeout(moment))}
            moment = time.monotonic()
            while self._timers and self._timers[0][0] <= moment:
                _, _, actor, (lease, sample) = heapq.heappop(self._timers)
                actor.deliver(lease, sample, moment)
                touched.add(actor.dealer.fileno())  # sending may have taken the signal that something came
            while self._beats and self._beats[0][0] <= moment:
                _, peer, interval = self._beats.popleft()
                peer.send(self.heartbeat)
                self._beats.append((moment + interval, peer, interval))
                touched.add(peer.dealer.fileno())
            for number in touched:
                self.peers[number].drain()
        self.seen.cpu_seconds = time.process_time() - cpu
        waits = [since for peer in self.peers.values() if isinstance(peer, Actor) for since in peer.waits]
        self.seen.unserved, self.seen.longest_wait = len(waits), moment - min(waits, default=moment)
        return self.seen

    def _timeout(self, moment: float) -> float:
        rollout = self._timers[0][0] if self._timers else self.crew.end
        heartbeat = self._beats[0][0] if self._beats else self.crew.end
        return max(0.0, min(rollout, heartbeat, self.crew.end) - moment)

    def close(self) -> None:
        """Leave; the learner ends the run."""
        self._poll.close()
        for peer in self.peers.values():
            if isinstance(peer, Learner):
                peer.say(Goodbye(reason="measured", finished=True))
            peer.dealer.close()


# ---------------------------------------------------------------- canned


def canned_rollout(tokens: int) -> Canned:
    """Random tokens, and room for their text."""
    chance = np.random.default_rng(0)
    return Canned(
        RolloutDone(
            lease_id=0,
            rollout=Rollout(
                group_id=0,
                sample_index=0,
                prompt_ids=chance.integers(0, 2**17, PROMPT_TOKENS, dtype=np.int32),
                token_ids=chance.integers(0, 2**17, tokens, dtype=np.int32),
                behaviour_logprobs=-chance.random(tokens, dtype=np.float32),
                version_spans=(VersionSpan(version=0, tokens=tokens, fingerprint=""),),
                finish_reason="stop",
                text="",
            ),
        )
    )


def canned_verdict() -> Canned:
    """A reward of two parts."""
    verdict = Verdict(reward=0.0, parts={"accuracy": 0.0, "format": 0.0}, reason="", seconds=0.001)
    return Canned(VerifyDone(job_id=0, group_id=0, sample_index=0, verdict=verdict))


def canned_manifest() -> Canned:
    """As many tensors and shards as a decoder of half a billion parameters has."""
    parts = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj")
    parts += ("mlp.up_proj", "mlp.down_proj", "input_layernorm", "post_attention_layernorm")
    names = [f"model.layers.{layer}.{part}.weight" for layer in range(LAYERS) for part in parts]
    nbytes, tensors = 2 * WIDTH * 4 * WIDTH, []
    for index, name in enumerate(names):
        spec = TensorSpec(name=name, dtype="bfloat16", shape=(4 * WIDTH, WIDTH), offset=index * nbytes, nbytes=nbytes)
        tensors.append(spec)
    whole, rest = divmod(len(names) * nbytes, SHARD_BYTES)
    shards = [ShardSpec(nbytes=size, checksum="f" * 32) for size in [SHARD_BYTES] * whole + [rest]]
    endpoint = "tcp://127.0.0.1:1"
    manifest = WeightManifest(
        version=0, fingerprint="", endpoint=endpoint, tensors=tuple(tensors), shards=tuple(shards)
    )
    return Canned(manifest)


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Be a crew until its end; what it has seen."""
    fleet = Fleet(Crew(**request))
    try:
        return asdict(fleet.run())
    finally:
        fleet.close()


if __name__ == "__main__":
    serve(answer)
