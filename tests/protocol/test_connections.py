"""Connections that mean harm, made byte by byte: each is cut off in time, and no other."""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import suppress

import numpy as np
import pytest
import zmq
import zmtp

from protocol import connections
from protocol.clock import Deadline
from protocol.codec import encode
from protocol.messages import Heartbeat, Shard, ShardRequest
from protocol.security import Keys, load, make
from protocol.sockets import Dealer, Router

QUICK = 10.0  # for what must happen
LARGEST = 2**20


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Keys]:
    directory = tmp_path_factory.mktemp("keys") / "keys"
    make(directory)
    return {role: load(directory, role) for role in ("broker", "learner", "actor", "verifier")}


@pytest.fixture(params=["open", "locked"])
def router(request: pytest.FixtureRequest, keys: dict[str, Keys]) -> Iterator[Router]:
    locked = keys["broker"] if request.param == "locked" else None
    with Router("tcp://127.0.0.1:*", keys=locked, largest=LARGEST) as router:
        yield router


@pytest.fixture
def strangers() -> Iterator[list[socket.socket]]:
    """Connections to be closed when the test is over."""
    opened: list[socket.socket] = []
    yield opened
    for tcp in opened:
        tcp.close()


@pytest.fixture
def honest(router: Router, keys: dict[str, Keys]) -> Iterator[Dealer]:
    locked = bool(router.socket.getsockopt(zmq.CURVE_SERVER))
    with Dealer(router.address, keys=keys["actor"] if locked else None) as dealer:
        yield dealer
        dealer.socket.close(0)


def answers(router: Router, dealer: Dealer) -> bool:
    """Whether a message of the dealer arrives, and an answer goes back."""
    dealer.send(Heartbeat())
    deadline = Deadline(QUICK)
    while not deadline.passed:
        received = router.receive(0.05)
        if received and received[1] == Heartbeat():
            return router.send(received[0], Heartbeat()) and dealer.receive(QUICK) == Heartbeat()
    return False


def cut(router: Router, reason: str, times: int = 1) -> bool:
    """Whether at least so many connections are cut off soon for that reason."""
    deadline = Deadline(QUICK)
    while router.connections.cut_off[reason] < times and not deadline.passed:
        router.receive(0.01)
    return router.connections.cut_off[reason] >= times


def gone(tcp: socket.socket) -> bool:
    """Whether the other side has ended the connection."""
    tcp.settimeout(QUICK)
    with suppress(ConnectionError):
        while tcp.recv(4096):
            pass
    return True


