"""What strangers and peers that behave badly can do to a broker, and to those who behave: nothing."""

import logging
import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgpack
import pytest
import zmq
from running_broker import Running, manifest

from learner.broker import http, rates
from learner.broker.quiet import Quiet
from protocol import security
from protocol.clock import Deadline
from protocol.codec import encode
from protocol.messages import (
    Consumed,
    Heartbeat,
    Hello,
    LeaseRequest,
    Refusal,
    VerifyJob,
    VerifyRequest,
    WeightManifest,
    Welcome,
    WhoAreYou,
)
from protocol.security import load, make
from protocol.sockets import Dealer

QUICK = 10.0  # for what must happen


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


def answers(running: Running) -> bool:
    """Whether the broker takes in one more honest peer, and answers it."""
    peer = running.join("actor", f"honest-{time.monotonic_ns()}")
    peer.expect(Welcome)
    peer.send(Heartbeat())
    peer.expect(Heartbeat, skip=WeightManifest)
    return running.thread.is_alive()


def names(running: Running) -> list[str]:
    return sorted(peer.name for peer in running.broker.members)


def cut_off(running: Running, reason: str) -> bool:
    """Whether a connection is cut off soon for that reason."""
    deadline = Deadline(QUICK)
    while not running.router.connections.cut_off[reason] and not deadline.passed:
        time.sleep(0.02)
    return running.router.connections.cut_off[reason] > 0


# ---------------------------------------------------------------- too much, too large, unread


@pytest.mark.parametrize("joined", [False, True])
def test_one_that_does_not_read_harms_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, joined: bool) -> None:
    monkeypatch.setattr("protocol.sockets.UNREAD_MESSAGES", 20)
    running = Running(tmp_path, strangers_per_second=1e6, messages_per_second=1e6)
    deaf = Deaf(running.router.address)
    if joined:
        deaf.say(hello("deaf", "s"))
    for _ in range(60_000):
        deaf.say(Heartbeat())
    assert answers(running)
    deaf.socket.close()
    running.close()


def test_a_stranger_that_floods_is_cut_off_and_keeps_nobody_out(tmp_path: Path) -> None:
    running = Running(tmp_path, strangers_per_second=10.0)
    with Dealer(running.router.address) as stranger:
        for _ in range(2000):
            stranger.send(Heartbeat())
        assert answers(running)
        told = len([*iter(lambda: stranger.receive(0.3), None)])
        assert 100 <= told <= 120, "a burst is answered, and ten a second after it"
        assert running.broker.collector.flooding_messages >= 1800
        assert cut_off(running, "flood")
        stranger.socket.close(0)
    running.close()


def test_a_peer_that_floods_is_cut_off(tmp_path: Path) -> None:
    running = Running(tmp_path, messages_per_second=5.0)
    flooder = running.join("actor", "flooder")
    flooder.expect(Welcome)
    for _ in range(200):
        flooder.send(LeaseRequest(capacity=1))
    assert flooder.expect(Refusal, skip=WhoAreYou).field == "rate"
    assert cut_off(running, "refused")
    assert answers(running)
    running.close()


def test_a_message_too_large_for_its_role_is_refused_unread(running: Running) -> None:
    """A megabyte of msgpack may become a gigabyte of objects."""
    verifier = running.join("verifier")
    verifier.expect(Welcome)
    verifier.dealer.socket.send(msgpack.packb([{}] * 2_000_000))
    refusal = verifier.expect(Refusal)
    assert (refusal.field, refusal.fatal) == ("size", True)
    assert "2000005 bytes; 1048576 are taken of the role verifier" in refusal.problem
    assert names(running) == []


def test_a_stranger_with_a_large_message_is_asked_who_it_is(running: Running) -> None:
    """It may be a peer that does not know yet that the broker was away."""
    with Dealer(running.router.address) as stranger:
        stranger.socket.send(b"x" * 1_000_000)
        assert stranger.receive(QUICK) == WhoAreYou()


# ---------------------------------------------------------------- who is who


def test_a_session_gives_nobody_another_role_or_name(running: Running) -> None:
    """Else an actor that says Hello twice is a second learner, and may end the run."""
    learner = running.join("learner", "learner")
    learner.expect(Welcome)
    with Dealer(running.router.address) as first, Dealer(running.router.address) as second:
        first.send(hello("x", "s"))
        assert isinstance(first.receive(QUICK), Welcome)
        for name, role in (("x", "learner"), ("y", "actor")):
            second.send(hello(name, "s", role=role))
            refusal = second.receive(QUICK)
            assert isinstance(refusal, Refusal)
            assert (refusal.field, refusal.problem) == ("session", "is that of x, whose role is actor")
    assert names(running) == ["learner", "x"]
    assert answers(running)


