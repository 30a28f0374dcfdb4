"""Peers that are silent, late or gone: what they held goes to others, in a bounded time."""

import json
import re
import threading
import time
from pathlib import Path

import pytest
from running_broker import Running, completion, manifest
from stream_world import judged

from learner.broker.stream import Stream
from protocol.clock import Deadline
from protocol.messages import (
    BatchRequest,
    Goodbye,
    GroupBatch,
    Heartbeat,
    Lease,
    LeaseRequest,
    Refusal,
    VerifyJob,
    VerifyRequest,
    WeightManifest,
    Welcome,
)


def test_a_silent_actor_loses_its_leases(tmp_path: Path) -> None:
    with Running(tmp_path, silence_seconds=0.4) as running:
        learner, silent, lively = running.join("learner"), running.join("actor", "silent"), running.join("actor", "b")
        for peer in running.peers:
            peer.expect(Welcome)
        learner.send(manifest(0))
        silent.expect(WeightManifest)
        silent.send(LeaseRequest(capacity=2))
        lost = silent.expect(Lease)
        lively.expect(WeightManifest)
        deadline, found = Deadline(5.0), None
        lively.send(LeaseRequest(capacity=100))
        while found is None and not deadline.passed:
            learner.send(Heartbeat())
            lively.send(Heartbeat())
            message = lively.dealer.receive(0.02)
            if isinstance(message, Lease) and message.group_id == lost.group_id:
                found = message
        assert found is not None
        assert found.seeds == lost.seeds


def test_an_actor_that_lets_leases_run_out_gets_one_at_a_time_until_it_delivers(tmp_path: Path) -> None:
    with Running(tmp_path, lease_seconds=0.3, lease_attempts=100, max_staleness=20) as running:
        learner, hole = running.join("learner"), running.join("actor", "hole")
        learner.expect(Welcome)
        hole.expect(Welcome)
        learner.send(manifest(0))
        hole.expect(WeightManifest)
        hole.send(LeaseRequest(capacity=20))
        swallowed = {hole.expect(Lease).group_id for _ in range(10)}
        again = hole.expect(Lease)
        assert again.group_id == min(swallowed)
        other = running.join("actor", "other")
        other.expect(WeightManifest, skip=Welcome)
        other.send(LeaseRequest(capacity=18))
        assert {other.expect(Lease).group_id for _ in range(9)} == swallowed - {again.group_id}
        hole.send(completion(again, 0, 0))
        hole.send(Heartbeat())
        assert isinstance(hole.expect(Lease), Lease)


def is_end(message: object) -> bool:
    return isinstance(message, Goodbye)


def test_a_learner_that_does_not_come_back_ends_the_run_for_all(tmp_path: Path) -> None:
    with Running(tmp_path, silence_seconds=0.3, return_seconds=0.3) as running:
        learner, actor = running.join("learner"), running.join("actor")
        learner.expect(Welcome)
        actor.expect(Welcome)
        deadline, over = Deadline(5.0), None
        while over is None and not deadline.passed:
            actor.send(Heartbeat())
            over = next(
                (message for message in iter(lambda: actor.dealer.receive(0.02), None) if is_end(message)), None
            )
        assert isinstance(over, Goodbye)
        assert not over.finished
        assert "in vain" in over.reason
        assert "was silent for 0 s" in over.reason


def test_a_learner_that_takes_a_batch_and_does_not_train_it_is_refused(tmp_path: Path) -> None:
    with Running(tmp_path, consume_seconds=0.3) as running:
        learner, actor, verifier = (running.join(role) for role in ("learner", "actor", "verifier"))
        for peer in running.peers:
            peer.expect(Welcome)
        learner.send(manifest(0))
        actor.send(LeaseRequest(capacity=2))
        verifier.send(VerifyRequest(capacity=4))
        lease = actor.expect(Lease, skip=WeightManifest)
        for sample in lease.sample_indexes:
            actor.send(completion(lease, sample, 0))
            verifier.send(judged(verifier.expect(VerifyJob), float(sample)))
        learner.send(BatchRequest(policy_version=0))
        learner.expect(GroupBatch)
        refusal = learner.expect(Refusal)
        assert refusal.fatal
        assert "step 1 was taken 0 s ago and is not trained; stream.consume_seconds allows more" in refusal.problem


def test_a_job_that_a_verifier_lost_while_it_answers_others_is_sent_again(tmp_path: Path) -> None:
    with Running(tmp_path, silence_seconds=1.0, verify_seconds=0.1, max_staleness=1000) as running:
        learner, actor, verifier = peers = [running.join(role) for role in ("learner", "actor", "verifier")]
        for peer in peers:
            peer.expect(Welcome)
        learner.send(manifest(0))
        actor.send(LeaseRequest(capacity=2))
        verifier.send(VerifyRequest(capacity=4))
        lost, again, deadline = None, None, Deadline(20.0)
        while again is None and not deadline.passed:
            for peer in peers:
                peer.send(Heartbeat())
            if isinstance(lease := actor.dealer.receive(0.01), Lease):
                for sample in lease.sample_indexes:
                    actor.send(completion(lease, sample, 0))
            if isinstance(job := verifier.dealer.receive(0.01), VerifyJob):
                if lost is None:
                    lost = job
                elif (job.group_id, job.sample_index) == (lost.group_id, lost.sample_index):
                    again = job
                else:
                    verifier.send(judged(job))
        assert lost
        assert again
        assert again.job_id != lost.job_id
        assert running.broker.stream.counts["void_verdicts"] == 1


