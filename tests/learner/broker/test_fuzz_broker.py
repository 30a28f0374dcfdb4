"""Hostile frames against a live broker process: it goes on, does not grow, and lets no honest peer wait."""

import json
import os
import secrets
import subprocess
import sys
import time
import urllib.request
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import attack
import pytest
from running_broker import completion, manifest

from protocol.clock import Deadline
from protocol.messages import (
    BatchRequest,
    Consumed,
    GroupBatch,
    Heartbeat,
    Hello,
    Lease,
    LeaseRequest,
    Message,
    Verdict,
    VerifyDone,
    VerifyJob,
    VerifyRequest,
    Welcome,
)
from protocol.security import Keys, load, make
from protocol.sockets import Dealer

ROOT = Path(__file__).parents[3]
GROWTH_BYTES = 64 * 2**20  # while all its tables fill
LONG_GROWTH_BYTES = 32 * 2**20  # afterwards, however long it lasts
SLOWEST_SECONDS = 2.0  # that an honest peer may wait for an answer
LOG_BYTES = 2**20
SHOW_SECONDS = 1.0  # between two states of the broker's metrics; three of them without a word, and a name is free
NO_LIMITS = ("stream.messages_per_second=1e9", "stream.strangers_per_second=1e9")  # every frame is read


class LiveBroker:
    """A broker process and its memory. With `keys` it is locked."""

    def __init__(self, directory: Path, *options: str, keys: Path | None = None) -> None:
        self.log = directory / "broker.log"
        self.keys = keys
        options = (
            *("broker=tcp://127.0.0.1:*", "model=m", f"run.dir={directory}"),
            *("stream.groups_per_step=1", "stream.group_size=2", f"stream.heartbeat_seconds={SHOW_SECONDS}", *options),
            *((f"security.key_directory={keys}", "security.mode=curve") if keys else ()),
        )
        with self.log.open("wb") as log:
            self.process = subprocess.Popen([sys.executable, "-m", "learner.broker", *options], cwd=ROOT, stderr=log)
        deadline = Deadline(60)
        while not (directory / "broker.json").exists():
            assert self.process.poll() is None, self.log.read_text()
            assert not deadline.passed, self.log.read_text()
            time.sleep(0.05)
        where = json.loads((directory / "broker.json").read_text())
        self.address, self.http = str(where["broker"]), str(where["http"])

    @property
    def bytes(self) -> int:
        """Resident memory."""
        (line,) = [x for x in Path(f"/proc/{self.process.pid}/status").read_text().splitlines() if "VmRSS" in x]
        return int(line.split()[1]) * 1024

    def count(self, metric: str) -> int:
        """The value of a counter."""
        time.sleep(1.5 * SHOW_SECONDS)
        with urllib.request.urlopen(f"{self.http}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return int(sum(float(line.split()[-1]) for line in lines if line.startswith(metric)))

    def key(self, role: str) -> Keys | None:
        return load(self.keys, role) if self.keys else None

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def live(tmp_path: Path) -> Iterator[list[LiveBroker]]:
    """Brokers to be killed when the test is over."""
    brokers: list[LiveBroker] = []
    yield brokers
    for broker in brokers:
        broker.close()


class Honest:
    """A peer that measures how long the broker lets it wait."""

    def __init__(self, broker: LiveBroker, role: Any) -> None:
        self.dealer = Dealer(broker.address, keys=broker.key(role))
        self.waits: list[float] = []
        self.put_aside: deque[Any] = deque()
        self.ask(
            Hello(role=role, name=role, host="h", pid=1, metrics_port=0, versions={}, session=secrets.token_hex(4)),
            Welcome,
        )

    def ask(self, message: Message, answer: type[Any]) -> Any:
        begun = time.monotonic()
        self.dealer.send(message)
        found = self.expect(answer)
        self.waits.append(time.monotonic() - begun)
        return found

    def expect(self, kind: type[Any]) -> Any:
        """The next message of a kind; others are put aside."""
        for found in self.put_aside:
            if isinstance(found, kind):
                self.put_aside.remove(found)
                return found
        while not isinstance(found := self.dealer.receive(5 * SLOWEST_SECONDS), kind):
            assert found is not None, f"no {kind.__name__} came"
            if isinstance(found, Lease | VerifyJob):
                self.put_aside.append(found)
        return found

    def close(self) -> None:
        self.dealer.socket.close(0)


@dataclass(frozen=True)
class Outcome:
    """What an attack came to."""

    frames: int
    read: int  # messages that the broker took off its socket
    grown: int  # bytes, see `growth`
    waits: list[float]
    seconds: float

    def __str__(self) -> str:
        waits = [1e3 * wait for wait in sorted(self.waits)]
        median, most = waits[len(waits) // 2], waits[-len(waits) // 100]
        return (
            f"{self.frames:,} hostile frames in {self.seconds:.0f} s, {self.read:,} messages read; "
            f"{len(waits):,} honest requests waited {median:.1f} ms (median), {most:.0f} ms (99 of 100), "
            f"{waits[-1]:.0f} ms at most; the broker grew by {self.grown / 2**20:.1f} MiB"
        )


def under_attack(broker: LiveBroker, honest: list[Honest], turn: Any, frames: int, seed: int, raw: float) -> Outcome:
    """Let honest peers work, `turn` after `turn`, while another process attacks; none of them may fail."""
    path = os.pathsep.join(map(str, (ROOT, ROOT / "tests/protocol", ROOT / "tests/learner/broker")))
    command = [sys.executable, attack.__file__, broker.address, str(seed), str(frames), str(raw)]
    begun, sizes = time.monotonic(), [broker.bytes]
    with subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": path}, stdout=subprocess.PIPE) as attacker:
        assert attacker.stdout is not None
        while attacker.poll() is None:
            turn()
            sizes.append(broker.bytes)
        sent = int(attacker.stdout.read())
    seconds = time.monotonic() - begun
    turn()
    assert broker.process.poll() is None, broker.log.read_text()[-3000:]
    assert "Traceback" not in broker.log.read_text()
    waits = [wait for peer in honest for wait in peer.waits]
    return Outcome(sent, broker.count("broker_messages_total"), growth(sizes), waits, seconds)


def growth(sizes: list[int]) -> int:
    """By how much the second half of an attack went beyond the first: queues fill and empty, up to their bounds."""
    half = -(-len(sizes) // 2)
    return max(sizes[half:] or sizes) - max(sizes[:half])


def heartbeats(honest: list[Honest]) -> None:
    for peer in honest:
        peer.ask(Heartbeat(), Heartbeat)
    time.sleep(0.01)


class Run:
    """A learner, an actor and a verifier that train, a group a step."""

    def __init__(self, broker: LiveBroker) -> None:
        self.learner, self.actor, self.verifier = (Honest(broker, role) for role in ("learner", "actor", "verifier"))
        self.peers = [self.learner, self.actor, self.verifier]
        self.steps = 0
        self.learner.dealer.send(manifest(0))
        self.actor.dealer.send(LeaseRequest(capacity=2))
        self.verifier.dealer.send(VerifyRequest(capacity=2))

    def step(self) -> None:
        begun = time.monotonic()
        lease = self.actor.expect(Lease)
        for sample in lease.sample_indexes:
            self.actor.dealer.send(completion(lease, sample, lease.min_version))
        for _ in lease.sample_indexes:
            job = self.verifier.expect(VerifyJob)
            verdict = Verdict(reward=1.0, parts={}, reason="", seconds=0.0)
            self.verifier.dealer.send(
                VerifyDone(job_id=job.job_id, group_id=job.group_id, sample_index=job.sample_index, verdict=verdict)
            )
        self.learner.dealer.send(BatchRequest(policy_version=self.steps))
        batch = self.learner.expect(GroupBatch)
        self.steps += 1
        self.learner.dealer.send(manifest(self.steps))
        group_ids = tuple(group.group_id for group in batch.groups)
        self.learner.dealer.send(Consumed(policy_version=self.steps, group_ids=group_ids))
        self.learner.waits.append(time.monotonic() - begun)
        heartbeats(self.peers)


def check(outcome: Outcome, broker: LiveBroker) -> None:
    print(outcome)
    assert max(outcome.waits) < SLOWEST_SECONDS
    assert outcome.grown < GROWTH_BYTES
    assert broker.log.stat().st_size < LOG_BYTES, "the log is not flooded either"


def fuzz(broker: LiveBroker, frames: int, seed: int, raw: float = 0.002) -> Outcome:
    """Everybody may come in, and the honest ones ask for no more than to be heard."""
    honest = [Honest(broker, "learner"), Honest(broker, "actor")]
    honest[0].dealer.send(manifest(0))
    outcome = under_attack(broker, honest, lambda: heartbeats(honest), frames, seed, raw)
    for peer in honest:
        peer.close()
    check(outcome, broker)
    return outcome


def train(broker: LiveBroker, frames: int, seed: int, raw: float) -> Outcome:
    """Only holders of keys come in, and they train meanwhile."""
    run = Run(broker)
    outcome = under_attack(broker, run.peers, run.step, frames, seed, raw)
    for peer in run.peers:
        peer.close()
    check(outcome, broker)
    assert outcome.read < 20 * run.steps + 20, "nobody but the three was heard"
    return outcome


def test_hostile_frames_neither_stop_nor_slow_nor_swell_the_broker(live: list[LiveBroker], tmp_path: Path) -> None:
    live.append(broker := LiveBroker(tmp_path, *NO_LIMITS))
    assert fuzz(broker, 10_000, seed=1, raw=0.01).read > 2_000


def test_those_who_flood_are_cut_off_and_the_honest_go_on(live: list[LiveBroker], tmp_path: Path) -> None:
    live.append(broker := LiveBroker(tmp_path, "stream.strangers_per_second=5"))
    fuzz(broker, 10_000, seed=2)
    assert broker.count("broker_messages_flooding_total") > 0


def test_a_locked_run_trains_while_strangers_attack(live: list[LiveBroker], tmp_path: Path) -> None:
    make(tmp_path / "keys")
    live.append(broker := LiveBroker(tmp_path, keys=tmp_path / "keys"))
    train(broker, 300, seed=3, raw=1.0)
    assert broker.count("broker_handshakes_failed_total") > 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_million_hostile_frames(live: list[LiveBroker], tmp_path: Path) -> None:
    live.append(broker := LiveBroker(tmp_path, *NO_LIMITS))
    outcome = fuzz(broker, 2_000_000, seed=4)
    assert outcome.read > 1_000_000
    assert outcome.grown < LONG_GROWTH_BYTES


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_million_hostile_frames_against_the_limits(live: list[LiveBroker], tmp_path: Path) -> None:
    live.append(broker := LiveBroker(tmp_path))
    assert fuzz(broker, 1_000_000, seed=5).grown < LONG_GROWTH_BYTES


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_locked_run_trains_while_strangers_attack_for_long(live: list[LiveBroker], tmp_path: Path) -> None:
    make(tmp_path / "keys")
    live.append(broker := LiveBroker(tmp_path, keys=tmp_path / "keys"))
    assert train(broker, 50_000, seed=6, raw=1.0).grown < LONG_GROWTH_BYTES
