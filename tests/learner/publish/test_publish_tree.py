"""Sources: no uplink carries a version more than `fanout` times, no cycles, failures end at the learner."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.publish.tree import LEARNER, Trees
from protocol.messages import SourceRequest


def ask(trees: Trees, endpoint: str, *, version: int = 1, held: int = 0, failed: str = "") -> str:
    return trees.source(SourceRequest(version=version, held=held, endpoint=endpoint, failed=failed))


@settings(deadline=None)
@given(fanout=st.integers(1, 4), actors=st.integers(1, 60))
def test_every_actor_has_one_way_to_the_learner_and_no_uplink_more_than_its_share(fanout: int, actors: int) -> None:
    trees = Trees(fanout)
    parents = {str(actor): ask(trees, str(actor)) for actor in range(actors)}
    for parent in (LEARNER, *parents):
        assert list(parents.values()).count(parent) <= fanout
    for actor in parents:
        way = list(itertools.takewhile(lambda one: one != LEARNER, _ancestors(parents, actor)))
        assert len(way) == len(set(way))
        assert len(way) <= 1 + actors // fanout if fanout == 1 else len(way) <= actors.bit_length()


def _ancestors(parents: dict[str, str], actor: str) -> list[str]:
    way = [actor]
    while way[-1] != LEARNER:
        way.append(parents[way[-1]])
    return way


def test_a_thousand_actors_are_nine_deep_and_two_are_served_by_the_learner() -> None:
    trees = Trees(2)
    parents = {str(actor): ask(trees, str(actor)) for actor in range(1000)}
    assert list(parents.values()).count(LEARNER) == 2
    assert max(len(_ancestors(parents, actor)) - 1 for actor in parents) == 9


def test_actors_that_hold_another_version_have_a_tree_of_their_own() -> None:
    trees = Trees(1)
    assert ask(trees, "a", held=0) == LEARNER
    assert ask(trees, "b", held=-1) == LEARNER
    assert ask(trees, "c", held=-1) == "b"
    assert ask(trees, "d", held=0) == "a"


def test_who_serves_nobody_is_nobodys_source() -> None:
    trees = Trees(1)
    assert ask(trees, "") == LEARNER
    assert ask(trees, "") == LEARNER
    assert ask(trees, "a") == LEARNER
    assert ask(trees, "") == "a"


def test_a_source_that_failed_is_named_no_more_and_its_child_goes_to_the_learner() -> None:
    trees = Trees(2)
    assert [ask(trees, name) for name in "abc"] == [LEARNER, LEARNER, "a"]
    assert ask(trees, "c", failed="a") == LEARNER
    assert "a" not in [ask(trees, name) for name in "defghij"]
    assert [ask(trees, name, version=2) for name in "abcd"] == [LEARNER, LEARNER, "b", "b"]


@pytest.mark.parametrize("fanout", [0])
def test_without_relays_all_go_to_the_learner(fanout: int) -> None:
    trees = Trees(fanout)
    assert {ask(trees, str(actor)) for actor in range(20)} == {LEARNER}
