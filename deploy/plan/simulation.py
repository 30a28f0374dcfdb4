"""A run as discrete events: what the arithmetic leaves out, which is who waits for whom.

The broker's rules are `learner/broker/admission.py`'s; a test holds the two together. An actor is not simulated step
by step: between two events all its rollouts get a token each `t(b)` seconds, so that it needs one clock, counted in
engine steps, and a heap of the steps at which its rollouts end. The sum of the versions of a rollout's tokens is the
difference of one running sum per actor, so that staleness is exact and costs nothing. An event is a rollout's end or
rarer: a heap of them handles some 75,000 rollouts a second, which a process for each rollout would not.
"""

import bisect
import heapq
import random
from collections import Counter, deque
from dataclasses import dataclass, field
from enum import IntEnum

from deploy.plan.rates import ActorRate, Rates

WARM_UP = 3  # steps besides `max_staleness` that are left out of the figures


@dataclass(frozen=True, kw_only=True, slots=True)
class Faults:
    """What goes wrong."""

    slow_share: float = 0.0  # of the actors are slow for good
    slow_factor: float = 2.0  # times as long as the others
    actor_failure_seconds: float = 0.0  # mean life of an actor; 0: none dies
    restart_seconds: float = 60.0  # until one that died is back


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """Means over the steps after the warm-up."""

    actors: int
    verifiers: int
    steps: int
    seconds: float
    learner_busy: float  # share of the time
    actors_busy: float  # share of the time in which an actor decodes anything
    rollouts_decoding: float  # mean over actors and time, while they decode
    verifiers_busy: float
    trained_tokens_per_second: float
    generated_tokens_per_second: float
    staleness_mean: float  # over the trained tokens, in steps
    staleness_max: int
    rollouts_lost: int  # begun and lost with their actor
    groups_lost: int  # dropped because they had used up their leases
    actors_lost: int

    @property
    def steps_per_second(self) -> float:
        """Learner steps."""
        return self.steps / self.seconds


class Kind(IntEnum):
    """Events, in the order in which those of one moment happen."""

    STEPPED = 0  # the learner has finished a step
    PUBLISHED = 1  # its version has reached the actors
    GENERATED = 2  # a rollout of an actor has ended
    FINISHED = 3  # the last verdict of a group has arrived
    DIED = 4
    MISSED = 5  # an actor that died is taken for dead
    RETURNED = 6


@dataclass(slots=True)
class Group:
    """The rollouts of one task."""

    lease_version: int
    missing: int  # rollouts that have not ended
    checked_at: float = 0.0
    tokens: int = 0
    version_sum: float = 0.0  # over its tokens
    oldest: int = 1 << 60  # version
    leases: int = 0  # that it used up


Rollout = tuple[float, int, int, float, int]  # the step at which it ends, group, tokens, version sum and version then


@dataclass(slots=True)
class Actor:
    """One engine. `steps` counts its engine steps up to the moment `at`."""

    rate: ActorRate
    factor: float
    version: int = 0
    alive: bool = True
    at: float = 0.0
    steps: float = 0.0
    version_sum: float = 0.0  # ∫ version d(steps)
    decoding: list[Rollout] = field(default_factory=list)  # heap
    waiting: deque[tuple[int, int, int]] = field(default_factory=deque)  # group, its lease version, tokens
    held: Counter[int] = field(default_factory=Counter)  # rollouts by group
    load: int = 0  # of them all
    stamp: int = 0  # of its next event: older ones are void
    busy_seconds: float = 0.0
    rollout_seconds: float = 0.0  # ∫ rollouts that are decoded
    decoded: float = 0.0  # tokens

    def advance(self, now: float) -> None:
        """Decode until `now`."""
        seconds = now - self.at
        if seconds <= 0:  # it loads a version
            return
        self.at = now
        rollouts = len(self.decoding)
        if rollouts:
            steps = seconds / self.step_seconds
            self.steps += steps
            self.version_sum += self.version * steps
            self.busy_seconds += seconds
            self.rollout_seconds += seconds * rollouts
            self.decoded += steps * rollouts

    @property
    def step_seconds(self) -> float:
        return self.factor * self.rate.seconds(len(self.decoding))

    def begin(self) -> None:
        """Fill the batch with what waits and may be sampled with the weights that it has."""
        for _ in range(len(self.waiting)):
            if len(self.decoding) >= self.rate.max_num_seqs:
                break
            group, lease_version, tokens = self.waiting.popleft()
            if lease_version > self.version:
                self.waiting.append((group, lease_version, tokens))
                continue
            heapq.heappush(self.decoding, (self.steps + tokens, group, tokens, self.version_sum, self.version))

    def next_end(self) -> float:
        """When its next rollout ends if nothing else happens."""
        return self.at + max(self.decoding[0][0] - self.steps, 0.0) * self.step_seconds


