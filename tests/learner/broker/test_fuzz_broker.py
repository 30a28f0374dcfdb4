"""Hostile frames against a live broker process: it goes on, does not grow, and lets no honest peer wait."""

import json
import random
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from protocol.clock import Deadline
from protocol.codec import encode
from protocol.messages import (
    Ack,
    BatchRequest,
    Checkpointed,
    Consumed,
    Goodbye,
    GroupRange,
    Heartbeat,
    Hello,
    LeaseFailed,
    LeaseRequest,
    Message,
    Resume,
    Rollout,
    RolloutDone,
    Verdict,
    VerifyDone,
    VerifyRequest,
    VersionSpan,
    WeightManifest,
    Welcome,
    WhoAreYou,
)
from protocol.sockets import Dealer

ROOT = Path(__file__).parents[3]
GROWTH_BYTES = 64 * 2**20
SLOWEST_SECONDS = 2.0  # that an honest peer may wait for an answer


class LiveBroker:
    """A broker process and its memory."""

    def __init__(self, directory: Path) -> None:
        self.log = directory / "broker.log"
        options = ["broker=tcp://127.0.0.1:*", "model=m", f"run.dir={directory}", "stream.groups_per_step=1"]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "learner.broker", *options, "stream.group_size=2"], cwd=ROOT, stderr=log
            )
        deadline = Deadline(30)
        while not (directory / "broker.json").exists():
            assert not deadline.passed, self.log.read_text()
            time.sleep(0.05)
        self.address = str(json.loads((directory / "broker.json").read_text())["broker"])

    @property
    def bytes(self) -> int:
        """Resident memory."""
        (line,) = [x for x in Path(f"/proc/{self.process.pid}/status").read_text().splitlines() if "VmRSS" in x]
        return int(line.split()[1]) * 1024

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[LiveBroker]:
    live = LiveBroker(tmp_path)
    yield live
    live.close()


class Honest:
    """A peer that measures how long the broker lets it wait."""

    def __init__(self, broker: LiveBroker, role: Any) -> None:
        self.dealer = Dealer(broker.address)
        self.waits: list[float] = []
        self.ask(
            Hello(role=role, name=role, host="h", pid=1, metrics_port=0, versions={}, session=secrets.token_hex(4)),
            Welcome,
        )

    def ask(self, message: Message, answer: type[Any]) -> Any:
        begun = time.monotonic()
        self.dealer.send(message)
        while not isinstance(found := self.dealer.receive(SLOWEST_SECONDS), answer):
            assert found is not None, f"no {answer.__name__} within {SLOWEST_SECONDS} s"
        self.waits.append(time.monotonic() - begun)
        return found


def anything(dice: random.Random) -> Message:
    """A message that is well formed, with ids that may or may not be."""

    def number() -> int:
        return dice.choice([0, 1, 2, 7, 2**31 - 1])

    verdict = Verdict(reward=dice.choice([None, 0.0, 1e300]), parts={}, reason="r", seconds=0.0)
    span = VersionSpan(version=number(), tokens=2, fingerprint=dice.choice(["f0", "f1", ""]))
    rollout = Rollout(
        group_id=number(),
        sample_index=number(),
        prompt_ids=np.array([1], dtype=np.int32),
        token_ids=np.array([2, 3], dtype=np.int32),
        behaviour_logprobs=np.array([-1, -2], dtype=np.float32),
        version_spans=(span,),
        finish_reason="stop",
        text="t",
    )
    role: Any = dice.choice(["learner", "actor", "verifier"])
    makers: list[Callable[[], Message]] = [
        lambda: Hello(
            role=role,
            name=dice.choice(["x", "y", "actor"]),
            host="h",
            pid=1,
            metrics_port=0,
            versions={},
            session=dice.choice(["", "s"]),
            holds=(number(),),
        ),
        lambda: Heartbeat(policy_version=number(), gauges={"x": 1.0}),
        lambda: LeaseRequest(capacity=number()),
        lambda: RolloutDone(seq=number(), lease_id=number(), rollout=rollout),
        lambda: LeaseFailed(seq=number(), lease_id=number(), reason="r", detail="d"),
        lambda: VerifyRequest(capacity=number()),
        lambda: VerifyDone(seq=number(), job_id=number(), group_id=number(), sample_index=number(), verdict=verdict),
        lambda: Resume(policy_version=number(), consumed=(GroupRange(first=0, last=number()),)),
        lambda: BatchRequest(policy_version=number()),
        lambda: Consumed(policy_version=number(), group_ids=(number(),)),
        lambda: Checkpointed(policy_version=number()),
        lambda: WeightManifest(version=number(), fingerprint="f", endpoint="tcp://x:1", tensors=(), shards=()),
        lambda: Goodbye(reason="r", finished=False),
        lambda: Ack(seq=number()),
        lambda: WhoAreYou(),
    ]
    return dice.choice(makers)()


