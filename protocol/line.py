"""A role's line to the broker: it joins, keeps the heartbeat, comes back after a break, and loses nothing on the way.

    Hello ─► Welcome ─► … ─► (broker gone) ─► anything sent ─► WhoAreYou ─► Hello ─► Welcome ─► what was not
                                                                             acknowledged, then what stands

The broker may die and come back on the same address, or take this process for dead and hear of it again: both times it
does not know the connection, says so, and the line joins anew under the same session. It joins anew as well when a
silent broker turns out to have moved, for those that find it by a file (`address`). `say` is for what may be lost,
`say_surely` for what must arrive; what stands (capacity, an open request) is said again after every Welcome. Nothing
here waits but `__init__`, for the first Welcome. A broker that is silent for `Welcome.return_seconds` is gone.
"""

import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import singledispatchmethod

from protocol import address, security
from protocol.clock import Deadline, Ticker, now
from protocol.errors import PeerSilent, ProtocolError, Refused
from protocol.messages import Ack, Goodbye, Heartbeat, Hello, Message, Refusal, Sure, Welcome, WhoAreYou
from protocol.outbox import Outbox
from protocol.sockets import Dealer, Rejected

log = logging.getLogger("line")

RETRY_SECONDS = 1.0  # between two Hellos
TAKEN_SECONDS = 15.0  # a name stays taken for so long at most after its holder died


def _nothing() -> tuple[()]:
    return ()


