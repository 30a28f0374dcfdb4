"""Who takes part in the run: peers that said Hello and are heard of often enough."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from learner.broker.rates import Bucket
from protocol.messages import Heartbeat, Hello


@dataclass(slots=True)
class Peer:
    """A process that joined. `capacity` is its credit: rollouts or jobs that it holds at most."""

    identity: bytes  # its address on the router
    hello: Hello
    last_heard: float
    bucket: Bucket  # how much it may say
    last_delivery: float  # when it last brought a rollout or a verdict, or got its first
    capacity: int = 0
    received: int = 0  # the last `seq` that came from it
    acknowledged: int = 0
    heartbeat: Heartbeat = field(default_factory=Heartbeat)

    @property
    def name(self) -> str:
        """Its unique name in the run."""
        return self.hello.name


class Members:
    """The live peers by router identity; names are unique, and there is one learner."""

    def __init__(self) -> None:
        self._peers: dict[bytes, Peer] = {}

    def __iter__(self) -> Iterator[Peer]:
        return iter(tuple(self._peers.values()))

    def __len__(self) -> int:
        return len(self._peers)

    def get(self, identity: bytes) -> Peer | None:
        """The peer behind a router identity, if it joined."""
        return self._peers.get(identity)

    def of(self, role: str) -> list[Peer]:
        """The live peers of one role, in the order in which they joined."""
        return [peer for peer in self._peers.values() if peer.hello.role == role]

    @property
    def learner(self) -> Peer | None:
        """The learner, if it is here."""
        return next(iter(self.of("learner")), None)

    def before(self, hello: Hello) -> Peer | None:
        """The same process on the connection that it had before."""
        return next((peer for peer in self._peers.values() if peer.hello.session == hello.session), None)

    def holder(self, hello: Hello) -> Peer | None:
        """The other process that has the name that this one asks for, or is the learner if this one wants to be."""
        for peer in self._peers.values():
            if peer.hello.session == hello.session:
                continue
            if peer.name == hello.name or peer.hello.role == hello.role == "learner":
                return peer
        return None

    def join(self, identity: bytes, hello: Hello, bucket: Bucket, now: float) -> Peer:
        """Take a peer in."""
        peer = self._peers[identity] = Peer(identity, hello, last_heard=now, bucket=bucket, last_delivery=now)
        return peer

    def leave(self, identity: bytes) -> None:
        """Forget a peer."""
        del self._peers[identity]

    def silent(self, now: float, seconds: float) -> list[Peer]:
        """Peers not heard of for `seconds`."""
        return [peer for peer in self._peers.values() if now - peer.last_heard > seconds]
