"""The broker as its peers see it: what each message brings about, and what is shown."""

import json
import socket
import threading
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest
from running_broker import Running, completion, manifest
from stream_world import NumberedTasks, judged

from learner.broker.config import TaskConfig
from protocol import security
from protocol.messages import (
    Ack,
    BatchRequest,
    Consumed,
    Goodbye,
    GroupBatch,
    GroupRange,
    Heartbeat,
    Lease,
    LeaseFailed,
    LeaseRequest,
    Refusal,
    Resume,
    Verdict,
    VerifyDone,
    VerifyJob,
    VerifyRequest,
    WeightManifest,
    Welcome,
    WhoAreYou,
)
from protocol.security import load, make
from protocol.sockets import Dealer, Rejected


def test_a_group_goes_round_from_lease_to_consumption(running: Running) -> None:
    learner, actor, verifier = (running.join(role) for role in ("learner", "actor", "verifier"))
    for peer in running.peers:
        assert peer.expect(Welcome).run.group_size == 2
    learner.send(manifest(0))
    assert actor.expect(WeightManifest).fingerprint == "f0"
    actor.send(LeaseRequest(capacity=2))
    verifier.send(VerifyRequest(capacity=4))
    lease = actor.expect(Lease)
    for sample in lease.sample_indexes:
        actor.send(completion(lease, sample, 0))
        job = verifier.expect(VerifyJob)
        verdict = Verdict(reward=float(sample), parts={}, reason="", seconds=0.0)
        verifier.send(
            VerifyDone(job_id=job.job_id, group_id=job.group_id, sample_index=job.sample_index, verdict=verdict)
        )
    learner.send(BatchRequest(policy_version=0))
    batch = learner.expect(GroupBatch)
    assert [each.verdict.reward for each in batch.groups[0].scored] == [0.0, 1.0]
    assert batch.stats.generated_tokens == 4
    learner.send(manifest(1))
    learner.send(Consumed(policy_version=1, group_ids=(batch.groups[0].group_id,)))
    learner.send(Goodbye(reason="enough", finished=True))
    for peer in (actor, verifier):
        while not isinstance(message := peer.dealer.receive(5), Goodbye):
            assert message is not None
        assert message == Goodbye(reason="enough", finished=True)
    running.thread.join(5)
    assert running.over == Goodbye(reason="enough", finished=True)


def test_a_late_actor_gets_the_newest_manifest_at_once(running: Running) -> None:
    learner = running.join("learner")
    learner.expect(Welcome)
    for version in range(3):
        learner.send(manifest(version))
    learner.send(Heartbeat())
    learner.expect(Heartbeat)
    actor = running.join("actor")
    actor.expect(Welcome)
    assert actor.expect(WeightManifest).version == 2


def test_a_run_that_is_resumed_leases_only_what_was_not_trained(running: Running) -> None:
    learner, actor = running.join("learner"), running.join("actor")
    learner.expect(Welcome)
    actor.expect(Welcome)
    actor.send(LeaseRequest(capacity=2))
    learner.send(Resume(policy_version=3, consumed=(GroupRange(first=0, last=1), GroupRange(first=3, last=3))))
    learner.send(manifest(3))
    assert actor.expect(WeightManifest).version == 3
    lease = actor.expect(Lease)
    assert (lease.group_id, lease.min_version) == (2, 3)
    learner.send(BatchRequest(policy_version=3))
    late = running.join("actor", "late")
    assert late.expect(Welcome).policy_version == 3
    learner.send(Resume(policy_version=4, consumed=(GroupRange(first=0, last=3),)))
    refusal = learner.expect(Refusal)
    assert refusal.fatal
    assert "journal has what versions 3 to 3 consume" in refusal.problem


def test_only_the_learner_may_resume_a_run(running: Running) -> None:
    actor = running.join("actor")
    actor.expect(Welcome)
    actor.send(Resume(policy_version=1, consumed=(GroupRange(first=0, last=0),)))
    assert actor.expect(Refusal).problem == "is not for the role actor to send"


def test_names_are_unique_and_there_is_one_learner(running: Running) -> None:
    running.join("learner", "one").expect(Welcome)
    assert "has a learner already" in running.join("learner", "two").expect(Refusal).problem
    running.join("actor", "a").expect(Welcome)
    refusal = running.join("actor", "a").expect(Refusal)
    assert not refusal.fatal, "it may be the same one, killed and started again"
    assert "'a' is taken by process 7" in refusal.problem


