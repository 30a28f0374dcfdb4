"""What one broker serves: the real broker process under simulated actors, verifiers and a learner.

    python -m tests.bench.broker_load [--actors 1 10 100 1000 2000] [--rate 200] [--tokens 512] [--seconds 30]
                                      [--out broker_load.json]

Two sweeps over the number of actors, each actor a connection of its own (`tests.bench.load_peers`). `offered`: all of
them together deliver `--rate` groups of 8 rollouts of `--tokens` tokens a second, as long as the broker keeps up; the
latencies are those of that load. `most`: every actor delivers a lease at once, so that the broker is the bottleneck.
Broker and peers share the machine; what other processes take of it is reported beside (`others`).

    lease   from room for a group on an actor to the lease, admission leaving room all the time
    job     from a rollout on an actor to its verify job on a verifier: one way through the journal
    batch   from the last rollout that a batch misses to the batch on the learner: twice through the journal
"""

import argparse
import contextlib
import itertools
import json
import math
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.bench.load_peers import CHECKPOINT_STEPS, Crew
from tests.bench.workers import ROOT, Worker

GROUP_SIZE = 8
GROUPS_PER_STEP = 128
VERIFIERS = 4
ACTORS_A_PROCESS = 1000
LEASES = 2  # an actor holds at least so many, and all actors together at least:
LEASES_IN_ALL = 64
JOIN_SECONDS = 3.0  # and so many for each thousand actors:
JOIN_SECONDS_A_THOUSAND = 6.0
START_SECONDS = 60.0
TICKS = os.sysconf("SC_CLK_TCK")
TASKS = 4096
PROMPT = "Show your work in <think> tags and give the answer in <answer> tags. " * 4


@dataclass(frozen=True, slots=True)
class Usage:
    """What the broker has used at one moment."""

    moment: float
    main_seconds: float  # CPU of its loop
    other_seconds: float  # CPU of its other threads: sockets, HTTP
    rss_bytes: int
    disk_bytes: int  # written by it
    journal_bytes: int  # size of the file
    machine_seconds: float  # CPU of everything on the machine


class BrokerProcess:
    """`python -m learner.broker` in `directory`."""

    def __init__(self, directory: Path, *, max_staleness: int, sync: str) -> None:
        self.directory = directory
        tasks = directory / "tasks.jsonl"
        if not tasks.exists():
            tasks.write_text("".join(json.dumps(_task(number)) + "\n" for number in range(TASKS)))
        self.began = time.monotonic()
        with (directory / "broker.log").open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "learner.broker", *self._options(tasks, max_staleness, sync)],
                cwd=ROOT,
                stdout=log,
                stderr=log,
            )
        self.address = self._address()
        self.start_seconds = time.monotonic() - self.began

    def _options(self, tasks: Path, max_staleness: int, sync: str) -> Iterator[str]:
        yield from ("broker=tcp://127.0.0.1:*", "model=none", f"run.dir={self.directory}")
        yield from ("task.name=file", f"task.files=[{tasks}]", f"journal.sync={sync}")
        yield from (f"stream.group_size={GROUP_SIZE}", f"stream.groups_per_step={GROUPS_PER_STEP}")
        yield from (f"stream.max_staleness={max_staleness}", "stream.lease_seconds=3600")

    def _address(self) -> str:
        path = self.directory / "broker.json"
        while time.monotonic() < self.began + START_SECONDS and self.process.poll() is None:
            with contextlib.suppress(FileNotFoundError):
                if (content := json.loads(path.read_text()))["pid"] == self.process.pid:
                    return str(content["broker"])
            time.sleep(0.01)
        raise RuntimeError(f"the broker did not start; its log ends with {self.log_end()}")

    def usage(self) -> Usage:
        """What it has used until now."""
        process = Path(f"/proc/{self.process.pid}")
        seconds = {task.name: _cpu_seconds(task / "stat") for task in (process / "task").iterdir()}
        main = seconds.pop(str(self.process.pid))
        journal = sum(path.stat().st_size for path in self.directory.glob("journal.sqlite*"))
        written = dict(line.split(": ") for line in (process / "io").read_text().splitlines())
        pages = int((process / "statm").read_text().split()[1])
        with Path("/proc/stat").open() as lines:
            user, nice, system, _, _, interrupts, soft, *_ = map(int, next(lines).split()[1:])
        return Usage(
            moment=time.monotonic(),
            main_seconds=main,
            other_seconds=sum(seconds.values()),
            rss_bytes=pages * os.sysconf("SC_PAGE_SIZE"),
            disk_bytes=int(written["write_bytes"]),
            journal_bytes=journal,
            machine_seconds=(user + nice + system + interrupts + soft) / TICKS,
        )

    def log_end(self) -> str:
        """The last lines of its log."""
        return "\n".join((self.directory / "broker.log").read_text().splitlines()[-5:])

    def kill(self) -> None:
        """As by kill -9."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def _task(number: int) -> dict[str, str]:
    prompt = f"What is {number} plus {number + 1}? {PROMPT}"
    return {"prompt": prompt, "reward": "accuracy", "reference": str(2 * number + 1)}


def _cpu_seconds(stat: Path) -> float:
    fields = stat.read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


@dataclass(kw_only=True, frozen=True, slots=True)
class Case:
    """One row of the table."""

    actors: int
    rate: float  # groups a second; 0: as many as the broker takes
    seconds: float
    sync: str
    tokens: int = 512  # of a rollout

    @property
    def capacity(self) -> int:
        """Rollouts of an actor."""
        return GROUP_SIZE * max(LEASES, math.ceil(LEASES_IN_ALL / self.actors))

    @property
    def sampling_seconds(self) -> float:
        """From lease to rollout, so that all actors together make `rate` groups a second. Of an actor's places, the
        `group_size - 1` last ones that came free wait, half of them on average, for room for a whole group."""
        if not self.rate:
            return 0.0
        return self.actors * (self.capacity - (GROUP_SIZE - 1) / 2) / (GROUP_SIZE * self.rate)

    @property
    def max_staleness(self) -> int:
        """So high that admission never waits: what is measured is the broker, and not the learner's pace."""
        return math.ceil(self.actors * self.capacity / GROUP_SIZE / GROUPS_PER_STEP) + 8

    @property
    def warm_seconds(self) -> float:
        """Until all have joined and the first checkpoint has pruned the journal."""
        joining = JOIN_SECONDS + JOIN_SECONDS_A_THOUSAND * self.actors / 1000
        return joining + 2 * self.sampling_seconds + 1.2 * CHECKPOINT_STEPS * GROUPS_PER_STEP / (self.rate or 300)


