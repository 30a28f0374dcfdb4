"""The actor's loop on real sockets: the test plays the broker, the engine counts."""

import os
import threading
import time
from collections.abc import Iterator

import pytest
from actor_doubles import ARRIVAL_SECONDS, BrokerDouble, CountingEngine, lease

from actors.link import Link
from actors.loop import Actor
from actors.requests import EngineFailure
from actors.weights.fetched import WeightsUnavailable
from actors.weights.receiver import WeightReceiver
from protocol.errors import PeerSilent, ProtocolError, Refused
from protocol.messages import (
    BatchRequest,
    Goodbye,
    Heartbeat,
    Hello,
    LeaseFailed,
    LeaseRequest,
    Refusal,
    RolloutDone,
)
from protocol.sockets import Router


class RunningActor:
    """An actor in a thread of its own, joined to the test's broker."""

    def __init__(self, broker: BrokerDouble, engine: CountingEngine) -> None:
        self.broker = broker
        self.engine = engine
        self.actor: Actor | None = None
        self.outcome: Goodbye | Exception | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        broker.expect(Hello)

    def _run(self) -> None:
        hello = Hello(role="actor", name="test", host="here", pid=os.getpid(), metrics_port=0, versions={}, session="s")
        weights = WeightReceiver(seconds=1.0)
        link = Link(self.broker.router.address, hello, welcome_seconds=ARRIVAL_SECONDS)
        try:
            self.actor = Actor(link, self.engine, weights, room=12, drain_seconds=5.0)
            self.outcome = self.actor.run()
        except (ProtocolError, EngineFailure) as error:
            self.outcome = error
        finally:
            weights.close()
            link.line.close()
            self._ended.set()

    def end(self) -> Goodbye | Exception | None:
        """Serve the broker until the actor has ended; how it did."""
        deadline = time.monotonic() + ARRIVAL_SECONDS
        while not self._ended.is_set() and time.monotonic() < deadline:
            self.broker.turn()
        self._thread.join(1.0)
        assert not self._thread.is_alive()
        return self.outcome

    def stop(self) -> None:
        """End it if it still runs."""
        self.engine.go_on.set()
        if self.actor:
            self.actor.stop("the test is over")
        self.end()


@pytest.fixture
def broker() -> Iterator[BrokerDouble]:
    broker = BrokerDouble()
    yield broker
    broker.close()


@pytest.fixture
def actor(broker: BrokerDouble) -> Iterator[RunningActor]:
    """Joined, without weights."""
    actor = RunningActor(broker, CountingEngine())
    yield actor
    actor.stop()


@pytest.fixture
def working(actor: RunningActor, broker: BrokerDouble) -> RunningActor:
    """Joined, with version 0."""
    broker.publish_counter(0)
    broker.expect(LeaseRequest)
    return actor


def test_it_asks_for_leases_only_once_it_has_weights(actor: RunningActor, broker: BrokerDouble) -> None:
    broker.expect(Heartbeat, lambda heartbeat: heartbeat.waiting_for == "the learner to publish its first weights")
    assert not any(isinstance(message, LeaseRequest) for message in broker.received)
    broker.publish_counter(3)
    assert broker.expect(LeaseRequest).capacity == 12
    assert actor.engine.loaded == [(3, bytes([3] * 8))]
    assert broker.expect(Heartbeat, lambda heartbeat: heartbeat.policy_version == 3).waiting_for == "leases"


def test_a_lease_becomes_its_rollouts(working: RunningActor, broker: BrokerDouble) -> None:
    broker.send(lease(5, "ab+", samples=3))
    done = [broker.expect(RolloutDone) for _ in range(3)]
    assert working.engine.seeds == {"5/0": 5000, "5/1": 5001, "5/2": 5002}
    assert {message.rollout.sample_index for message in done} == {0, 1, 2}
    for message in done:
        rollout = message.rollout
        assert (message.lease_id, rollout.group_id) == (5, 105)
        assert rollout.prompt_ids.tolist() == [ord("a"), ord("b"), ord("+")]
        assert rollout.token_ids.tolist() == [1, 2, 3]
        assert rollout.text == "1 2 3"
        assert [(span.version, span.tokens) for span in rollout.version_spans] == [(0, 3)]


