"""From the weights between two steps to a version that actors are offered, while the next step trains.

`publish` copies what this rank holds (on its own device, or straight into the shared memory that actors read), the only
part for which training waits. A thread does the rest: finds what changed, brings it to the first rank over a process
group of its own, and there completes the version, makes its delta and its checksums, and announces it. One version is
under way at a time: a `publish` that finds the one before unfinished waits for it, at most `FINISH_SECONDS`.
"""

import logging
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist

from learner import metrics
from learner.distributed import Ranks
from learner.policy.model import Policy
from learner.publish import exchange_parts
from learner.publish.changes import Changes, find, put
from learner.publish.config import WeightsConfig
from learner.publish.layout import Held, Layout, held, lay_out, tied
from learner.publish.server import WeightServer
from learner.publish.version import Step, seal, step_between
from protocol.messages import WeightManifest
from protocol.segments import Segment

log = logging.getLogger("learner")

FINISH_SECONDS = 600.0  # longest wait for the version before
MOST_THREADS = 8


@dataclass(slots=True)
class Figures:
    """What one version took, for the step's line of metrics.jsonl."""

    version: int
    nbytes: int
    stall_seconds: float  # for which training waited: for the version before, and for the copy
    background_seconds: float = 0.0
    delta_bytes: int | None = None  # None: no delta was made
    changed_fraction: float | None = None  # of 16-bit words; None: nobody counted


