"""Actors that receive versions by one broadcast, in processes of their own, and what happens when one is not there."""

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from actors.weights import together
from actors.weights.receiver import WeightReceiver
from learner import metrics
from learner.publish import group
from learner.publish.server import WeightServer
from learner.publish.store import Store
from learner.publish.version import seal
from protocol import collective
from protocol.clock import Deadline
from protocol.messages import WeightManifest
from protocol.weights import checksum
from tests.published import publish

SECONDS = 30.0
SIZE = 3_000_000


class Learner:
    """A weight server with a group, and random versions of one tensor."""

    def __init__(self, stack: ExitStack, size: int, *, seconds: float = SECONDS) -> None:
        self.store = Store(2)
        self.server = stack.enter_context(
            WeightServer(self.store, "127.0.0.1", fanout=0, shared_memory=False, group=size, group_seconds=seconds)
        )
        self.version = -1

    def publish(self) -> WeightManifest:
        self.version += 1
        weight = torch.randn(SIZE, generator=torch.Generator().manual_seed(self.version))
        drawn = publish(self.version, [("w", weight)])
        segment = self.store.segment(len(drawn.segment.data))
        segment.data[:] = drawn.segment.data
        published = seal(self.version, drawn.manifest.tensors, segment, self.server.address)
        self.store.add(published, ())
        return published.manifest

    @property
    def sent(self) -> dict[str, float]:
        """Bytes sent over the wire, of all tests so far, by encoding."""
        return {name: metrics.WEIGHTS_SERVED.labels(name)._value.get() for name in ("full", "group")}


def receive(pipe: Connection, damage: bool) -> None:
    """A process: fetch what is offered, answer by which way it came and what it is."""
    torch.set_num_threads(1)
    if damage:
        broadcast = collective.Collective.broadcast

        def damaged(self: collective.Collective, data: np.ndarray[Any, Any]) -> None:
            broadcast(self, data)
            data[12345] ^= 1

        together.Collective.broadcast = damaged  # type: ignore[method-assign]
    receiver = WeightReceiver(seconds=SECONDS)
    while (manifest := pipe.recv()) is not None:
        receiver.receive()  # gives back what it holds
        receiver.offer(manifest)
        deadline = Deadline(SECONDS)
        while (fetched := receiver.receive()) is None and not deadline.passed:
            receiver.socket.poll(100)
        assert fetched is not None, receiver.progress
        pipe.send((fetched.way, fetched.manifest.version, checksum(fetched.data), fetched.seconds))
    receiver.close()


class Actor:
    """A receiver in a process of its own."""

    def __init__(self, *, damage: bool = False) -> None:
        processes = multiprocessing.get_context("forkserver")
        processes.set_forkserver_preload(["actors.weights.receiver", "tests.published"])
        self.pipe, there = processes.Pipe()
        self.process = processes.Process(target=receive, args=(there, damage), daemon=True)
        self.process.start()

    def answer(self) -> tuple[str, int, str, float]:
        assert self.pipe.poll(SECONDS)
        answer: tuple[str, int, str, float] = self.pipe.recv()
        return answer

    def close(self) -> None:
        self.process.kill()
        self.process.join()


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def actors(stack: ExitStack, count: int, **options: Any) -> list[Actor]:
    made = [Actor(**options) for _ in range(count)]
    for actor in made:
        stack.callback(actor.close)
    return made


def bring(learner: Learner, to: list[Actor]) -> list[str]:
    """The next version to all of them, verified; by which ways it came."""
    manifest = learner.publish()
    for actor in to:
        actor.pipe.send(manifest)
    answers = [actor.answer() for actor in to]
    newest = learner.store.newest
    assert newest is not None
    assert [answer[1:3] for answer in answers] == [(learner.version, checksum(newest.segment.data))] * len(to)
    return [answer[0] for answer in answers]


