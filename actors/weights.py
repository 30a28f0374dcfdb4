"""Receiver of weight versions: from a manifest to a whole, verified version, a shard a turn.

It consumes manifests (`offer`) and the shards that it asked for (`receive`); it waits for the learner's weight server,
at most `seconds` for a version, and never blocks the loop. A version that is being fetched is finished even when a
newer one is offered, else an actor slower than the learner would never hold any; then the newest one is next. A server
that has forgotten the version (`ShardGone`) turns the receiver to the newest at once.

Array legend: S bytes of one shard, N bytes of a version.
"""

import logging
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import zmq

from actors import metrics
from actors.requests import Bytes
from protocol.clock import Deadline, now
from protocol.errors import ProtocolError
from protocol.messages import Message, Shard, ShardGone, ShardRequest, TensorSpec, WeightManifest
from protocol.sockets import Dealer, Rejected
from protocol.weights import checksum, fingerprint

log = logging.getLogger("actor")

WINDOW = 4  # shards asked for and not yet here
ATTEMPTS = 3  # times a shard may arrive damaged

ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int64": 8, "int32": 4, "uint8": 1, "bool": 1}


class WeightsUnavailable(ProtocolError):
    """A version cannot be had, or not in time; the text says which and why."""


@dataclass(frozen=True, slots=True)
class FetchedVersion:
    """A whole version whose checksums and fingerprint were verified."""

    manifest: WeightManifest
    data: Bytes  # [N] uint8

    def tensors(self) -> Iterator[tuple[TensorSpec, Bytes]]:
        """Every tensor with its bytes, a view of `data`, in the manifest's order."""
        for spec in self.manifest.tensors:
            yield spec, self.data[spec.offset : spec.offset + spec.nbytes]


@dataclass(slots=True)
class _Fetch:
    """One version on its way."""

    manifest: WeightManifest
    data: Bytes  # [N] uint8, filled shard by shard
    offsets: list[int]  # where each shard begins in `data`
    begun: float = field(default_factory=now)
    asked: int = 0  # shards asked for so far, in order
    missing: set[int] = field(default_factory=set)
    damaged: Counter[int] = field(default_factory=Counter)  # shard → times it arrived damaged


