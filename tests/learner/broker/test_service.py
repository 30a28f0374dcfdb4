"""The broker as its peers see it: a real router on loopback, peers played by the test."""

import json
import re
import secrets
import shutil
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stream_world import NumberedTasks, judged

from learner.broker.config import BrokerRoot, SamplingConfig, StreamConfig, TaskConfig, check, identity
from learner.broker.cursor import Tasks
from learner.broker.http import StatusServer
from learner.broker.journal import Journal, JournalFailed
from learner.broker.membership import Members
from learner.broker.service import Broker
from learner.broker.stream import Stream
from protocol import security
from protocol.clock import Deadline
from protocol.messages import (
    Ack,
    BatchRequest,
    Consumed,
    Goodbye,
    GroupBatch,
    GroupRange,
    Heartbeat,
    Hello,
    Lease,
    LeaseFailed,
    LeaseRequest,
    Message,
    Refusal,
    Resume,
    Rollout,
    RolloutDone,
    Verdict,
    VerifyDone,
    VerifyJob,
    VerifyRequest,
    VersionSpan,
    WeightManifest,
    Welcome,
    WhoAreYou,
)
from protocol.security import load, make
from protocol.sockets import Dealer, Rejected, Router


class Peer:
    """A test's end of a connection to the broker."""

    def __init__(self, address: str, role: Any, name: str, metrics_host: str = "") -> None:
        self.dealer = Dealer(address)
        self.acknowledged = 0
        self.hello = Hello(
            role=role,
            name=name,
            host="127.0.0.1",
            pid=7,
            metrics_port=9,
            metrics_host=metrics_host,
            versions={},
            session=secrets.token_hex(4),
        )
        self.dealer.send(self.hello)

    def expect(self, kind: type[Any], seconds: float = 5.0, skip: type[Any] = Heartbeat) -> Any:
        """The next message of a kind, heartbeats and what to `skip` aside; any other fails the test."""
        while True:
            message = self.dealer.receive(seconds)
            if isinstance(message, Ack):
                self.acknowledged = message.seq
            if isinstance(message, kind):
                return message
            assert isinstance(message, Heartbeat | Ack | skip), f"waited for {kind.__name__}, got {message}"

    def send(self, message: Message) -> None:
        self.dealer.send(message)


class Running:
    """A broker in a thread and the peers that joined it."""

    def __init__(
        self,
        directory: Path,
        tasks: Tasks | None = None,
        task: TaskConfig | None = None,
        address: str = "tcp://127.0.0.1:*",
        **stream: Any,
    ) -> None:
        options = {"group_size": 2, "groups_per_step": 1, "heartbeat_seconds": 0.05, "silence_seconds": 30.0} | stream
        self.router = Router(address)
        self.http = StatusServer("127.0.0.1", 0)
        config = BrokerRoot(model="m", task=task or TaskConfig(), stream=StreamConfig(**options))
        self.journal = Journal(directory / "journal.sqlite", identity(config))
        self.broker = Broker(config, tasks or NumberedTasks(), self.router, self.http, self.journal)
        self.peers: list[Peer] = []
        self.over: Goodbye | None = None
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        self.over = self.broker.run()

    def die(self) -> None:
        """As by kill -9: nobody is told, nothing is written any more."""
        self.broker.members = Members()  # its last words go to nobody
        self.broker.end("killed", finished=False)
        self.thread.join(10)
        self.router.socket.close(0)
        self.http.close()
        self.journal.close()

    def join(self, role: str, name: str | None = None, metrics_host: str = "") -> Peer:
        peer = Peer(self.router.address, role, name or role, metrics_host)
        self.peers.append(peer)
        return peer

    def page(self, path: str) -> bytes:
        with urllib.request.urlopen(self.http.address + path, timeout=5) as answer:
            content: bytes = answer.read()
        return content

    def close(self) -> None:
        self.broker.end("the test is over", finished=True)
        self.thread.join(10)
        assert not self.thread.is_alive()
        for peer in self.peers:
            peer.dealer.close()
        self.http.close()
        self.router.close()
        self.journal.close()


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    broker = Running(tmp_path)
    yield broker
    broker.close()


