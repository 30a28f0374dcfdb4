"""The learner's weight server and actors' receivers on real sockets: every way, many receivers, and what goes wrong."""

import multiprocessing
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch

from actors.weights import shared, wire
from actors.weights.fetched import FetchedVersion, WeightsUnavailable
from actors.weights.receiver import WeightReceiver
from learner import metrics
from learner.publish.server import WeightServer
from learner.publish.store import Store
from learner.publish.version import PublishedVersion, seal, step_between
from protocol import security, weights
from protocol.clock import Deadline
from protocol.codec import decode, encode
from protocol.messages import Shard, ShardRequest, WeightManifest
from protocol.segments import SegmentReader
from protocol.sockets import Dealer
from tests.published import publish

SECONDS = 20.0
SIZE = 2_000_000  # float32 weights: two shards of 4 MiB would be few, so shards are made smaller


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "LEAST_SHARD", 2**18)


class Learner:
    """A weight server and the versions of one tensor, each a small step from the last."""

    def __init__(self, stack: ExitStack, *, fanout: int = 2, shared_memory: bool = False, kept: int = 2) -> None:
        self.store = Store(kept)
        self.server = stack.enter_context(
            WeightServer(self.store, "127.0.0.1", fanout=fanout, shared_memory=shared_memory)
        )
        self.weight = torch.randn(SIZE, generator=torch.Generator().manual_seed(0)).bfloat16()
        self.published: list[PublishedVersion] = []

    def publish(self, change: float = 0.02) -> WeightManifest:
        """The next version, in which `change` of the weights moved."""
        version = len(self.published)
        random = torch.Generator().manual_seed(version)
        moved = torch.rand(SIZE, generator=random) < (change if version else 0)
        self.weight = torch.where(moved, self.weight * 1.01, self.weight)
        drawn = publish(version, [("w", self.weight)])
        segment = self.store.segment(len(drawn.segment.data))
        segment.data[:] = drawn.segment.data
        steps = ()
        if self.store.newest is not None:
            step = step_between(self.store.newest, version, segment.data, limit=1.0)
            assert step is not None
            steps = self.store.steps_before(step)
        published = seal(version, drawn.manifest.tensors, segment, self.server.address, steps)
        self.store.add(published, steps)
        self.server.loads.published(version, published.manifest.fingerprint)
        self.published.append(drawn)
        return published.manifest

    def served(self) -> float:
        """Bytes that it has sent over the wire, of all tests so far."""
        return sum(metrics.WEIGHTS_SERVED.labels(encoding)._value.get() for encoding in ("full", "delta"))


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def receivers(stack: ExitStack, count: int, seconds: float = SECONDS) -> list[WeightReceiver]:
    made = [WeightReceiver(seconds=seconds) for _ in range(count)]
    for receiver in made:
        stack.callback(receiver.close)
    return made


def fetch(receiver: WeightReceiver) -> FetchedVersion:
    """The next version, whole."""
    deadline = Deadline(SECONDS)
    while not deadline.passed:
        receiver.socket.poll(100)
        if (fetched := receiver.receive()) is not None:
            return fetched
    raise AssertionError(f"no version came: {receiver.progress}")


def assert_holds(fetched: FetchedVersion, learner: Learner, version: int) -> None:
    assert fetched.manifest.version == version
    np.testing.assert_array_equal(fetched.data, learner.published[version].segment.data)


def offer_all(to: list[WeightReceiver], manifest: WeightManifest) -> None:
    for receiver in to:
        receiver.receive()  # gives back what it holds
        receiver.offer(manifest)


def test_on_the_learners_host_weights_are_read_where_they_lie(stack: ExitStack) -> None:
    learner = Learner(stack, shared_memory=True)
    (receiver,) = receivers(stack, 1)
    sent = learner.served()
    for version in range(6):
        offer_all([receiver], learner.publish())
        fetched = fetch(receiver)
        assert_holds(fetched, learner, version)
        assert (fetched.way, fetched.wire_bytes) == ("shared_memory", 0)
        assert not fetched.data.flags.writeable
    assert learner.served() == sent


def test_a_version_that_an_actor_reads_is_not_written_over_however_slow_it_is(stack: ExitStack) -> None:
    learner = Learner(stack, shared_memory=True, kept=1)
    (receiver,) = receivers(stack, 1)
    receiver.offer(learner.publish())
    fetched = fetch(receiver)
    for _ in range(6):
        learner.publish()
    assert_holds(fetched, learner, 0)


