"""What is served, and that memory is never written while somebody can still read it."""

from itertools import pairwise

import numpy as np
import torch

from learner.publish.store import WIRE_VERSIONS, Store
from learner.publish.version import PublishedVersion, Step, step_between
from protocol.messages import Shard, ShardGone, ShardRequest
from tests.published import publish


def version(number: int) -> PublishedVersion:
    return publish(number, [("w", torch.full((100,), float(number)))])


def step(base: PublishedVersion, goal: PublishedVersion) -> Step:
    found = step_between(base, goal.manifest.version, goal.segment.data, limit=10.0)
    assert found is not None
    return found


def test_the_newest_versions_are_served_and_the_rest_is_gone() -> None:
    store = Store(kept=2)
    for number in range(4):
        store.add(version(number), ())
    assert store.answer(ShardRequest(version=1, shard=0)) == ShardGone(version=1)
    for number in (2, 3):
        answer = store.answer(ShardRequest(version=number, shard=0))
        assert isinstance(answer, Shard)
        assert np.array_equal(answer.data, version(number).segment.data)
    assert store.answer(ShardRequest(version=3, shard=99)) == ShardGone(version=3, shard=99)
    assert store.answer(ShardRequest(version=8, shard=0)) == ShardGone(version=8)


def test_deltas_are_served_by_the_version_to_which_they_lead() -> None:
    store = Store(kept=1)
    first, second = version(0), version(1)
    store.add(first, ())
    between = step(first, second)
    store.add(second, (between,))
    answer = store.answer(ShardRequest(version=1, shard=0, delta=True))
    assert isinstance(answer, Shard)
    assert answer.delta
    assert np.array_equal(answer.data, between.coded[0])
    gone = ShardGone(version=0, shard=0, delta=True)
    assert store.answer(ShardRequest(version=0, shard=0, delta=True)) == gone


def test_a_chain_of_deltas_is_kept_while_it_is_worth_its_bytes() -> None:
    store = Store(kept=1)
    versions = [
        publish(n, [("w", torch.full((100_000,), 0.0).index_fill_(0, torch.tensor([n]), 1.0))]) for n in range(5)
    ]
    store.add(versions[0], ())
    for base, goal in pairwise(versions):
        chain = store.steps_before(step(base, goal))
        store.add(goal, chain)
    assert [each.spec.version for each in chain] == [1, 2, 3, 4]
    heavy = publish(5, [("w", torch.randn(100_000))])
    last = step_between(versions[4], 5, heavy.segment.data, limit=10.0)
    assert last is not None
    assert [each.spec.version for each in store.steps_before(last)] == [5]


def fill(store: Store, number: int) -> PublishedVersion:
    """A version in memory of the store."""
    made = version(number)
    segment = store.segment(len(made.segment.data))
    segment.data[:] = made.segment.data
    published = PublishedVersion(made.manifest, segment)
    store.add(published, ())
    return published


def test_memory_is_used_again_once_its_version_is_gone() -> None:
    store = Store(kept=2)
    segments = {id(fill(store, number).segment) for number in range(10)}
    assert len(segments) == 3


def test_memory_that_is_leased_or_on_its_way_is_not_used_again() -> None:
    store = Store(kept=1)
    fill(store, 0)
    leased = store.lease(0)
    assert leased is not None
    fill(store, 1)
    answer = store.answer(ShardRequest(version=1, shard=0))
    assert isinstance(answer, Shard)
    before = (leased.data.copy(), answer.data.copy())
    for number in range(2, 8):
        assert fill(store, number).segment is not leased
    assert np.array_equal(leased.data, before[0])
    assert np.array_equal(answer.data, before[1])
    store.release(0)
    del answer
    assert store.lease(0) is None
    assert len({id(fill(store, number).segment) for number in range(8, 18)}) == 2


def test_deltas_are_of_use_while_somebody_asks_over_the_wire() -> None:
    store = Store(kept=1)
    store.asked()
    store.add(version(0), ())
    assert not store.wired
    store.asked()
    assert store.wired
    for number in range(1, WIRE_VERSIONS + 2):
        store.add(version(number), ())
    assert not store.wired
