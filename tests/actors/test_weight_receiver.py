"""The receiver of weights against a weight server on a real socket, answered by the test step by step."""

import time
from collections.abc import Iterator

import numpy as np
import pytest
from weight_server import ARRIVAL_SECONDS, SIZE, Server

from actors.weights import relay, wire
from actors.weights.fetched import FetchedVersion, WeightsUnavailable
from actors.weights.receiver import WeightReceiver
from actors.weights.wire import ATTEMPTS
from protocol import delta
from protocol.clock import Deadline
from protocol.messages import (
    Loaded,
    Shard,
    ShardGone,
    ShardRequest,
    Source,
    SourceRequest,
    TensorSpec,
    WeightManifest,
)


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


def whole(receiver: WeightReceiver) -> FetchedVersion:
    """The next whole version, which must come."""
    assert receiver.socket.poll(round(1e3 * ARRIVAL_SECONDS))
    fetched = receiver.receive()
    assert fetched is not None
    return fetched


def nothing(receiver: WeightReceiver) -> None:
    """What was sent does not make a version."""
    assert not receiver.socket.poll(50)
    assert receiver.receive() is None


def serve(server: Server, receiver: WeightReceiver, requests: int) -> FetchedVersion:
    """Answer `requests` requests, in the order in which they come; the version that they complete."""
    for _ in range(requests):
        server.answer(*server.request())
    return whole(receiver)


def shards(server: Server, version: int) -> np.ndarray:
    return np.concatenate(server.data[version])


def test_a_version_arrives_whole_and_its_tensors_are_views(server: Server, receiver: WeightReceiver) -> None:
    receiver.offer(manifest := server.manifest(0))
    fetched = serve(server, receiver, 10)
    assert fetched.manifest == manifest
    assert (fetched.way, fetched.wire_bytes) == ("zmq", 10 * SIZE)
    np.testing.assert_array_equal(fetched.data, shards(server, 0))
    for (spec, view), wanted in zip(fetched.tensors(), manifest.tensors, strict=True):
        assert spec == wanted
        assert np.shares_memory(view, fetched.data)
        np.testing.assert_array_equal(view, fetched.data[wanted.offset : wanted.offset + wanted.nbytes])
    assert receiver.receive() is None
    assert receiver.progress == ""


def test_at_most_a_window_is_on_its_way(
    server: Server, receiver: WeightReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "WINDOW_BYTES", 4 * SIZE)
    receiver.offer(server.manifest(0))
    asked = server.requests(4)
    assert server.idle()
    server.answer(*asked[0])
    server.request()
    assert server.idle()


def test_shards_may_arrive_in_any_order_and_twice(server: Server, receiver: WeightReceiver) -> None:
    receiver.offer(server.manifest(0, shards=3))
    asked = server.requests(3)
    for index in (2, 2, 0, 1):
        server.answer(*asked[index])
    np.testing.assert_array_equal(whole(receiver).data, shards(server, 0))


def test_a_version_is_finished_though_newer_ones_are_offered_and_then_the_newest_is_next(
    server: Server, receiver: WeightReceiver
) -> None:
    receiver.offer(server.manifest(0))
    asked = server.requests(10)
    for version in (1, 2, 3):
        receiver.offer(server.manifest(version))
    for each in asked:
        server.answer(*each)
    assert whole(receiver).manifest.version == 0
    assert server.idle()  # the loop may be reading it
    receiver.receive()
    assert serve(server, receiver, 10).manifest.version == 3


def test_a_version_that_is_gone_gives_way_to_the_newest_at_once(server: Server, receiver: WeightReceiver) -> None:
    receiver.offer(server.manifest(0))
    asked = server.requests(10)
    receiver.offer(server.manifest(1))
    receiver.offer(server.manifest(2))
    server.answer(*asked[0])
    server.router.send(asked[0][0], ShardGone(version=0, shard=4))
    assert serve(server, receiver, 10).manifest.version == 2


def test_the_only_version_is_gone_and_the_next_offer_is_taken(server: Server, receiver: WeightReceiver) -> None:
    receiver.offer(server.manifest(0, shards=1))
    peer, _ = server.request()
    server.router.send(peer, ShardGone(version=0))
    nothing(receiver)
    assert "newer" in receiver.progress
    receiver.offer(server.manifest(1, shards=1))
    serve(server, receiver, 1)


