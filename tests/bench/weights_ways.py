"""The ways of a weight version from the learner to actors, as fast as they are, beside what this machine can do.

The learner's part (store, deltas, server) runs here, each actor in a process of its own; all on one machine, so that
what goes over the wire goes over loopback, and all share its cores. A version's seconds are those of the slowest actor,
from the offer until its parameters are copied, and of all versions the least. The limits are measured anew with every
version, one after the other, so that what else the machine does disturbs both alike; the middle of the ratios counts.
"""

import argparse
import base64
import itertools
import socket
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.distributed as dist
import zmq
from safetensors.torch import save_file

from learner import metrics
from learner.publish.layout import Held, lay_out
from learner.publish.server import WeightServer
from learner.publish.store import Store
from learner.publish.version import Step, seal, step_between
from protocol.codec import encode
from protocol.messages import TensorSpec, WeightManifest
from tests.bench.workers import Worker

GB = 10**9
TENSORS = 40  # of equal size, as the layers of a decoder
CHUNK = 4 * 2**20  # bytes of a raw message; the fastest on loopback
MOST_FOR_LIMITS = GB // 2  # for all receivers: limits are rates, larger versions need no larger measurement
REPEATS = 3  # of a limit's measurement, of which the middle one counts
BASELINE = 0.35  # GB of a process without weights


@dataclass(frozen=True, slots=True)
class Case:
    """What is measured together."""

    gigabytes: float
    way: str  # shared memory, zmq, relay, group (one broadcast over gloo)
    encoding: str  # full, delta
    receivers: int

    def memory(self, versions: int) -> float:
        """GB that it needs: versions at the learner, parameters and, off the learner's host, what is held."""
        copies = 1 if self.way == "shared memory" else 2
        return min(versions, 2) * self.gigabytes + self.receivers * (BASELINE + self.gigabytes * copies)