class Publisher:
    """Publishes the policy's versions; used as a context manager. `server` and `announce`, which tells the broker of a
    version, are there on the first rank alone.

    Every method is collective. Raises what the thread raised, `OSError` for want of memory included, at the next call.
    """

    def __init__(
        self,
        policy: Policy,
        ranks: Ranks,
        config: WeightsConfig,
        *,
        dtype: torch.dtype | None,
        server: WeightServer | None = None,
        announce: Callable[[WeightManifest], None] | None = None,
    ) -> None:
        self.policy = policy
        self.ranks = ranks
        self.config = config
        self.dtype = dtype
        self.server = server
        self.announce = announce
        self.figures: Figures | None = None  # of the version that was announced last
        self._before: Figures | None = None  # of the one before the version that was copied last
        self._layout: Layout | None = None
        self._fresh: list[torch.Tensor] = []  # this rank's parts as they are published now, flat
        self._last: list[torch.Tensor | None] = []  # and as they were published last
        self._in_place = False  # this rank writes into the served memory itself
        self._group = _group(ranks)
        self._thread = ThreadPoolExecutor(1, "publish", initializer=self._bind)
        threads = config.threads or min(MOST_THREADS, max(1, (os.cpu_count() or 1) // 4))
        self._coders = ThreadPoolExecutor(threads, "delta")
        self._under_way: Future[None] | None = None

    # ------------------------------------------------------------ called by the training thread

    def publish(self, version: int) -> None:
        """Offer the weights as they are now as `version`; returns when they are copied."""
        begin = time.perf_counter()
        self.finish()
        self._before = self.figures
        layout = self._layout or self._begin()
        segment = self.server.store.segment(layout.nbytes) if self.server else None
        copied = self._copy(layout, segment)
        stall = time.perf_counter() - begin
        metrics.PUBLISH_STALL.observe(stall)
        figures = Figures(version, layout.nbytes, stall)
        self._under_way = self._thread.submit(self._complete, layout, segment, copied, figures)

    def finish(self) -> None:
        """Wait until the version under way is announced."""
        future, self._under_way = self._under_way, None
        if future is None:
            return
        if not future.done():
            metrics.PUBLISH_WAITS.inc()
        try:
            future.result(FINISH_SECONDS)
        except TimeoutError:
            raise OSError(f"a weight version is not published after {FINISH_SECONDS:.0f} s of waiting") from None

    def row(self) -> dict[str, Any] | None:
        """What the version before the last one took, which by now is out, and what actors say of it."""
        if self._before is None or self.server is None:
            return None
        figures, loads = self._before, self.server.loads.of(self._before.version)
        return {
            "version": figures.version,
            "bytes": figures.nbytes,
            "delta_bytes": figures.delta_bytes,
            "changed_fraction": figures.changed_fraction,
            "stall_seconds": figures.stall_seconds,
            "background_seconds": figures.background_seconds,
            "actors": dict(loads.ways),  # that loaded it, by the way it came
            "wire_bytes": loads.nbytes,
            "fetch_seconds_max": loads.fetch_seconds,
            "pause_seconds_max": loads.pause_seconds,
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Announce what is under way, and end the threads; after an error another rank may never come to it."""
        try:
            if kind is None:
                self.finish()
        finally:
            self._thread.shutdown(wait=kind is None)
            self._coders.shutdown(wait=kind is None)

    def _begin(self) -> Layout:
        devices: list[torch.device] = []

        def noted() -> Iterator[Held]:
            for each in held(self.policy, self.ranks):
                devices.append(each.local.device)
                yield each

        self._layout = layout = lay_out(noted(), tied(self.policy.network), self.dtype)
        self._in_place = self.server is not None and all(device.type == "cpu" for device in devices)
        if not self._in_place and self._takes_part(layout):
            self._fresh = [
                torch.empty(part.nbytes // part.dtype.itemsize, dtype=part.dtype, device=devices[part.tensor])
                for part in layout.parts(self.ranks.rank, self.ranks.world)
            ]
        self._last = [None] * len(self._fresh)
        return layout

    def _takes_part(self, layout: Layout) -> bool:
        return any(layout.by_rows) or self.ranks.first

    def _copy(self, layout: Layout, segment: Segment | None) -> "torch.cuda.Event | None":
        """Copy this rank's parts, cast, to where the thread will find them."""
        parts = {part.tensor: part for part in layout.parts(self.ranks.rank, self.ranks.world)}
        targets: Iterator[torch.Tensor] = iter(self._fresh)
        if self._in_place:
            assert segment is not None, "the first rank has the memory"
            data = torch.from_numpy(segment.data)
            targets = (data[part.begin : part.begin + part.nbytes].view(part.dtype) for part in parts.values())
        with torch.no_grad():
            for index, tensor in enumerate(held(self.policy, self.ranks)):
                if index in parts and (self._in_place or self._fresh):
                    next(targets).copy_(tensor.local.reshape(-1), non_blocking=True)
        if not any(fresh.is_cuda for fresh in self._fresh):
            return None
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        copied.record()
        return copied

    # ------------------------------------------------------------ the thread

    def _bind(self) -> None:
        """A new thread would use the first GPU whatever its process uses."""
        if self.ranks.device.type == "cuda":
            torch.cuda.set_device(self.ranks.device)

    def _complete(
        self, layout: Layout, segment: Segment | None, copied: "torch.cuda.Event | None", figures: Figures
    ) -> None:
        begin = time.perf_counter()
        changes = self._find(copied)
        if self.server is None or segment is None:
            if self._group is not None and changes:
                exchange_parts.send(changes, self._group)
            return
        with _timed("gather"):
            self._gather(layout, segment, changes)
        with _timed("delta"):
            steps = self._steps(segment, figures)
        with _timed("seal"):
            published = seal(figures.version, layout.tensors, segment, self.server.address, steps, self._coders.map)
        self.server.store.add(published, steps)
        self.server.loads.published(figures.version, published.manifest.fingerprint)
        if self.announce is not None:
            self.announce(published.manifest)
        figures.background_seconds = time.perf_counter() - begin
        self.figures = figures
        self.server.store.segment(layout.nbytes)  # have memory ready for the next version

    def _find(self, copied: "torch.cuda.Event | None") -> list[Changes]:
        """What changed in this rank's parts, in host memory; on a GPU beside the training, in a stream of its own."""
        if copied is None:
            return self._compare()
        with torch.cuda.stream(torch.cuda.Stream()):  # type: ignore[no-untyped-call]
            torch.cuda.current_stream().wait_event(copied)
            return self._compare()

    def _compare(self) -> list[Changes]:
        found = [find(last, fresh) for last, fresh in zip(self._last, self._fresh, strict=True)]
        kept = [
            torch.empty_like(fresh) if last is None else last
            for last, fresh in zip(self._last, self._fresh, strict=True)
        ]
        self._last, self._fresh = list(self._fresh), kept
        return found

    def _gather(self, layout: Layout, segment: Segment, own: list[Changes]) -> None:
        """Fill in what is not in the memory yet: this rank's parts from its GPU, the other ranks' from theirs."""
        assert self.server is not None, "the first rank gathers"
        newest = self.server.store.newest
        data = torch.from_numpy(segment.data)
        base = torch.from_numpy(newest.segment.data) if newest is not None else data
        for rank in range(self.ranks.world):
            parts = layout.parts(rank, self.ranks.world)
            if rank == 0:
                changes = own
            elif self._group is None or not any(layout.by_rows):
                continue
            else:
                changes = exchange_parts.receive(parts, rank, self._group)
            if rank == 0 and self._in_place:
                continue
            for part, change in zip(parts, changes, strict=True):
                place = slice(part.begin, part.begin + part.nbytes)
                put(change, data[place], base[place])

    def _steps(self, segment: Segment, figures: Figures) -> tuple[Step, ...]:
        """The deltas that lead to this version, oldest first; none that nobody would use, or too large."""
        assert self.server is not None, "the first rank makes deltas"
        store, config = self.server.store, self.config
        due = config.full_every and figures.version % config.full_every == 0
        if store.newest is None or not config.delta or due or not store.wired:
            return ()
        step = step_between(
            store.newest, figures.version, segment.data, limit=config.delta_limit, spread=self._coders.map
        )
        if step is None:
            return ()
        figures.delta_bytes, figures.changed_fraction = step.nbytes, 2 * step.changed / len(segment.data)
        return store.steps_before(step)


def _group(ranks: Ranks) -> "dist.ProcessGroup | None":
    """A group for the threads, beside the one that trains. Collective."""
    if dist.get_world_size() == 1:
        return None
    group = dist.new_group(backend="gloo", timeout=timedelta(seconds=FINISH_SECONDS))
    assert group is not None, "every rank is in it"
    return group if ranks.tensor_mesh is None else None


@contextmanager
def _timed(part: str) -> Iterator[None]:
    with metrics.PUBLISH_SECONDS.labels(part).time():
        yield