def test_what_arrived_of_a_version_that_was_given_up_is_not_fetched_again(
    server: Server, receiver: WeightReceiver
) -> None:
    receiver.offer(server.manifest(0))
    asked = server.requests(10)
    for each in asked[:6]:
        server.answer(*each)
    receiver.offer(server.manifest(1, base=0))
    server.router.send(asked[0][0], ShardGone(version=0, shard=9))
    after = [request for _, request in server.requests(1)]
    assert after[0].version == 1
    rest = [after[0], *(request for _, request in (server.request() for _ in range(6)))]
    assert server.idle()
    assert sorted((request.shard, request.delta) for request in rest) == [
        *((shard, False) for shard in (0, 2, 4)),  # a delta of 8 bytes is larger than the shard
        *((shard, False) for shard in (6, 7, 8, 9)),
    ]


def test_an_older_version_is_not_taken(server: Server, receiver: WeightReceiver) -> None:
    receiver.offer(server.manifest(5, shards=1))
    serve(server, receiver, 1)
    receiver.offer(server.manifest(4, shards=1))
    receiver.offer(server.manifests[5])
    receiver.receive()
    assert server.idle()
    assert receiver.progress == ""


def test_a_damaged_shard_is_asked_again(server: Server, receiver: WeightReceiver) -> None:
    receiver.offer(server.manifest(0, shards=1))
    for damaged in (np.zeros(8, dtype=np.uint8), np.zeros(3, dtype=np.uint8)):
        peer, _ = server.request()
        server.router.send(peer, Shard(version=0, shard=0, data=damaged))
        nothing(receiver)
    np.testing.assert_array_equal(serve(server, receiver, 1).data, shards(server, 0))


def damage(server: Server, receiver: WeightReceiver) -> None:
    for _ in range(ATTEMPTS):
        peer, asked = server.request()
        server.router.send(peer, Shard(version=asked.version, shard=asked.shard, data=np.zeros(8, dtype=np.uint8)))


def test_a_version_with_a_shard_that_stays_damaged_is_given_up_for_a_newer_one(
    server: Server, receiver: WeightReceiver
) -> None:
    receiver.offer(server.manifest(0, shards=1))
    damage(server, receiver)
    nothing(receiver)
    receiver.offer(server.manifest(1, shards=1))
    assert serve(server, receiver, 1).manifest.version == 1


def test_a_shard_that_stays_damaged_with_nothing_newer_is_an_error_that_names_it(server: Server) -> None:
    receiver = WeightReceiver(seconds=0.5)
    receiver.offer(server.manifest(0, shards=1))
    damage(server, receiver)
    assert receiver.socket.poll(round(1e3 * ARRIVAL_SECONDS))
    with pytest.raises(WeightsUnavailable, match=r"given up: shard 0 of version 0 .* damaged 3 times"):
        receiver.receive()
    receiver.close()


def test_malformed_and_foreign_answers_are_passed_over(server: Server, receiver: WeightReceiver) -> None:
    receiver.offer(server.manifest(0, shards=1))
    peer, asked = server.request()
    server.router.socket.send_multipart([peer, b"\xff\x00", b"junk"])
    server.router.send(peer, ShardRequest(version=0, shard=0))
    server.router.send(peer, Shard(version=9, shard=0, data=server.data[0][0]))
    server.router.send(peer, Shard(version=0, shard=7, data=server.data[0][0]))
    nothing(receiver)
    server.answer(peer, asked)
    np.testing.assert_array_equal(whole(receiver).data, shards(server, 0))


def test_what_was_asked_is_asked_again_after_a_silence(
    server: Server, receiver: WeightReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "SILENCE_SECONDS", 0.2)
    receiver.offer(server.manifest(0, shards=3))
    lost = server.requests(3)
    server.answer(*lost[1])
    again = server.requests(2)
    assert {asked.shard for _, asked in again} == {0, 2}
    for each in again:
        server.answer(*each)
    np.testing.assert_array_equal(whole(receiver).data, shards(server, 0))


