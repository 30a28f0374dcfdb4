"""The actor's loop: one thread that drains the socket, swaps weights, begins leases, steps the engine, sends rollouts.

It waits only when the engine has nothing to do, in `_wait`: for the broker's leases and manifests and the weight
server's shards, until the next heartbeat at most. So new weights are swapped exactly between two decode steps, and
nothing here can wait for ever: the broker's silence and an unfinished version have deadlines of their own.
"""

import logging
from collections import deque

import zmq

from actors import metrics
from actors.link import Link
from actors.requests import Engine, Finished
from actors.sampling import Leases
from actors.weights.fetched import FetchedVersion
from actors.weights.receiver import WeightReceiver
from protocol.clock import Deadline, Ticker, now
from protocol.messages import Goodbye, Heartbeat, Lease, LeaseRequest, RolloutDone

log = logging.getLogger("actor")

WAIT_SECONDS = 0.2  # longest sleep of an idle actor: it sees a stop that soon
RATE_SECONDS = 1.0  # interval over which tokens per second are counted


class Actor:
    """Samples what the broker leases, with the newest weights that have arrived."""

    def __init__(self, link: Link, engine: Engine, weights: WeightReceiver, *, room: int, drain_seconds: float) -> None:
        self.link = link
        self.engine = engine
        self.weights = weights
        self.room = room
        self.leases = Leases(engine)
        link.standing = lambda: [LeaseRequest(capacity=self._capacity)]
        link.holds = self._holds
        self.stopped_because = ""
        self.draining_because = ""
        self._told_to_drain = False
        self._drained_by = Deadline(drain_seconds)
        self._tokens_per_second = 0.0
        self._counted = (now(), engine.generated_tokens)
        self._rate = Ticker(RATE_SECONDS)

    def run(self) -> Goodbye | None:
        """Work until the broker says that the run is over (its goodbye), or until `stop` (None).

        Raises `ProtocolError` for a broker or a weight server that fails, `EngineFailure` for an engine that does.
        """
        while not self._done and self.link.line.over is None:
            self._drain()
            self._swap_weights()
            self._begin_leases()
            self._send(self._step())
            self._abort_overdue()
            self._measure()
            if not self._busy:
                self._wait()
        return self.link.line.over

    def stop(self, reason: str) -> None:
        """End after this turn; safe to call from a signal handler."""
        self.stopped_because = reason

    def drain(self, reason: str) -> None:
        """Take nothing new, finish what has begun, end; asked twice, or too late, `stop`. For a signal handler too."""
        if self.draining_because:
            self.stop(reason)
            return
        self._drained_by.renew()
        self.draining_because = reason

    @property
    def _done(self) -> bool:
        """Whether it was stopped, or has drained: nothing is sampled and everything has arrived."""
        if self.draining_because and not self.stopped_because:
            if not self._told_to_drain:
                self._told_to_drain = True
                self.link.line.say(LeaseRequest(capacity=0))
            if self._drained_by.passed or not (self._busy or self.link.line.unacknowledged):
                self.stop(self.draining_because)
        return bool(self.stopped_because)

    # ------------------------------------------------------------ in

    def _drain(self) -> None:
        self.link.pump(self._status)
        orders, self.link.orders = self.link.orders, deque()
        for order in orders:
            if isinstance(order, Lease):
                self.leases.take(order)
            else:
                self.weights.offer(order)

    def _swap_weights(self) -> None:
        if (fetched := self.weights.receive()) is not None:
            self._load(fetched)

    def _load(self, fetched: FetchedVersion) -> None:
        first, begun = self.engine.version is None, now()
        manifest = fetched.manifest
        self.engine.load(manifest.version, manifest.fingerprint, fetched.tensors())
        pause = now() - begun
        metrics.weight_swap_seconds.observe(pause)
        self.weights.loaded(fetched, pause)
        metrics.policy_version.set(manifest.version)
        log.info("version %d loaded in %.0f ms", manifest.version, 1e3 * pause)
        if first:
            self.link.line.say(LeaseRequest(capacity=self._capacity))

    def _holds(self) -> tuple[int, ...]:
        """The leases that it works on, and those whose rollouts may not have arrived."""
        sent = {each.lease_id for each in self.link.line.unacknowledged if isinstance(each, RolloutDone)}
        return tuple(sorted(sent.union(self.leases.held)))

    @property
    def _capacity(self) -> int:
        """Rollouts that it will take: none before it holds weights, none any more when it drains."""
        return 0 if self.engine.version is None or self.draining_because else self.room

    # ------------------------------------------------------------ sampling

    def _begin_leases(self) -> None:
        for failed in self.leases.begin():
            metrics.leases_failed.labels(failed.reason).inc()
            log.warning("lease %d cannot be fulfilled: %s: %s", failed.lease_id, failed.reason, failed.detail)
            self.link.line.say_surely(failed)

    @property
    def _busy(self) -> bool:
        return self.engine.running + self.engine.waiting > 0

    def _step(self) -> list[Finished]:
        if not self._busy:
            return []
        with metrics.step_seconds.time():
            return self.engine.step()

    def _send(self, finished: list[Finished]) -> None:
        for completion in finished:
            message = self.leases.done(completion)
            self.link.line.say_surely(message)
            metrics.rollouts.labels(completion.finish_reason).inc()
            metrics.rollout_tokens.observe(len(completion.token_ids))
            if message.rollout.mixed_version:
                metrics.mixed_version_rollouts.inc()

    def _abort_overdue(self) -> None:
        for lease in self.leases.overdue():
            metrics.leases_overdue.inc()
            log.warning("lease %d took over %.0f s: aborted", lease.lease_id, lease.deadline_seconds)

    # ------------------------------------------------------------ waiting and telling

    def _wait(self) -> None:
        poller = zmq.Poller()
        for source in (self.link.line.dealer.socket, self.weights.socket):
            if source is not None:
                poller.register(source, zmq.POLLIN)
        begun = now()
        poller.poll(round(1e3 * min(WAIT_SECONDS, self.link.line.heartbeat_seconds)))
        metrics.idle_seconds.inc(now() - begun)

    def _measure(self) -> None:
        if not self._rate.due():
            return
        (then, before), self._counted = self._counted, (now(), self.engine.generated_tokens)
        moment, tokens = self._counted
        self._tokens_per_second = (tokens - before) / max(moment - then, 1e-9)
        metrics.generated_tokens.inc(tokens - before)
        metrics.running_rollouts.set(self.engine.running)
        metrics.waiting_rollouts.set(self.engine.waiting)
        metrics.kv_used.set(self.engine.kv_used)

    def _status(self) -> Heartbeat:
        return Heartbeat(
            waiting_for=self._waiting_for(),
            policy_version=self.engine.version or 0,
            gauges={
                "tokens_per_second": round(self._tokens_per_second, 1),
                "running": float(self.engine.running),
                "waiting": float(self.engine.waiting),
                "kv_used": round(self.engine.kv_used, 4),
            },
        )

    def _waiting_for(self) -> str:
        if self._busy:
            return ""
        if away := self.link.line.away:
            return away
        if self.engine.version is None:
            return self.weights.progress or "the learner to publish its first weights"
        if (early := self.leases.early) is not None:
            return self.weights.progress or f"weights of version {early}"
        return "leases"