def test_damage_in_shared_memory_is_seen_and_the_wire_taken(stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = Learner(stack, shared_memory=True)
    (receiver,) = receivers(stack, 1)
    monkeypatch.setattr(shared, "checksum", lambda data: "of other bytes")
    receiver.offer(learner.publish())
    fetched = fetch(receiver)
    assert_holds(fetched, learner, 0)
    assert fetched.way == "zmq"


@pytest.mark.parametrize("fanout", [1, 2, 3])
def test_nine_actors_get_every_version_and_the_learner_sends_it_fanout_times(stack: ExitStack, fanout: int) -> None:
    learner = Learner(stack, fanout=fanout)
    actors = receivers(stack, 9)
    for version in range(3):
        before = learner.served()
        offer_all(actors, learner.publish())
        fetched = [fetch(actor) for actor in actors]
        for each in fetched:
            assert_holds(each, learner, version)
        sent = learner.served() - before
        once = 2 * SIZE if version == 0 else learner.store.newest.manifest.deltas[-1].nbytes
        once = once if isinstance(once, int) else sum(once)
        assert sent == fanout * once
        ways = [each.way for each in fetched]
        assert ways.count("zmq") == fanout
        assert ways.count("relay") == 9 - fanout


def test_a_late_joiner_takes_the_newest_and_then_the_deltas(stack: ExitStack) -> None:
    learner = Learner(stack)
    (first, late) = receivers(stack, 2)
    for _ in range(3):
        offer_all([first], learner.publish())
        fetch(first)
    assert learner.store.newest is not None
    late.offer(learner.store.newest.manifest)
    fetched = fetch(late)
    assert_holds(fetched, learner, 2)
    assert fetched.wire_bytes == 2 * SIZE
    offer_all([first, late], learner.publish())
    for actor in (first, late):
        fetched = fetch(actor)
        assert_holds(fetched, learner, 3)
        assert fetched.wire_bytes < 0.1 * 2 * SIZE


def test_an_actor_that_slept_through_versions_catches_up_by_deltas_or_takes_it_whole(stack: ExitStack) -> None:
    learner = Learner(stack)
    awake, asleep = receivers(stack, 2)
    offer_all([awake, asleep], learner.publish())
    fetch(awake), fetch(asleep)
    for _ in range(4):
        offer_all([awake], learner.publish(0.005))
        fetch(awake)
    assert learner.store.newest is not None
    offer_all([asleep], learner.store.newest.manifest)
    fetched = fetch(asleep)
    assert_holds(fetched, learner, 4)
    assert fetched.wire_bytes < 0.2 * 2 * SIZE
    for _ in range(3):
        learner.publish(0.9)
    offer_all([asleep], learner.store.newest.manifest)
    fetched = fetch(asleep)
    assert_holds(fetched, learner, 7)
    assert fetched.wire_bytes > 0.3 * 2 * SIZE


def test_children_of_an_actor_that_dies_in_mid_fetch_turn_to_the_learner(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "SILENCE_SECONDS", 0.3)
    learner = Learner(stack, fanout=1)
    manifest = learner.publish()
    parent, *children = receivers(stack, 4)
    parent.offer(manifest)
    fetch(parent)
    for child in children:
        child.offer(manifest)
    parent.close()
    for child in children:
        assert_holds(fetch(child), learner, 0)


def test_a_bit_that_flips_on_the_way_is_fetched_again(stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = Learner(stack)
    (receiver,) = receivers(stack, 1)
    answer, damaged = learner.store.answer, []

    def flip(asked: object) -> object:
        found = answer(asked)  # type: ignore[arg-type]
        if asked.shard in (1, 3) and asked not in damaged:  # type: ignore[attr-defined]
            damaged.append(asked)
            data = found.data.copy()  # type: ignore[union-attr]
            data[100] ^= 16
            return type(found)(version=found.version, shard=found.shard, delta=asked.delta, data=data)  # type: ignore
        return found

    monkeypatch.setattr(learner.store, "answer", flip)
    for version in range(2):
        offer_all([receiver], learner.publish())
        assert_holds(fetch(receiver), learner, version)
        assert damaged
        damaged.clear()


def hold_and_wait(name: str, ready: object) -> None:
    reader = SegmentReader(name)
    assert reader.take(0) is not None
    ready.set()  # type: ignore[attr-defined]
    time.sleep(60)


def test_the_memory_of_a_killed_reader_is_used_again(stack: ExitStack) -> None:
    learner = Learner(stack, shared_memory=True, kept=1)
    learner.publish()
    forked = multiprocessing.get_context("spawn")
    ready = forked.Event()
    reader = forked.Process(target=hold_and_wait, args=(learner.server.address.local, ready))
    reader.start()
    assert ready.wait(SECONDS)
    assert learner.store.newest is not None
    held = learner.store.newest.segment
    for _ in range(3):
        learner.publish()
        assert learner.store.newest.segment is not held
    reader.kill()
    reader.join()
    deadline = Deadline(SECONDS)
    while learner.store.lease(0) is None and learner.store._leased and not deadline.passed:
        time.sleep(0.01)
    assert not learner.store._leased
    assert len({id(learner.publish()) and id(learner.store.newest.segment) for _ in range(6)}) <= 2


def test_an_actor_with_a_learner_that_dies_keeps_what_it_has_and_follows_the_next(stack: ExitStack) -> None:
    with ExitStack() as first:
        learner = Learner(first, shared_memory=True)
        (receiver,) = receivers(stack, 1, seconds=0.5)
        offer_all([receiver], learner.publish())
        fetched = fetch(receiver)
        manifest = learner.publish()
    receiver.receive()
    receiver.offer(manifest)  # of a learner that is gone
    assert_holds(fetched, learner, 0)
    time.sleep(0.8)
    assert receiver.receive() is None
    second = Learner(stack, shared_memory=True)
    second.publish(), second.publish()
    receiver.offer(second.publish(0.5))
    assert_holds(fetch(receiver), second, 2)


def test_an_actor_that_does_not_read_what_it_asked_for_disturbs_nobody(stack: ExitStack) -> None:
    learner = Learner(stack)
    slow = stack.enter_context(Dealer(learner.server.address.endpoint))
    (receiver,) = receivers(stack, 1)
    for version in range(6):
        manifest = learner.publish(0.9)
        for shard in range(len(manifest.shards)):
            slow.send(ShardRequest(version=version, shard=shard))
        offer_all([receiver], manifest)
        assert_holds(fetch(receiver), learner, version)
    messages = [slow.receive(5.0) for _ in range(3)]
    for index, message in enumerate(messages):
        assert isinstance(message, Shard)
        truth = learner.published[0].segment.data
        np.testing.assert_array_equal(message.data, truth[index * 2**18 : (index + 1) * 2**18])


def test_an_actor_without_memory_for_a_version_says_so(stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = Learner(stack)
    manifest = learner.publish()
    (receiver,) = receivers(stack, 1)

    def full(*arguments: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(os, "posix_fallocate", full)
    receiver.offer(manifest)
    assert receiver.socket.poll(5000)
    with pytest.raises(WeightsUnavailable, match=r"version 0: no 0\.00 GB .*Cannot allocate memory.*memory limit"):
        receiver.receive()


def test_with_keys_actors_fetch_of_the_learner_and_of_each_other(
    stack: ExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    security.make(tmp_path / "keys")
    keys = {role: security.load(tmp_path / "keys", role) for role in ("learner", "actor")}
    monkeypatch.setattr(security, "in_use", lambda: keys["learner"])
    learner = Learner(stack, fanout=1)
    monkeypatch.setattr(security, "in_use", lambda: keys["actor"])
    actors = receivers(stack, 3)
    for version in range(2):
        offer_all(actors, learner.publish())
        fetched = [fetch(actor) for actor in actors]
        for each in fetched:
            assert_holds(each, learner, version)
        assert sorted(each.way for each in fetched) == ["relay", "relay", "zmq"]


def serve_and_wait(ready: object, names: object) -> None:
    """A learner with one version in a process of its own."""
    weights.LEAST_SHARD = 2**18
    with ExitStack() as stack:
        learner = Learner(stack)
        names.put(encode(learner.publish())[0])  # type: ignore[attr-defined]
        learner.server._router.send = lambda *arguments: True  # type: ignore[method-assign]  # what it sends is lost
        ready.set()  # type: ignore[attr-defined]
        time.sleep(60)


def test_a_learner_that_is_killed_while_it_serves_leaves_no_half_version(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "SILENCE_SECONDS", 0.2)
    spawned = multiprocessing.get_context("spawn")
    ready, names = spawned.Event(), spawned.Queue()
    first = spawned.Process(target=serve_and_wait, args=(ready, names))
    first.start()
    manifest = decode([names.get(timeout=SECONDS)])
    assert isinstance(manifest, WeightManifest)
    assert ready.wait(SECONDS)
    (receiver,) = receivers(stack, 1)
    receiver.offer(manifest)
    time.sleep(0.3)
    first.kill()
    first.join()
    assert receiver.receive() is None
    second = Learner(stack)
    receiver.offer(second.publish(1.0))
    assert_holds(fetch(receiver), second, 0)
