"""The receiver of weights against a weight server on a real socket, answered by the test step by step."""

import time
from collections.abc import Iterator

import numpy as np
import pytest

from actors.weights import ATTEMPTS, WINDOW, FetchedVersion, WeightReceiver, WeightsUnavailable
from protocol.messages import Shard, ShardGone, ShardRequest, ShardSpec, TensorSpec, WeightManifest
from protocol.sockets import Router
from protocol.weights import checksum, fingerprint

ARRIVAL_SECONDS = 5.0


class Server:
    """A weight server whose every answer the test decides."""

    def __init__(self) -> None:
        self.router = Router("tcp://127.0.0.1:*")
        self.data: dict[int, list[np.ndarray]] = {}  # version → shards

    def manifest(self, version: int, shards: int = 10, endpoint: str = "") -> WeightManifest:
        """Describe a new version of two tensors cut into `shards` shards of 8 bytes."""
        data = np.random.default_rng(version).integers(0, 256, 8 * shards, dtype=np.uint8)
        self.data[version] = np.split(data, shards)
        tensors = (
            TensorSpec(name="first", dtype="bfloat16", shape=(3,), offset=0, nbytes=6),
            TensorSpec(name="second", dtype="uint8", shape=(8 * shards - 6,), offset=6, nbytes=8 * shards - 6),
        )
        specs = tuple(ShardSpec(nbytes=8, checksum=checksum(shard)) for shard in self.data[version])
        return WeightManifest(
            version=version,
            fingerprint=fingerprint(tensors, specs),
            endpoint=endpoint or self.router.address,
            tensors=tensors,
            shards=specs,
        )

    def request(self) -> tuple[bytes, ShardRequest]:
        """The next request, which must come."""
        received = self.router.receive(ARRIVAL_SECONDS)
        assert received is not None
        peer, message = received
        assert isinstance(message, ShardRequest)
        return peer, message

    def answer(self, peer: bytes, asked: ShardRequest) -> None:
        """Send the shard that was asked for."""
        data = self.data[asked.version][asked.shard]
        self.router.send(peer, Shard(version=asked.version, shard=asked.shard, data=data))

    def idle(self) -> bool:
        """Whether no further request comes."""
        return not self.router.readable(0.1)


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.router.close()


@pytest.fixture
def receiver() -> Iterator[WeightReceiver]:
    receiver = WeightReceiver(seconds=30.0)
    yield receiver
    receiver.close()


def await_shard(receiver: WeightReceiver) -> FetchedVersion | None:
    """Wait for something to arrive, and take it."""
    assert receiver.socket is not None
    assert receiver.socket.poll(round(1e3 * ARRIVAL_SECONDS))
    return receiver.receive()


def serve(server: Server, receiver: WeightReceiver, requests: int) -> FetchedVersion | None:
    """Answer `requests` requests, in the order in which they come."""
    fetched = None
    for _ in range(requests):
        server.answer(*server.request())
        fetched = await_shard(receiver)
    return fetched


def test_a_version_arrives_whole_and_its_tensors_are_views(server: Server, receiver: WeightReceiver) -> None:
    receiver.offer(manifest := server.manifest(0))
    fetched = serve(server, receiver, 10)
    assert fetched is not None
    assert fetched.manifest == manifest
    np.testing.assert_array_equal(fetched.data, np.concatenate(server.data[0]))
    for (spec, view), wanted in zip(fetched.tensors(), manifest.tensors, strict=True):
        assert spec == wanted
        assert np.shares_memory(view, fetched.data)
        np.testing.assert_array_equal(view, fetched.data[wanted.offset : wanted.offset + wanted.nbytes])
    assert receiver.progress == ""
    assert receiver.receive() is None


def test_at_most_a_window_of_shards_is_on_its_way(server: Server, receiver: WeightReceiver) -> None:
    receiver.offer(server.manifest(0))
    asked = [server.request() for _ in range(WINDOW)]
    assert server.idle()
    server.answer(*asked[0])
    assert await_shard(receiver) is None
    server.request()
    assert server.idle()


def test_shards_may_arrive_in_any_order_and_twice(server: Server, receiver: WeightReceiver) -> None:
    receiver.offer(server.manifest(0, shards=3))
    asked = [server.request() for _ in range(3)]
    fetched = None
    for index in (2, 2, 0, 1):
        assert fetched is None
        server.answer(*asked[index])
        fetched = await_shard(receiver)
    assert fetched is not None
    np.testing.assert_array_equal(fetched.data, np.concatenate(server.data[0]))


def test_a_version_is_finished_though_newer_ones_are_offered_and_then_the_newest_is_next(
    server: Server, receiver: WeightReceiver
) -> None:
    receiver.offer(server.manifest(0))
    serve(server, receiver, 5)
    for version in (1, 2, 3):
        receiver.offer(server.manifest(version))
    fetched = serve(server, receiver, 5)
    assert fetched is not None
    assert fetched.manifest.version == 0
    fetched = serve(server, receiver, 10)
    assert fetched is not None
    assert fetched.manifest.version == 3