def test_a_peer_that_did_not_say_hello_is_asked_who_it_is(running: Running) -> None:
    with Dealer(running.router.address) as stranger:
        stranger.send(LeaseRequest(capacity=3))
        assert stranger.receive(5) == WhoAreYou()
        assert not list(running.broker.members)


def test_a_malformed_message_is_told_its_field_and_harms_nobody(running: Running) -> None:
    actor = running.join("actor")
    actor.expect(Welcome)
    actor.dealer.socket.send_multipart([b"\xc1"])
    refusal = actor.expect(Refusal)
    assert (refusal.field, refusal.fatal) == ("header", False)
    actor.send(Heartbeat())
    actor.expect(Heartbeat)
    assert running.broker.collector.rejected_messages == 1


def test_a_role_may_only_send_what_is_its_own(running: Running) -> None:
    actor = running.join("actor")
    actor.expect(Welcome)
    actor.send(manifest(0))
    refusal = actor.expect(Refusal)
    assert refusal.fatal
    assert refusal.problem == "is not for the role actor to send"


def test_an_actor_with_other_weights_is_thrown_out_and_its_lease_goes_on(running: Running) -> None:
    learner, actor = running.join("learner"), running.join("actor")
    learner.expect(Welcome)
    actor.expect(Welcome)
    learner.send(manifest(0))
    actor.expect(WeightManifest)
    actor.send(LeaseRequest(capacity=2))
    lease = actor.expect(Lease)
    actor.send(completion(lease, 0, 0, fingerprint="stale"))
    refusal = actor.expect(Refusal)
    assert refusal.fatal
    assert "stale is not version 0" in refusal.problem
    assert running.broker.collector.fingerprint_mismatches == 1
    other = running.join("actor", "other")
    other.expect(Welcome)
    other.expect(WeightManifest)
    other.send(LeaseRequest(capacity=2))
    again = other.expect(Lease)
    assert again.group_id == lease.group_id
    assert again.seeds == lease.seeds


def test_a_run_in_which_every_prompt_is_impossible_ends_with_the_reason(tmp_path: Path) -> None:
    with Running(tmp_path, drops_in_a_row=3, max_staleness=0) as running:
        learner, actor = running.join("learner"), running.join("actor")
        learner.expect(Welcome)
        actor.expect(Welcome)
        learner.send(manifest(0))
        actor.expect(WeightManifest)
        actor.send(LeaseRequest(capacity=2))
        for _ in range(3):
            lease = actor.expect(Lease)
            actor.send(LeaseFailed(lease_id=lease.lease_id, reason="prompt_too_long", detail="x"))
        over = actor.expect(Goodbye)
        assert not over.finished
        assert "3 groups in a row were dropped (prompt_too_long 3)" in over.reason


def test_a_run_in_which_every_task_is_solved_ends_and_shows_what_its_filters_did(tmp_path: Path) -> None:
    task = TaskConfig(retire_pass_rate=1.0, retire_after=2)
    tasks = NumberedTasks(epoch_size=3)
    with Running(tmp_path, tasks, task, max_staleness=0, zero_variance="resample", resample_limit=2) as running:
        learner, actor, verifier = (running.join(role) for role in ("learner", "actor", "verifier"))
        for peer in running.peers:
            peer.expect(Welcome)
        learner.send(manifest(0))
        actor.expect(WeightManifest)
        verifier.send(VerifyRequest(capacity=4))
        actor.send(LeaseRequest(capacity=2))
        for _ in range(3):
            lease = actor.expect(Lease)
            for sample in lease.sample_indexes:
                actor.send(completion(lease, sample, 0))
                verifier.send(judged(verifier.expect(VerifyJob), 1.0))
        learner.send(BatchRequest(policy_version=0))
        batch = learner.expect(GroupBatch)
        learner.send(manifest(1))
        actor.expect(WeightManifest)
        learner.send(Consumed(policy_version=1, group_ids=(batch.groups[0].group_id,)))
        over = actor.expect(Goodbye)
        assert over.finished
        assert "all tasks are retired" in over.reason
        running.thread.join(5)
        running.broker._publish_status()
        stream = json.loads(running.page("/status"))["stream"]
        assert stream["groups_dropped"] == {"zero_variance": 2}
        assert (stream["tasks_retired"], stream["resample_limit_reached"], stream["tasks_skipped"]) == (3, 1, 0)
        metrics = running.page("/metrics").decode()
        assert 'broker_groups_dropped_total{reason="zero_variance"} 2.0' in metrics
        assert "broker_groups_kept_at_resample_limit_total 1.0" in metrics
        assert "broker_tasks_retired 3.0" in metrics
        assert "broker_tasks_skipped_total 0.0" in metrics


