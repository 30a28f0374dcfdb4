"""The verifier's loop: take jobs, hand them to workers, send verdicts the moment they are there.

It sleeps on the broker's socket and the workers' sockets together, a moment at most. A check has a deadline, the
broker's silence has one; so nothing here waits for ever.
"""

import logging

import zmq

from protocol.clock import Deadline, now
from protocol.errors import ProtocolError
from protocol.line import Line
from protocol.messages import Heartbeat, Hello, Verdict, VerifyDone, VerifyJob, VerifyRequest
from verifier import metrics
from verifier.pool import Pool, PoolBroken

log = logging.getLogger("verifier")

TURN_SECONDS = 0.05  # longest sleep between two looks at deadlines
MESSAGES_A_TURN = 1000  # taken at most before the workers are looked at


class Service:
    """One process's pool, joined to a broker."""

    def __init__(
        self, broker: str, pool: Pool, hello: Hello, *, capacity: int, welcome_seconds: float, drain_seconds: float
    ) -> None:
        self.capacity = capacity
        self.pool = pool
        self.over = ""  # why the loop ends
        self.verdicts = 0
        self.draining_because = ""
        self._told_to_drain = False
        self._drained_by = Deadline(drain_seconds)
        self.line = Line(
            broker, hello, welcome_seconds=welcome_seconds, standing=lambda: [VerifyRequest(capacity=self.capacity)]
        )
        self.pool.answer_within(self.line.welcome.silence_seconds)
        self._counted = (now(), 0)
        log.info("joined run %s", self.line.welcome.run.name)

    def run(self) -> None:
        """Serve until the run is over or `stop`, and say goodbye. Raises `ProtocolError` or `PoolBroken`."""
        self.line.say(VerifyRequest(capacity=self.capacity))
        try:
            self._serve()
        except (ProtocolError, PoolBroken) as error:
            self.over = str(error)
            raise
        finally:
            log.info("leaving: %s", self.over)
            self.line.leave(self.over)
            self.line.close()

    def _serve(self) -> None:
        while not self.over:
            self._sleep()
            self._drain()
            for job, verdict in self.pool.turn():
                self._send(job, verdict)
            self.line.tick(self._status)
            self._finish()

    def stop(self, reason: str) -> None:
        """End after this turn; safe to call from a signal handler."""
        self.over = self.over or reason

    def drain(self, reason: str) -> None:
        """Take nothing new, finish what it has, end; asked twice, or too late, `stop`. For a signal handler too.

        What is not finished then goes to others: the broker still counts it as held here when this one leaves.
        """
        if self.draining_because:
            self.stop(reason)
            return
        self._drained_by.renew()
        self.capacity = 0
        self.draining_because = reason

    def _finish(self) -> None:
        """While it drains: end once everything is judged and has arrived, or the time is up."""
        if not self.draining_because:
            return
        left = self.pool.queued + self.pool.running
        if not self._told_to_drain:
            self._told_to_drain = True
            log.info("%s: finishing %d jobs", self.draining_because, left)
            self.line.say(VerifyRequest(capacity=0))
        if self._drained_by.passed:
            self.stop(f"{self.draining_because}; {left} jobs were not finished after {self._drained_by.seconds:g} s")
        elif not (left or self.line.unacknowledged):
            self.stop(self.draining_because)

    # ------------------------------------------------------------ in

    def _drain(self) -> None:
        for _ in range(MESSAGES_A_TURN):
            if (message := self.line.receive()) is None:
                break
            if isinstance(message, VerifyJob):
                if not self.draining_because:  # else it was on its way, and goes to others
                    self.pool.add(message)
            else:
                metrics.messages_rejected.inc()
                log.warning("ignored: %s", message)
        if self.line.over is not None:
            self.stop(self.line.over.reason)

    # ------------------------------------------------------------ checks

    def _sleep(self) -> None:
        """Until the broker or a worker has something, or a deadline may have passed."""
        poller = zmq.Poller()
        poller.register(self.line.dealer.socket, zmq.POLLIN)
        for descriptor, unsent in self.pool.watched():
            poller.register(descriptor, zmq.POLLIN | (zmq.POLLOUT if unsent else 0))
        poller.poll(round(1e3 * TURN_SECONDS))

    def _send(self, job: VerifyJob, verdict: Verdict) -> None:
        self.line.say_surely(
            VerifyDone(job_id=job.job_id, group_id=job.group_id, sample_index=job.sample_index, verdict=verdict)
        )
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
            waiting_for="" if queued or running else self.line.away or "rollouts to check",
            gauges={
                "verdicts": float(verdicts),
                "verdicts_per_second": round((verdicts - before) / max(moment - then, 1e-9), 1),
                "jobs_queued": float(queued),
                "jobs_running": float(running),
            },
        )