def manifest(version: int) -> WeightManifest:
    return WeightManifest(version=version, fingerprint=f"f{version}", endpoint="tcp://x:1", tensors=(), shards=())


def completion(lease: Lease, sample: int, version: int, fingerprint: str | None = None) -> RolloutDone:
    return RolloutDone(
        lease_id=lease.lease_id,
        rollout=Rollout(
            group_id=lease.group_id,
            sample_index=sample,
            prompt_ids=np.array([1], dtype=np.int32),
            token_ids=np.array([2, 3], dtype=np.int32),
            behaviour_logprobs=np.array([-1, -2], dtype=np.float32),
            version_spans=(VersionSpan(version=version, tokens=2, fingerprint=fingerprint or f"f{version}"),),
            finish_reason="stop",
            text="t",
        ),
    )


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


def test_a_silent_actor_loses_its_leases(tmp_path: Path) -> None:
    running = Running(tmp_path, silence_seconds=0.4)
    try:
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
    finally:
        running.close()


def test_an_actor_that_lets_leases_run_out_gets_one_at_a_time_until_it_delivers(tmp_path: Path) -> None:
    running = Running(tmp_path, lease_seconds=0.3, lease_attempts=100, max_staleness=20)
    try:
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
    finally:
        running.close()


def is_end(message: object) -> bool:
    return isinstance(message, Goodbye)


def test_a_learner_that_does_not_come_back_ends_the_run_for_all(tmp_path: Path) -> None:
    running = Running(tmp_path, silence_seconds=0.3, return_seconds=0.3)
    try:
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
    finally:
        running.close()


def test_a_run_in_which_every_prompt_is_impossible_ends_with_the_reason(tmp_path: Path) -> None:
    running = Running(tmp_path, drops_in_a_row=3, max_staleness=0)
    try:
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
    finally:
        running.close()


def test_a_run_in_which_every_task_is_solved_ends_and_shows_what_its_filters_did(tmp_path: Path) -> None:
    task = TaskConfig(retire_pass_rate=1.0, retire_after=2)
    tasks = NumberedTasks(epoch_size=3)
    running = Running(tmp_path, tasks, task, max_staleness=0, zero_variance="resample", resample_limit=2)
    try:
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
    finally:
        running.close()


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
    running = Running(tmp_path)
    try:
        running.join("actor", metrics_host="10.0.0.7").expect(Welcome)
        running.http.address = "http://0.0.0.0:9400"
        running.broker._publish_status()
        found = json.loads(running.http.pages["/targets"][1])
        targets = {target["labels"]["process"]: target["targets"] for target in found}
        assert targets["actor"] == ["10.0.0.7:9"]
        assert targets["broker"] == [f"{socket.gethostname()}:9400"]
    finally:
        running.close()


def test_peers_that_are_lost_are_counted_by_the_reason_and_the_run_stands_since_its_last_batch(tmp_path: Path) -> None:
    running = Running(tmp_path, silence_seconds=0.3)
    try:
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
    finally:
        running.close()


