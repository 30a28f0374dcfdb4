"""Who gets the next lease, and who the next job: all actors and all verifiers are equally loaded."""

import heapq
from collections.abc import Iterator

from learner.broker.membership import Members, Peer
from learner.broker.stream import Stream
from protocol.messages import Lease, VerifyJob


class Shares:
    """Gives out what the stream has to those members that have room."""

    def __init__(self, stream: Stream, members: Members) -> None:
        self.stream = stream
        self.members = members
        self._roomy: set[str] = set()  # names of all actors with room for a group, and of some without

    def asked(self, actor: Peer) -> None:
        """`actor` has said how much it takes."""
        self._roomy.add(actor.name)

    def leases(self, now: float) -> Iterator[tuple[Peer, Lease]]:
        """A group at a time to the actor with most room."""
        self._roomy |= self.stream.leases.relieved
        self.stream.leases.relieved.clear()
        if not self.stream.leasable:
            return
        peers = [peer for name in self._roomy if (peer := self.members.named(name)) and peer.hello.role == "actor"]
        actors = [(-self._room(peer), peer.number, peer) for peer in peers if self._has_room(peer)]
        heapq.heapify(actors)
        while actors:
            _, number, peer = actors[0]
            if (lease := self.stream.grant(peer.name, self._credit(peer), now)) is None:
                break  # there is no further group
            yield peer, lease
            if self._has_room(peer):
                heapq.heapreplace(actors, (-self._room(peer), number, peer))
            else:
                heapq.heappop(actors)
        self._roomy = {peer.name for _, _, peer in actors}

    def _room(self, actor: Peer) -> int:
        return self._credit(actor) - self.stream.leases.owed(actor.name)

    def _has_room(self, actor: Peer) -> bool:
        return self.stream.has_room(actor.name, self._credit(actor))

    def _credit(self, actor: Peer) -> int:
        """Rollouts that it may owe: a group at most while it lets leases run out, else it would swallow all."""
        return min(actor.capacity, self.stream.config.group_size) if actor.overdue else actor.capacity

    def jobs(self) -> Iterator[tuple[Peer, VerifyJob]]:
        """A job at a time to the verifier that holds fewest."""
        if not self.stream.jobs.queued:
            return
        held = [(self.stream.jobs.held(peer.name), peer.number, peer) for peer in self.members.of("verifier")]
        verifiers = [(jobs, number, peer) for jobs, number, peer in held if jobs < peer.capacity]
        heapq.heapify(verifiers)
        while verifiers:
            jobs, number, peer = verifiers[0]
            if (job := self.stream.assign(peer.name, peer.capacity)) is None:
                break  # there is no further rollout
            yield peer, job
            if jobs + 1 < peer.capacity:
                heapq.heapreplace(verifiers, (jobs + 1, number, peer))
            else:
                heapq.heappop(verifiers)
