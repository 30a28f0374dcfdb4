"""Who gets leases and jobs: against a slow look at all peers, while they come, go, deliver and change their minds."""

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from stream_world import NumberedTasks, fingerprint, judged, rollout

from learner.broker.config import BrokerRoot, StreamConfig, identity
from learner.broker.journal import Journal
from learner.broker.membership import Members, Peer
from learner.broker.rates import Bucket
from learner.broker.service import Broker
from protocol.codec import encode
from protocol.messages import (
    Goodbye,
    Hello,
    Lease,
    LeaseFailed,
    LeaseRequest,
    Message,
    VerifyJob,
    VerifyRequest,
)
from protocol.sockets import Letter, Router

SIZE = 4


class Pages:
    """An HTTP side that nobody reads."""

    address = "http://nowhere"

    def show(self, path: str, content_type: str, body: bytes) -> None:
        """Forget the page."""


class Post(Router):
    """A router whose letters the test writes and reads."""

    def __init__(self) -> None:
        super().__init__("tcp://127.0.0.1:*")
        self.letters: list[tuple[bytes, Message]] = []

    def send_all(self, letters: Iterable[tuple[bytes, Message]]) -> list[bytes]:
        """Keep them; each finds its peer."""
        self.letters += letters
        return []


@dataclass
class Office:
    """A broker without sockets, and peers that do anything at any time."""

    broker: Broker
    post: Post
    chance: random.Random
    leases: dict[bytes, list[Lease]] = field(default_factory=dict)  # by actor
    jobs: dict[bytes, list[VerifyJob]] = field(default_factory=dict)  # by verifier
    joined: int = 0

    def turn(self) -> None:
        """Some peers do something, then the broker hands out what there is."""
        for _ in range(self.chance.randint(0, 6)):
            self.chance.choice([self.join, self.leave, self.ask, self.deliver, self.judge, self.train])()
        self.broker._hand_out()
        self.broker._speak()
        for peer, message in self.post.letters:
            if isinstance(message, Lease):
                self.leases[peer].append(message)
            elif isinstance(message, VerifyJob):
                self.jobs[peer].append(message)
        self.post.letters.clear()

    def join(self) -> None:
        role = self.chance.choice(["actor", "verifier"])
        name = f"peer-{self.chance.randrange(8)}"  # few names: an actor's may be a verifier's later
        if self.broker.members.named(name) is None:
            self.joined += 1
            identity = str(self.joined).encode()
            (self.leases if role == "actor" else self.jobs)[identity] = []
            self.take(identity, hello(role, name, session=str(self.joined)))

    def leave(self) -> None:
        if self.chance.random() < 0.2 and (identity := self.someone({**self.leases, **self.jobs})):
            self.take(identity, Goodbye(reason="", finished=False))
            self.leases.pop(identity, None)
            self.jobs.pop(identity, None)

    def ask(self) -> None:
        capacity = self.chance.randrange(3 * SIZE)
        if identity := self.someone({**self.leases, **self.jobs}):
            wish = LeaseRequest if identity in self.leases else VerifyRequest
            self.take(identity, wish(capacity=capacity))

    def deliver(self) -> None:
        identity = self.someone({peer: held for peer, held in self.leases.items() if held})
        if identity is None:
            return
        lease = self.leases[identity].pop(0)
        if self.chance.random() < 0.1:
            self.take(identity, LeaseFailed(lease_id=lease.lease_id, reason="prompt_too_long", detail=""))
            return
        done = self.chance.randint(1, len(lease.sample_indexes))
        for sample in lease.sample_indexes[:done]:
            self.take(identity, rollout(lease, sample, [self.broker.stream.version]))
        if rest := lease.sample_indexes[done:]:
            self.leases[identity].insert(0, replace(lease, sample_indexes=rest, seeds=lease.seeds[done:]))

    def judge(self) -> None:
        identity = self.someone({peer: held for peer, held in self.jobs.items() if held})
        if identity is not None:
            job = self.jobs[identity].pop(0)
            self.take(identity, judged(job, float(job.sample_index % 2)))

    def train(self) -> None:
        stream = self.broker.stream
        if groups := stream.batch(stream.version):
            stream.published(stream.version + 1, fingerprint(stream.version + 1))
            stream.consumed(stream.version + 1, [group.group_id for group in groups])

    def someone(self, peers: dict[bytes, Any]) -> bytes | None:
        return self.chance.choice(sorted(peers)) if peers else None

    def take(self, identity: bytes, message: Message) -> None:
        self.broker._open(Letter(identity, "", encode(message)))