def test_a_connection_belongs_to_one_process(running: Running) -> None:
    """Else a new name were a new allowance, and the jobs of the old one were forgotten."""
    verifier = running.join("verifier")
    verifier.expect(Welcome)
    verifier.send(VerifyRequest(capacity=1))
    verifier.send(hello("another", "another", "verifier"))
    refusal = verifier.expect(Refusal, skip=VerifyJob)
    assert (refusal.field, refusal.fatal) == ("session", True)
    assert refusal.problem == "of another process; this connection is that of verifier"
    assert names(running) == []


def test_a_key_speaks_for_no_other_role_whatever_connection_it_claims(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "keys")
    monkeypatch.setattr(security, "_in_use", load(tmp_path / "keys", "broker"))
    running = Running(tmp_path)

    def claim(role: str) -> zmq.Socket[bytes]:
        dealer: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        dealer.setsockopt(zmq.ROUTING_ID, b"learner")
        dealer.setsockopt(zmq.LINGER, 0)
        security.connect(dealer, load(tmp_path / "keys", role), "broker")
        dealer.connect(running.router.address)
        return dealer

    learner = claim("learner")
    learner.send_multipart(encode(hello("learner", "s", "learner")))
    learner.send_multipart(encode(manifest(0)))
    deadline = Deadline(QUICK)
    while running.broker.manifest is None and not deadline.passed:
        time.sleep(0.01)
    assert names(running) == ["learner"]
    learner.close()
    time.sleep(0.3)
    actor = claim("actor")
    actor.send_multipart(encode(Consumed(policy_version=1, group_ids=())))
    while names(running) and not deadline.passed:
        time.sleep(0.01)
    assert names(running) == []
    assert running.broker.stream.version == 0
    actor.close()
    monkeypatch.setattr(security, "_in_use", load(tmp_path / "keys", "actor"))
    assert answers(running)
    running.close()


def test_no_more_peers_come_in_than_may(tmp_path: Path) -> None:
    running = Running(tmp_path, peers=2)
    for name in ("a", "b"):
        running.join("actor", name).expect(Welcome)
    refusal = running.join("actor", "c").expect(Refusal)
    assert (refusal.field, refusal.fatal) == ("peers", False)
    assert refusal.problem == "2 are here; stream.peers allows more"
    running.close()


# ---------------------------------------------------------------- the log and the status page


def record(text: str, *arguments: object) -> logging.LogRecord:
    return logging.LogRecord("broker", logging.INFO, "", 0, text, arguments, None)


def test_the_log_takes_so_many_lines_a_second_and_says_what_it_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    moment = 0.0
    monkeypatch.setattr("learner.broker.quiet.now", lambda: moment)
    quiet = Quiet(rate=2.0, burst_seconds=5.0)
    assert sum(quiet.filter(record("again")) for _ in range(100)) == 10
    moment = 1.0
    assert quiet.filter(line := record("%s joined", "x"))
    assert line.getMessage() == "x joined (90 lines before this one were left out)"


def test_what_a_peer_says_stays_on_its_line_of_the_log() -> None:
    assert Quiet().filter(line := record("%s left", "x\n2026-01-01 broker INFO all is well\x1b[2J 100% é"))
    assert line.getMessage() == "x\\n2026-01-01 broker INFO all is well\\x1b[2J 100% é left"
    assert Quiet().filter(line := record("%s", "x" * 10_000))
    assert len(line.getMessage()) < 5_000


def test_readers_of_the_status_that_never_end_keep_nobody_out(running: Running) -> None:
    parts = urlsplit(running.http.address)
    slow = [socket.create_connection((str(parts.hostname), int(parts.port or 0))) for _ in range(3 * http.READERS)]
    for reader in slow:
        with suppress(ConnectionError):
            reader.sendall(b"GET /status HT")
    assert b"waiting_for" in running.page("/status")
    for reader in slow:
        reader.close()


def test_of_strangers_only_the_last_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "REMEMBERED", 100)
    strangers = rates.Strangers(rate=1.0, burst_seconds=2.0)
    first = strangers.bucket(b"first")
    for _ in range(1000):
        strangers.bucket(os.urandom(5))
        assert strangers.bucket(b"first") is first, "who keeps speaking is not forgotten"
    assert len(strangers) == 100
