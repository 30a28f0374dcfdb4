"""The broker's loop: one router, one stream, one journal, one thread.

It consumes messages of every role and never waits for any of them: each turn drains the socket, ends what is overdue,
hands out what may be handed out, writes the turn to the journal, and only then sends what the turn had to say. So no
peer ever knows more than the journal, and a broker that dies and comes back goes on where its peers think that it is.
What unblocks whom is `Stream.waiting_for`.
"""

import json
import logging
from collections import deque
from functools import singledispatchmethod

from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from learner.broker.changes import Saved
from learner.broker.config import BrokerRoot
from learner.broker.cursor import Tasks
from learner.broker.errors import InvalidEvent
from learner.broker.http import StatusServer
from learner.broker.journal import Journal, JournalDamaged, JournalFailed
from learner.broker.membership import Members, Peer
from learner.broker.metrics import BrokerCollector, registry
from learner.broker.quiet import LAST_WORD
from learner.broker.rates import Bucket, Strangers, weight
from learner.broker.retirement import Retirement
from learner.broker.shares import Shares
from learner.broker.sizes import largest
from learner.broker.status import status, targets
from learner.broker.stream import Stream
from protocol.clock import Deadline, Ticker, now, pause
from protocol.messages import (
    Ack,
    BatchRequest,
    Checkpointed,
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
    Verdict,
    VerifyDone,
    VerifyRequest,
    WeightManifest,
    Welcome,
    WhoAreYou,
)
from protocol.sockets import Letter, Rejected, Router

log = logging.getLogger("broker")

TURN_SECONDS = 0.05  # longest sleep between two looks at deadlines
LOOK_SECONDS = 0.2  # between two looks at who is silent or overdue
WARNINGS_PER_SECOND = 5.0  # about messages that could not be taken; metrics count all
BURST_SECONDS = 10.0  # of messages that may come at once
TOLD_SECONDS = 2.0  # after which one that was refused for good, or floods, is cut off
HELD_UP_SECONDS = 1.0  # between two looks: then it was the broker that did not listen
RETRY_SECONDS = 1.0  # between two attempts to write a journal that could not be written
TAKEN_HEARTBEATS = 3  # a name is taken while its holder was heard of within so many
GATHER_HEARTBEATS = 3  # after which every peer that lives has noticed that the broker came back
MESSAGES_A_TURN = 1000  # drained at most before leases and jobs go out again
TOLD_A_TURN = 100  # actors that hear of new weights before the broker listens again
MANY_MESSAGES = 8  # at once: others are on their way
GATHER_SECONDS = 0.005  # for which a turn waits for them

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
    Checkpointed: "learner",
}