class Learner:
    """A store, a server, and versions of which each changes a share of the words of the one before."""

    def __init__(self, case: Case, changed: float, stack: ExitStack) -> None:
        self.case, self.changed = case, changed
        self.store = Store(kept=1)
        self.server = stack.enter_context(
            WeightServer(
                self.store,
                "127.0.0.1",
                fanout=2 if case.way == "relay" else 0,
                shared_memory=case.way == "shared memory",
                group=case.receivers if case.way == "group" else 0,
            )
        )
        self.tensors = layout(case.gigabytes)
        self.nbytes = self.tensors[-1].offset + self.tensors[-1].nbytes
        self.versions = itertools.count()
        random = np.random.default_rng(0)
        self.block = random.integers(0, 2**16, 2**22, dtype=np.uint16)
        self.moved = [random.random(len(self.block)) < changed for _ in range(4)]
        self.coding_seconds: list[float] = []
        self.sealing_seconds: list[float] = []

    def publish(self) -> WeightManifest:
        """The next version."""
        version, base = next(self.versions), self.store.newest
        segment = self.store.segment(self.nbytes)
        words = segment.data[: self.nbytes // 2 * 2].view(np.uint16)
        before = None if base is None else base.segment.data[: self.nbytes // 2 * 2].view(np.uint16)
        step = self.moved[version % len(self.moved)].astype(np.uint16)
        for begin in range(0, len(words), len(self.block)):
            part = words[begin : begin + len(self.block)]
            if before is None:
                part[:] = self.block[: len(part)]
            else:
                np.add(before[begin : begin + len(part)], step[: len(part)], out=part)
        steps: tuple[Step, ...] = ()
        if base is not None and self.case.encoding == "delta":
            began = time.perf_counter()
            found = step_between(base, version, segment.data, limit=1.0)
            self.coding_seconds.append(time.perf_counter() - began)
            assert found is not None
            steps = self.store.steps_before(found)
        began = time.perf_counter()
        published = seal(version, self.tensors, segment, self.server.address, steps)
        self.sealing_seconds.append(time.perf_counter() - began)
        self.store.add(published, steps)
        return published.manifest


def layout(gigabytes: float) -> tuple[TensorSpec, ...]:
    """Bfloat16 tensors of so many bytes."""
    words = round(gigabytes * GB / 2 / TENSORS)
    empty = torch.empty(0)
    held = [Held(f"layer.{index}", (words,), torch.bfloat16, False, empty) for index in range(TENSORS)]
    return lay_out(held, {}, None).tensors


def measure(options: argparse.Namespace, work: Path) -> list[dict[str, Any]]:
    """Every case, beside the limits of its size and number of receivers."""
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for gigabytes, receivers in itertools.product(options.sizes, options.receivers):
        print(f"\n{gigabytes:g} GB, {receivers} receivers", flush=True)
        workers = [Worker("tests.bench.weights_worker", threads=1) for _ in range(receivers)]
        try:
            for way, encoding in ways(receivers):
                case = Case(gigabytes, way, encoding, receivers)
                versions = options.versions if case.memory(options.versions) <= options.memory else 1
                row = describe(case)
                if case.memory(versions) > options.memory:
                    row["skipped"] = f"needs {case.memory(versions):.0f} GB of memory"
                else:
                    row |= measure_case(case, workers, versions, options.changed, work)
                rows.append(row)
                show(row)
        finally:
            for worker in workers:
                worker.close()
    return rows


def ways(receivers: int) -> Iterator[tuple[str, str]]:
    """What there is to measure with so many receivers."""
    yield "shared memory", "full"
    for way in ("zmq", "relay") if receivers > 2 else ("zmq",):
        yield from ((way, encoding) for encoding in ("full", "delta"))
    yield "group", "full"


def describe(case: Case) -> dict[str, Any]:
    """The case, for the file."""
    return {
        "gigabytes": case.gigabytes,
        "way": case.way,
        "encoding": case.encoding,
        "receivers": case.receivers,
    }


def measure_case(case: Case, workers: list[Worker], versions: int, changed: float, work: Path) -> dict[str, Any]:
    """Some versions over one way. The first one, for which memory is new, counts by itself alone."""
    limited = min(round(case.gigabytes * GB), MOST_FOR_LIMITS // case.receivers)
    path = mapped_file(work, limited)
    with ExitStack() as stack:
        learner = Learner(case, changed, stack)
        ask_all(workers, lambda _: {"do": "begin", "nbytes": learner.nbytes})
        rounds = []
        for _ in range(versions):
            manifest = base64.b64encode(bytes(encode(learner.publish())[0])).decode()
            before = served()
            answers = ask_all(workers, lambda _, text=manifest: {"do": "fetch", "manifest": text})
            sent = served() - before
            rounds.append((answers, sent, measure_limits(workers, limited, path)))
        ask_all(workers, lambda _: {"do": "end"})
    path.unlink()
    first, *rest = rounds
    return summary(case, learner, first, rest or rounds)


Round: TypeAlias = tuple[list[dict[str, float]], float, dict[str, float]]  # answers, bytes sent, limits


def summary(case: Case, learner: Learner, first: Round, rest: list[Round]) -> dict[str, Any]:
    """Best seconds and rates (GB/s) over the versions; of each rate's shares of its limit, side by side, the middle."""
    seconds = min(slowest(answers) for answers, _, _ in rest)
    shares = [shares_of_limits(case, learner.nbytes, each) for each in rest]
    return {
        "bytes": learner.nbytes,
        "first_seconds": slowest(first[0]),
        "seconds": seconds,
        "fetch_seconds": min(fetching(answers) for answers, _, _ in rest),
        "pause_seconds": min(max(answer["copy_seconds"] for answer in answers) for answers, _, _ in rest),
        "gigabytes_per_second": learner.nbytes / seconds / GB,
        "learner_bytes": statistics.median(sent for _, sent, _ in rest),
        "wire_bytes": statistics.median(sum(answer["wire_bytes"] for answer in answers) for answers, _, _ in rest),
        "limits": {name: max(found[name] for _, _, found in rest) for name in rest[0][2]},
        **{name: statistics.median(each[name] for each in shares) for name in shares[0]},
        "coding_seconds": min(learner.coding_seconds, default=None),
        "sealing_seconds": min(learner.sealing_seconds),
    }


def shares_of_limits(case: Case, nbytes: int, one: Round) -> dict[str, float]:
    """What share of its limit each rate of a version was."""
    answers, _, limits = one
    rate = nbytes / slowest(answers) / GB
    arrived = case.receivers * nbytes / fetching(answers) / GB  # verified, in the memory of all receivers
    return {
        "of_memcpy": rate / limits["memcpy"],
        "of_safetensors": rate / limits["safetensors"],
        "of_raw_zmq": arrived / limits["raw zmq"],
        "of_gloo": arrived / limits["gloo"],
    }


def fetching(answers: Sequence[Mapping[str, float]]) -> float:
    """Seconds until the last actor had it all."""
    return max(answer["fetch_seconds"] for answer in answers)


def slowest(answers: Sequence[Mapping[str, float]]) -> float:
    """Seconds of the last actor."""
    return max(answer["fetch_seconds"] + answer["copy_seconds"] for answer in answers)


def served() -> float:
    """Bytes that the learner has sent."""
    return float(sum(metrics.WEIGHTS_SERVED.labels(encoding)._value.get() for encoding in ("full", "delta", "group")))


def ask_all(workers: list[Worker], request: Callable[[int], dict[str, Any]]) -> list[Any]:
    """Ask all at once."""
    with ThreadPoolExecutor(len(workers)) as pool:
        return list(pool.map(lambda pair: pair[1].ask(request(pair[0])), enumerate(workers)))


def show(row: Mapping[str, Any]) -> None:
    """A line of the table."""
    head = f"  {row['way']:14} {row['encoding']:6}"
    if "skipped" in row:
        print(f"{head} {row['skipped']}", flush=True)
        return
    parts = (
        f"{row['seconds']:8.3f} s (first {row['first_seconds']:7.3f})",
        f"{row['gigabytes_per_second']:6.2f} GB/s",
        f"copy into parameters {1e3 * row['pause_seconds']:6.1f} ms",
        f"learner sent {row['learner_bytes'] / row['bytes']:.3f} versions",
        f"of safetensors {row['of_safetensors']:.2f}",
        f"fetched: of raw zmq {row['of_raw_zmq']:.2f}, of gloo {row['of_gloo']:.2f}",
    )
    print(f"{head} {'  '.join(parts)}", flush=True)


# ---------------------------------------------------------------- limits


def mapped_file(work: Path, nbytes: int) -> Path:
    """A safetensors file of so many bytes, in the page cache."""
    path = work / "weights.safetensors"
    words = nbytes // 2 // TENSORS
    save_file({f"layer.{index}": torch.ones(words, dtype=torch.bfloat16) for index in range(TENSORS)}, path)
    return path


def measure_limits(workers: list[Worker], nbytes: int, path: Path) -> dict[str, float]:
    """GB/s: of one process where memory is the limit, of all receivers together where the wire is."""
    copied = workers[0].ask({"do": "memcpy", "nbytes": nbytes, "repeats": REPEATS})
    mapped = workers[0].ask({"do": "safetensors", "path": str(path), "repeats": REPEATS})
    return {
        "memcpy": nbytes / statistics.median(copied) / GB,
        "safetensors": nbytes / statistics.median(mapped) / GB,
        "raw zmq": raw_zmq(workers, nbytes) / GB,
        "gloo": gloo(workers, nbytes) / GB,
    }


def raw_zmq(workers: list[Worker], nbytes: int) -> float:
    """Bytes a second that all receivers together take from sockets which send without copying."""
    block = np.ones(CHUNK, dtype=np.uint8)
    with sockets(len(workers)) as senders:
        addresses = [sender.getsockopt_string(zmq.LAST_ENDPOINT) for sender in senders]
        with ThreadPoolExecutor(1) as pool:
            answers = pool.submit(
                ask_all, workers, lambda index: {"do": "raw", "address": addresses[index], "nbytes": nbytes}
            )
            for sender in senders:
                sender.send(b"begin")
            for _ in range(-(-nbytes // CHUNK)):
                for sender in senders:
                    sender.send(block.data, copy=False)
            return len(workers) * nbytes / max(answers.result())


@contextmanager
def sockets(count: int) -> "Iterator[list[zmq.Socket[bytes]]]":
    """Sockets on loopback that send."""
    made = []
    for _ in range(count):
        sender: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PUSH)
        sender.setsockopt(zmq.SNDHWM, 16)
        sender.bind("tcp://127.0.0.1:*")
        made.append(sender)
    yield made
    for sender in made:
        sender.close(0)


def gloo(workers: list[Worker], nbytes: int) -> float:
    """Bytes a second that all receivers together get by broadcasts."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    world = len(workers) + 1
    with ThreadPoolExecutor(1) as pool:
        answers = pool.submit(
            ask_all,
            workers,
            lambda index: {
                "do": "gloo",
                "address": address,
                "rank": index + 1,
                "world": world,
                "nbytes": nbytes,
                "repeats": REPEATS,
            },
        )
        dist.init_process_group("gloo", init_method=address, rank=0, world_size=world)
        data = torch.ones(nbytes, dtype=torch.uint8)
        for _ in range(REPEATS):
            dist.barrier()
            dist.broadcast(data, src=0)
            dist.barrier()
        dist.destroy_process_group()
        seconds = statistics.median(max(each) for each in zip(*answers.result(), strict=True))
    return len(workers) * nbytes / seconds
