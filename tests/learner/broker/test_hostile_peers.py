"""What strangers and peers that behave badly can do to a broker, and to those who behave: nothing."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from test_service import Running, manifest

from protocol.codec import encode
from protocol.messages import (
    Heartbeat,
    Hello,
    Refusal,
    VerifyRequest,
    WeightManifest,
    Welcome,
)
from protocol.sockets import Dealer


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    broker = Running(tmp_path)
    yield broker
    broker.close()


def hello(name: str, session: str, role: Any = "actor") -> Hello:
    return Hello(role=role, name=name, host="h", pid=1, metrics_port=0, versions={}, session=session)


class Deaf:
    """A connection that speaks and never reads."""

    def __init__(self, address: str) -> None:
        self.socket = zmq.Context.instance().socket(zmq.DEALER)
        for name, value in ((zmq.RCVHWM, 1), (zmq.RCVBUF, 4096), (zmq.SNDHWM, 0), (zmq.LINGER, 0)):
            self.socket.setsockopt(name, value)
        self.socket.connect(address)

    def say(self, message: Any) -> None:
        self.socket.send_multipart(encode(message))


def lives(running: Running) -> bool:
    """Whether the broker still takes in an honest peer, and answers it."""
    peer = running.join("actor", f"honest-{time.monotonic_ns()}")
    peer.expect(Welcome)
    peer.send(Heartbeat())
    peer.expect(Heartbeat, skip=WeightManifest)
    return running.thread.is_alive()


@pytest.mark.parametrize("joined", [False, True])
def test_one_that_does_not_read_harms_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, joined: bool) -> None:
    monkeypatch.setattr("protocol.sockets.UNREAD_MESSAGES", 20)
    running = Running(tmp_path, strangers_per_second=1e6, messages_per_second=1e6)
    deaf = Deaf(running.router.address)
    if joined:
        deaf.say(hello("deaf", "s"))
    for _ in range(60_000):
        deaf.say(Heartbeat())
    assert lives(running)
    deaf.socket.close()
    running.close()


def test_a_stranger_that_floods_keeps_nobody_out(tmp_path: Path) -> None:
    running = Running(tmp_path, strangers_per_second=10.0)
    with Dealer(running.router.address) as stranger:
        for _ in range(2000):
            stranger.send(Heartbeat())
        running.join("actor", "honest").expect(Welcome)
        stranger.socket.close(0)
    running.close()


def test_a_connection_belongs_to_one_process(running: Running) -> None:
    """Else a new name were a new allowance, and what the old name held were forgotten."""
    learner, actor, verifier = (running.join(role) for role in ("learner", "actor", "verifier"))
    for peer in running.peers:
        peer.expect(Welcome)
    learner.send(manifest(0))
    verifier.send(VerifyRequest(capacity=1))
    verifier.send(hello("another", "another", "verifier"))
    refusal = verifier.expect(Refusal)
    assert (refusal.field, refusal.fatal) == ("session", True)
    assert sorted(peer.name for peer in running.broker.members) == ["actor", "learner"]