class Broker:
    """Connects `Stream` and `Members` to a socket. `run` returns when the run is over."""

    def __init__(self, config: BrokerRoot, tasks: Tasks, router: Router, http: StatusServer, journal: Journal) -> None:
        self.config = config
        self.router = router
        self.http = http
        self.journal = journal
        retirement = Retirement(config.task.retire_pass_rate, config.task.retire_after)
        self.stream = Stream(tasks, config.stream, config.run.seed, retirement)
        self.members = Members()
        self.shares = Shares(self.stream, self.members)
        self.spec = run_spec(config)
        self.manifest: WeightManifest | None = None
        self._untold: deque[bytes] = deque()  # actors that do not know of it yet
        self.batch_wanted: int | None = None  # the version for which the learner waits
        self.over: Goodbye | None = None
        self.collector = BrokerCollector(self.stream, self.members, journal, router.connections)
        self._registry = registry(self.collector)
        self._show = Ticker(config.stream.heartbeat_seconds)
        self._look = Ticker(LOOK_SECONDS)
        self._strangers = Strangers(config.stream.strangers_per_second, BURST_SECONDS)
        self._largest = largest(config.sampling.max_tokens)
        self._warnings = Bucket(WARNINGS_PER_SECOND, BURST_SECONDS)
        self._received: dict[bytes, int] = {}  # the last `seq` of each peer in this turn
        self._looked = now()
        self._outgoing: list[tuple[bytes, Message]] = []  # what this turn says once it is in the journal
        self._unwritten = ""  # why the journal cannot be written, in words
        self._no_learner = ""  # why there is none, in words, and until when that may be
        self._learner_back = Deadline(config.stream.return_seconds)
        self._consumed_by = Deadline(config.stream.consume_seconds)
        self._come_back()

    def _come_back(self) -> None:
        """Go on from the journal, if a broker of this run died before."""
        self._absent = Deadline(self.config.stream.silence_seconds)  # for those that held leases to come back
        self._gathering = Deadline(0.0)  # for all to notice
        if not self.journal.begun:
            return
        self._gathering = Deadline(GATHER_HEARTBEATS * self.config.stream.heartbeat_seconds)
        self.stream.restore(self._load(), now())
        self.stream.skip_numbers()
        self._no_learner = "the learner to come back to this broker"
        log.info(
            "going on from %s: version %d, %d live groups, %d leases",
            *(self.journal.path, self.stream.version, len(self.stream.groups), len(self.stream.leases.running)),
        )

    def _load(self) -> Saved:
        return self.journal.load(self.config.stream.group_size, self.config.run.seed)

    def run(self) -> Goodbye:
        """Serve until the learner has finished, the tasks have ended, or the run cannot go on.

        Raises `JournalFailed` when the journal cannot be written for `journal.full_seconds`.
        """
        while self.over is None:
            self._drain()
            self._acknowledge()  # first of all: whoever hears what came of a message knows that it arrived
            if self._look.due():
                self._end_overdue()
            self._check_progress()
            if self.over is None:
                self._tell_of_weights()
                self._hand_out()
            self._write()
            self._speak()
            if self._show.due():
                self._publish_status()
        if self.over.finished:
            self.stream.close()
            self._write()
        self.router.send_all((peer.identity, self.over) for peer in self.members)
        self._tell_the_late(self.over)
        dropped = dict(self.stream.dropped) or "none"
        log.info("run over: %s; groups dropped: %s", self.over.reason, dropped, extra={LAST_WORD: True})
        return self.over

    def _tell_the_late(self, over: Goodbye) -> None:
        """Who has not noticed yet that this broker came back will speak in a moment, and hear that the run is over."""
        while not self._gathering.passed:
            received = self.router.receive(self._gathering.remaining)
            if received and self.members.get(received[0]) is None:
                self.router.send(received[0], over)

    def _say(self, identity: bytes, message: Message) -> None:
        """Send `message` when this turn is in the journal."""
        self._outgoing.append((identity, message))

    def _acknowledge(self) -> None:
        received, self._received = self._received, {}
        for identity, seq in received.items():
            if self.members.get(identity):
                self._say(identity, Ack(seq=seq))

    def _write(self) -> None:
        """The turn becomes durable. Where it cannot, the whole broker waits, for `journal.full_seconds` at most."""
        patience = Deadline(self.config.journal.full_seconds)
        while True:
            try:
                self.journal.commit(self.stream)
            except JournalDamaged:
                raise
            except JournalFailed as error:
                if patience.passed or self.over:
                    raise JournalFailed(f"{error}, for {patience.seconds:.0f} s: make room on its disk") from None
                if not self._unwritten:
                    log.error("the journal cannot be written: %s; trying again for %.0f s", error, patience.seconds)
                self._unwritten = f"room for the journal ({error})"
                self.collector.unwritten_seconds = max(patience.seconds - patience.remaining, RETRY_SECONDS)
                self._publish_status()
                pause(RETRY_SECONDS)
                continue
            if self._unwritten:
                log.info("the journal can be written again")
            self._unwritten, self.collector.unwritten_seconds = "", 0.0
            return

    def _speak(self) -> None:
        outgoing, self._outgoing = self._outgoing, []
        for identity in self.router.send_all(outgoing):
            if peer := self.members.get(identity):
                self._lose(peer, "deaf", "does not read what it is sent")

    def end(self, reason: str, *, finished: bool) -> None:
        """The run ends after this turn."""
        self.over = self.over or Goodbye(reason=reason, finished=finished)

    # ------------------------------------------------------------ in

    def _drain(self) -> None:
        """Take what is there, or what comes first; where many messages come, wait for more.

        A turn is a commit, and a small one writes pages of the journal that the next one writes again.
        """
        began = now()
        taken = self._take_up_to(MESSAGES_A_TURN, 0.0 if self._untold else TURN_SECONDS)
        if MANY_MESSAGES <= taken < MESSAGES_A_TURN and (rest := began + GATHER_SECONDS - now()) > 0:
            pause(rest)
            self._take_up_to(MESSAGES_A_TURN - taken, 0.0)

    def _take_up_to(self, messages: int, timeout: float) -> int:
        """Take at most so many, the first within `timeout`; how many there were."""
        for taken in range(messages):
            letter = self.router.take(timeout)
            if letter is None:
                return taken
            timeout = 0.0
            try:
                self._open(letter)
            except InvalidEvent as error:
                if error.field.endswith("fingerprint"):
                    self.collector.fingerprint_mismatches += 1
                    log.error("weights that are not what they are said to be: %s", error)
                self._refuse(letter.peer, error.field, error.problem, fatal=True)
        return messages

    def _open(self, letter: Letter) -> None:
        """Judge a letter by who sent it and by its size; read it if nothing is wrong with them."""
        peer, moment, size = self.members.get(letter.peer), now(), letter.size
        self.collector.messages += 1
        if peer and letter.role not in ("", peer.hello.role):
            self._lose(peer, "wrong_key", f"is not the one that speaks for it with the key of the {letter.role}")
            peer = None
        bucket = peer.bucket if peer else self._strangers.bucket(letter.peer)
        most = self._largest[peer.hello.role if peer else ""]
        if not bucket.takes(moment, weight(size)):
            self._too_much(letter.peer, peer)
        elif size <= most:
            self._take(letter, letter.read(), peer)
        elif peer:
            raise InvalidEvent("size", f"of {size} bytes; {most} are taken of the role {peer.hello.role}")
        else:
            self.router.send(letter.peer, WhoAreYou())

    def _take(self, letter: Letter, message: Message | Rejected, peer: Peer | None) -> None:
        if isinstance(message, Rejected):
            self._refuse(letter.peer, message.field, message.problem, fatal=peer is None)
        elif isinstance(message, Hello):
            self._welcome(letter, message)
        elif peer is None:
            if not isinstance(message, Goodbye):
                self.router.send(letter.peer, WhoAreYou())
        else:
            peer.last_heard = now()
            if ROLE_OF.get(type(message), peer.hello.role) != peer.hello.role:
                raise InvalidEvent(message.kind, f"is not for the role {peer.hello.role} to send")
            self._on(message, peer)
            if seq := getattr(message, "seq", 0):
                self._received[letter.peer] = max(seq, self._received.get(letter.peer, 0))

    def _too_much(self, identity: bytes, peer: Peer | None) -> None:
        """A peer that floods is refused, once; a stranger is not even answered. Both are cut off."""
        self.collector.flooding_messages += 1
        if peer is not None:
            problem = f"more than {self.config.stream.messages_per_second:g} messages a second came"
            self._refuse(identity, "rate", f"{problem}; stream.messages_per_second allows more", fatal=True)
        else:
            self.router.connections.cut(identity, "flood", after=TOLD_SECONDS)

    def _welcome(self, letter: Letter, hello: Hello) -> None:
        identity, moment, stream = letter.peer, now(), self.config.stream
        if letter.role not in ("", hello.role):
            raise InvalidEvent("role", f"{hello.role}, but its key is that of the {letter.role}")
        if (here := self.members.get(identity)) and here.hello.session != hello.session:
            raise InvalidEvent("session", f"of another process; this connection is that of {here.name}")
        if (before := self.members.before(hello)) is not None:
            if (before.hello.role, before.name) != (hello.role, hello.name):
                raise InvalidEvent("session", f"is that of {before.name}, whose role is {before.hello.role}")
            if before.identity == identity:
                return  # said again while the Welcome is on its way: capacity and credit stay
            self.members.leave(before.identity)  # the same process, on another connection
            self.router.connections.doubt(before.identity)
        elif holder := self.members.holder(hello):
            silent = moment - holder.last_heard
            if silent < TAKEN_HEARTBEATS * stream.heartbeat_seconds:
                self._refuse(identity, "name", _taken(hello, holder), fatal=False)
                return
            self._lose(holder, "replaced", f"was silent for {silent:.1f} s and another process takes its place")
        elif len(self.members) >= stream.peers:
            self._refuse(identity, "peers", f"{stream.peers} are here; stream.peers allows more", fatal=False)
            return
        bucket = before.bucket if before else Bucket(stream.messages_per_second, BURST_SECONDS)
        peer = self.members.join(identity, hello, bucket, moment)
        self.router.connections.prove(identity)
        self._say(
            identity,
            Welcome(
                run=self.spec,
                policy_version=self.stream.version,
                heartbeat_seconds=stream.heartbeat_seconds,
                silence_seconds=stream.silence_seconds,
                return_seconds=stream.return_seconds,
            ),
        )
        if hello.role == "actor":
            lost = self.stream.renew(peer.name, hello.holds, moment)
            if lost:
                log.info("%s does not know %d of its leases; they go to others", peer.name, len(lost))
            if self.manifest:
                self._say(identity, self.manifest)
        elif hello.role == "verifier":
            self.stream.verifier_lost(peer.name)  # what was on its way to it may be lost
        elif hello.role == "learner":
            self._no_learner = ""
            self.batch_wanted = None
        log.info("%s %s: process %d on %s", peer.name, "is back" if before else "joined", hello.pid, hello.host)

    @singledispatchmethod
    def _on(self, message: Message, peer: Peer) -> None:
        raise InvalidEvent(message.kind, "is sent by the broker, not to it")

    @_on.register
    def _(self, message: Heartbeat, peer: Peer) -> None:
        peer.heartbeat = message
        self._say(peer.identity, Heartbeat(policy_version=self.stream.version))

    @_on.register
    def _(self, message: LeaseRequest, peer: Peer) -> None:
        peer.capacity = message.capacity
        self.shares.asked(peer)

    @_on.register
    def _(self, message: VerifyRequest, peer: Peer) -> None:
        peer.capacity = message.capacity

    @_on.register
    def _(self, message: RolloutDone, peer: Peer) -> None:
        peer.overdue = False
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
        self.batch_wanted = None
        self._resume(message)
        log.info(
            "the learner begins at step %d, %d groups are trained", message.policy_version, self.stream.consumed_groups
        )

    def _resume(self, message: Resume) -> None:
        def here() -> bool:
            return self.stream.resume(
                message.policy_version, message.consumed, checkpoints=message.checkpoints, counted=message.counted
            )

        if not here():
            log.info("steps %d to %d are made anew", message.policy_version + 1, self.stream.version)
            self._write()
            self.stream.restore(self._load(), now(), message.policy_version)
            here()

    @_on.register
    def _(self, message: WeightManifest, peer: Peer) -> None:
        self.stream.published(message.version, message.fingerprint)
        self.manifest = message
        self._untold = deque(actor.identity for actor in self.members.of("actor"))

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
    def _(self, message: Checkpointed, peer: Peer) -> None:
        self.stream.checkpointed(message.policy_version)

    @_on.register
    def _(self, message: Goodbye, peer: Peer) -> None:
        if peer.hello.role == "learner" and message.finished:
            self.end(message.reason, finished=True)  # and stays to hear it, like all the others
        else:
            self._lose(peer, "left", f"left: {message.reason}")

    def _refuse(self, identity: bytes, field: str, problem: str, *, fatal: bool) -> None:
        self.collector.rejected_messages += 1
        peer = self.members.get(identity)
        if self._warnings.takes(now()):
            log.warning("refused a message of %s: %s: %s", peer.name if peer else identity.hex(), field, problem)
        self._say(identity, Refusal(field=field[:256], problem=problem[:4096], fatal=fatal))
        if fatal:
            self.router.connections.cut(identity, "refused", after=TOLD_SECONDS)
        if peer and fatal:
            self._lose(peer, "refused", "was refused")

    # ------------------------------------------------------------ deadlines

    def _end_overdue(self) -> None:
        moment, stream = now(), self.config.stream
        if (held_up := moment - self._looked) > HELD_UP_SECONDS:
            log.warning("the broker was held up for %.1f s; nobody counts as silent for that", held_up)
            for peer in self.members:
                peer.last_heard = min(moment, peer.last_heard + held_up)
                peer.oldest_since = min(moment, peer.oldest_since + held_up)
        self._looked = moment
        for lease in self.stream.overdue(moment):
            log.warning(
                "lease %d of %s took over %.0f s; %d samples go back to the stream",
                *(lease.lease_id, lease.actor, stream.lease_seconds, len(lease.samples)),
            )
            if late := self.members.named(lease.actor):
                late.overdue = True
        for peer in self.members.silent(moment, stream.silence_seconds):
            self._lose(peer, "silent", f"was silent for {stream.silence_seconds:.0f} s")
        for peer in self.members.of("verifier"):
            self._look_after_verifier(peer, moment)
        if self._absent.passed:
            for name in self.stream.leases.holders - {peer.name for peer in self.members.of("actor")}:
                lost = self.stream.actor_lost(name)
                self.collector.lost["actor", "silent"] += 1
                log.warning("%s did not come back; %d leases go to others", name, len(lost))
        self._look_after_learner()

    def _look_after_verifier(self, peer: Peer, moment: float) -> None:
        """Jobs are judged in their order: the oldest takes no longer than its own checks. If it does, it is lost."""
        job, stream = self.stream.jobs.oldest(peer.name), self.config.stream
        if job is None or job.job_id != peer.oldest_job:
            peer.oldest_job, peer.oldest_since = job.job_id if job else -1, moment
        elif moment - peer.oldest_since <= self.stream.checks_of(job) * stream.verify_seconds + stream.silence_seconds:
            return
        elif peer.last_delivery < peer.oldest_since:
            self._refuse(peer.identity, "verdicts", "none came in time; its jobs go to others", fatal=True)
        else:
            log.warning("%s answers others, but not job %d", peer.name, job.job_id)
            void = Verdict(reward=None, parts={}, reason="the verifier did not answer", seconds=0.0)
            self.stream.verify_done(
                VerifyDone(job_id=job.job_id, group_id=job.group_id, sample_index=job.sample, verdict=void)
            )

    def _look_after_learner(self) -> None:
        learner, stream = self.members.learner, self.stream
        if learner is None and self._no_learner and self._learner_back.passed:
            self.end(f"waited {self._learner_back.seconds:.0f} s for {self._no_learner} in vain", finished=False)
        if learner is None or self.batch_wanted is not None or stream.version not in stream.batches:
            self._consumed_by.renew()
        elif self._consumed_by.passed:
            taken = f"the batch of step {stream.version + 1} was taken {self._consumed_by.seconds:.0f} s ago"
            problem = f"{taken} and is not trained; stream.consume_seconds allows more"
            self._refuse(learner.identity, "consumed", problem, fatal=True)
            self._consumed_by.renew()

    def _lose(self, peer: Peer, reason: str, why: str) -> None:
        """A peer is gone: for a `reason` that is counted, which `why` tells in words."""
        self.collector.lost[peer.hello.role, reason] += 1
        self.members.leave(peer.identity)
        self.router.connections.doubt(peer.identity)
        leases = self.stream.actor_lost(peer.name)
        jobs = self.stream.verifier_lost(peer.name)
        log.info("%s %s; %d leases and %d jobs go to others", peer.name, why, len(leases), len(jobs))
        if peer.hello.role == "learner":
            self._no_learner = f"a learner to come back after it {why}"
            self._learner_back.renew()

    def _check_progress(self) -> None:
        if self.stream.drops_in_a_row >= self.config.stream.drops_in_a_row:
            reasons = ", ".join(f"{reason} {count}" for reason, count in self.stream.dropped.items())
            self.end(f"{self.stream.drops_in_a_row} groups in a row were dropped ({reasons})", finished=False)
        elif self.stream.dry:
            self.end(self.stream.exhausted, finished=True)

    # ------------------------------------------------------------ out

    def _tell_of_weights(self) -> None:
        """A thousand actors at once would let everybody else wait."""
        for _ in range(min(TOLD_A_TURN, len(self._untold))):
            assert self.manifest is not None, "there is something to tell"
            self._say(self._untold.popleft(), self.manifest)

    def _hand_out(self) -> None:
        """Leases, jobs, and a batch to a learner that waits for one."""
        for actor, lease in self.shares.leases(now()):
            self._say(actor.identity, lease)
        for verifier, job in self.shares.jobs():
            self._say(verifier.identity, job)
        learner = self.members.learner
        if learner is None or self.batch_wanted is None:
            return
        groups = self.stream.batch(self.batch_wanted)
        if groups is None:
            return
        stats = self.stream.stats(actors=len(self.members.of("actor")), verifiers=len(self.members.of("verifier")))
        self._say(learner.identity, GroupBatch(policy_version=self.batch_wanted, groups=groups, stats=stats))
        self.batch_wanted = None

    # ------------------------------------------------------------ shown

    def _publish_status(self) -> None:
        here = status(self.spec, self.stream, self.members, self._waiting_for(), now())
        self.http.show("/status", "application/json", json.dumps(here).encode())
        found = targets(self.spec, self.members, self.http.address)
        self.http.show("/targets", "application/json", json.dumps(found).encode())
        self.http.show("/metrics", CONTENT_TYPE_LATEST, generate_latest(self._registry))

    def _waiting_for(self) -> str:
        if self._unwritten or self._no_learner:
            return self._unwritten or self._no_learner
        missing = [role for role in ("learner", "actor", "verifier") if not self.members.of(role)]
        return f"a first {' and a first '.join(missing)} to join" if missing else self.stream.waiting_for


def _taken(hello: Hello, holder: Peer) -> str:
    where = f"process {holder.hello.pid} on {holder.hello.host}"
    if holder.name == hello.name:
        return f"{hello.name!r} is taken by {where}; choose another name"
    return f"the run has a learner already, {where}"


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
