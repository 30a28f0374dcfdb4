"""A line keeps its promises to a broker that dies, forgets, refuses and comes back."""

import json
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from threading import Thread

import pytest

import protocol.line
from protocol.clock import Deadline
from protocol.errors import PeerSilent, ProtocolError, Refused
from protocol.line import Line
from protocol.messages import (
    Ack,
    Goodbye,
    Heartbeat,
    Hello,
    LeaseFailed,
    LeaseRequest,
    Message,
    Refusal,
    RunSpec,
    Sampling,
    Welcome,
    WhoAreYou,
)
from protocol.sockets import Router

HELLO = Hello(role="actor", name="a", host="here", pid=1, metrics_port=0, versions={}, session="s")
SPEC = RunSpec(
    name="r",
    model="m",
    seed=0,
    group_size=2,
    groups_per_step=1,
    max_staleness=0,
    sampling=Sampling(temperature=1.0, top_p=1.0, max_tokens=8),
)
SECONDS = 10.0


def welcome(*, silence: float = 5.0, back: float = 5.0, name: str = "r") -> Welcome:
    run = replace(SPEC, name=name)
    return Welcome(run=run, policy_version=0, heartbeat_seconds=0.05, silence_seconds=silence, return_seconds=back)


class MortalBroker:
    """A broker of one peer, which dies and comes back on its address; what it does is up to the test."""

    def __init__(self) -> None:
        self.router = Router("tcp://127.0.0.1:*")
        self.peer = b""

    def vanish(self) -> None:
        """The watch over the connections goes first, or libzmq's thread would wait for its reader for ever."""
        self.router.connections.close()
        self.router.socket.close(0)

    def die(self) -> None:
        """And come back: nobody of before is known."""
        address = self.router.address
        self.vanish()
        self.peer = b""
        end = Deadline(SECONDS)
        while True:  # the old one closes its port in another thread
            try:
                self.router = Router(address)
            except OSError:
                assert not end.passed
            else:
                return

    def move(self) -> None:
        """Die, and come back elsewhere."""
        self.vanish()
        self.peer, self.router = b"", Router("tcp://127.0.0.1:*")

    def take(self, seconds: float = 0.0) -> Message | None:
        """The next message, whoever sent it."""
        received = self.router.receive(seconds)
        if received is None:
            return None
        self.peer, message = received
        assert not isinstance(message, protocol.line.Rejected)
        return message

    def say(self, *messages: Message) -> None:
        for message in messages:
            self.router.send(self.peer, message)


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Iterator[MortalBroker]:
    monkeypatch.setattr(protocol.line, "RETRY_SECONDS", 0.1)
    broker = MortalBroker()
    yield broker
    broker.vanish()


def joined(
    broker: MortalBroker, said: Welcome | None = None, standing: tuple[Message, ...] = (), broker_is: str = ""
) -> Line:
    """A line whose first Hello was answered."""

    def answer() -> None:
        while not isinstance(broker.take(SECONDS), Hello):
            pass
        broker.say(said or welcome())

    thread = Thread(target=answer)
    thread.start()
    where = broker_is or broker.router.address
    line = Line(where, HELLO, welcome_seconds=SECONDS, standing=lambda: standing)
    thread.join()
    return line


def pump(line: Line, broker: MortalBroker, true: Callable[[Message], bool]) -> list[Message]:
    """Let both work until the broker has heard what is waited for; all that it heard, heartbeats aside."""
    heard: list[Message] = []
    end = Deadline(SECONDS)
    while not end.passed:
        line.receive(0.01)
        line.tick(Heartbeat)
        while (message := broker.take()) is not None:
            if not isinstance(message, Heartbeat):
                heard.append(message)
            if true(message):
                return heard
    raise AssertionError(f"heard only {heard}")


def live(line: Line, meanwhile: Callable[[], None]) -> None:
    """Let the line work until it raises."""
    end = Deadline(SECONDS)
    while not end.passed:
        line.receive(0.01)
        line.tick(Heartbeat)
        meanwhile()


def failed(number: int) -> LeaseFailed:
    return LeaseFailed(lease_id=number, reason="r", detail="")


def test_a_hello_that_died_with_its_broker_is_said_again(broker: MortalBroker) -> None:
    def die_with_a_hello() -> None:
        assert isinstance(broker.take(SECONDS), Hello)
        broker.die()
        assert isinstance(broker.take(SECONDS), Hello)
        broker.say(welcome())

    thread = Thread(target=die_with_a_hello)
    thread.start()
    line = Line(broker.router.address, HELLO, welcome_seconds=SECONDS)
    thread.join()
    line.close()


