"""A broker that dies, and one that cannot write: what its peers hear, and never hear twice."""

import json
import re
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from running_broker import Running, completion, manifest
from stream_world import judged

from learner.broker.journal import JournalFailed
from learner.broker.stream import Stream
from protocol.messages import (
    Ack,
    BatchRequest,
    Consumed,
    GroupBatch,
    Heartbeat,
    Lease,
    LeaseRequest,
    Refusal,
    Resume,
    VerifyJob,
    VerifyRequest,
    WeightManifest,
    Welcome,
    WhoAreYou,
)


def test_a_broker_that_died_goes_on_with_the_same_peers_and_asks_nobody_to_do_anything_twice(tmp_path: Path) -> None:
    running = Running(tmp_path)
    learner, actor, verifier = peers = [running.join(role) for role in ("learner", "actor", "verifier")]
    for peer in peers:
        peer.expect(Welcome)
    learner.send(Resume(seq=1, policy_version=0, consumed=(), checkpoints=True))
    learner.send(manifest(0))
    actor.expect(WeightManifest)
    actor.send(LeaseRequest(capacity=2))
    lease = actor.expect(Lease)
    actor.send(replace(completion(lease, 0, 0), seq=1))
    assert actor.expect(Ack).seq == 1
    running.die()
    again = Running(tmp_path, address=running.router.address)
    actor.send(Heartbeat())
    assert actor.expect(WhoAreYou) == WhoAreYou()
    actor.send(replace(actor.hello, holds=(lease.lease_id,)))
    actor.expect(Welcome)
    actor.send(LeaseRequest(capacity=2))
    actor.send(replace(completion(lease, 1, 0), seq=2))
    fresh = actor.expect(Lease)
    assert fresh.group_id == 1, "the lease of group 0 ran on: nothing of it is leased again"
    while actor.acknowledged < 2:
        actor.expect(Ack)
    for peer in (learner, verifier):
        peer.send(Heartbeat())
        peer.expect(WhoAreYou)
        peer.send(peer.hello)
        peer.expect(Welcome)
    learner.send(manifest(0))
    verifier.send(VerifyRequest(capacity=4))
    for reward in (0.0, 1.0):
        verifier.send(judged(verifier.expect(VerifyJob), reward))
    learner.send(BatchRequest(policy_version=0))
    (group,) = learner.expect(GroupBatch).groups
    assert [each.verdict.reward for each in group.scored] == [0.0, 1.0]
    again.peers = running.peers
    again.close()


def test_a_journal_that_is_older_than_its_peers_gives_nothing_new_the_number_of_what_they_hold(tmp_path: Path) -> None:
    """As after a power failure, which may take the last turns (`journal.sync=normal`)."""
    running = Running(tmp_path / "one", max_staleness=4)
    learner, actor, verifier = peers = [running.join(role) for role in ("learner", "actor", "verifier")]
    for peer in peers:
        peer.expect(Welcome)
    learner.send(manifest(0))
    actor.send(LeaseRequest(capacity=2))
    first = actor.expect(Lease, skip=WeightManifest)
    actor.send(completion(first, 0, 0))
    learner.send(Heartbeat())
    learner.expect(Heartbeat)
    (tmp_path / "two").mkdir()
    for path in (tmp_path / "one").glob("journal.sqlite*"):
        shutil.copy(path, tmp_path / "two")
    verifier.send(VerifyRequest(capacity=1))
    lost_job = verifier.expect(VerifyJob)
    actor.send(completion(first, 1, 0))
    lost_lease = actor.expect(Lease)
    running.die()
    again = Running(tmp_path / "two", address=running.router.address, max_staleness=4)
    for peer, holds in ((verifier, ()), (actor, (first.lease_id, lost_lease.lease_id))):
        peer.send(Heartbeat())
        peer.expect(WhoAreYou)
        peer.send(replace(peer.hello, holds=holds))
        peer.expect(Welcome)
    actor.send(completion(lost_lease, 0, 0))
    actor.send(LeaseRequest(capacity=4))
    fresh = actor.expect(Lease)
    assert fresh.group_id == lost_lease.group_id
    assert fresh.lease_id not in (first.lease_id, lost_lease.lease_id)
    verifier.send(judged(lost_job))
    verifier.send(VerifyRequest(capacity=1))
    actor.send(completion(first, 1, 0))
    job = verifier.expect(VerifyJob)
    assert job.job_id != lost_job.job_id
    again.peers = running.peers
    again.close()