def test_status_targets_and_metrics_show_who_is_there(running: Running) -> None:
    for role in ("learner", "actor"):
        running.join(role).expect(Welcome)
    for _ in range(100):
        status = json.loads(running.page("/status"))
        if len(status["peers"]) == 2:
            break
        threading.Event().wait(0.05)
    assert {peer["name"] for peer in status["peers"]} == {"learner", "actor"}
    assert status["waiting_for"] == "a first verifier to join"
    targets = json.loads(running.page("/targets"))
    assert {target["labels"]["job"]: target["targets"] for target in targets} == {
        "broker": [running.http.address.removeprefix("http://")],
        "learner": ["127.0.0.1:9"],
        "actor": ["127.0.0.1:9"],
    }
    metrics = running.page("/metrics").decode()
    assert 'broker_peers{role="actor"} 1.0' in metrics
    assert "# HELP broker_groups_ready " in metrics
    with pytest.raises(urllib.error.HTTPError) as error:
        running.page("/nothing")
    error.value.close()


def test_a_target_is_where_its_metrics_are_served_and_not_its_name(tmp_path: Path) -> None:
    with Running(tmp_path) as running:
        running.join("actor", metrics_host="10.0.0.7").expect(Welcome)
        running.http.address = "http://0.0.0.0:9400"
        running.broker._publish_status()
        found = json.loads(running.http.pages["/targets"][1])
        targets = {target["labels"]["process"]: target["targets"] for target in found}
        assert targets["actor"] == ["10.0.0.7:9"]
        assert targets["broker"] == [f"{socket.gethostname()}:9400"]


def test_rejected_messages_name_their_peer() -> None:
    assert str(Rejected(b"\x01\x02", "kind", "unknown")) == "message from 0102 rejected: kind: unknown"


def test_what_a_message_brought_about_is_heard_after_its_acknowledgement(running: Running) -> None:
    """A learner that has a batch is never asked for what came before it: a broker may die between any two messages."""
    learner, actor, verifier = (running.join(role) for role in ("learner", "actor", "verifier"))
    for peer in running.peers:
        peer.expect(Welcome)
    learner.send(Resume(seq=1, policy_version=0, consumed=()))
    learner.send(replace(manifest(0), seq=2))
    actor.send(LeaseRequest(capacity=4))
    verifier.send(VerifyRequest(capacity=4))
    for _ in range(2):
        lease = actor.expect(Lease, skip=WeightManifest)
        for sample in lease.sample_indexes:
            actor.send(completion(lease, sample, 0))
            verifier.send(judged(verifier.expect(VerifyJob), float(sample)))
    learner.send(BatchRequest(policy_version=0))
    learner.expect(GroupBatch)
    learner.send(replace(manifest(1), seq=3))
    learner.send(Consumed(seq=4, policy_version=1, group_ids=(0,)))
    learner.send(BatchRequest(policy_version=1))
    acknowledged = 0
    while not isinstance(message := learner.dealer.receive(5), GroupBatch):
        assert isinstance(message, Ack | Heartbeat)
        acknowledged = getattr(message, "seq", acknowledged)
    assert acknowledged == 4


def test_a_peer_that_floods_is_refused_and_the_others_go_on(tmp_path: Path) -> None:
    with Running(tmp_path, messages_per_second=5.0) as running:
        honest, flooder = running.join("actor", "honest"), running.join("actor", "flooder")
        honest.expect(Welcome)
        flooder.expect(Welcome)
        for _ in range(200):
            flooder.send(LeaseRequest(capacity=1))
        refusal = flooder.expect(Refusal, skip=WhoAreYou)
        assert (refusal.field, refusal.fatal) == ("rate", True)
        assert "more than 5 messages a second" in refusal.problem
        honest.send(Heartbeat())
        honest.expect(Heartbeat)
        assert [peer.name for peer in running.broker.members] == ["honest"]


def test_a_role_is_what_its_key_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "keys")
    monkeypatch.setattr(security, "_in_use", load(tmp_path / "keys", "broker"))
    with Running(tmp_path) as running:
        monkeypatch.setattr(security, "_in_use", load(tmp_path / "keys", "verifier"))
        refusal = running.join("actor").expect(Refusal)
        assert (refusal.field, refusal.fatal) == ("role", True)
        assert refusal.problem == "actor, but its key is that of the verifier"
        assert running.join("verifier").expect(Welcome)