def measure(case: Case, directory: Path) -> dict[str, Any]:
    """Run one case."""
    broker = BrokerProcess(directory, max_staleness=case.max_staleness, sync=case.sync)
    begin = time.monotonic() + case.warm_seconds
    window = {"broker": broker.address, "begin": begin, "end": begin + case.seconds}
    crews = [Crew(**window, verifiers=VERIFIERS, learner=True)]
    for first in range(0, case.actors, ACTORS_A_PROCESS):
        actors = min(ACTORS_A_PROCESS, case.actors - first)
        places = {"capacity": case.capacity, "group_size": GROUP_SIZE, "seconds": case.sampling_seconds}
        places["tokens"] = case.tokens
        crews.append(Crew(**window, actors=actors, first=first, **places))
    workers = [Worker("tests.bench.load_peers", threads=1) for _ in crews]
    try:
        with ThreadPoolExecutor(len(crews)) as threads:
            answers = [threads.submit(worker.ask, asdict(crew)) for worker, crew in zip(workers, crews, strict=True)]
            _sleep_until(begin)
            usages = []
            while time.monotonic() < begin + case.seconds:
                if broker.process.poll() is not None:
                    raise RuntimeError(f"the broker died: {broker.log_end()}")
                usages.append(broker.usage())
                _sleep_until(min(usages[-1].moment + 1, begin + case.seconds))
            usages.append(broker.usage())
            broker.kill()
            seen = [answer.result() for answer in answers]
    finally:
        for worker in workers:
            worker.close()
        broker.kill()
    again = BrokerProcess(directory, max_staleness=case.max_staleness, sync=case.sync)
    again.kill()
    return _row(case, usages, seen) | {"start_seconds": broker.start_seconds, "restart_seconds": again.start_seconds}