class WeightReceiver:
    """Fetches the versions that it is offered, one at a time, never an older one."""

    def __init__(self, *, seconds: float) -> None:
        self.seconds = seconds
        self._server: Dealer | None = None
        self._endpoint = ""
        self._held: WeightManifest | None = None  # the version that was completed last
        self._newest: WeightManifest | None = None
        self._fetch: _Fetch | None = None
        self._wanted = False  # from an offer until a whole version is here
        self._deadline = Deadline(seconds)  # of the whole version that is wanted

    @property
    def socket(self) -> zmq.Socket[bytes] | None:
        """What to poll for shards, once there is a server."""
        return self._server.socket if self._server else None

    @property
    def progress(self) -> str:
        """What it waits for; '' while nothing is wanted."""
        if self._fetch:
            manifest = self._fetch.manifest
            arrived = len(manifest.shards) - len(self._fetch.missing)
            return f"weights of version {manifest.version}, {arrived} of {len(manifest.shards)} shards are here"
        return "a weight version newer than the one that is gone" if self._wanted else ""

    def offer(self, manifest: WeightManifest) -> None:
        """A version can be fetched; one that is not newer than what is held is not wanted.

        A learner that came back makes some versions anew: it offers older ones from another endpoint, which are taken
        only while nothing newer is held. Raises `WeightsUnavailable` when the manifest contradicts itself.
        """
        _check(manifest)
        held, moved = self._held, manifest.endpoint != self._endpoint
        known = held and (held.version, held.fingerprint) == (manifest.version, manifest.fingerprint)
        if held and (known or manifest.version < held.version):
            log.info("version %d offered, version %d is held: not taken", manifest.version, held.version)
            return
        if self._newest and self._fetch and not moved and manifest.version <= self._newest.version:
            return
        self._newest = manifest
        if self._fetch is None:
            self._want()
            self._begin(manifest)
        elif moved:
            log.info("the weight server moved to %s: version %d next", manifest.endpoint, manifest.version)
            self._begin(manifest)

    def receive(self) -> FetchedVersion | None:
        """Take one shard, if one is here; the version that it completes, or None.

        Raises `WeightsUnavailable` when a version takes longer than `seconds` or a shard stays damaged.
        """
        if self._server is None:
            return None
        if (message := self._server.receive()) is not None:
            self._take(message)
        if self._fetch and not self._fetch.missing:
            return self._complete(self._fetch)
        if self._wanted and self._deadline.passed:
            self._give_up()
        return None

    def close(self) -> None:
        """Leave the weight server."""
        if self._server:
            self._server.close()
            self._server = None

    # ------------------------------------------------------------ one version

    def _give_up(self) -> None:
        """Let go of a version that does not come, and wait for the next offer. Without any version: raise."""
        problem = (
            f"no whole weight version within {self.seconds:.0f} s ({self.progress}, from {self._endpoint}): is the "
            "learner reachable there? actor.weights_seconds allows more time, learner.versions_kept keeps "
            "versions longer"
        )
        if self._held is None:
            raise WeightsUnavailable(problem)
        log.error("%s; sampling goes on with version %d", problem, self._held.version)
        metrics.weight_versions_given_up.inc()
        self._fetch, self._wanted = None, False

    def _want(self) -> None:
        """Start the allowance of a version; a version that is gone passes its allowance on to the next."""
        if not self._wanted:
            self._wanted = True
            self._deadline.renew()

    def _begin(self, manifest: WeightManifest) -> None:
        if manifest.endpoint != self._endpoint:
            self.close()
            try:
                self._server, self._endpoint = Dealer(manifest.endpoint, listener="learner"), manifest.endpoint
            except ValueError as error:
                raise WeightsUnavailable(f"version {manifest.version}: {error}") from error
        sizes = [shard.nbytes for shard in manifest.shards]
        self._fetch = _Fetch(
            manifest=manifest,
            data=np.empty(sum(sizes), dtype=np.uint8),
            offsets=[0, *np.cumsum(sizes).tolist()],
            missing=set(range(len(sizes))),
        )
        self._ask(self._fetch)

    def _ask(self, fetch: _Fetch) -> None:
        """Keep `WINDOW` shards on their way."""
        shards = len(fetch.manifest.shards)
        arrived = shards - len(fetch.missing)
        while fetch.asked < min(shards, arrived + WINDOW):
            self._request(fetch, fetch.asked)
            fetch.asked += 1

    def _request(self, fetch: _Fetch, shard: int) -> None:
        assert self._server is not None, "a fetch begins by connecting"
        self._server.send(ShardRequest(version=fetch.manifest.version, shard=shard))

    def _take(self, message: Message | Rejected) -> None:
        fetch = self._fetch
        if isinstance(message, Rejected):
            metrics.messages_rejected.inc()
            log.warning("the weight server sent what cannot be taken: %s", message)
        elif isinstance(message, Shard):
            if fetch and message.version == fetch.manifest.version and message.shard in fetch.missing:
                self._store(fetch, message)
        elif isinstance(message, ShardGone):
            if fetch and message.version == fetch.manifest.version:
                self._gone(fetch)
        else:
            log.warning("the weight server sent a %s: ignored", message.kind)

    def _store(self, fetch: _Fetch, shard: Shard) -> None:
        spec = fetch.manifest.shards[shard.shard]
        metrics.weights_fetched_bytes.inc(len(shard.data))
        if len(shard.data) != spec.nbytes or checksum(shard.data) != spec.checksum:
            metrics.weight_shards_corrupt.inc()
            fetch.damaged[shard.shard] += 1
            if fetch.damaged[shard.shard] >= ATTEMPTS:
                raise WeightsUnavailable(
                    f"shard {shard.shard} of version {shard.version} from {self._endpoint} arrived damaged "
                    f"{ATTEMPTS} times: its bytes are not those of the manifest"
                )
            log.warning("shard %d of version %d arrived damaged: asked again", shard.shard, shard.version)
            self._request(fetch, shard.shard)
            return
        begin = fetch.offsets[shard.shard]
        fetch.data[begin : begin + spec.nbytes] = shard.data
        fetch.missing.remove(shard.shard)
        self._ask(fetch)

    def _gone(self, fetch: _Fetch) -> None:
        assert self._newest is not None, "a fetch begins with an offer"
        log.info("version %d is gone from the weight server", fetch.manifest.version)
        self._fetch = None
        if self._newest.version > fetch.manifest.version:
            self._begin(self._newest)

    def _complete(self, fetch: _Fetch) -> FetchedVersion:
        assert self._newest is not None, "a fetch begins with an offer"
        metrics.weight_fetch_seconds.observe(now() - fetch.begun)
        self._fetch, self._wanted, self._held = None, False, fetch.manifest
        if self._newest.version > fetch.manifest.version:
            self._want()
            self._begin(self._newest)
        return FetchedVersion(fetch.manifest, fetch.data)


def _check(manifest: WeightManifest) -> None:
    """What a manifest says twice must agree."""
    if not manifest.shards:
        raise WeightsUnavailable(f"version {manifest.version} has no shards")
    for tensor in manifest.tensors:
        needed = math.prod(tensor.shape) * ITEM_BYTES[tensor.dtype]
        if tensor.nbytes != needed:
            raise WeightsUnavailable(
                f"version {manifest.version}: {tensor.name} has {tensor.nbytes} bytes, "
                f"{tensor.dtype} of shape {list(tensor.shape)} needs {needed}"
            )
    if (actual := fingerprint(manifest.tensors, manifest.shards)) != manifest.fingerprint:
        raise WeightsUnavailable(
            f"version {manifest.version} has the fingerprint {actual}, its manifest says {manifest.fingerprint}"
        )