def test_a_connection_that_says_nothing_is_closed(
    router: Router, honest: Dealer, strangers: list[socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "PROVE_SECONDS", 0.3)
    assert answers(router, honest)
    strangers += [zmtp.connect(router.address) for _ in range(20)]
    assert cut(router, "unproven", times=20)
    assert all(map(gone, strangers))
    assert router.receive(0.2) is None
    assert router.connections.count == 1
    assert answers(router, honest)


def test_of_too_many_connections_the_oldest_go_and_an_honest_one_comes_in(
    router: Router, honest: Dealer, strangers: list[socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "UNPROVEN", 10)
    strangers += [zmtp.connect(router.address) for _ in range(50)]
    assert cut(router, "crowd", times=40)
    assert all(map(gone, strangers[:40]))
    assert answers(router, honest), "were it among the oldest, it would come back"
    deadline = Deadline(QUICK)
    while router.connections.unproven > 10 and not deadline.passed:
        router.receive(0.01)  # libzmq tells of their end when it notices
    assert router.connections.unproven <= 10


def test_nobody_is_judged_before_he_had_the_chance_to_be_heard(
    router: Router, honest: Dealer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broker may be busy for longer than a connection is given to prove itself."""
    monkeypatch.setattr(connections, "PROVE_SECONDS", 0.2)
    honest.send(Heartbeat())
    time.sleep(0.6)
    assert router.receive(QUICK) is not None
    for _ in range(5):
        assert router.receive(0.1) is None
    assert not router.connections.cut_off


def test_bytes_that_come_to_no_message_are_bounded(
    router: Router, honest: Dealer, strangers: list[socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also before the handshake is over: whoever wants to fill the memory needs no keys."""
    monkeypatch.setattr(connections, "UNPROVEN_BYTES", 500_000)
    locked = bool(router.socket.getsockopt(zmq.CURVE_SERVER))
    assert answers(router, honest)
    strangers += [zmtp.connect(router.address), zmtp.connect(router.address)]
    small, large = strangers
    small.sendall(zmtp.greeting(b"CURVE" if locked else b"NULL"))
    large.sendall(zmtp.greeting(b"CURVE" if locked else b"NULL") + zmtp.header(LARGEST, command=True))
    large.sendall(b"x" * (LARGEST - 1))
    assert cut(router, "bytes")
    assert gone(large)
    assert answers(router, honest)
    small.sendall(zmtp.READY[:3])


def test_a_message_that_never_ends_is_cut_off(strangers: list[socket.socket]) -> None:
    """libzmq bounds a frame, and not the frames of a message."""
    with Router("tcp://127.0.0.1:*", largest=LARGEST) as router:
        strangers.append(endless := zmtp.join(router.address))
        for part in encode(Heartbeat()):
            endless.sendall(zmtp.frame(bytes(part)))
        assert router.receive(QUICK) is not None
        assert router.connections.unproven == 0
        endless.settimeout(QUICK)
        with suppress(ConnectionError):
            for _ in range(1000):
                endless.sendall(zmtp.frame(b"x" * 50_000, more=True))
                router.receive(0.01)
        assert router.connections.cut_off == {"bytes": 1}
        with Dealer(router.address) as honest:
            assert answers(router, honest)


def test_a_frame_above_the_limit_ends_its_connection(
    router: Router, honest: Dealer, strangers: list[socket.socket]
) -> None:
    strangers.append(greedy := zmtp.connect(router.address))
    locked = bool(router.socket.getsockopt(zmq.CURVE_SERVER))
    greedy.sendall(zmtp.greeting(b"CURVE" if locked else b"NULL") + zmtp.header(LARGEST + 1, command=True))
    assert gone(greedy)
    assert answers(router, honest)


@pytest.mark.parametrize(
    "greeting",
    [
        zmtp.SIGNATURE + b"\x01\x00" + b"\x05" + b"\x00",  # ZMTP 2.0, which knows no keys
        b"\x01\x00" + zmtp.frame(b"hello"),  # ZMTP 1.0
        zmtp.HANDSHAKE,
        zmtp.greeting(b"PLAIN") + zmtp.frame(b"\x05HELLO\x05admin\x05admin", command=True),
        os.urandom(500),
        b"GET / HTTP/1.1\r\nHost: broker\r\n\r\n",
    ],
    ids=["zmtp2", "zmtp1", "no-keys", "password", "noise", "http"],
)
def test_no_other_greeting_comes_past_the_lock(
    keys: dict[str, Keys], strangers: list[socket.socket], greeting: bytes
) -> None:
    message = b"".join(zmtp.frame(bytes(part)) for part in encode(Heartbeat()))
    with Router("tcp://127.0.0.1:*", keys=keys["broker"]) as router:
        strangers.append(stranger := zmtp.connect(router.address))
        with suppress(ConnectionError):
            stranger.sendall(greeting)
            time.sleep(0.1)
            stranger.sendall(message * 10)
        assert router.receive(0.5) is None


def test_one_that_does_not_read_is_cut_off_and_its_queue_is_bounded(keys: dict[str, Keys]) -> None:
    with Router("tcp://127.0.0.1:*", unread=10) as router, Dealer(router.address) as honest:
        deaf = zmq.Context.instance().socket(zmq.DEALER)
        for name, value in ((zmq.RCVHWM, 1), (zmq.RCVBUF, 4096), (zmq.LINGER, 0)):
            deaf.setsockopt(name, value)
        deaf.connect(router.address)
        deaf.send_multipart(encode(ShardRequest(version=0, shard=0)))
        received = router.receive(QUICK)
        assert received is not None
        shard = Shard(version=0, shard=0, data=np.zeros(2**20, dtype=np.uint8))
        sent = [router.send(received[0], shard) for _ in range(100)]
        assert 10 <= sum(sent) < 40
        assert sent == sorted(sent, reverse=True), "once it is known to be deaf nothing more is kept for it"
        assert cut(router, "deaf")
        assert answers(router, honest)
        deaf.close()


def test_much_that_comes_in_whole_messages_is_no_reason_to_be_cut_off(router: Router, honest: Dealer) -> None:
    large = Heartbeat(gauges={f"{number:0200}": 1.0 for number in range(2000)})
    for number in range(40):
        honest.send(large)
        assert router.receive(QUICK) is not None
        if number % 10 == 0:
            time.sleep(connections.PROVEN_LOOK_SECONDS / 2)
            assert router.receive(0.05) is None
    assert not router.connections.cut_off


def test_connections_that_end_are_forgotten(router: Router, honest: Dealer) -> None:
    assert answers(router, honest)
    honest.socket.close(0)
    deadline = Deadline(QUICK)
    while router.connections.count and not deadline.passed:
        router.receive(0.01)
    assert (router.connections.count, router.connections.unproven) == (0, 0)


def test_one_that_is_cut_off_may_come_back(router: Router, honest: Dealer) -> None:
    assert answers(router, honest)
    honest.send(Heartbeat())
    received = router.receive(QUICK)
    assert received is not None
    router.connections.cut(received[0], "flood")
    assert cut(router, "flood")
    assert answers(router, honest)


def test_failed_handshakes_are_counted(keys: dict[str, Keys]) -> None:
    with Router("tcp://127.0.0.1:*", keys=keys["broker"]) as router, Dealer(router.address) as stranger:
        stranger.send(Heartbeat())
        deadline = Deadline(QUICK)
        while not router.connections.failed_handshakes and not deadline.passed:
            assert router.receive(0.05) is None
        assert router.connections.failed_handshakes == 1
        stranger.socket.close(0)