class Line:
    """Connection of one process to one broker. `over` is the broker's Goodbye once the run has ended well.

    `broker` is its address, or the file that says it. `standing` gives what is said after every Welcome, `holds` the
    leases that this process still works on.
    """

    def __init__(
        self,
        broker: str,
        hello: Hello,
        *,
        welcome_seconds: float,
        standing: Callable[[], Iterable[Message]] = _nothing,
        holds: Callable[[], tuple[int, ...]] = _nothing,
    ) -> None:
        self._where = broker
        self.broker = address.awaited(broker, welcome_seconds)
        self.dealer = Dealer(self.broker)
        self.standing = standing
        self.holds = holds
        self.over: Goodbye | None = None
        self.returns = 0  # times that it joined anew
        self._hello = hello
        self._outbox = Outbox()
        self._retry = Ticker(RETRY_SECONDS)
        try:
            self.welcome = self._join(welcome_seconds)
        except ProtocolError:
            self.dealer.socket.close(0)  # what nobody takes is not waited for
            raise
        self._joined = True
        self._silent = Deadline(self.welcome.silence_seconds)
        self._lost = Deadline(self.welcome.return_seconds)
        self._ticked = now()
        self._warned = False
        self._taken: Deadline | None = None  # while another process has the name
        self._heartbeat = Ticker(self.welcome.heartbeat_seconds / 2)  # twice as often as asked: turns take time too

    # ------------------------------------------------------------ out

    def say(self, message: Message) -> None:
        """Send what may be lost with the broker: while it is away, and nothing then overtakes what waits for it."""
        if self._joined or isinstance(message, Goodbye):
            self.dealer.send(message)

    def say_surely(self, message: Sure) -> None:
        """Send what must arrive: again, if need be, until it is acknowledged."""
        numbered = self._outbox.add(message)
        if self._joined:
            self.dealer.send(numbered)

    @property
    def unacknowledged(self) -> tuple[Sure, ...]:
        """Messages that must arrive and may not have, oldest first."""
        return tuple(self._outbox)

    @property
    def heartbeat_seconds(self) -> float:
        """Between two heartbeats."""
        return self._heartbeat.interval

    def leave(self, reason: str, *, finished: bool = False) -> None:
        """Say goodbye."""
        self.say(Goodbye(reason=reason[:4096], finished=finished))

    def close(self) -> None:
        """Close the socket; what was sent last still leaves."""
        self.dealer.close()

    # ------------------------------------------------------------ in

    def receive(self, timeout: float = 0.0) -> Message | Rejected | None:
        """The next message for the role itself, or None after `timeout` seconds.

        Raises `Refused` when the broker does not want this process, `ProtocolError` when it ends the run early.
        """
        while (message := self.dealer.receive(timeout)) is not None:
            self._heard()
            if not self._take(message):
                return message
            timeout = 0.0
        return None

    def tick(self, status: Callable[[], Heartbeat]) -> None:
        """Send `status` when it is time. Raises `PeerSilent` when the broker has been gone for too long."""
        if self.over is not None:
            return
        self._leave_out_sleep()
        if self._lost.passed:
            raise PeerSilent(f"the broker at {self.broker} was silent for {self._lost.seconds:g} s")
        if self._silent.passed and not self._warned:
            self._warned = True
            wait = self._lost.remaining
            log.warning("the broker at %s is silent: %.0f s more are left for it to come back", self.broker, wait)
        if (self._warned or not self._joined) and self._retry.due() and (self._follow() or not self._joined):
            self._greet()
        if self._heartbeat.due():
            self.say(status())

    def _leave_out_sleep(self) -> None:
        """A process that was stopped for long did not listen meanwhile: that is no silence of the broker."""
        slept, self._ticked = now() - self._ticked, now()
        if (much := slept - self.welcome.silence_seconds / 2) > 0:
            self._silent.extend(much)
            self._lost.extend(much)

    @property
    def away(self) -> str:
        """What the line waits for, in words, while the broker is gone; empty while it is there."""
        return "the broker to come back" if self._warned or not self._joined else ""

    def _heard(self) -> None:
        self._silent.renew()
        self._lost.renew()
        self._warned = False

    @singledispatchmethod
    def _take(self, message: Message | Rejected) -> bool:
        """Whether `message` was for the line."""
        return False

    @_take.register
    def _(self, message: Heartbeat) -> bool:
        return True

    @_take.register
    def _(self, message: Ack) -> bool:
        self._outbox.acknowledged(message.seq)
        return True

    @_take.register
    def _(self, message: WhoAreYou) -> bool:
        if self._joined or self._retry.due():
            log.info("the broker at %s does not know this process any more: joining again", self.broker)
            self._joined = False
            self._greet()
        return True

    @_take.register
    def _(self, message: Welcome) -> bool:
        if message.run != self.welcome.run:
            raise Refused(f"the broker at {self.broker} came back with another run, {message.run.name}")
        if not self._joined:
            self._joined, self._taken = True, None
            self.returns += 1
            for kept in self._outbox:
                self.dealer.send(kept)
            for standing in self.standing():
                self.dealer.send(standing)
        return True

    @_take.register
    def _(self, message: Goodbye) -> bool:
        if not message.finished:
            raise ProtocolError(f"the broker ended the run: {message.reason}")
        self.over = message
        return True

    @_take.register
    def _(self, message: Refusal) -> bool:
        if not self._joined and self._taken is None:
            self._taken = Deadline(TAKEN_SECONDS)
        if message.fatal or (self._taken and self._taken.passed):
            raise Refused(f"the broker refused this {self._hello.role}: {message.field}: {message.problem}")
        log.warning("the broker refused a message: %s: %s", message.field, message.problem)
        return True

    # ------------------------------------------------------------ joining

    def _follow(self) -> bool:
        """Turn to where the broker listens now, if a file says that it has moved; whether it has.

        Nobody there knows this process yet: it joins anew, and then re-sends what was not acknowledged.
        """
        moved = address.current(self._where)
        if not moved or moved == self.broker:
            return False
        log.info("the broker has moved from %s to %s: following it", self.broker, moved)
        dealer = Dealer(moved)
        self.dealer.socket.close(0)  # what nobody took is said again
        self.dealer, self.broker, self._joined = dealer, moved, False
        return True

    def _greet(self) -> None:
        self._retry.due()
        self.dealer.send(replace(self._hello, holds=self.holds()))

    def _join(self, seconds: float) -> Welcome:
        """Say Hello until there is a Welcome: a broker may die with a Hello that it has read.

        Raises `Refused`, or `PeerSilent` when nobody answers in `seconds`.
        """
        role, silence, taken = self._hello.role, Deadline(seconds), Deadline(TAKEN_SECONDS)
        asked = False
        while not silence.passed:
            self._follow()
            try:
                self._greet()
                answer = self.dealer.receive(min(RETRY_SECONDS, silence.remaining))
            except PeerSilent as error:
                raise Refused(self._mismatch() or str(error)) from None
            if isinstance(answer, Welcome):
                return answer
            if answer is None:
                if not asked and (why := self._mismatch()):
                    raise Refused(why)
                asked = True
                continue
            if isinstance(answer, Goodbye):
                raise Refused(f"the run at {self.broker} is over: {answer.reason}")
            if not isinstance(answer, Refusal | WhoAreYou):
                raise ProtocolError(f"{self.broker} answered Hello with {answer}: is it a broker?")
            if isinstance(answer, Refusal) and (answer.fatal or taken.passed):
                raise Refused(f"the broker at {self.broker} refused this {role}: {answer.field}: {answer.problem}")
            self.dealer.readable(RETRY_SECONDS)
        raise PeerSilent(
            f"no broker answered at {self.broker} within {seconds:g} s: check the address, and that the broker runs"
        )

    def _mismatch(self) -> str:
        """Why the broker and this process cannot even speak to each other, in words; empty if they can."""
        why = security.mismatch(self.broker, security.in_use(), "broker")
        return f"{self.broker}: {why}" if why else ""