def hello(role: Any, name: str, session: str) -> Hello:
    return Hello(role=role, name=name, host="h", pid=1, metrics_port=0, versions={}, session=session)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    stream = StreamConfig(
        group_size=SIZE,
        groups_per_step=3,
        max_staleness=3,
        lease_attempts=9,
        drops_in_a_row=10**6,
        messages_per_second=1e9,
        strangers_per_second=1e9,
    )
    config = BrokerRoot(model="m", stream=stream)
    journal = Journal(tmp_path / "journal.sqlite", identity(config), sync="off")
    with Post() as post:
        broker = Broker(config, NumberedTasks(), post, Pages(), journal)  # type: ignore[arg-type]
        broker.stream.published(0, fingerprint(0))
        yield broker
    journal.close()


@pytest.mark.parametrize("seed", range(5))
def test_each_lease_and_job_goes_to_the_least_loaded_and_nobody_with_room_is_forgotten(
    broker: Broker, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    stream, members = broker.stream, broker.members
    grant, assign = stream.grant, stream.assign

    def room(peer: Peer) -> int:
        return peer.capacity - stream.leases.owed(peer.name)

    def roomy() -> list[Peer]:
        return [peer for peer in members.of("actor") if stream.has_room(peer.name, peer.capacity)]

    def idle() -> list[Peer]:
        return [peer for peer in members.of("verifier") if stream.jobs.held(peer.name) < peer.capacity]

    def watched_grant(actor: str, capacity: int, now: float) -> Lease | None:
        best = max(map(room, roomy()))
        chosen = members.named(actor)
        assert chosen in roomy()
        assert room(chosen) == best
        return grant(actor, capacity, now)

    def watched_assign(verifier: str, capacity: int) -> VerifyJob | None:
        assert stream.jobs.held(verifier) == min(stream.jobs.held(peer.name) for peer in idle())
        return assign(verifier, capacity)

    monkeypatch.setattr(stream, "grant", watched_grant)
    monkeypatch.setattr(stream, "assign", watched_assign)
    office = Office(broker, broker.router, random.Random(seed))  # type: ignore[arg-type]
    for _ in range(400):
        office.turn()
        assert not (stream.leasable and roomy())
        assert not (stream.jobs.queued and idle())
    assert stream.version > 0


def test_a_name_a_session_and_a_connection_are_of_the_peer_that_joined_last() -> None:
    members = Members()
    first = members.join(b"1", hello("actor", "a", session="one"), Bucket(1.0, 1.0), 0.0)
    again = members.join(
        b"2", hello("actor", "a", session="two"), Bucket(1.0, 1.0), 0.0
    )  # its name is taken: the newer one has it
    members.leave(b"1")
    assert members.named("a") is again
    assert members.before(first.hello) is None
    learner = members.join(
        b"2", hello("learner", "l", session="three"), Bucket(1.0, 1.0), 0.0
    )  # another process on the connection
    assert list(members) == [learner]
    assert members.named("a") is None
    assert members.learner is learner
    assert members.holder(hello("learner", "m", session="four")) is learner
    assert members.holder(hello("actor", "l", session="four")) is learner
    assert members.holder(hello("actor", "m", session="four")) is None
    assert members.holder(learner.hello) is None
