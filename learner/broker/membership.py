"""Who takes part in the run: peers that said Hello and are heard of often enough."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import get_args

from learner.broker.rates import Bucket
from protocol.messages import Heartbeat, Hello, Role


@dataclass(slots=True)
class Peer:
    """A process that joined. `capacity` is its credit: rollouts or jobs that it holds at most."""

    identity: bytes  # its address on the router
    number: int  # of peers that joined before it
    hello: Hello
    last_heard: float
    bucket: Bucket  # how much it may say
    last_delivery: float  # when it last brought a rollout or a verdict, or got its first
    oldest_job: int = -1  # of a verifier
    oldest_since: float = 0.0  # when this job became its oldest
    overdue: bool = False  # an actor whose lease ran out and that has brought nothing since
    capacity: int = 0
    heartbeat: Heartbeat = field(default_factory=Heartbeat)

    @property
    def name(self) -> str:
        """Its unique name in the run."""
        return self.hello.name


class Members:
    """The live peers by router identity; names and sessions are unique, and there is one learner."""

    def __init__(self) -> None:
        self._peers: dict[bytes, Peer] = {}
        self._by_role: dict[str, dict[bytes, Peer]] = {role: {} for role in get_args(Role)}
        self._by_name: dict[str, Peer] = {}
        self._by_session: dict[str, Peer] = {}
        self._numbers = itertools.count()

    def __iter__(self) -> Iterator[Peer]:
        return iter(tuple(self._peers.values()))

    def __len__(self) -> int:
        return len(self._peers)

    def get(self, identity: bytes) -> Peer | None:
        """The peer behind a router identity, if it joined."""
        return self._peers.get(identity)

    def named(self, name: str) -> Peer | None:
        """The peer of this name."""
        return self._by_name.get(name)

    def of(self, role: str) -> list[Peer]:
        """The live peers of one role, in the order in which they joined."""
        return list(self._by_role[role].values())

    @property
    def learner(self) -> Peer | None:
        """The learner, if it is here."""
        return next(iter(self._by_role["learner"].values()), None)

    def before(self, hello: Hello) -> Peer | None:
        """The same process on the connection that it had before."""
        return self._by_session.get(hello.session)

    def holder(self, hello: Hello) -> Peer | None:
        """The other process that has the name that this one asks for, or is the learner if this one wants to be."""
        rivals = (self.named(hello.name), self.learner if hello.role == "learner" else None)
        return next((peer for peer in rivals if peer and peer.hello.session != hello.session), None)

    def join(self, identity: bytes, hello: Hello, bucket: Bucket, now: float) -> Peer:
        """Take a peer in."""
        if identity in self._peers:
            self.leave(identity)
        peer = Peer(identity, next(self._numbers), hello, last_heard=now, bucket=bucket, last_delivery=now)
        self._peers[identity] = self._by_role[hello.role][identity] = peer
        self._by_name[hello.name] = self._by_session[hello.session] = peer
        return peer

    def leave(self, identity: bytes) -> None:
        """Forget a peer."""
        peer = self._peers.pop(identity)
        del self._by_role[peer.hello.role][identity]
        for index, key in ((self._by_name, peer.name), (self._by_session, peer.hello.session)):
            if index.get(key) is peer:
                del index[key]

    def silent(self, now: float, seconds: float) -> list[Peer]:
        """Peers not heard of for `seconds`."""
        return [peer for peer in self._peers.values() if now - peer.last_heard > seconds]