def test_rollouts_are_sent_the_moment_they_end(working: RunningActor, broker: BrokerDouble) -> None:
    working.engine.go_on.clear()
    broker.send(lease(1, "a" * 50_000, samples=1))
    broker.send(lease(2, "ab", samples=1))
    broker.expect(Heartbeat, lambda heartbeat: heartbeat.gauges["running"] == 2)
    working.engine.go_on.set()
    assert broker.expect(RolloutDone).lease_id == 2


def test_weights_are_swapped_with_requests_in_flight(working: RunningActor, broker: BrokerDouble) -> None:
    working.engine.go_on.clear()
    broker.send(lease(1, "a" * 2000, samples=1))
    broker.expect(Heartbeat, lambda heartbeat: heartbeat.gauges["running"] == 1)
    working.engine.go_on.set()
    time.sleep(0.002)
    working.engine.go_on.clear()
    newer = broker.publish_counter(1)
    broker.expect(Heartbeat, lambda heartbeat: heartbeat.policy_version == 1)
    working.engine.go_on.set()
    rollout = broker.expect(RolloutDone).rollout
    assert rollout.version_spans[-1].version == 1
    assert rollout.version_spans[-1].fingerprint == newer
    assert rollout.token_versions.tolist() == (-rollout.behaviour_logprobs).astype(int).tolist()


def test_a_lease_for_a_newer_version_waits_for_the_swap(working: RunningActor, broker: BrokerDouble) -> None:
    broker.send(lease(1, "ab", samples=1, min_version=2))
    broker.send(lease(2, "ab", samples=1, min_version=0))
    assert broker.expect(RolloutDone).lease_id == 2
    broker.expect(Heartbeat, lambda heartbeat: heartbeat.waiting_for == "weights of version 2")
    broker.publish_counter(2)
    message = broker.expect(RolloutDone)
    assert message.lease_id == 1
    assert [span.version for span in message.rollout.version_spans] == [2]


def test_an_impossible_prompt_fails_its_lease_alone(working: RunningActor, broker: BrokerDouble) -> None:
    broker.send(lease(1, ""))
    broker.send(lease(2, "ab", samples=1))
    failed = broker.expect(LeaseFailed)
    assert (failed.lease_id, failed.reason) == (1, "prompt_empty")
    assert "task-1" in failed.detail
    assert broker.expect(RolloutDone).lease_id == 2


def test_an_overdue_lease_is_aborted(working: RunningActor, broker: BrokerDouble) -> None:
    working.engine.go_on.clear()
    broker.send(lease(1, "ab", seconds=0.3))
    broker.send(lease(2, "ab", samples=1))
    broker.send(lease(3, "ab", seconds=0.3, min_version=9))
    broker.expect(Heartbeat, lambda heartbeat: heartbeat.gauges["running"] == 5)
    broker.expect(Heartbeat, lambda heartbeat: heartbeat.gauges["running"] == 1)
    working.engine.go_on.set()
    assert broker.expect(RolloutDone).lease_id == 2
    assert broker.expect(Heartbeat, lambda heartbeat: heartbeat.waiting_for == "leases")


def test_malformed_and_foreign_messages_do_not_stop_it(working: RunningActor, broker: BrokerDouble) -> None:
    for frames in ([b""], [b"\xff\xff"], [b"junk", b"more"], [b"\x80"]):
        broker.router.socket.send_multipart([broker.peer, *frames])
    broker.send(BatchRequest(policy_version=1))
    broker.send(Refusal(field="x", problem="not fatal", fatal=False))
    broker.send(lease(1, "ab", samples=1))
    assert broker.expect(RolloutDone).lease_id == 1


def test_heartbeats_come_as_often_as_asked_while_it_works(working: RunningActor, broker: BrokerDouble) -> None:
    working.engine.go_on.clear()
    broker.send(lease(1, "ab"))
    broker.expect(Heartbeat, lambda heartbeat: heartbeat.gauges["running"] == 4)
    for _ in range(5):
        begun = time.monotonic()
        heartbeat = broker.expect(Heartbeat)
        assert time.monotonic() - begun < 10 * broker.welcome.heartbeat_seconds, "tolerant of a busy machine"
        assert heartbeat.waiting_for == ""
        assert heartbeat.gauges.keys() == {"tokens_per_second", "running", "waiting", "kv_used"}