def test_a_version_that_is_gone_gives_way_to_the_newest_at_once(server: Server, receiver: WeightReceiver) -> None:
    receiver.offer(server.manifest(0))
    serve(server, receiver, 2)
    receiver.offer(server.manifest(1))
    receiver.offer(server.manifest(2))
    for _ in range(WINDOW):  # all of version 0 that is on its way
        peer, asked = server.request()
        server.router.send(peer, ShardGone(version=asked.version))
        assert await_shard(receiver) is None
    fetched = serve(server, receiver, 10)
    assert fetched is not None
    assert fetched.manifest.version == 2


def test_the_only_version_is_gone_and_the_next_offer_is_taken(server: Server, receiver: WeightReceiver) -> None:
    receiver.offer(server.manifest(0, shards=1))
    peer, _ = server.request()
    server.router.send(peer, ShardGone(version=0))
    assert await_shard(receiver) is None
    assert "newer" in receiver.progress
    receiver.offer(server.manifest(1, shards=1))
    assert serve(server, receiver, 1) is not None


def test_an_older_version_is_not_taken(server: Server, receiver: WeightReceiver) -> None:
    receiver.offer(server.manifest(5, shards=1))
    assert serve(server, receiver, 1) is not None
    receiver.offer(server.manifest(4, shards=1))
    receiver.offer(server.manifest(5, shards=1))
    assert server.idle()
    assert receiver.progress == ""


def test_a_damaged_shard_is_asked_again(server: Server, receiver: WeightReceiver) -> None:
    receiver.offer(server.manifest(0, shards=1))
    for damaged in (np.zeros(8, dtype=np.uint8), np.zeros(3, dtype=np.uint8)):
        peer, _ = server.request()
        server.router.send(peer, Shard(version=0, shard=0, data=damaged))
        assert await_shard(receiver) is None
    assert serve(server, receiver, 1) is not None


def test_a_shard_that_stays_damaged_is_an_error_that_names_it(server: Server, receiver: WeightReceiver) -> None:
    receiver.offer(server.manifest(0, shards=1))
    for attempt in range(ATTEMPTS):
        peer, _ = server.request()
        server.router.send(peer, Shard(version=0, shard=0, data=np.zeros(8, dtype=np.uint8)))
        if attempt < ATTEMPTS - 1:
            assert await_shard(receiver) is None
    with pytest.raises(WeightsUnavailable, match=r"shard 0 of version 0 .* damaged 3 times"):
        await_shard(receiver)


def test_malformed_and_foreign_answers_are_passed_over(server: Server, receiver: WeightReceiver) -> None:
    receiver.offer(server.manifest(0, shards=1))
    peer, asked = server.request()
    server.router.socket.send_multipart([peer, b"\xff\x00", b"junk"])
    assert await_shard(receiver) is None
    server.router.send(peer, ShardRequest(version=0, shard=0))
    assert await_shard(receiver) is None
    server.router.send(peer, Shard(version=9, shard=0, data=server.data[0][0]))
    assert await_shard(receiver) is None
    server.answer(peer, asked)
    assert await_shard(receiver) is not None


def test_a_version_that_takes_too_long_is_an_error_that_names_the_option(server: Server) -> None:
    receiver = WeightReceiver(seconds=0.02)
    receiver.offer(server.manifest(0))
    time.sleep(0.05)
    with pytest.raises(WeightsUnavailable, match=r"0 of 10 shards .* actor\.weights_seconds"):
        receiver.receive()
    receiver.close()


def test_a_manifest_that_contradicts_itself_is_refused(server: Server, receiver: WeightReceiver) -> None:
    good = server.manifest(0)
    wrong_shape = TensorSpec(name="first", dtype="float32", shape=(3,), offset=0, nbytes=6)
    bad = WeightManifest(
        version=0, fingerprint="x", endpoint=good.endpoint, tensors=(wrong_shape, good.tensors[1]), shards=good.shards
    )
    with pytest.raises(WeightsUnavailable, match=r"first has 6 bytes, float32 of shape \[3\] needs 12"):
        receiver.offer(bad)
    lying = WeightManifest(version=0, fingerprint="x", endpoint=good.endpoint, tensors=good.tensors, shards=good.shards)
    with pytest.raises(WeightsUnavailable, match="its manifest says x"):
        receiver.offer(lying)


def test_an_endpoint_that_is_none_is_named(server: Server, receiver: WeightReceiver) -> None:
    with pytest.raises(WeightsUnavailable, match="version 0: cannot connect to 'nowhere'"):
        receiver.offer(server.manifest(0, endpoint="nowhere"))


def test_a_server_that_moved_is_followed(server: Server, receiver: WeightReceiver) -> None:
    other = Server()
    receiver.offer(server.manifest(0))
    serve(server, receiver, 3)
    receiver.offer(other.manifest(1, shards=2))
    fetched = serve(other, receiver, 2)
    assert fetched is not None
    assert fetched.manifest.version == 1
    other.router.close()