def test_a_server_that_comes_back_at_its_address_is_asked_for_the_rest(
    receiver: WeightReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "SILENCE_SECONDS", 0.2)
    first = Server()
    receiver.offer(first.manifest(0, shards=4))
    asked = first.requests(4)
    first.answer(*asked[3])
    data = first.data
    nothing(receiver)
    first.router.close()
    second = Server(first.router.address)
    second.data = data
    seen = set()
    while len(seen) < 3:
        peer, request = second.request()
        seen.add(request.shard)
        second.answer(peer, request)
    assert seen == {0, 1, 2}
    np.testing.assert_array_equal(whole(receiver).data, np.concatenate(data[0]))
    second.router.close()


def test_a_version_that_takes_too_long_is_an_error_that_names_the_option(server: Server) -> None:
    receiver = WeightReceiver(seconds=0.1)
    receiver.offer(server.manifest(0))
    assert receiver.socket.poll(round(1e3 * ARRIVAL_SECONDS))
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
    receiver.offer(server.manifest(0, endpoint="nowhere"))
    assert receiver.socket.poll(round(1e3 * ARRIVAL_SECONDS))
    with pytest.raises(WeightsUnavailable, match="version 0: nowhere: give the address"):
        receiver.receive()


def test_a_server_that_moved_is_followed_to_an_older_version_too(server: Server, receiver: WeightReceiver) -> None:
    other = Server()
    receiver.offer(server.manifest(5))
    for _ in range(3):
        server.answer(*server.request())
    receiver.offer(other.manifest(4, shards=2))
    assert serve(other, receiver, 2).manifest.version == 4
    other.router.close()


def test_what_was_loaded_is_reported(server: Server, receiver: WeightReceiver) -> None:
    receiver.offer(manifest := server.manifest(3, shards=2))
    fetched = serve(server, receiver, 2)
    receiver.loaded(fetched, 0.25)
    received = server.router.receive(ARRIVAL_SECONDS)
    assert received is not None
    report = received[1]
    assert isinstance(report, Loaded)
    assert (report.version, report.fingerprint, report.way) == (3, manifest.fingerprint, "zmq")
    assert (report.nbytes, report.pause_seconds) == (2 * SIZE, 0.25)


def test_versions_that_are_lent_stay_as_they_are(server: Server, receiver: WeightReceiver) -> None:
    receiver.offer(server.manifest(0))
    fetched = serve(server, receiver, 10)
    before = fetched.data.copy()
    receiver.offer(server.manifest(1))
    assert server.idle()
    time.sleep(0.05)
    np.testing.assert_array_equal(fetched.data, before)
    assert receiver.receive() is None
    assert serve(server, receiver, 10).manifest.version == 1


# ---------------------------------------------------------------- deltas


