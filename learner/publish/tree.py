"""Who fetches a version of whom, so that the learner serves `fanout` actors however many there are.

Actors that ask for the same version, on top of the same version, form a tree in the order in which they ask: the
learner at the root, under it the first `fanout`, under each of those the next. A parent passes a shard on as soon as
it has it, so n actors take the time of one and about log(n) / log(fanout) shards more, and every uplink carries at
most `fanout` times the version. Each parent has asked before its children, so that there is no cycle; whoever asks a
second time, for its parent failed it, is served by the learner.
"""

from collections import deque
from dataclasses import dataclass, field

from protocol.messages import SourceRequest

REMEMBERED = 8  # versions whose trees are kept

LEARNER = ""  # the endpoint that stands for the root


@dataclass(slots=True)
class _Tree:
    """Those who ask for one version with one base in hand."""

    room: deque[list[str]] = field(default_factory=deque)  # places under each parent: its endpoint, repeated
    members: set[str] = field(default_factory=set)


class Trees:
    """The trees of the newest versions."""

    def __init__(self, fanout: int) -> None:
        self.fanout = fanout
        self._trees: dict[tuple[int, int], _Tree] = {}
        self._failed: set[str] = set()  # endpoints that some actor could not reach

    def source(self, asked: SourceRequest) -> str:
        """The endpoint of whom this actor fetches; `LEARNER`: of the learner itself."""
        if asked.failed:
            self._failed.add(asked.failed)
        if not self.fanout:
            return LEARNER
        tree = self._trees.setdefault((asked.version, asked.held), _Tree(deque([[LEARNER] * self.fanout])))
        self._forget()
        if asked.endpoint and asked.endpoint in tree.members:
            return LEARNER
        parent = self._free(tree)
        if asked.endpoint:
            tree.members.add(asked.endpoint)
            tree.room.append([asked.endpoint] * self.fanout)
        return parent

    def _free(self, tree: _Tree) -> str:
        while tree.room:
            places = tree.room[0]
            if places and places[0] not in self._failed:
                return places.pop()
            tree.room.popleft()
        return LEARNER  # nobody else can serve: all others fetch without an endpoint, or failed

    def _forget(self) -> None:
        newest = max(version for version, _ in self._trees)
        for key in [key for key in self._trees if key[0] <= newest - REMEMBERED]:
            del self._trees[key]
