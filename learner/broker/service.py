"""The broker's loop: one router, one stream, one thread.

It consumes messages of every role and never waits for any of them: each turn drains the socket, ends what is overdue,
hands out what may be handed out, and shows where things stand. What unblocks whom is `Stream.waiting_for`.
"""

import json
import logging
from functools import singledispatchmethod

from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from learner.broker.config import BrokerRoot
from learner.broker.http import StatusServer
from learner.broker.membership import Members, Peer
from learner.broker.metrics import BrokerCollector, registry
from learner.broker.retirement import Retirement
from learner.broker.stream import InvalidEvent, Stream, Tasks
from protocol.clock import Ticker, now
from protocol.messages import (
    BatchRequest,
    Consumed,
    Goodbye,
    GroupBatch,
    Heartbeat,
    Hello,
    LeaseFailed,
    LeaseRequest,
    Message,
    Refusal,
    Resume,
    RolloutDone,
    RunSpec,
    Sampling,
    VerifyDone,
    VerifyRequest,
    WeightManifest,
    Welcome,
)
from protocol.sockets import Rejected, Router

log = logging.getLogger("broker")

TURN_SECONDS = 0.05  # longest sleep between two looks at deadlines
MESSAGES_A_TURN = 1000  # drained at most before leases and jobs go out again

SHOWN_COUNTS = (
    "generated_tokens",
    "rollouts",
    "verdicts",
    "void_verdicts",
    "resample_limit_reached",
    "tasks_skipped",
)

ROLE_OF: dict[type, str] = {  # who may send what; the rest is open to all
    LeaseRequest: "actor",
    RolloutDone: "actor",
    LeaseFailed: "actor",
    VerifyRequest: "verifier",
    VerifyDone: "verifier",
    Resume: "learner",
    WeightManifest: "learner",
    BatchRequest: "learner",
    Consumed: "learner",
}