def test_who_comes_too_late_is_told_how_the_run_ended(broker: MortalBroker) -> None:
    def answer() -> None:
        assert isinstance(broker.take(SECONDS), Hello)
        broker.say(Goodbye(reason="100 steps are done", finished=True))

    thread = Thread(target=answer)
    thread.start()
    with pytest.raises(Refused, match="is over: 100 steps are done"):
        Line(broker.router.address, HELLO, welcome_seconds=SECONDS)
    thread.join()


def test_an_absent_broker_is_waited_for_as_long_as_was_said_and_no_longer(broker: MortalBroker) -> None:
    broker.vanish()
    began = Deadline(SECONDS)
    with pytest.raises(PeerSilent, match=r"no broker answered at .* within 0\.3 s: check the address"):
        Line(broker.router.address, HELLO, welcome_seconds=0.3)
    assert SECONDS - began.remaining < 2


def test_what_was_not_acknowledged_is_said_again_in_order_and_then_what_stands(broker: MortalBroker) -> None:
    line = joined(broker, standing=(LeaseRequest(capacity=7),))
    for number in range(4):
        line.say_surely(failed(number))
    pump(line, broker, lambda message: message == replace(failed(3), seq=4))
    broker.say(Ack(seq=2))
    broker.die()
    pump(line, broker, lambda message: True)
    broker.say(WhoAreYou())
    pump(line, broker, lambda message: isinstance(message, Hello))
    line.say_surely(failed(4))  # it is kept until there is a Welcome
    line.say(LeaseRequest(capacity=6))  # and not overtaken meanwhile
    broker.say(welcome())
    heard = pump(line, broker, lambda message: isinstance(message, LeaseRequest))
    assert heard == [replace(failed(number), seq=number + 1) for number in (2, 3, 4)] + [LeaseRequest(capacity=7)]
    assert line.returns == 1
    line.close()


def test_a_broker_that_moved_is_followed_and_hears_what_the_old_one_did_not_acknowledge(
    broker: MortalBroker, tmp_path: Path
) -> None:
    file = tmp_path / "broker.json"
    file.write_text(json.dumps({"broker": broker.router.address}))
    standing = (LeaseRequest(capacity=7),)
    line = joined(broker, welcome(silence=0.2), standing, broker_is=f"file:{file}")
    line.say_surely(failed(1))
    pump(line, broker, lambda message: isinstance(message, LeaseFailed))
    broker.move()
    line.say_surely(failed(2))
    file.write_text(json.dumps({"broker": broker.router.address}))
    pump(line, broker, lambda message: isinstance(message, Hello))
    assert line.broker == broker.router.address
    broker.say(welcome())
    heard = pump(line, broker, lambda message: isinstance(message, LeaseRequest))
    assert [message for message in heard if not isinstance(message, Hello)] == [
        replace(failed(1), seq=1),
        replace(failed(2), seq=2),
        LeaseRequest(capacity=7),
    ]
    line.close()


def test_a_broker_that_moves_before_it_answers_is_followed_too(broker: MortalBroker, tmp_path: Path) -> None:
    file = tmp_path / "broker.json"
    file.write_text(json.dumps({"broker": broker.router.address}))

    def move_with_a_hello() -> None:
        assert isinstance(broker.take(SECONDS), Hello)
        broker.move()
        file.write_text(json.dumps({"broker": broker.router.address}))
        assert isinstance(broker.take(SECONDS), Hello)
        broker.say(welcome())

    thread = Thread(target=move_with_a_hello)
    thread.start()
    line = Line(f"file:{file}", HELLO, welcome_seconds=SECONDS)
    thread.join()
    line.close()


def test_while_the_file_is_gone_or_names_the_same_broker_the_line_stays_with_it(
    broker: MortalBroker, tmp_path: Path
) -> None:
    file = tmp_path / "broker.json"
    file.write_text(json.dumps({"broker": broker.router.address}))
    line = joined(broker, welcome(silence=0.1), broker_is=f"file:{file}")
    dealer = line.dealer
    for _ in range(2):
        end = Deadline(0.3)
        while not end.passed:
            line.tick(Heartbeat)
        assert (line.dealer, line.away) == (dealer, "the broker to come back")
        file.unlink(missing_ok=True)
    line.close()


