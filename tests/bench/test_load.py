"""The load that is put on the broker and its store is the one that the tables name."""

import random
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from learner.broker.config import BrokerRoot, StreamConfig, identity
from learner.broker.http import StatusServer
from learner.broker.journal import Journal
from learner.broker.service import Broker
from learner.broker.tasks import open_tasks
from protocol.codec import decode
from protocol.messages import Goodbye, RolloutDone, VerifyDone, WeightManifest
from protocol.sockets import Router
from tests.bench.broker_load import GROUP_SIZE, Case
from tests.bench.journal import STORES, turns
from tests.bench.load_peers import Crew, Fleet, canned_manifest, canned_rollout, canned_verdict


@pytest.mark.parametrize("store", STORES)
def test_a_store_holds_what_the_turns_left_and_has_it_when_it_is_opened_again(store: str, tmp_path: Path) -> None:
    if store == "lmdb" and not find_spec("lmdb"):
        pytest.skip("lmdb is not installed")
    rows: dict[tuple[str, int, int], int] = {}
    journal = STORES[store](tmp_path, "normal")
    for turn in turns(groups=100, live=30, events=16, chance=random.Random(0)):
        journal.commit(turn)
        rows |= {("rollout", group, sample): len(rollout) for group, sample, rollout in turn.rollouts}
        rows |= {("verdict", group, sample): len(verdict) for group, sample, _, verdict in turn.verdicts}
        gone = {group for (group,) in turn.gone}
        rows = {name: size for name, size in rows.items() if name[1] not in gone}
    assert rows
    journal.close()
    again = STORES[store](tmp_path, "normal")
    assert again.sizes("rollouts") == [size for (table, *_), size in sorted(rows.items()) if table == "rollout"]
    assert again.sizes("verdicts") == [size for (table, *_), size in sorted(rows.items()) if table == "verdict"]
    again.close()


def test_canned_messages_are_messages_of_the_protocol() -> None:
    rollout = canned_rollout(512)
    rollout.body |= {"seq": 3, "lease_id": 7}
    message = decode([bytes(frame) for frame in rollout.frames()])
    assert isinstance(message, RolloutDone)
    assert (message.seq, message.lease_id, len(message.rollout.token_ids)) == (3, 7, 512)
    assert isinstance(decode(canned_verdict().frames()), VerifyDone)
    manifest = decode(canned_manifest().frames())
    assert isinstance(manifest, WeightManifest)
    assert sum(tensor.nbytes for tensor in manifest.tensors) > 10**9


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """Of a broker in a thread."""
    config = BrokerRoot(model="m", stream=StreamConfig(group_size=GROUP_SIZE, groups_per_step=4, max_staleness=9))
    journal = Journal(tmp_path / "journal.sqlite", identity(config))
    router, http = Router("tcp://127.0.0.1:*"), StatusServer("127.0.0.1", 0)
    broker = Broker(config, open_tasks(config.task, 0), router, http, journal)
    thread = threading.Thread(target=broker.run)
    thread.start()
    yield router.address
    thread.join(10)
    assert broker.over == Goodbye(reason="measured", finished=True), "the learner of the crew ends the run"
    http.close()
    router.close()
    journal.close()


def test_a_crew_takes_groups_round_and_measures_its_waits(address: str) -> None:
    begin = time.monotonic() + 0.5
    crew = Crew(
        broker=address,
        actors=5,
        capacity=2 * GROUP_SIZE,
        group_size=GROUP_SIZE,
        seconds=0.1,
        verifiers=2,
        learner=True,
        begin=begin,
        end=begin + 1.5,
    )
    fleet = Fleet(crew)
    seen = fleet.run()
    fleet.close()
    assert seen.groups >= 4
    assert len(seen.lease) > 0
    assert len(seen.batch) == seen.steps
    assert len(seen.group) == seen.groups == 4 * seen.steps
    assert abs(len(seen.job) - seen.rollouts) < 5 * crew.capacity
    assert all(0 <= seconds < 10 for waits in (seen.lease, seen.job, seen.batch, seen.group) for seconds in waits)


def test_a_case_offers_its_rate_whatever_the_number_of_actors() -> None:
    case = Case(actors=1, rate=200.0, seconds=1.0, sync="normal")
    for actors in (1, 10, 1000, 2000):
        many = replace(case, actors=actors)
        places = actors * (many.capacity - (GROUP_SIZE - 1) / 2)  # in use, on average
        assert places / many.sampling_seconds == pytest.approx(200 * GROUP_SIZE)
        assert many.max_staleness * 128 > actors * many.capacity / GROUP_SIZE