def test_once_all_are_there_one_broadcast_brings_each_version_to_all_but_the_late(stack: ExitStack) -> None:
    learner = Learner(stack, 3)
    members = actors(stack, 3)
    assert bring(learner, members) == ["zmq"] * 3, "nobody waits for a group that is not complete"
    before = learner.sent
    for _ in range(3):
        assert bring(learner, members) == ["group"] * 3
    assert learner.sent["full"] == before["full"]
    assert learner.sent["group"] == before["group"] + 3 * 4 * SIZE
    (late,) = actors(stack, 1)
    assert bring(learner, [*members, late]) == ["group"] * 3 + ["zmq"]
    assert bring(learner, [late, *members]) == ["zmq"] + ["group"] * 3


def test_a_member_that_dies_costs_a_version_by_the_wire_and_the_next_group_is_formed_without_it(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group, "WAIT_SECONDS", 0.5)
    learner = Learner(stack, 2)
    first, second, third = actors(stack, 3)
    assert bring(learner, [first, second]) == ["zmq"] * 2
    assert bring(learner, [first, second]) == ["group"] * 2
    first.close()
    dissolved = metrics.GROUPS_DISSOLVED._value.get()
    assert bring(learner, [second, third]) == ["zmq"] * 2
    assert metrics.GROUPS_DISSOLVED._value.get() == dissolved + 1
    assert bring(learner, [second, third]) == ["zmq"] * 2
    assert bring(learner, [second, third]) == ["group"] * 2


@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_a_member_that_dies_or_hangs_in_mid_broadcast_holds_up_nobody_for_longer_than_was_agreed(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    learner = Learner(stack, 2, seconds=3.0)
    first, second = actors(stack, 2)
    assert bring(learner, [first, second]) == ["zmq"] * 2
    assert bring(learner, [first, second]) == ["group"] * 2
    broadcast = collective.Collective.broadcast

    def too_late(self: collective.Collective, data: np.ndarray[Any, Any]) -> None:
        """The learner begins when one member is not there any more."""
        if how == "killed":
            first.process.kill()
        else:
            os.kill(first.process.pid or 0, signal.SIGSTOP)
        time.sleep(0.2)
        broadcast(self, data)

    monkeypatch.setattr(collective.Collective, "broadcast", too_late)
    manifest = learner.publish()
    begun = time.monotonic()
    for actor in (first, second):
        actor.pipe.send(manifest)
    way, version, _, _ = second.answer()
    assert version == learner.version
    assert way in ("zmq", "group"), "it may have its part before the other is missed"
    assert time.monotonic() - begun < 15
    monkeypatch.setattr(collective.Collective, "broadcast", broadcast)
    (third,) = actors(stack, 1)
    ways = [bring(learner, [second, third]) for _ in range(4)]
    assert ways[-1] == ["group"] * 2, ways


def test_what_a_broadcast_leaves_damaged_is_fetched(stack: ExitStack) -> None:
    learner = Learner(stack, 1)
    (damaging,) = actors(stack, 1, damage=True)
    assert bring(learner, [damaging]) == ["zmq"]
    before = learner.sent["full"]
    assert bring(learner, [damaging]) == ["zmq"]
    assert 0 < learner.sent["full"] - before < 4 * SIZE, "the damaged shard alone"


def test_a_group_that_nobody_offers_is_not_asked_for(stack: ExitStack) -> None:
    learner = Learner(stack, 0)
    (actor,) = actors(stack, 1)
    assert learner.publish().group == 0
    assert bring(learner, [actor]) == ["zmq"]


@pytest.mark.parametrize("problem", ["no such host:1", "127.0.0.1:1"])
def test_a_rendezvous_that_is_not_there_is_an_error_in_bounded_time(problem: str) -> None:
    begun = time.monotonic()
    with pytest.raises(collective.GroupBroken, match="no rendezvous at"):
        collective.find(problem, 1.0)
    assert time.monotonic() - begun < 10


def test_a_member_that_never_comes_is_an_error_in_bounded_time(tmp_path: Path) -> None:
    rendezvous = collective.Rendezvous("127.0.0.1")
    begun = time.monotonic()
    with pytest.raises(collective.GroupBroken, match="group 7 was not formed"):
        collective.Collective(rendezvous.store, 7, 0, 2, backend="gloo", host="127.0.0.1", seconds=1.0)
    assert time.monotonic() - begun < 10