def _row(case: Case, usages: Sequence[Usage], seen: Sequence[dict[str, Any]]) -> dict[str, Any]:
    first, last = usages[0], usages[-1]
    middle = usages[len(usages) // 2]
    wall = last.moment - first.moment
    broker_seconds = last.main_seconds + last.other_seconds - first.main_seconds - first.other_seconds
    peers = [each["cpu_seconds"] / case.seconds for each in seen]
    latencies = {
        f"{name}_ms": _quantiles([1e3 * seconds for each in seen for seconds in each[name]])
        for name in ("lease", "job", "batch", "group")
    }
    groups = sum(each["groups"] for each in seen)
    return {
        "actors": case.actors,
        "tokens": case.tokens,
        "offered": case.rate,
        "groups_per_second": groups / case.seconds,
        "rollouts_per_second": sum(each["rollouts"] for each in seen) / case.seconds,
        "steps": sum(each["steps"] for each in seen),
        **latencies,
        "unserved_leases": sum(each["unserved"] for each in seen),
        "longest_wait_seconds": max(each["longest_wait"] for each in seen),
        "loop_cpu": (last.main_seconds - first.main_seconds) / wall,
        "loop_cpu_halves": [
            (end.main_seconds - start.main_seconds) / (end.moment - start.moment)
            for start, end in ((first, middle), (middle, last))
        ],
        "other_cpu": (last.other_seconds - first.other_seconds) / wall,
        "peers_cpu": peers,
        "others": (last.machine_seconds - first.machine_seconds - broker_seconds) / wall - sum(peers),
        "rss_mb": [usages[len(usages) * part // 4 - (part == 4)].rss_bytes / 1e6 for part in range(5)],
        "disk_mb_per_second": (last.disk_bytes - first.disk_bytes) / 1e6 / wall,
        "journal_mb": max(usage.journal_bytes for usage in usages) / 1e6,
    }


def _quantiles(values: list[float]) -> dict[str, float]:
    if len(values) < 2:
        return {}
    cuts = statistics.quantiles(values, n=1000)
    return {"p50": cuts[499], "p99": cuts[989], "p999": cuts[998], "count": len(values)}


def _sleep_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.monotonic()))


COLUMNS = (
    ("actors", 7, lambda row: f"{row['actors']}"),
    ("tokens", 7, lambda row: f"{row['tokens']}"),
    ("offered", 8, lambda row: f"{row['offered']:.0f}" if row["offered"] else "most"),
    ("groups/s", 9, lambda row: f"{row['groups_per_second']:.0f}"),
    ("lease p50", 10, lambda row: f"{row['lease_ms'].get('p50', math.nan):.1f}"),
    ("p99 ms", 8, lambda row: f"{row['lease_ms'].get('p99', math.nan):.1f}"),
    ("job p50", 9, lambda row: f"{row['job_ms'].get('p50', math.nan):.1f}"),
    ("p99 ms", 8, lambda row: f"{row['job_ms'].get('p99', math.nan):.1f}"),
    ("batch p50", 10, lambda row: f"{row['batch_ms'].get('p50', math.nan):.1f}"),
    ("p99 ms", 8, lambda row: f"{row['batch_ms'].get('p99', math.nan):.1f}"),
    ("loop CPU", 9, lambda row: f"{row['loop_cpu']:.0%}"),
    ("other", 6, lambda row: f"{row['other_cpu']:.0%}"),
    ("peers", 11, lambda row: "+".join(f"{100 * share:.0f}" for share in row["peers_cpu"])),
    ("others", 7, lambda row: f"{row['others']:.0%}"),
    ("RSS MB", 10, lambda row: f"{row['rss_mb'][0]:.0f}→{row['rss_mb'][-1]:.0f}"),
    ("disk MB/s", 10, lambda row: f"{row['disk_mb_per_second']:.1f}"),
    ("file MB", 8, lambda row: f"{row['journal_mb']:.0f}"),
)


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--actors", type=int, nargs="+", default=[1, 10, 100, 1000, 2000])
    parser.add_argument("--rate", type=float, nargs="+", default=[200.0, 0.0], help="groups a second; 0: the most")
    parser.add_argument("--tokens", type=int, nargs="+", default=[512], help="of a rollout's completion")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--sync", choices=("normal", "full"), default="normal")
    parser.add_argument("--out", type=Path, default=Path("broker_load.json"))
    parser.add_argument("--directory", type=Path, help="for the journals")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    print("".join(f"{title:>{width}}" for title, width, _ in COLUMNS))
    sweep = itertools.product(options.rate, options.tokens, options.actors, range(options.repeats))
    for rate, tokens, actors, _ in sweep:
        case = Case(actors=actors, rate=rate, seconds=options.seconds, sync=options.sync, tokens=tokens)
        with tempfile.TemporaryDirectory(dir=options.directory) as temporary:
            rows.append(measure(case, Path(temporary)))
        print("".join(f"{show(rows[-1]):>{width}}" for _, width, show in COLUMNS), flush=True)
        content = {"machine": platform.platform(), "cores": os.cpu_count(), "sync": options.sync, "rows": rows}
        options.out.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