def test_the_runs_end_ends_it(working: RunningActor, broker: BrokerDouble) -> None:
    broker.send(goodbye := Goodbye(reason="the learner has finished", finished=True))
    assert working.end() == goodbye


def test_a_run_that_ended_early_is_an_error(working: RunningActor, broker: BrokerDouble) -> None:
    broker.send(Goodbye(reason="the learner was silent", finished=False))
    outcome = working.end()
    assert isinstance(outcome, ProtocolError)
    assert "the learner was silent" in str(outcome)


def test_a_fatal_refusal_is_an_error_that_says_why(working: RunningActor, broker: BrokerDouble) -> None:
    broker.send(Refusal(field="rollout.text", problem="is too long", fatal=True))
    outcome = working.end()
    assert isinstance(outcome, Refused)
    assert "rollout.text: is too long" in str(outcome)


def test_a_silent_broker_is_an_error_that_names_it() -> None:
    broker = BrokerDouble(silence=0.5)
    actor = RunningActor(broker, CountingEngine())
    broker.echo = False
    outcome = actor.end()
    assert isinstance(outcome, PeerSilent)
    assert broker.router.address in str(outcome)
    broker.close()


def test_a_stop_ends_it_within_a_second_while_it_waits(working: RunningActor) -> None:
    assert working.actor is not None
    begun = time.monotonic()
    working.actor.stop("asked to")
    assert working.end() is None
    assert time.monotonic() - begun < 1.0


def test_logprobs_that_are_not_numbers_stop_it_and_name_the_version(
    working: RunningActor, broker: BrokerDouble
) -> None:
    working.engine.broken = True
    broker.send(lease(1, "ab", samples=1))
    outcome = working.end()
    assert isinstance(outcome, EngineFailure)
    assert "version 0" in str(outcome)
    assert "behaviour_logprobs" in str(outcome)


def test_weights_that_never_arrive_stop_it(actor: RunningActor, broker: BrokerDouble) -> None:
    with Router("tcp://127.0.0.1:*") as silent:
        broker.publish_counter(0, endpoint=silent.address)
        outcome = actor.end()
    assert isinstance(outcome, WeightsUnavailable)


def test_nobody_at_the_address_is_an_error_that_names_it() -> None:
    hello = Hello(role="actor", name="test", host="here", pid=1, metrics_port=0, versions={}, session="s")
    with pytest.raises(PeerSilent, match=r"tcp://127\.0\.0\.1:9 within 0\.2 s"):
        Link("tcp://127.0.0.1:9", hello, welcome_seconds=0.2)


def test_it_stays_alive_for_the_broker_while_the_engine_starts(broker: BrokerDouble) -> None:
    """The engine's start holds the main thread for longer than the broker's patience."""
    joined: list[Link] = []
    blocked = threading.Event()

    def start() -> None:
        hello = Hello(role="actor", name="test", host="here", pid=1, metrics_port=0, versions={}, session="s")
        joined.append(link := Link(broker.router.address, hello, welcome_seconds=ARRIVAL_SECONDS))
        with link.kept_alive("the engine to start"):
            blocked.wait(ARRIVAL_SECONDS)

    thread = threading.Thread(target=start)
    thread.start()
    for _ in range(4):
        assert broker.expect(Heartbeat).waiting_for == "the engine to start"
    broker.send(lease(1))
    time.sleep(0.2)
    blocked.set()
    thread.join(ARRIVAL_SECONDS)
    assert [order.lease_id for order in joined[0].orders] == [1], "what came meanwhile is not lost"
    joined[0].line.close()


def test_a_refusal_while_the_engine_starts_is_raised_after_it(broker: BrokerDouble) -> None:
    errors: list[Exception] = []

    def start() -> None:
        hello = Hello(role="actor", name="test", host="here", pid=1, metrics_port=0, versions={}, session="s")
        link = Link(broker.router.address, hello, welcome_seconds=ARRIVAL_SECONDS)
        try:
            with link.kept_alive("the engine to start"):
                time.sleep(0.3)
        except Refused as error:
            errors.append(error)
        link.line.close()

    thread = threading.Thread(target=start)
    thread.start()
    broker.expect(Hello)
    broker.send(Refusal(field="role", problem="no actors here", fatal=True))
    thread.join(ARRIVAL_SECONDS)
    assert len(errors) == 1
    assert "no actors here" in str(errors[0])