@pytest.fixture
def wide_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards that are larger than the delta of a byte."""
    monkeypatch.setattr("weight_server.SIZE", 256)


@pytest.mark.usefixtures("wide_shards")
def test_only_what_changed_is_fetched(server: Server, receiver: WeightReceiver) -> None:
    receiver.offer(server.manifest(0))
    serve(server, receiver, 10)
    for version in (1, 2):
        receiver.receive()
        receiver.offer(server.manifest(version, base=version - 1))
        asked = server.requests(5)
        assert [(request.shard, request.delta) for _, request in asked] == [(s, True) for s in (0, 2, 4, 6, 8)]
        for each in asked:
            server.answer(*each)
        fetched = whole(receiver)
        np.testing.assert_array_equal(fetched.data, shards(server, version))
        assert fetched.wire_bytes < 0.1 * len(fetched.data)
        assert server.asked_sources[-1].held == version - 1
    assert server.asked_sources[0].held == -1


@pytest.mark.usefixtures("wide_shards")
def test_several_versions_behind_the_deltas_are_applied_one_after_the_other(
    server: Server, receiver: WeightReceiver
) -> None:
    receiver.offer(server.manifest(0))
    serve(server, receiver, 10)
    for version in (1, 2, 3):
        server.manifest(version, base=version - 1)
    receiver.receive()
    receiver.offer(server.manifests[3])
    asked = []
    for _ in range(15):
        peer, request = server.request()
        asked.append((request.version, request.shard))
        assert request.delta
        server.answer(peer, request)
    assert sorted(asked) == [(version, shard) for version in (1, 2, 3) for shard in (0, 2, 4, 6, 8)]
    np.testing.assert_array_equal(whole(receiver).data, shards(server, 3))


@pytest.mark.usefixtures("wide_shards")
def test_a_late_joiner_takes_the_newest_version_and_goes_on_by_deltas(server: Server, receiver: WeightReceiver) -> None:
    server.manifest(0)
    server.manifest(1, base=0)
    receiver.offer(server.manifest(2, base=1))
    asked = server.requests(10)
    assert {(request.version, request.delta) for _, request in asked} == {(2, False)}
    receiver.offer(server.manifest(3, base=2))
    for each in asked:
        server.answer(*each)
    whole(receiver)
    receiver.receive()
    np.testing.assert_array_equal(serve(server, receiver, 5).data, shards(server, 3))


@pytest.mark.usefixtures("wide_shards")
@pytest.mark.parametrize("kind", ["unreadable", "wrong", "gone"])
def test_a_shard_whose_delta_fails_is_fetched_whole(server: Server, receiver: WeightReceiver, kind: str) -> None:
    receiver.offer(server.manifest(0))
    serve(server, receiver, 10)
    receiver.offer(server.manifest(1, base=0))
    receiver.receive()
    asked = server.requests(5)
    for each in asked[1:]:
        server.answer(*each)
    peer, _ = asked[0]
    data = server.deltas[1][0].copy()
    if kind == "unreadable":
        data[0] ^= 1
    elif kind == "wrong":
        data = delta.encode(server.data[0][0], server.data[0][1])
    if kind == "gone":
        server.router.send(peer, ShardGone(version=1, shard=0, delta=True))
    else:
        server.router.send(peer, Shard(version=1, shard=0, delta=True, data=data))
    again_peer, again = server.request()
    assert (again.version, again.shard, again.delta) == (1, 0, False)
    server.answer(again_peer, again)
    np.testing.assert_array_equal(whole(receiver).data, shards(server, 1))


# ---------------------------------------------------------------- relays


def test_a_child_waits_for_a_parent_that_waits_itself_and_gets_each_shard_as_it_comes(
    server: Server, receiver: WeightReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "SILENCE_SECONDS", 0.6)
    monkeypatch.setattr(relay, "PROMISE_SECONDS", 0.05)
    receiver.offer(server.manifest(0, shards=3))
    asked = server.requests(3)
    server.source = server.asked_sources[0].endpoint
    child = WeightReceiver(seconds=30.0)
    child.offer(server.manifests[0])
    assert server.router.readable(ARRIVAL_SECONDS)
    received = server.router.receive()
    assert received is not None
    peer, question = received
    assert isinstance(question, SourceRequest)
    server.router.send(peer, Source(version=0, endpoint=server.source))
    assert not server.router.readable(0.4), "neither asks the server: the child trusts its parent"
    for each in asked[:2]:
        server.answer(*each)
    deadline = Deadline(ARRIVAL_SECONDS)
    while "2 of 3" not in child.progress and not deadline.passed:
        time.sleep(0.01)
    assert "2 of 3" in child.progress, "what the parent has it passes on, though it has not all"
    server.answer(*asked[2])
    for each in (receiver, child):
        np.testing.assert_array_equal(whole(each).data, shards(server, 0))
    child.close()


def test_a_parent_that_gives_up_sends_its_child_to_the_server(server: Server, receiver: WeightReceiver) -> None:
    receiver.offer(server.manifest(0, shards=2))
    asked = server.requests(2)
    server.source = server.asked_sources[0].endpoint
    child = WeightReceiver(seconds=30.0)
    child.offer(server.manifests[0])
    server.router.send(asked[0][0], ShardGone(version=0))
    for _ in range(2):
        server.answer(*server.request())
    np.testing.assert_array_equal(whole(child).data, shards(server, 0))
    child.close()


def test_a_version_that_does_not_come_is_let_go_and_the_newest_taken(server: Server) -> None:
    receiver = WeightReceiver(seconds=0.5)
    receiver.offer(server.manifest(0, shards=1))
    serve(server, receiver, 1)
    receiver.receive()
    receiver.offer(server.manifest(1, shards=1))
    assert server.request()[1].version == 1, "it is not answered"
    receiver.offer(server.manifest(2, shards=1))
    asked = server.request()
    assert asked[1].version == 2
    server.answer(*asked)
    assert whole(receiver).manifest.version == 2
    receiver.close()
