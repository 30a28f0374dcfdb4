"""The broker as its peers see it: a real router on loopback, peers played by the test."""

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from stream_world import NumberedTasks

from learner.broker.config import BrokerRoot, SamplingConfig, StreamConfig, TaskConfig, check
from learner.broker.http import StatusServer
from learner.broker.service import Broker
from learner.broker.stream import Tasks
from protocol.clock import Deadline
from protocol.messages import (
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
)
from protocol.sockets import Dealer, Rejected, Router


class Peer:
    """A test's end of a connection to the broker."""

    def __init__(self, address: str, role: Any, name: str) -> None:
        self.dealer = Dealer(address)
        self.hello = Hello(role=role, name=name, host="127.0.0.1", pid=7, metrics_port=9, versions={})
        self.dealer.send(self.hello)

    def expect(self, kind: type[Any], seconds: float = 5.0) -> Any:
        """The next message of a kind, heartbeats aside; any other fails the test."""
        while True:
            message = self.dealer.receive(seconds)
            if isinstance(message, kind):
                return message
            assert isinstance(message, Heartbeat), f"waited for {kind.__name__}, got {message}"

    def send(self, message: Message) -> None:
        self.dealer.send(message)


class Running:
    """A broker in a thread and the peers that joined it."""

    def __init__(self, tasks: Tasks | None = None, task: TaskConfig | None = None, **stream: Any) -> None:
        options = {"group_size": 2, "groups_per_step": 1, "heartbeat_seconds": 0.05, "silence_seconds": 30.0} | stream
        self.router = Router("tcp://127.0.0.1:*")
        self.http = StatusServer("127.0.0.1", 0)
        config = BrokerRoot(model="m", task=task or TaskConfig(), stream=StreamConfig(**options))
        self.broker = Broker(config, tasks or NumberedTasks(), self.router, self.http)
        self.peers: list[Peer] = []
        self.over: Goodbye | None = None
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        self.over = self.broker.run()

    def join(self, role: str, name: str | None = None) -> Peer:
        peer = Peer(self.router.address, role, name or role)
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


@pytest.fixture
def running() -> Iterator[Running]:
    broker = Running()
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
        verifier.send(VerifyDone(job_id=job.job_id, verdict=verdict))
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
    assert "too late" in refusal.problem


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
    assert refusal.fatal
    assert "'a' is taken by process 7" in refusal.problem


def test_a_peer_that_did_not_say_hello_is_refused(running: Running) -> None:
    with Dealer(running.router.address) as stranger:
        stranger.send(LeaseRequest(capacity=3))
        refusal = stranger.receive(5)
        assert isinstance(refusal, Refusal)
        assert refusal.fatal
        assert "say Hello first" in refusal.problem


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
    other = running.join("actor", "other")
    other.expect(Welcome)
    other.expect(WeightManifest)
    other.send(LeaseRequest(capacity=2))
    again = other.expect(Lease)
    assert again.group_id == lease.group_id
    assert again.seeds == lease.seeds


def test_a_silent_actor_loses_its_leases() -> None:
    running = Running(silence_seconds=0.4)
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


def is_end(message: object) -> bool:
    return isinstance(message, Goodbye)


def test_a_silent_learner_ends_the_run_for_all() -> None:
    running = Running(silence_seconds=0.3)
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
        assert "silent" in over.reason
    finally:
        running.close()


def test_a_run_in_which_every_prompt_is_impossible_ends_with_the_reason() -> None:
    running = Running(drops_in_a_row=3, max_staleness=0)
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


def test_a_run_in_which_every_task_is_solved_ends_and_shows_what_its_filters_did() -> None:
    task = TaskConfig(retire_pass_rate=1.0, retire_after=2)
    running = Running(NumberedTasks(epoch_size=3), task, max_staleness=0, zero_variance="resample", resample_limit=2)
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
                verdict = Verdict(reward=1.0, parts={}, reason="", seconds=0.0)
                verifier.send(VerifyDone(job_id=verifier.expect(VerifyJob).job_id, verdict=verdict))
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
        assert "broker_resample_limit_reached_total 1.0" in metrics
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
    assert {target["labels"]["job"] for target in targets} == {"broker", "learner", "actor"}
    metrics = running.page("/metrics").decode()
    assert 'broker_peers{role="actor"} 1.0' in metrics
    assert "# HELP broker_groups_ready " in metrics
    with pytest.raises(urllib.error.HTTPError) as error:
        running.page("/nothing")
    error.value.close()


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
