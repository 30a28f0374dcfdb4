"""The learner's weight server on real sockets: shards, sources, shared memory, and what actors say they loaded."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest
import torch

from learner import metrics
from learner.publish.server import WeightServer
from learner.publish.store import Store
from protocol.messages import Loaded, Shard, ShardGone, ShardRequest, Source, SourceRequest
from protocol.segments import SegmentReader
from protocol.sockets import Dealer
from tests.published import publish

LOADED = Loaded(version=3, fingerprint="", way="zmq", nbytes=100, fetch_seconds=0.5, pause_seconds=0.125)


class World:
    """A server with one version, and an actor."""

    def __init__(self, stack: ExitStack) -> None:
        self.store = Store(kept=2)
        self.server = stack.enter_context(WeightServer(self.store, "127.0.0.1", fanout=1, shared_memory=True))
        self.version = publish(3, [("w", torch.arange(6.0))], endpoint=self.server.address.endpoint)
        self.store.add(self.version, ())
        self.server.loads.published(3, self.version.manifest.fingerprint)
        self.actor = stack.enter_context(Dealer(self.server.address.endpoint))

    def ask(self, message: ShardRequest | SourceRequest | Loaded) -> object:
        self.actor.send(message)
        return self.actor.receive(5)


@pytest.fixture
def world() -> Iterator[World]:
    with ExitStack() as stack:
        yield World(stack)


def test_a_shard_is_sent_as_asked(world: World) -> None:
    shard = world.ask(ShardRequest(version=3, shard=0))
    assert isinstance(shard, Shard)
    np.testing.assert_array_equal(shard.data.view(np.float32), np.arange(6.0))
    assert world.ask(ShardRequest(version=2, shard=0)) == ShardGone(version=2)
    assert world.ask(ShardRequest(version=3, shard=0, delta=True)) == ShardGone(version=3, delta=True)
    assert world.store.wired


def test_strangers_do_not_stop_it(world: World) -> None:
    with Dealer(world.server.address.endpoint) as stranger:
        stranger.socket.send_multipart([b"junk", b"more"])
        stranger.send(Source(version=3, endpoint=""))
        stranger.send(ShardRequest(version=3, shard=0))
        assert isinstance(stranger.receive(5), Shard)


def test_the_second_is_sent_to_the_first(world: World) -> None:
    for endpoint, source in (("tcp://a:1", ""), ("tcp://b:1", "tcp://a:1"), ("tcp://c:1", "tcp://b:1")):
        asked = SourceRequest(version=3, held=-1, endpoint=endpoint)
        assert world.ask(asked) == Source(version=3, endpoint=source)


def test_shared_memory_holds_the_version(world: World) -> None:
    reader = SegmentReader(world.server.address.local)
    taken = reader.take(3)
    assert taken is not None
    np.testing.assert_array_equal(taken, world.version.segment.data)
    assert reader.take(2) is None
    reader.close()


def test_shared_memory_can_be_switched_off() -> None:
    server = WeightServer(Store(1), "127.0.0.1", fanout=0, shared_memory=False)
    assert server.address.local == ""
    with server:
        pass


def test_loads_are_counted_and_another_fingerprint_is_an_alarm(world: World, caplog: pytest.LogCaptureFixture) -> None:
    before = metrics.FINGERPRINT_MISMATCHES._value.get()
    right = replace(LOADED, fingerprint=world.version.manifest.fingerprint)
    for report in (right, replace(right, way="relay", pause_seconds=0.25), LOADED):
        world.actor.send(report)
    with caplog.at_level(logging.ERROR, "learner"):
        world.ask(ShardRequest(version=3, shard=0))
    loads = world.server.loads.of(3)
    assert dict(loads.ways) == {"zmq": 1, "relay": 1}
    assert (loads.nbytes, loads.pause_seconds) == (200, 0.25)
    assert metrics.FINGERPRINT_MISMATCHES._value.get() == before + 1
    assert "are there two learners?" in caplog.text