class Broker:
    """Connects `Stream` and `Members` to a socket. `run` returns when the run is over."""

    def __init__(self, config: BrokerRoot, tasks: Tasks, router: Router, http: StatusServer) -> None:
        self.config = config
        self.router = router
        self.http = http
        retirement = Retirement(config.task.retire_pass_rate, config.task.retire_after)
        self.stream = Stream(tasks, config.stream, config.run.seed, retirement)
        self.members = Members()
        self.spec = run_spec(config)
        self.manifest: WeightManifest | None = None
        self.batch_wanted: int | None = None  # the version for which the learner waits
        self.over: Goodbye | None = None
        self.collector = BrokerCollector(self.stream, self.members)
        self._registry = registry(self.collector)
        self._show = Ticker(config.stream.heartbeat_seconds)

    def run(self) -> Goodbye:
        """Serve until the learner has finished, the tasks have ended, or the run cannot go on."""
        while self.over is None:
            self._drain()
            self._end_overdue()
            self._check_progress()
            if self.over is None:
                self._grant_leases()
                self._assign_jobs()
                self._hand_out_batch()
            if self._show.due():
                self._publish_status()
        self.stream.close()
        for peer in self.members:
            self.router.send(peer.identity, self.over)
        log.info("run over: %s; groups dropped: %s", self.over.reason, dict(self.stream.dropped) or "none")
        return self.over

    def end(self, reason: str, *, finished: bool) -> None:
        """The run ends after this turn."""
        self.over = self.over or Goodbye(reason=reason, finished=finished)

    # ------------------------------------------------------------ in

    def _drain(self) -> None:
        timeout = TURN_SECONDS
        for _ in range(MESSAGES_A_TURN):
            received = self.router.receive(timeout)
            if received is None:
                return
            timeout = 0.0
            identity, message = received
            try:
                self._take(identity, message)
            except InvalidEvent as error:
                self._refuse(identity, error.field, error.problem, fatal=True)

    def _take(self, identity: bytes, message: Message | Rejected) -> None:
        peer = self.members.get(identity)
        if isinstance(message, Rejected):
            self._refuse(identity, message.field, message.problem, fatal=peer is None)
        elif isinstance(message, Hello):
            self._welcome(identity, message)
        elif peer is None:
            if not isinstance(message, Goodbye):
                self._refuse(identity, message.kind, "say Hello first: this process is not part of the run", fatal=True)
        else:
            peer.last_heard = now()
            if ROLE_OF.get(type(message), peer.hello.role) != peer.hello.role:
                raise InvalidEvent(message.kind, f"is not for the role {peer.hello.role} to send")
            self._on(message, peer)

    def _welcome(self, identity: bytes, hello: Hello) -> None:
        if objection := self.members.objection(hello):
            self._refuse(identity, "name", objection, fatal=True)
            return
        peer = self.members.join(identity, hello, now())
        self.router.send(
            identity,
            Welcome(
                run=self.spec,
                policy_version=self.stream.version,
                heartbeat_seconds=self.config.stream.heartbeat_seconds,
                silence_seconds=self.config.stream.silence_seconds,
            ),
        )
        if hello.role == "actor" and self.manifest:
            self.router.send(identity, self.manifest)
        log.info("%s joined: process %d on %s", peer.name, hello.pid, hello.host)

    @singledispatchmethod
    def _on(self, message: Message, peer: Peer) -> None:
        raise InvalidEvent(message.kind, "is sent by the broker, not to it")

    @_on.register
    def _(self, message: Heartbeat, peer: Peer) -> None:
        peer.heartbeat = message
        self.router.send(peer.identity, Heartbeat(policy_version=self.stream.version))

    @_on.register
    def _(self, message: LeaseRequest, peer: Peer) -> None:
        peer.capacity = message.capacity

    @_on.register
    def _(self, message: VerifyRequest, peer: Peer) -> None:
        peer.capacity = message.capacity

    @_on.register
    def _(self, message: RolloutDone, peer: Peer) -> None:
        self.stream.rollout_done(message)

    @_on.register
    def _(self, message: LeaseFailed, peer: Peer) -> None:
        log.warning("%s cannot fulfil lease %d: %s (%s)", peer.name, message.lease_id, message.reason, message.detail)
        self.stream.lease_failed(message)

    @_on.register
    def _(self, message: VerifyDone, peer: Peer) -> None:
        peer.last_delivery = now()
        if message.verdict.void:
            log.warning("%s could not judge job %d: %s", peer.name, message.job_id, message.verdict.reason)
        self.stream.verify_done(message)

    @_on.register
    def _(self, message: Resume, peer: Peer) -> None:
        self.stream.resume(message.policy_version, message.consumed)
        log.info("the run goes on at step %d, %d groups are trained", message.policy_version, self.stream.granted)

    @_on.register
    def _(self, message: WeightManifest, peer: Peer) -> None:
        self.stream.published(message.version, message.fingerprint)
        self.manifest = message
        for actor in self.members.of("actor"):
            self.router.send(actor.identity, message)

    @_on.register
    def _(self, message: BatchRequest, peer: Peer) -> None:
        if message.policy_version != self.stream.version:
            problem = f"asks for the batch of {message.policy_version}, the stream stands at {self.stream.version}"
            raise InvalidEvent("policy_version", problem)
        self.batch_wanted = message.policy_version

    @_on.register
    def _(self, message: Consumed, peer: Peer) -> None:
        self.stream.consumed(message.policy_version, message.group_ids)

    @_on.register
    def _(self, message: Goodbye, peer: Peer) -> None:
        self._lose(peer, f"left: {message.reason}")
        if peer.hello.role == "learner":
            self.end(message.reason, finished=message.finished)

    def _refuse(self, identity: bytes, field: str, problem: str, *, fatal: bool) -> None:
        self.collector.rejected_messages += 1
        peer = self.members.get(identity)
        log.warning("refused a message of %s: %s: %s", peer.name if peer else identity.hex(), field, problem)
        self.router.send(identity, Refusal(field=field[:256], problem=problem[:4096], fatal=fatal))
        if peer and fatal:
            self._lose(peer, "was refused")

    # ------------------------------------------------------------ deadlines

    def _end_overdue(self) -> None:
        moment, stream = now(), self.config.stream
        for lease in self.stream.overdue(moment):
            log.warning(
                "lease %d of %s took over %.0f s; %d samples go back to the stream",
                *(lease.lease_id, lease.actor, stream.lease_seconds, len(lease.samples)),
            )
        for peer in self.members.silent(moment, stream.silence_seconds):
            self._lose(peer, f"was silent for {stream.silence_seconds:.0f} s")
            if peer.hello.role == "learner":
                self.end(f"the learner {peer.name} was silent for {stream.silence_seconds:.0f} s", finished=False)
        for peer in self.members.of("verifier"):
            if not self.stream.jobs_held(peer.name):
                peer.last_delivery = moment
            elif moment - peer.last_delivery > stream.verify_seconds + stream.silence_seconds:
                self._refuse(peer.identity, "verdicts", "none came in time; its jobs go to others", fatal=True)

    def _lose(self, peer: Peer, why: str) -> None:
        self.members.leave(peer.identity)
        leases = self.stream.actor_lost(peer.name)
        jobs = self.stream.verifier_lost(peer.name)
        log.info("%s %s; %d leases and %d jobs go to others", peer.name, why, len(leases), len(jobs))

    def _check_progress(self) -> None:
        if self.stream.drops_in_a_row >= self.config.stream.drops_in_a_row:
            reasons = ", ".join(f"{reason} {count}" for reason, count in self.stream.dropped.items())
            self.end(f"{self.stream.drops_in_a_row} groups in a row were dropped ({reasons})", finished=False)
        elif self.stream.dry:
            self.end(self.stream.exhausted, finished=True)

    # ------------------------------------------------------------ out

    def _grant_leases(self) -> None:
        """A group at a time to the actor with most room, so that all are equally loaded."""
        while any(self._grant_lease(peer) for peer in sorted(self.members.of("actor"), key=self._room, reverse=True)):
            pass

    def _room(self, actor: Peer) -> int:
        return actor.capacity - self.stream.samples_held(actor.name)

    def _grant_lease(self, actor: Peer) -> bool:
        lease = self.stream.grant(actor.name, actor.capacity, now())
        if lease is not None:
            self.router.send(actor.identity, lease)
        return lease is not None

    def _assign_jobs(self) -> None:
        verifiers = [peer for peer in self.members.of("verifier") if peer.capacity]
        while verifiers and self.stream.verify_queued:
            peer = min(verifiers, key=lambda verifier: self.stream.jobs_held(verifier.name))
            job = self.stream.assign(peer.name, peer.capacity)
            if job is None:
                return
            self.router.send(peer.identity, job)

    def _hand_out_batch(self) -> None:
        learner = self.members.learner
        if learner is None or self.batch_wanted is None:
            return
        groups = self.stream.batch(self.batch_wanted)
        if groups is None:
            return
        stats = self.stream.stats(actors=len(self.members.of("actor")), verifiers=len(self.members.of("verifier")))
        self.router.send(learner.identity, GroupBatch(policy_version=self.batch_wanted, groups=groups, stats=stats))
        self.batch_wanted = None

    # ------------------------------------------------------------ shown

    def _publish_status(self) -> None:
        self.http.show("/status", "application/json", json.dumps(self._status()).encode())
        self.http.show("/targets", "application/json", json.dumps(self._targets()).encode())
        self.http.show("/metrics", CONTENT_TYPE_LATEST, generate_latest(self._registry))

    def _status(self) -> dict[str, object]:
        stream, moment = self.stream, now()
        return {
            "run": self.spec.name,
            "policy_version": stream.version,
            "waiting_for": self._waiting_for(),
            "peers": [
                {
                    "name": peer.name,
                    "role": peer.hello.role,
                    "host": peer.hello.host,
                    "pid": peer.hello.pid,
                    "metrics_port": peer.hello.metrics_port,
                    "waiting_for": peer.heartbeat.waiting_for,
                    "policy_version": peer.heartbeat.policy_version,
                    "gauges": peer.heartbeat.gauges,
                    "silent_seconds": round(moment - peer.last_heard, 3),
                }
                for peer in self.members
            ],
            "stream": {
                "leases_running": len(stream.leases),
                "groups_granted": stream.granted,
                "groups_accepted": stream.consumed_groups + stream.ready,
                "groups_trained": stream.consumed_groups,
                "groups_ready": stream.ready,
                "groups_dropped": dict(stream.dropped),
                "admission_limit": stream.admission_limit,
                "verify_queued": stream.verify_queued,
                "verify_running": len(stream.jobs),
                "tasks_retired": len(stream.retirement.retired),
                **{name: stream.counts[name] for name in SHOWN_COUNTS},
            },
        }

    def _waiting_for(self) -> str:
        missing = [role for role in ("learner", "actor", "verifier") if not self.members.of(role)]
        return f"a first {' and a first '.join(missing)} to join" if missing else self.stream.waiting_for

    def _targets(self) -> list[dict[str, object]]:
        """Prometheus HTTP service discovery: every live process, this one included."""
        own: dict[str, object] = {
            "targets": [self.http.address.removeprefix("http://")],
            "labels": _labels("broker", "broker", self.spec),
        }
        others: list[dict[str, object]] = [
            {
                "targets": [f"{peer.hello.host}:{peer.hello.metrics_port}"],
                "labels": _labels(peer.hello.role, peer.name, self.spec),
            }
            for peer in self.members
            if peer.hello.metrics_port
        ]
        return [own, *others]


def _labels(role: str, name: str, spec: RunSpec) -> dict[str, str]:
    return {"job": role, "process": name, "run": spec.name}


def run_spec(config: BrokerRoot) -> RunSpec:
    """What every role is told when it joins."""
    sampling = config.sampling
    return RunSpec(
        name=config.run.name,
        model=config.model,
        seed=config.run.seed,
        group_size=config.stream.group_size,
        groups_per_step=config.stream.groups_per_step,
        max_staleness=config.stream.max_staleness,
        sampling=Sampling(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=sampling.max_tokens,
            stop=tuple(sampling.stop),
        ),
    )