@pytest.mark.parametrize(
    ("section", "problem"),
    [
        (StreamConfig(group_size=1), "stream.group_size=1"),
        (StreamConfig(groups_per_step=0), "stream.groups_per_step=0"),
        (StreamConfig(max_staleness=-1), "stream.max_staleness=-1"),
        (StreamConfig(silence_seconds=1.0, heartbeat_seconds=1.0), "healthy peers are taken for dead"),
        (StreamConfig(zero_variance="drop"), "stream.zero_variance=drop: must be one of keep, resample"),
        (StreamConfig(resample_limit=0), "stream.resample_limit=0: must be at least 1"),
        (SamplingConfig(temperature=0.0), "sampling.temperature=0.0: .* greedy"),
        (SamplingConfig(temperature=0.001), r"sampling.temperature=0.001: must lie in \[0.01, 2.0\]"),
        (SamplingConfig(temperature=2.5), "sampling.temperature=2.5: must lie in"),
        (SamplingConfig(top_p=0.9), "sampling.top_p=0.9"),
        (SamplingConfig(max_tokens=0), "sampling.max_tokens=0"),
        (TaskConfig(name="file", retire_pass_rate=1.1), "task.retire_pass_rate=1.1: must lie in"),
        (TaskConfig(name="file", retire_pass_rate=-0.1), "task.retire_pass_rate=-0.1: must lie in"),
        (TaskConfig(name="file", retire_after=0), "task.retire_after=0"),
        (TaskConfig(retire_pass_rate=0.9), "task.retire_pass_rate=0.9: addition is endless"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused(
    section: StreamConfig | SamplingConfig | TaskConfig, problem: str
) -> None:
    names = {StreamConfig: "stream", SamplingConfig: "sampling", TaskConfig: "task"}
    with pytest.raises(ValueError, match=problem):
        check(BrokerRoot(model="m", **{names[type(section)]: section}))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "task", [TaskConfig(), *(TaskConfig(name=name, size=5, retire_pass_rate=0.9) for name in ("addition", "file"))]
)
def test_a_configuration_that_can_work_is_taken(task: TaskConfig) -> None:
    check(BrokerRoot(model="m", task=task, stream=StreamConfig(zero_variance="resample", resample_limit=1)))


def test_rejected_messages_name_their_peer() -> None:
    assert str(Rejected(b"\x01\x02", "kind", "unknown")) == "message from 0102 rejected: kind: unknown"


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


def test_a_broker_that_was_held_up_takes_nobody_for_dead_before_it_has_listened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk, a stopped process: what was said meanwhile waits to be heard, more than one turn hears."""
    running = Running(tmp_path, silence_seconds=1.0)
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
    running.close()


def test_nothing_is_said_before_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the disk is full nobody hears of a lease; when there is room again everybody does."""
    running = Running(tmp_path)
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
    running.close()


def seconds_unwritten(running: Running) -> float:
    """As Prometheus reads it."""
    found = re.search(r"^broker_journal_unwritten_seconds (\S+)$", running.page("/metrics").decode(), re.MULTILINE)
    assert found
    return float(found[1])


def test_a_journal_that_cannot_be_written_ends_the_run_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running = Running(tmp_path)
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
    running.close()


def test_a_job_that_a_verifier_lost_while_it_answers_others_is_sent_again(tmp_path: Path) -> None:
    running = Running(tmp_path, silence_seconds=1.0, verify_seconds=0.1, max_staleness=1000)
    try:
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
    finally:
        running.close()


def test_a_verifier_that_answers_nothing_is_thrown_out_and_its_jobs_go_to_others(tmp_path: Path) -> None:
    running = Running(tmp_path, silence_seconds=0.8, verify_seconds=0.1)
    try:
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
    finally:
        running.close()


def test_a_learner_killed_and_started_again_takes_its_place_and_gets_the_same_batch(tmp_path: Path) -> None:
    running = Running(tmp_path, max_staleness=0)
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
    running.close()


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


def test_a_learner_that_takes_a_batch_and_does_not_train_it_is_refused(tmp_path: Path) -> None:
    running = Running(tmp_path, consume_seconds=0.3)
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
    running.close()


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


def test_a_peer_that_floods_is_refused_and_the_others_go_on(tmp_path: Path) -> None:
    running = Running(tmp_path, messages_per_second=5.0)
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
    running.close()


def test_a_role_is_what_its_key_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "keys")
    monkeypatch.setattr(security, "_in_use", load(tmp_path / "keys", "broker"))
    running = Running(tmp_path)
    monkeypatch.setattr(security, "_in_use", load(tmp_path / "keys", "verifier"))
    refusal = running.join("actor").expect(Refusal)
    assert (refusal.field, refusal.fatal) == ("role", True)
    assert refusal.problem == "actor, but its key is that of the verifier"
    assert running.join("verifier").expect(Welcome)
    running.close()
