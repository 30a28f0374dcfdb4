"""The verifier's loop: take jobs, hand them to workers, send verdicts the moment they are there.

It sleeps on the broker's socket and the workers' sockets together, a moment at most. A check has a deadline, the
broker's silence has one; so nothing here waits for ever.
"""

import logging
from functools import singledispatchmethod

import zmq

from protocol.clock import Deadline, Ticker, now
from protocol.errors import PeerSilent, ProtocolError, Refused
from protocol.messages import (
    Goodbye,
    Heartbeat,
    Hello,
    Message,
    Refusal,
    Verdict,
    VerifyDone,
    VerifyJob,
    VerifyRequest,
    Welcome,
)
from protocol.sockets import Dealer, Rejected
from verifier import metrics
from verifier.pool import Pool, PoolBroken

log = logging.getLogger("verifier")

TURN_SECONDS = 0.05  # longest sleep between two looks at deadlines
MESSAGES_A_TURN = 1000  # taken at most before the workers are looked at


class Service:
    """One process's pool, joined to a broker."""

    def __init__(self, dealer: Dealer, pool: Pool, hello: Hello, *, capacity: int, welcome_seconds: float) -> None:
        self.capacity = capacity
        self.dealer = dealer
        self.pool = pool
        self.over = ""  # why the loop ends
        self.verdicts = 0
        welcome = self._join(hello, welcome_seconds)
        self.silence = Deadline(welcome.silence_seconds)
        self.heartbeat = Ticker(welcome.heartbeat_seconds / 2)  # twice as often as asked
        self._counted = (now(), 0)
        log.info("joined run %s", welcome.run.name)

    def _join(self, hello: Hello, seconds: float) -> Welcome:
        self.dealer.send(hello)
        answer = self.dealer.receive(seconds)
        address = self.dealer.peer.decode()
        if isinstance(answer, Welcome):
            return answer
        if isinstance(answer, Refusal):
            raise Refused(f"the broker at {address} refused this verifier: {answer.field}: {answer.problem}")
        if answer is None:
            raise PeerSilent(f"no broker answered at {address} within {seconds:g} s: check the address")
        raise ProtocolError(f"{address} answered Hello with {answer}: is it a broker?")

    def run(self) -> None:
        """Serve until the run is over or `stop`, and say goodbye. Raises `ProtocolError` or `PoolBroken`."""
        self.dealer.send(VerifyRequest(capacity=self.capacity))
        try:
            self._serve()
        except (ProtocolError, PoolBroken) as error:
            self.over = str(error)
            raise
        finally:
            log.info("leaving: %s", self.over)
            self.dealer.send(Goodbye(reason=self.over[:4096], finished=False))

    def _serve(self) -> None:
        while not self.over:
            self._sleep()
            self._drain()
            for job, verdict in self.pool.turn():
                self._send(job, verdict)
            if self.heartbeat.due():
                self.dealer.send(self._status())
            if self.silence.passed and not self.over:
                raise PeerSilent(f"the broker was silent for {self.silence.seconds:g} s")

    def stop(self, reason: str) -> None:
        """End after this turn; safe to call from a signal handler."""
        self.over = self.over or reason

    # ------------------------------------------------------------ in

    def _drain(self) -> None:
        for _ in range(MESSAGES_A_TURN):
            if (message := self.dealer.receive()) is None:
                return
            self.silence.renew()
            self._on(message)

    @singledispatchmethod
    def _on(self, message: Message | Rejected) -> None:
        metrics.messages_rejected.inc()
        log.warning("ignored: %s", message if isinstance(message, Rejected) else f"a {message.kind} from the broker")

    @_on.register
    def _(self, message: Heartbeat) -> None:
        """The broker lives."""

    @_on.register
    def _(self, message: VerifyJob) -> None:
        self.pool.add(message)

    @_on.register
    def _(self, message: Goodbye) -> None:
        if not message.finished:
            raise ProtocolError(f"the broker ended the run: {message.reason}")
        self.over = message.reason

    @_on.register
    def _(self, message: Refusal) -> None:
        if message.fatal:
            raise Refused(f"the broker refused this verifier: {message.field}: {message.problem}")
        log.warning("the broker refused a message: %s: %s", message.field, message.problem)

    # ------------------------------------------------------------ checks

    def _sleep(self) -> None:
        """Until the broker or a worker has something, or a deadline may have passed."""
        poller = zmq.Poller()
        poller.register(self.dealer.socket, zmq.POLLIN)
        for descriptor, unsent in self.pool.watched():
            poller.register(descriptor, zmq.POLLIN | (zmq.POLLOUT if unsent else 0))
        poller.poll(round(1e3 * TURN_SECONDS))

    def _send(self, job: VerifyJob, verdict: Verdict) -> None:
        self.dealer.send(VerifyDone(job_id=job.job_id, verdict=verdict))
        self.verdicts += 1
        metrics.verdicts.labels(outcome="void" if verdict.void else "reward").inc()
        if verdict.void:
            log.warning("job %d is void: %s", job.job_id, verdict.reason)

    def _status(self) -> Heartbeat:
        (then, before), self._counted = self._counted, (now(), self.verdicts)
        moment, verdicts = self._counted
        queued, running = self.pool.queued, self.pool.running
        metrics.jobs_queued.set(queued)
        metrics.jobs_running.set(running)
        return Heartbeat(
            waiting_for="" if queued or running else "rollouts to check",
            gauges={
                "verdicts": float(verdicts),
                "verdicts_per_second": round((verdicts - before) / max(moment - then, 1e-9), 1),
                "jobs_queued": float(queued),
                "jobs_running": float(running),
            },
        )