def test_a_learner_killed_and_started_again_takes_its_place_and_gets_the_same_batch(tmp_path: Path) -> None:
    with Running(tmp_path, max_staleness=0) as running:
        learner, actor, verifier = (running.join(role) for role in ("learner", "actor", "verifier"))
        for peer in running.peers:
            peer.expect(Welcome)
        learner.send(Resume(policy_version=0, consumed=(), checkpoints=True))
        learner.send(manifest(0))
        actor.send(LeaseRequest(capacity=2))
        verifier.send(VerifyRequest(capacity=4))
        lease = actor.expect(Lease, skip=WeightManifest)
        for sample in lease.sample_indexes:
            actor.send(completion(lease, sample, 0))
            verifier.send(judged(verifier.expect(VerifyJob), float(sample)))
        learner.send(BatchRequest(policy_version=0))
        before = learner.expect(GroupBatch)
        learner.send(manifest(1))
        learner.send(Consumed(policy_version=1, group_ids=(0,)))
        learner.send(Heartbeat())
        learner.expect(Heartbeat)
        again = running.join("learner")
        while isinstance(answer := again.dealer.receive(5), Refusal):
            assert not answer.fatal
            assert "learner" in answer.problem
            for peer in (actor, verifier):
                peer.send(Heartbeat())
            again.send(again.hello)
            time.sleep(0.05)
        assert isinstance(answer, Welcome)
        again.send(Resume(policy_version=0, consumed=(), checkpoints=True))
        again.send(manifest(0))
        again.send(BatchRequest(policy_version=0))
        after = again.expect(GroupBatch)
        assert [group.group_id for group in after.groups] == [group.group_id for group in before.groups] == [0]
        assert "anew, of 1" in running.broker.stream.waiting_for


def test_nothing_is_said_before_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the disk is full nobody hears of a lease; when there is room again everybody does."""
    with Running(tmp_path) as running:
        monkeypatch.setattr("learner.broker.service.RETRY_SECONDS", 0.05)
        full = threading.Event()
        commit = running.journal.commit

        def commit_with_room(stream: Stream) -> None:
            if full.is_set():
                raise JournalFailed("database or disk is full")
            commit(stream)

        monkeypatch.setattr(running.journal, "commit", commit_with_room)
        learner, actor = running.join("learner"), running.join("actor")
        learner.expect(Welcome)
        actor.expect(Welcome)
        full.set()
        learner.send(manifest(0))
        actor.send(LeaseRequest(capacity=2))
        assert actor.dealer.receive(0.5) is None
        assert "room for the journal (database or disk is full)" in json.loads(running.page("/status"))["waiting_for"]
        assert seconds_unwritten(running) > 0
        full.clear()
        actor.expect(WeightManifest)
        actor.expect(Lease)
        running.broker._publish_status()
        assert seconds_unwritten(running) == 0


def seconds_unwritten(running: Running) -> float:
    """As Prometheus reads it."""
    found = re.search(r"^broker_journal_unwritten_seconds (\S+)$", running.page("/metrics").decode(), re.MULTILINE)
    assert found
    return float(found[1])


def test_a_journal_that_cannot_be_written_ends_the_run_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Running(tmp_path) as running:
        monkeypatch.setattr("learner.broker.service.RETRY_SECONDS", 0.05)
        monkeypatch.setattr(running.broker.config.journal, "full_seconds", 0.2)
        failed: list[JournalFailed] = []
        monkeypatch.setattr(threading, "excepthook", lambda caught: failed.append(caught.exc_value))

        def commit(stream: Stream) -> None:
            raise JournalFailed("disk full")

        monkeypatch.setattr(running.journal, "commit", commit)
        running.join("actor")
        running.thread.join(5)
        assert "disk full, for 0 s: make room on its disk" in str(failed[0])
