"""The learner's line to the others, against a broker and actors played by the test on real sockets."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch

from learner.link import Link
from protocol.errors import PeerSilent, ProtocolError, Refused
from protocol.messages import (
    Ack,
    BatchRequest,
    Consumed,
    Goodbye,
    GroupBatch,
    GroupRange,
    Heartbeat,
    Hello,
    Message,
    Refusal,
    Resume,
    RunSpec,
    Sampling,
    ShardGone,
    StreamStats,
    WeightManifest,
    Welcome,
    WhoAreYou,
)
from protocol.sockets import Router
from tests.published import publish

HELLO = Hello(role="learner", name="learner", host="here", pid=1, metrics_port=0, versions={}, session="s")
STATS = StreamStats(
    generated_tokens=0, rollouts=0, verdicts=0, void_verdicts=0, groups_dropped={}, actors=0, verifiers=0
)
MANIFESTS = {version: publish(version, [("w", torch.zeros(2))]).manifest for version in (0, 4)}


def welcome(silence: float = 20.0, back: float = 20.0) -> Welcome:
    sampling = Sampling(temperature=1.0, top_p=1.0, max_tokens=8)
    run = RunSpec(name="r", model="m", seed=0, group_size=2, groups_per_step=1, max_staleness=0, sampling=sampling)
    return Welcome(run=run, policy_version=0, heartbeat_seconds=0.05, silence_seconds=silence, return_seconds=back)


class FakeBroker:
    """A router that knows its one peer; the answer to Hello is sent before the learner asks for it."""

    def __init__(self) -> None:
        self.router = Router("tcp://127.0.0.1:*")
        self.peer = b""

    def link(self, answer: Message) -> Link:
        """A link that was answered so; the broker's part runs in a thread only for that long."""

        def answer_hello() -> None:
            received = self.router.receive(10)
            assert received is not None
            self.peer = received[0]
            self.router.send(self.peer, answer)

        thread = threading.Thread(target=answer_hello)
        thread.start()
        try:
            return Link(self.router.address, HELLO)
        finally:
            thread.join()

    def send(self, message: Message) -> None:
        assert self.router.send(self.peer, message)

    def expect(self, kind: type[Any]) -> Any:
        """The next message of a kind, heartbeats aside."""
        while (received := self.router.receive(5)) is not None:
            if isinstance(received[1], kind):
                return received[1]
            assert isinstance(received[1], Heartbeat)
        pytest.fail(f"no {kind.__name__} came")


@contextmanager
def answering(broker: FakeBroker, kind: type[Any], answer: Message) -> Iterator[None]:
    """Answer one message of a kind meanwhile."""

    def answer_one() -> None:
        broker.expect(kind)
        broker.send(answer)

    thread = threading.Thread(target=answer_one)
    thread.start()
    yield
    thread.join()


@pytest.fixture
def broker() -> Iterator[FakeBroker]:
    fake = FakeBroker()
    yield fake
    fake.router.close()


def test_a_batch_is_asked_for_and_its_groups_are_reported_consumed(broker: FakeBroker) -> None:
    with broker.link(welcome()) as link:
        assert link.run.group_size == 2
        with answering(broker, BatchRequest, GroupBatch(policy_version=0, groups=(), stats=STATS)):
            batch = link.next_batch(0, 5)
        assert isinstance(batch, GroupBatch)
        link.consumed(1, (3, 4))
        assert broker.expect(Consumed) == Consumed(seq=1, policy_version=1, group_ids=(3, 4))
        link.goodbye("enough", finished=True)
        assert broker.expect(Goodbye) == Goodbye(reason="enough", finished=True)
        broker.send(Goodbye(reason="enough", finished=True))


def test_a_run_that_goes_on_says_so_before_it_publishes(broker: FakeBroker) -> None:
    with broker.link(welcome()) as link:
        link.resume(4, (GroupRange(first=0, last=3),), checkpoints=True, counted=STATS)
        link.announce(MANIFESTS[4])
        kinds = []
        while len(kinds) < 2:
            received = broker.router.receive(5)
            assert received is not None
            if not isinstance(received[1], Heartbeat):
                kinds.append(received[1])
        assert kinds[0] == Resume(
            seq=1, policy_version=4, consumed=(GroupRange(first=0, last=3),), checkpoints=True, counted=STATS
        )
        assert isinstance(kinds[1], WeightManifest)
        assert broker.expect(Heartbeat).policy_version == 4
        link.goodbye("enough", finished=False)