class Simulation:
    """A run of `actors` and `verifiers` with these rates."""

    def __init__(self, rates: Rates, *, actors: int, verifiers: int, faults: Faults = Faults(), seed: int = 0) -> None:
        self.rates, self.stream, self.faults = rates, rates.stream, faults
        self.random = random.Random(seed)
        slow = round(faults.slow_share * actors)
        self.actors = [Actor(rates.actor, faults.slow_factor if i < slow else 1.0) for i in range(actors)]
        self.verifiers = verifiers
        self.workers = [0.0] * (verifiers * rates.verifier.workers)  # heap: when each is free
        self.now = 0.0
        self.events: list[tuple[float, int, int, int, int]] = []  # time, kind, number, of whom, stamp
        self.number = 0
        self.version = self.granted = 0
        self.groups: dict[int, Group] = {}
        self.live: Counter[int] = Counter()  # groups by lease version
        self.next_group = 0
        self.ready: list[int] = []  # finished groups, oldest lease first
        self.returned: list[tuple[int, int]] = []  # heap: groups whose actor died, rollouts missing
        self.roomy: list[tuple[int, int]] = []  # heap: (−room, actor), some of it out of date
        self.training: list[int] | None = None
        self.batch_may_be = False
        self.learner_seconds = self.check_seconds = 0.0
        self.trained_tokens = self.stale_tokens = 0.0
        self.oldest = 0
        self.rollouts_lost = self.groups_lost = self.actors_lost = 0

    # ------------------------------------------------------------ the run

    def run(self, steps: int) -> Outcome:
        """Simulate `steps` learner steps after the warm-up. Raises `ValueError` when the run comes to a standstill."""
        for index in range(len(self.actors)):
            self._note_room(index)
            self._plan_death(index)
        self._grant()
        self._until(self.stream.max_staleness + WARM_UP)
        before = self._totals()
        self._until(self.version + steps)
        (seconds, busy, decoding, learner, checking, trained, stale, decoded) = (
            after - then for after, then in zip(self._totals(), before, strict=True)
        )
        return Outcome(
            actors=len(self.actors),
            verifiers=self.verifiers,
            steps=steps,
            seconds=seconds,
            learner_busy=learner / seconds,
            actors_busy=busy / seconds / len(self.actors),
            rollouts_decoding=decoding / busy if busy else 0.0,
            verifiers_busy=checking / seconds / len(self.workers),
            trained_tokens_per_second=trained / seconds,
            generated_tokens_per_second=decoded / seconds,
            staleness_mean=stale / trained,
            staleness_max=self.oldest,
            rollouts_lost=self.rollouts_lost,
            groups_lost=self.groups_lost,
            actors_lost=self.actors_lost,
        )

    def _until(self, version: int) -> None:
        handlers = {
            Kind.STEPPED: self._stepped,
            Kind.PUBLISHED: self._published,
            Kind.GENERATED: self._generated,
            Kind.FINISHED: self._finished,
            Kind.DIED: self._died,
            Kind.MISSED: self._missed,
            Kind.RETURNED: self._returned,
        }
        while self.version < version:
            if not self.events:
                raise ValueError(f"a standstill at version {self.version}: is there an actor?")
            self.now, kind, _, whom, stamp = heapq.heappop(self.events)
            handlers[Kind(kind)](whom, stamp)

    def _at(self, moment: float, kind: Kind, whom: int = 0, stamp: int = 0) -> None:
        self.number += 1
        heapq.heappush(self.events, (moment, kind, self.number, whom, stamp))

    def _totals(self) -> tuple[float, ...]:
        for actor in self.actors:
            if actor.alive:
                actor.advance(self.now)
        busy = sum(actor.busy_seconds for actor in self.actors)
        decoding = sum(actor.rollout_seconds for actor in self.actors)
        decoded = sum(actor.decoded for actor in self.actors)
        learner, checking = self.learner_seconds, self.check_seconds
        return self.now, busy, decoding, learner, checking, self.trained_tokens, self.stale_tokens, decoded

    # ------------------------------------------------------------ leases

    def _note_room(self, index: int) -> None:
        actor = self.actors[index]
        room = actor.rate.room - actor.load
        if actor.alive and (room >= self.stream.group_size or not actor.load):
            heapq.heappush(self.roomy, (-room, index))

    def _roomiest(self) -> int | None:
        """The actor with most room, if it has enough; a group larger than any room goes to one that holds nothing."""
        while self.roomy:
            room, index = self.roomy[0]
            actor = self.actors[index]
            if actor.alive and actor.load == actor.rate.room + room:
                return index
            heapq.heappop(self.roomy)
        return None

    def _grant(self, *changed_already: int) -> None:
        """Lease what may be leased to whom has room, and let those actors go on, with what has `changed_already`."""
        changed = set(changed_already)
        while self.returned or self.granted < limit(
            self.version, self.stream.max_staleness, self.stream.groups_per_step
        ):
            index = self._roomiest()
            if index is None:
                break
            group, missing = heapq.heappop(self.returned) if self.returned else self._fresh()
            actor = self.actors[index]
            self.groups[group].leases += 1
            lengths = self.random.choices(self.rates.lengths, k=missing)
            actor.waiting.extend((group, self.groups[group].lease_version, tokens) for tokens in lengths)
            actor.held[group] += missing
            actor.load += missing
            self._note_room(index)
            changed.add(index)
        for index in changed:
            self._go_on(index)

    def _fresh(self) -> tuple[int, int]:
        group = self.next_group
        self.groups[group] = Group(self.version, self.stream.group_size)
        self.live[self.version] += 1
        self.next_group += 1
        self.granted += 1
        return group, self.stream.group_size

    def _go_on(self, index: int) -> None:
        """What an actor decodes has changed: fill its batch, and say when its next rollout ends."""
        actor = self.actors[index]
        actor.advance(self.now)
        actor.begin()
        actor.stamp += 1
        if actor.decoding:
            self._at(actor.next_end(), Kind.GENERATED, index, actor.stamp)

    # ------------------------------------------------------------ rollouts

    def _generated(self, index: int, stamp: int) -> None:
        actor = self.actors[index]
        if stamp != actor.stamp:
            return
        actor.advance(self.now)
        while actor.decoding and actor.decoding[0][0] <= actor.steps + 1e-6:
            _, number, tokens, version_sum, version = heapq.heappop(actor.decoding)
            actor.load -= 1
            actor.held[number] -= 1
            if not actor.held[number]:
                del actor.held[number]
            self._check(number, tokens, actor.version_sum - version_sum, version)
        self._note_room(index)
        self._grant(index)

    def _check(self, number: int, tokens: int, version_sum: float, version: int) -> None:
        """A rollout goes to the verifier that is free first; with its group's last one the group is finished."""
        begin = max(self.now, self.workers[0])
        heapq.heapreplace(self.workers, begin + self.rates.verifier.check_seconds)
        self.check_seconds += self.rates.verifier.check_seconds
        group = self.groups[number]
        group.missing -= 1
        group.tokens += tokens
        group.version_sum += version_sum
        group.oldest = min(group.oldest, version)
        group.checked_at = max(group.checked_at, begin + self.rates.verifier.check_seconds)
        if not group.missing:
            self._at(group.checked_at, Kind.FINISHED, number)

    def _finished(self, number: int, stamp: int) -> None:
        if self.random.random() < self.stream.dropped_share:
            self._drop(number)
            self._grant()
        else:
            place = bisect.bisect(self.ready, number)
            self.ready.insert(place, number)
            self.batch_may_be |= place < self.stream.groups_per_step  # else it is not in the next batch
        self._train()

    def _drop(self, number: int) -> None:
        """Another group may be leased for it, and what is left behind may be in time now."""
        self._forget(number)
        self.granted -= 1
        self.batch_may_be = True

    def _forget(self, number: int) -> Group:
        group = self.groups.pop(number)
        self.live[group.lease_version] -= 1
        if not self.live[group.lease_version]:
            del self.live[group.lease_version]
        return group

    # ------------------------------------------------------------ the learner

    def _train(self) -> None:
        """Begin a step if the learner waits and the batch is there."""
        if self.training is not None or not self.batch_may_be:
            return
        self.batch_may_be = False  # until something comes
        if len(self.ready) < self.stream.groups_per_step:
            return
        chosen = self.ready[: self.stream.groups_per_step]
        left = self.live - Counter(self.groups[number].lease_version for number in chosen)
        if not in_time(left, self.version, self.stream.max_staleness, self.stream.groups_per_step):
            return
        del self.ready[: self.stream.groups_per_step]
        self.training = chosen
        tokens = sum(self.groups[number].tokens for number in chosen)
        seconds = self.rates.learner.step_seconds + tokens / self.rates.learner.tokens_per_second
        self._at(self.now + seconds, Kind.STEPPED)

    def _stepped(self, whom: int, stamp: int) -> None:
        assert self.training is not None
        tokens = 0
        for number in self.training:
            group = self._forget(number)
            tokens += group.tokens
            self.stale_tokens += self.version * group.tokens - group.version_sum
            self.oldest = max(self.oldest, self.version - group.oldest)
        self.trained_tokens += tokens
        self.learner_seconds += self.rates.learner.step_seconds + tokens / self.rates.learner.tokens_per_second
        self.training = None
        self.version += 1
        self.batch_may_be = True
        self._at(self.now + self.rates.actor.fetch_seconds, Kind.PUBLISHED, self.version)
        self._grant()
        self._train()

    def _published(self, version: int, stamp: int) -> None:
        for index, actor in enumerate(self.actors):
            if actor.alive and actor.version < version:
                self._load(actor, version)
                self._go_on(index)

    def _load(self, actor: Actor, version: int) -> None:
        actor.advance(self.now)
        actor.version = version
        actor.at = max(actor.at, self.now) + self.rates.actor.swap_seconds

    # ------------------------------------------------------------ deaths

    def _plan_death(self, index: int) -> None:
        if self.faults.actor_failure_seconds:
            life = self.random.expovariate(1 / self.faults.actor_failure_seconds)
            self._at(self.now + life, Kind.DIED, index)

    def _died(self, index: int, stamp: int) -> None:
        """Nobody knows it yet; what it decoded is lost."""
        actor = self.actors[index]
        actor.advance(self.now)
        actor.alive = False
        actor.stamp += 1
        self.actors_lost += 1
        self.rollouts_lost += len(actor.decoding)
        actor.decoding.clear()
        actor.waiting.clear()
        missed = min(self.stream.silence_seconds, self.faults.restart_seconds)  # it comes back under its name
        self._at(self.now + missed, Kind.MISSED, index)
        self._at(self.now + self.faults.restart_seconds, Kind.RETURNED, index)

    def _missed(self, index: int, stamp: int) -> None:
        """What it held is leased again, only the rollouts that had not arrived, unless the group has had its leases."""
        actor = self.actors[index]
        for number, missing in actor.held.items():
            if self.groups[number].leases >= self.stream.lease_attempts:
                self._drop(number)
                self.groups_lost += 1
            else:
                heapq.heappush(self.returned, (number, missing))
        actor.held.clear()
        actor.load = 0
        self._grant()
        self._train()

    def _returned(self, index: int, stamp: int) -> None:
        actor = self.actors[index]
        actor.alive = True
        actor.at = self.now
        self._load(actor, self.version)
        self._note_room(index)
        self._plan_death(index)
        self._grant()


def limit(version: int, max_staleness: int, groups_per_step: int) -> int:
    """Groups that may have been leased and not dropped by `version`: `learner.broker.admission.limit`."""
    return (max_staleness + version + 1) * groups_per_step


def in_time(left: Counter[int], version: int, max_staleness: int, groups_per_step: int) -> bool:
    """Whether so many groups of each lease version can all be consumed in time: `learner.broker.admission.in_time`."""
    count = 0
    for lease_version in sorted(left):
        count += left[lease_version]
        if count > (lease_version + max_staleness - version) * groups_per_step:
            return False
    return True
