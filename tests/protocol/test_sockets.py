"""Sockets go on whatever arrives, and say who sent it."""

from collections.abc import Iterator

import msgpack
import numpy as np
import pytest
import zmq

from protocol.messages import PROTOCOL_VERSION, Heartbeat, LeaseRequest, Shard
from protocol.sockets import Dealer, Rejected, Router, own_address


@pytest.fixture
def pair() -> Iterator[tuple[Router, Dealer]]:
    with Router("tcp://127.0.0.1:*") as router, Dealer(router.address) as dealer:
        yield router, dealer


def test_messages_go_both_ways(pair: tuple[Router, Dealer]) -> None:
    router, dealer = pair
    dealer.send(LeaseRequest(capacity=3))
    received = router.receive(5)
    assert received is not None
    peer, message = received
    assert message == LeaseRequest(capacity=3)
    data = np.arange(1000, dtype=np.uint8)
    assert router.send(peer, Shard(version=1, shard=0, data=data))
    shard = dealer.receive(5)
    assert isinstance(shard, Shard)
    assert np.array_equal(shard.data, data)
    assert not shard.data.flags.writeable


def header(kind: str, body: dict[str, object], version: int = PROTOCOL_VERSION) -> bytes:
    packed: bytes = msgpack.packb({"offbeat": version, "kind": kind, "body": body})
    return packed


@pytest.mark.parametrize(
    ("frames", "field"),
    [
        ([b"\xc1"], "header"),
        ([b""], "header"),
        ([header("heartbeat", {}, version=PROTOCOL_VERSION + 1)], "offbeat"),
        ([header("exec", {})], "kind"),
        (
            [header("lease_request", {"capacity": "x"})],
            "capacity",
        ),
        (
            [header("lease_request", {"capacity": 1}), b"more"],
            "frames",
        ),
    ],
)
def test_a_malformed_message_names_field_and_peer_and_the_next_one_arrives(
    pair: tuple[Router, Dealer], frames: list[bytes], field: str
) -> None:
    router, dealer = pair
    dealer.socket.send_multipart(frames)
    dealer.send(Heartbeat())
    received = router.receive(5)
    assert received is not None
    peer, rejected = received
    assert isinstance(rejected, Rejected)
    assert rejected.field == field
    assert rejected.peer == peer
    assert peer.hex() in str(rejected)
    following = router.receive(5)
    assert following is not None
    assert following[1] == Heartbeat()


def test_sending_to_a_peer_that_is_gone_is_told_and_does_not_raise(pair: tuple[Router, Dealer]) -> None:
    assert pair[0].send(b"nobody", Heartbeat()) is False


def test_receiving_ends_at_its_timeout(pair: tuple[Router, Dealer]) -> None:
    router, dealer = pair
    assert router.receive(0.01) is None
    assert dealer.receive(0.01) is None


def test_a_taken_port_is_refused_with_the_address(pair: tuple[Router, Dealer]) -> None:
    with pytest.raises(OSError, match=r"cannot listen on tcp://127\.0\.0\.1"):
        Router(pair[0].address)


def test_an_address_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="tcp://host:"):
        Dealer("localhost")


def test_a_frame_above_the_hard_limit_costs_its_sender_the_connection_and_nobody_else() -> None:
    with Router("tcp://127.0.0.1:*") as router:
        router.socket.setsockopt(zmq.MAXMSGSIZE, 1000)
        router.socket.bind("tcp://127.0.0.1:*")
        address = router.socket.getsockopt_string(zmq.LAST_ENDPOINT)
        with Dealer(address) as honest, Dealer(address) as flood:
            flood.socket.send(b"x" * 100_000)
            honest.send(Heartbeat(waiting_for="still here"))
            received = router.receive(5)
            assert received is not None
            assert received[1] == Heartbeat(waiting_for="still here")
            assert router.receive(0.2) is None


def test_the_own_address_is_the_one_on_the_way_to_the_peer() -> None:
    assert own_address("tcp://127.0.0.1:5555") == "127.0.0.1"
    with pytest.raises(ValueError, match="tcp://host:port"):
        own_address("127.0.0.1")
    with pytest.raises(ValueError, match=r"tcp://nobody\.invalid:1: this host knows no way there"):
        own_address("tcp://nobody.invalid:1")
