"""The bytes of a version in the making, shard by shard, and what each shard still needs.

A shard is known by its checksum, so that one that did not change, or came with a version that was given up, is never
fetched again. A delta is applied in place; a shard that does not have its checksum afterwards is fetched whole.

Array legend: N bytes of a version, S bytes of a shard.
"""

import numpy as np

from actors.requests import Bytes
from protocol import delta
from protocol.delta import DamagedDelta
from protocol.messages import Shard, ShardRequest, WeightManifest
from protocol.segments import Segment
from protocol.weights import checksum, copied

UNKNOWN = -1  # in place of a version


class Damaged(Exception):
    """A shard that arrived is not what the manifest says; the text says how."""


class Holdings:
    """What this actor holds of `goal`, the version that it fetches or has fetched."""

    def __init__(self, goal: WeightManifest) -> None:
        sizes = [shard.nbytes for shard in goal.shards]
        self.data: Bytes = Segment(sum(sizes)).data  # [N]; an engine of several processes reads it from all of them
        self.versions = [UNKNOWN] * len(sizes)  # at which each shard stands
        self.checksums = [""] * len(sizes)  # those that were verified
        self._offsets = [0, *np.cumsum(sizes).tolist()]
        self._whole: set[int] = set()  # shards for which no delta is asked any more
        self.goal = goal

    def aim(self, goal: WeightManifest) -> bool:
        """Turn to another version; False when it is cut differently, and nothing here is of use."""
        sizes = [shard.nbytes for shard in goal.shards]
        if [0, *np.cumsum(sizes).tolist()] != self._offsets:
            return False
        self.goal = goal
        self._whole.clear()
        for shard in range(len(sizes)):
            if self.has(shard):
                self.versions[shard] = goal.version
        return True

    def has(self, shard: int) -> bool:
        """Whether a shard is as the goal wants it."""
        return self.checksums[shard] == self.goal.shards[shard].checksum

    @property
    def missing(self) -> list[int]:
        """The shards that it has not."""
        return [shard for shard in range(len(self.checksums)) if not self.has(shard)]

    def bytes_of(self, shard: int) -> Bytes:
        """A shard as it stands, [S] uint8; a view."""
        return self.data[self._offsets[shard] : self._offsets[shard + 1]]

    def base(self) -> int:
        """The version from which deltas lead to the goal for all that is missing; `UNKNOWN`: there is none."""
        stands = {self.versions[shard] if self.steps(shard) else UNKNOWN for shard in self.missing}
        return stands.pop() if len(stands) == 1 else UNKNOWN

    def request(self, shard: int) -> tuple[ShardRequest, int]:
        """What to ask for next to complete a shard, and its size in bytes."""
        for version, nbytes in self.steps(shard):
            if nbytes:
                return ShardRequest(version=version, shard=shard, delta=True), nbytes
            self.versions[shard] = version
        return ShardRequest(version=self.goal.version, shard=shard), self.goal.shards[shard].nbytes

    def steps(self, shard: int) -> list[tuple[int, int]]:
        """The deltas, version and size, that lead a shard to the goal, if they are less than the shard itself."""
        if self.versions[shard] == UNKNOWN or shard in self._whole:
            return []
        steps: list[tuple[int, int]] = []
        for step in reversed(self.goal.deltas):
            steps.append((step.version, step.nbytes[shard]))
            if step.base == self.versions[shard]:
                worth_it = sum(nbytes for _, nbytes in steps) < self.goal.shards[shard].nbytes
                return steps[::-1] if worth_it else []
        return []

    def without_delta(self, shard: int) -> None:
        """Ask for this shard whole from now on."""
        self._whole.add(shard)

    def take(self, arrived: Shard) -> None:
        """Put in what was asked for. Raises `Damaged`; the shard is then asked for whole."""
        shard = arrived.shard
        if arrived.delta:
            self._apply(arrived)
        else:
            spec = self.goal.shards[shard]
            self.versions[shard], self.checksums[shard] = UNKNOWN, ""
            if len(arrived.data) != spec.nbytes or copied(arrived.data, self.bytes_of(shard)) != spec.checksum:
                raise Damaged("its bytes are not those of the manifest")
            self.versions[shard], self.checksums[shard] = self.goal.version, spec.checksum

    def received(self) -> list[int]:
        """All of `data` was written anew, as it is for the goal; the shards that are damaged all the same."""
        begin = 0
        for shard, spec in enumerate(self.goal.shards):
            found = checksum(self.data[begin : begin + spec.nbytes])
            begin += spec.nbytes
            self.checksums[shard] = found if found == spec.checksum else ""
            self.versions[shard] = self.goal.version if found == spec.checksum else UNKNOWN
        return self.missing

    def _apply(self, arrived: Shard) -> None:
        shard = arrived.shard
        view = self.bytes_of(shard)
        self.checksums[shard] = ""
        try:
            delta.apply(view, arrived.data)
        except DamagedDelta as error:
            self._whole.add(shard)
            raise Damaged(f"its delta cannot be read: {error}") from None
        self.versions[shard] = arrived.version
        if arrived.version < self.goal.version:
            steps = self.steps(shard)
            if not steps or any(nbytes for _, nbytes in steps):
                return  # on the way
        wanted = self.goal.shards[shard].checksum
        if checksum(view) != wanted:
            self.versions[shard] = UNKNOWN
            raise Damaged("its delta leads to other bytes than those of the manifest")
        self.versions[shard], self.checksums[shard] = self.goal.version, wanted