def test_heartbeats_go_on_while_the_training_thread_is_busy_and_say_what_it_waits_for(broker: FakeBroker) -> None:
    with broker.link(welcome()) as link:
        link.show(reward=0.5)
        beats = [broker.expect(Heartbeat) for _ in range(4)]
        assert beats[-1].gauges == {"reward": 0.5}
        with pytest.raises(PeerSilent, match="no batch for step 1 within"):
            link.next_batch(0, 0.3)
        waiting = {
            message.waiting_for
            for received in iter(lambda: broker.router.receive(0.05), None)
            if isinstance(message := received[1], Heartbeat)
        }
        assert "the batch for step 1" in waiting
        link.goodbye("enough", finished=False)


def test_malformed_and_foreign_messages_do_not_stop_it(broker: FakeBroker) -> None:
    with broker.link(welcome()) as link:
        broker.router.socket.send_multipart([broker.peer, b"\xc1"])
        broker.send(ShardGone(version=3))
        broker.send(Refusal(field="x", problem="not fatal", fatal=False))
        link.announce(MANIFESTS[0])
        broker.expect(WeightManifest)
        with answering(broker, BatchRequest, GroupBatch(policy_version=0, groups=(), stats=STATS)):
            assert isinstance(link.next_batch(0, 5), GroupBatch)
        link.goodbye("enough", finished=False)


@pytest.mark.parametrize(
    ("message", "error", "text"),
    [
        (Refusal(field="policy_version", problem="two learners", fatal=True), Refused, "two learners"),
        (Goodbye(reason="verifiers gone", finished=False), ProtocolError, "ended the run: verifiers gone"),
    ],
)
def test_what_ends_the_run_early_reaches_the_training_thread(
    broker: FakeBroker, message: Message, error: type[Exception], text: str
) -> None:
    with broker.link(welcome()) as link:
        broker.send(message)
        with pytest.raises(error, match=text):
            link.next_batch(0, 5)


def test_a_finished_run_ends_the_wait_for_a_batch(broker: FakeBroker) -> None:
    with broker.link(welcome()) as link:
        broker.send(Goodbye(reason="the tasks have ended", finished=True))
        assert link.next_batch(0, 5) == Goodbye(reason="the tasks have ended", finished=True)


def test_a_broker_that_falls_silent_is_an_error(broker: FakeBroker) -> None:
    with broker.link(welcome(silence=0.1, back=0.3)) as link, pytest.raises(PeerSilent, match=r"was silent for 0\.3"):
        link.next_batch(0, 5)


def test_a_broker_that_came_back_hears_what_it_did_not_acknowledge_and_then_what_stands(broker: FakeBroker) -> None:
    with broker.link(welcome()) as link:
        link.announce(MANIFESTS[0])
        manifest = broker.expect(WeightManifest)
        broker.send(Ack(seq=manifest.seq))
        link.consumed(1, (3,))
        consumed = broker.expect(Consumed)
        broker.send(WhoAreYou())
        assert broker.expect(Hello) == HELLO
        broker.send(welcome())
        assert broker.expect(Consumed) == consumed
        assert broker.expect(WeightManifest) == replace(manifest, seq=0)
        link.goodbye("enough", finished=False)


def test_the_end_of_the_run_is_said_again_to_a_broker_that_comes_back(broker: FakeBroker) -> None:
    with broker.link(welcome()) as link:
        link.goodbye("enough", finished=True)
        assert broker.expect(Goodbye).finished
        broker.send(WhoAreYou())  # it died with the goodbye
        assert broker.expect(Hello) == HELLO
        broker.send(welcome())
        assert broker.expect(Goodbye) == Goodbye(reason="enough", finished=True)
        broker.send(Goodbye(reason="enough", finished=True))


def test_a_broker_that_never_hears_of_the_end_is_waited_for_in_bounded_time(broker: FakeBroker) -> None:
    began = time.monotonic()
    with broker.link(welcome(back=0.4)) as link:
        link.goodbye("enough", finished=True)
    assert 0.3 < time.monotonic() - began < 5


def test_a_refused_hello_says_why(broker: FakeBroker) -> None:
    with pytest.raises(Refused, match="name: is taken"):
        broker.link(Refusal(field="name", problem="is taken", fatal=True))


def test_an_error_in_training_is_told_to_the_broker(broker: FakeBroker) -> None:
    with pytest.raises(RuntimeError, match="boom"), broker.link(welcome()):
        raise RuntimeError("boom")
    goodbye = broker.expect(Goodbye)
    assert not goodbye.finished
    assert "boom" in goodbye.reason