def test_a_verifier_that_answers_nothing_is_thrown_out_and_its_jobs_go_to_others(tmp_path: Path) -> None:
    with Running(tmp_path, silence_seconds=0.8, verify_seconds=0.1) as running:
        learner, actor, deaf, other = peers = [
            running.join(role, name)
            for role, name in (("learner", "l"), ("actor", "a"), ("verifier", "deaf"), ("verifier", "other"))
        ]
        for peer in peers:
            peer.expect(Welcome)
        learner.send(manifest(0))
        deaf.send(VerifyRequest(capacity=4))
        actor.send(LeaseRequest(capacity=2))
        lease = actor.expect(Lease, skip=WeightManifest)
        for sample in lease.sample_indexes:
            actor.send(completion(lease, sample, 0))
        jobs = [deaf.expect(VerifyJob) for _ in lease.sample_indexes]
        other.send(VerifyRequest(capacity=4))
        refusal, deadline = None, Deadline(10.0)
        while refusal is None and not deadline.passed:
            for peer in peers:
                peer.send(Heartbeat())
            message = deaf.dealer.receive(0.02)
            refusal = message if isinstance(message, Refusal) else None
        assert refusal
        assert refusal.fatal
        assert "none came in time" in refusal.problem
        again = [other.expect(VerifyJob) for _ in jobs]
        assert [job.sample_index for job in again] == [job.sample_index for job in jobs]
        assert running.broker.stream.counts["void_verdicts"] == 0


def test_a_broker_that_was_held_up_takes_nobody_for_dead_before_it_has_listened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk, a stopped process: what was said meanwhile waits to be heard, more than one turn hears."""
    with Running(tmp_path, silence_seconds=1.0) as running:
        monkeypatch.setattr("learner.broker.service.MESSAGES_A_TURN", 2)
        peers = [running.join("actor", f"actor-{index}") for index in range(8)]
        for peer in peers:
            peer.expect(Welcome)
        held_up = threading.Event()
        commit = running.journal.commit

        def commit_late(stream: Stream) -> None:
            if not held_up.is_set():
                held_up.set()
                time.sleep(2.5)
            commit(stream)

        monkeypatch.setattr(running.journal, "commit", commit_late)
        assert held_up.wait(5)
        for peer in peers:
            peer.send(Heartbeat())
        for peer in peers:
            assert isinstance(peer.dealer.receive(5), Heartbeat), "the broker forgot it"


def test_peers_that_are_lost_are_counted_by_the_reason_and_the_run_stands_since_its_last_batch(tmp_path: Path) -> None:
    with Running(tmp_path, silence_seconds=0.3) as running:
        _, leaving, other = (running.join("actor", name) for name in ("silent", "leaving", "other"))
        for peer in running.peers:
            peer.expect(Welcome)
        leaving.send(Goodbye(reason="got SIGTERM", finished=False))
        other.send(manifest(0))
        assert other.expect(Refusal).fatal
        deadline = Deadline(5.0)
        while running.broker.members.named("silent") and not deadline.passed:
            time.sleep(0.02)
        began = time.time()
        running.broker._publish_status()
        metrics = running.http.pages["/metrics"][1].decode()
        for reason, count in {"left": 1.0, "silent": 1.0, "refused": 1.0, "replaced": 0.0, "deaf": 0.0}.items():
            assert f'broker_peers_lost_total{{reason="{reason}",role="actor"}} {count}' in metrics
        assert 'broker_peers_lost_total{reason="silent",role="learner"} 0.0' in metrics
        stands_since = float(re.findall(r"^broker_progress_timestamp_seconds (\S+)", metrics, re.MULTILINE)[0])
        assert began - 10 < stands_since <= began
        assert "broker_journal_unwritten_seconds 0.0" in metrics


def test_a_run_without_actors_waits_and_says_so(running: Running) -> None:
    learner, actor = running.join("learner"), running.join("actor")
    learner.expect(Welcome)
    actor.expect(Welcome)
    actor.send(Goodbye(reason="drained", finished=False))
    learner.send(Heartbeat())
    learner.expect(Heartbeat)
    deadline = Deadline(5.0)
    while "actor" not in (waiting := json.loads(running.page("/status"))["waiting_for"]) and not deadline.passed:
        learner.send(Heartbeat())
        time.sleep(0.02)
    assert waiting == "a first actor and a first verifier to join"
    assert running.over is None
