"""The versions that are served, and the memory that they lie in. Safe to use from several threads.

Memory is used again only when nobody can still read it: no version that is kept lies in it, no process of this host has
leased it, and no socket has yet to send some of it. A reader that never lets go therefore costs memory, never a wrong
byte.
"""

import threading
from collections import Counter

from learner.publish.version import PublishedVersion, Step
from protocol.messages import Shard, ShardGone, ShardRequest
from protocol.segments import Segment

WIRE_VERSIONS = 10  # versions for which deltas go on to be made after an actor last asked for one over the wire
STEPS_SHARE = 0.5  # of a whole version: what the deltas that are kept come to at most
MOST_STEPS = 8  # a manifest names the size of every shard's delta


class Store:
    """The newest `kept` versions whole, and the deltas that lead to the newest as far as they are worth their bytes."""

    def __init__(self, kept: int) -> None:
        self.kept = kept
        self.newest: PublishedVersion | None = None
        self._versions: dict[int, PublishedVersion] = {}
        self._steps: dict[int, Step] = {}  # by the version to which each leads
        self._segments: list[Segment] = []
        self._leases: Counter[int] = Counter()  # by version
        self._leased: dict[int, Segment] = {}
        self._asked = -1  # the newest version when something was last asked over the wire
        self._lock = threading.Lock()

    # ------------------------------------------------------------ filled by the publisher

    def segment(self, nbytes: int) -> Segment:
        """Memory for another version, its content left over from an older one. Raises `OSError` when there is none."""
        with self._lock:
            free = [each for each in self._segments if len(each.data) == nbytes and not self._in_use(each)]
            if free:
                return free[0]
        segment = Segment(nbytes)
        with self._lock:
            self._segments.append(segment)
        return segment

    def _in_use(self, segment: Segment) -> bool:
        kept = any(version.segment is segment for version in self._versions.values())
        return kept or segment in self._leased.values() or segment.lent

    def add(self, published: PublishedVersion, steps: tuple[Step, ...]) -> None:
        """Serve a version, and forget what is too old. `steps` are the deltas that its manifest names."""
        with self._lock:
            self.newest = published
            self._versions[published.manifest.version] = published
            for version in list(self._versions)[: -self.kept]:
                del self._versions[version]
            self._steps = {step.spec.version: step for step in steps}
            spare = [each for each in self._segments if not self._in_use(each)]
            for each in spare[1:]:  # one is enough for the next version
                self._segments.remove(each)

    def steps_before(self, step: Step) -> tuple[Step, ...]:
        """The deltas worth keeping together with `step`, which goes on from the newest version; oldest first."""
        assert self.newest is not None, "a step has a base"
        chosen, room, goal = [step], STEPS_SHARE * len(self.newest.segment.data) - step.nbytes, step.spec.base
        while (before := self._steps.get(goal)) and before.nbytes <= room and len(chosen) < MOST_STEPS:
            chosen.append(before)
            room, goal = room - before.nbytes, before.spec.base
        return tuple(reversed(chosen))

    @property
    def wired(self) -> bool:
        """Whether actors fetch over the wire, so that deltas are of use."""
        if self.newest is None or self._asked < 0:
            return False
        return self.newest.manifest.version - self._asked <= WIRE_VERSIONS

    # ------------------------------------------------------------ read by the server

    def asked(self) -> None:
        """An actor has asked for something over the wire."""
        if self.newest is not None:
            self._asked = self.newest.manifest.version

    def answer(self, asked: ShardRequest) -> Shard | ShardGone:
        """A shard or its delta, as asked."""
        version, index = asked.version, asked.shard
        with self._lock:
            if asked.delta and (step := self._steps.get(version)) and index < len(step.coded):
                return Shard(version=version, shard=index, delta=True, data=step.coded[index])
            published = None if asked.delta else self._versions.get(version)
            if published is not None and index < len(published.manifest.shards):
                return Shard(version=version, shard=index, data=published.shard(index))
        return ShardGone(version=version, shard=index, delta=asked.delta)

    def lease(self, version: int) -> Segment | None:
        """The memory of a version for a reader of this host, in use until it is released; None: it is gone."""
        with self._lock:
            published = self._versions.get(version)
            if published is None:
                return None
            self._leases[version] += 1
            self._leased[version] = published.segment
            return published.segment

    def release(self, version: int) -> None:
        """One reader of a version is done."""
        with self._lock:
            self._leases[version] -= 1
            if not self._leases[version]:
                del self._leases[version], self._leased[version]