def hostile(dice: random.Random) -> list[bytes]:
    """Frames: noise, a valid message damaged, or a valid message where it has no place."""
    kind = dice.random()
    if kind < 0.3:
        return [dice.randbytes(dice.choice([0, 1, 10, 100, 1000])) for _ in range(dice.randint(1, 5))]
    frames = [bytes(frame) for frame in encode(anything(dice))]
    if kind < 0.7:
        which = dice.randrange(len(frames))
        damaged = bytearray(frames[which]) or bytearray(b"x")
        for _ in range(dice.randint(1, 4)):
            damaged[dice.randrange(len(damaged))] = dice.randrange(256)
        frames[which] = bytes(damaged[: dice.randint(1, len(damaged))] if dice.random() < 0.3 else damaged)
    return frames


def fuzz(broker: LiveBroker, frames: int, seed: int) -> tuple[float, int]:
    """Send so many hostile frames; the honest peers' longest wait, and how much the broker grew."""
    dice = random.Random(seed)
    learner, actor = Honest(broker, "learner"), Honest(broker, "actor")
    learner.dealer.send(WeightManifest(version=0, fingerprint="f0", endpoint="tcp://x:1", tensors=(), shards=()))
    attackers = [Dealer(broker.address) for _ in range(8)]
    sent, before, warm = 0, 0, frames // 10
    while sent < frames:
        for _ in range(200):
            place = dice.randrange(len(attackers))
            if dice.random() < 0.001:
                attackers[place].socket.close(0)
                attackers[place] = Dealer(broker.address)
            message = hostile(dice)
            attackers[place].socket.send_multipart(message)
            sent += len(message)
        for attacker in attackers:
            while attacker.receive() is not None:
                pass
        for honest in (learner, actor):
            honest.ask(Heartbeat(), Heartbeat)
        before = before if before or sent < warm else broker.bytes
    newcomer = Honest(broker, "verifier")
    grown = broker.bytes - before
    for end in (*attackers, learner.dealer, actor.dealer, newcomer.dealer):
        end.socket.close(0)
    assert broker.process.poll() is None, broker.log.read_text()[-3000:]
    assert "Traceback" not in broker.log.read_text()
    return max(*learner.waits, *actor.waits), grown


def test_hostile_frames_neither_stop_nor_slow_nor_swell_the_broker(broker: LiveBroker) -> None:
    slowest, grown = fuzz(broker, 10_000, seed=1)
    assert slowest < SLOWEST_SECONDS
    assert grown < GROWTH_BYTES
    assert broker.log.stat().st_size < 2**20, "the log is not flooded either"


@pytest.mark.slow
def test_a_million_hostile_frames(broker: LiveBroker) -> None:
    slowest, grown = fuzz(broker, 1_000_000, seed=2)
    print(f"longest wait of an honest peer {slowest:.3f} s, the broker grew by {grown / 2**20:.1f} MiB")
    assert slowest < SLOWEST_SECONDS
    assert grown < GROWTH_BYTES