@pytest.mark.parametrize("seed", range(3))
def test_whatever_dies_between_any_two_messages_everything_arrives_in_order(broker: MortalBroker, seed: int) -> None:
    """The broker takes in its journal what follows on what is there, acknowledges now and then, dies now and then."""
    chance = random.Random(seed)
    line = joined(broker)
    known, journal, said, deaths = True, 0, 0, 0
    end = Deadline(3 * SECONDS)
    while journal < 200 or line.unacknowledged:
        assert not end.passed, f"{journal} of {said} arrived"
        if said < 200 and chance.random() < 0.5:
            said += 1
            line.say_surely(failed(said))
        line.receive(0.001)
        line.tick(Heartbeat)
        while (message := broker.take()) is not None:
            if isinstance(message, Hello):
                known = True
                if chance.random() < 0.8:  # else it dies, or is slow, before it answers
                    broker.say(*[welcome()] * chance.randint(1, 2))
            elif not known:
                broker.say(WhoAreYou())
            elif isinstance(message, LeaseFailed):
                assert message.seq <= journal + 1, "a message was overtaken"
                assert message.lease_id == message.seq
                journal = max(journal, message.seq)
                if chance.random() < 0.5:
                    broker.say(Ack(seq=journal))
        if known and chance.random() < 0.01:
            broker.say(Ack(seq=journal), welcome())  # what it said last may arrive, or not
            broker.die()
            known, deaths = False, deaths + 1
        elif known and said == 200 and chance.random() < 0.1:
            broker.say(Ack(seq=journal))
    assert deaths
    assert journal == 200
    line.close()


def test_a_process_whose_name_another_has_taken_gives_up_in_bounded_time(
    broker: MortalBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol.line, "TAKEN_SECONDS", 0.5)
    line = joined(broker)
    broker.say(WhoAreYou())
    taken = Refusal(field="name", problem="'a' is taken by process 7", fatal=False)
    end = Deadline(SECONDS)
    with pytest.raises(Refused, match="'a' is taken by process 7"):
        live(line, lambda: broker.say(taken) if isinstance(broker.take(), Hello) else None)
    assert SECONDS - end.remaining < 5
    line.close()


def test_a_name_that_becomes_free_is_taken_again(broker: MortalBroker) -> None:
    line = joined(broker)
    broker.say(WhoAreYou())
    pump(line, broker, lambda message: isinstance(message, Hello))
    broker.say(Refusal(field="name", problem="is taken", fatal=False))
    pump(line, broker, lambda message: isinstance(message, Hello))
    broker.say(welcome())
    line.say_surely(failed(1))
    pump(line, broker, lambda message: isinstance(message, LeaseFailed))
    assert line.away == ""
    line.close()


def test_a_broker_that_comes_back_with_another_run_is_left(broker: MortalBroker) -> None:
    line = joined(broker)
    broker.say(welcome(name="another"))
    with pytest.raises(Refused, match="came back with another run, another"):
        pump(line, broker, lambda message: False)
    line.close()


def test_a_broker_that_does_not_come_back_is_an_error_in_the_time_that_it_named(broker: MortalBroker) -> None:
    line = joined(broker, welcome(silence=0.2, back=0.6))
    broker.vanish()
    waits = set()
    with pytest.raises(PeerSilent, match=r"was silent for 0\.6 s"):
        live(line, lambda: waits.add(line.away))
    assert waits == {"", "the broker to come back"}
    line.close()


def test_time_in_which_this_process_was_stopped_is_no_silence_of_the_broker(broker: MortalBroker) -> None:
    line = joined(broker, welcome(silence=0.2, back=0.6))
    time.sleep(1.0)
    line.tick(Heartbeat)
    pump(line, broker, lambda message: isinstance(message, Heartbeat))
    broker.vanish()
    with pytest.raises(PeerSilent, match=r"was silent for 0\.6 s"):
        live(line, lambda: time.sleep(0.15))  # slow, but not asleep
    line.close()


def test_the_end_of_the_run_ends_the_line(broker: MortalBroker) -> None:
    line = joined(broker)
    broker.say(Goodbye(reason="enough", finished=True))
    end = Deadline(SECONDS)
    while line.over is None and not end.passed:
        line.receive(0.01)
    assert line.over == Goodbye(reason="enough", finished=True)
    broker.say(Goodbye(reason="no disk", finished=False))
    with pytest.raises(ProtocolError, match="ended the run: no disk"):
        live(line, lambda: None)
    line.close()
