"""The way of an actor on the learner's host: it reads the version where the learner wrote it."""

import zmq

from actors import metrics
from actors.weights.fetched import FetchedVersion, VersionLost, WayLost
from protocol.clock import now
from protocol.messages import WeightManifest
from protocol.segments import SegmentReader
from protocol.weights import checksum

WAY = "shared_memory"


class SharedMemory:
    """Maps versions of one learner. Raises `WayLost` when the learner is on another host."""

    def __init__(self, local: str) -> None:
        try:
            self._reader = SegmentReader(local)
        except OSError as error:
            raise WayLost(f"the learner's shared memory is not on this host: {error}") from None
        self._goal: WeightManifest | None = None

    @property
    def sockets(self) -> list[zmq.Socket[bytes]]:
        """None: answers come at once."""
        return []

    @property
    def progress(self) -> str:
        """Reading takes no time to speak of."""
        return f"weights of version {self._goal.version} in shared memory" if self._goal else ""

    def begin(self, manifest: WeightManifest) -> None:
        """Read this version at the next turn."""
        self._goal = manifest

    def stop(self) -> None:
        """Read nothing."""
        self._goal = None

    def turn(self) -> FetchedVersion | None:
        """The version, verified where it lies."""
        goal, self._goal = self._goal, None
        if goal is None:
            return None
        begun = now()
        try:
            data = self._reader.take(goal.version)
        except OSError as error:
            raise WayLost(f"the learner's shared memory is gone: {error}") from None
        if data is None:
            raise VersionLost("it is gone from the learner's shared memory")
        end = 0
        for index, shard in enumerate(goal.shards):
            begin, end = end, end + shard.nbytes
            if end > len(data) or checksum(data[begin:end]) != shard.checksum:
                metrics.weight_shards_corrupt.inc()
                self._release(goal.version)
                raise WayLost(f"shard {index} of version {goal.version} is damaged in the learner's shared memory")
        return FetchedVersion(goal, data[:end], WAY, 0, now() - begun)

    def give_back(self, fetched: FetchedVersion) -> None:
        """The learner may use the memory again."""
        self._release(fetched.manifest.version)

    def close(self) -> None:
        """Leave; the learner takes it for a release of everything."""
        self._reader.close()

    def _release(self, version: int) -> None:
        try:
            self._reader.release(version)
        except OSError:  # the learner is gone: nobody is left to whom it matters, and the next `turn` tells
            return
