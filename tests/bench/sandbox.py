"""The sandbox against a fresh `bwrap` and interpreter per check, in the same run; and whether anything leaks.

    python tests/bench/sandbox.py [--checks 300] [--rounds 5] [--leak 2000 | --long] [--out sandbox.json]

Both sides run the same programs, `--side-by-side` at a time, in alternating rounds. `bwrap` gets a plain interpreter
without site packages in new namespaces, and none of our filter, user ids, control groups or limits. A check of the leak
run is a program of a random kind: most end well, others crash, loop, fork, fill their disk or write too much.
`--long` makes it 100,000.
"""

import argparse
import json
import os
import platform
import random
import select
import shutil
import statistics
import subprocess
import sys
import sysconfig
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verifier.sandbox.cgroups import PREFIX
from verifier.sandbox.program import Limits, Program
from verifier.sandbox.run import Run, SandboxError
from verifier.sandbox.sandbox import Sandbox

LONG = 100_000
SCRIPTS = {
    "one line": "print(sum(map(int, input().split())))",
    "some work": (
        "import collections, heapq, math, re\n"
        "words = re.findall('[a-z]+', 'the quick brown fox jumps over the lazy dog ' * 200)\n"
        "counts = collections.Counter(words)\n"
        "print(heapq.nlargest(3, counts.items(), key=lambda item: item[1]), math.comb(40, 20), input())\n"
    ),
}
STDIN = b"19 23\n"
LEAKY = {  # program → how often
    "print(6 * 7)": 80,
    "1/0": 5,
    "import os; os.abort()": 3,
    "import os\nfor _ in range(5): os.fork()": 3,
    "open('/tmp/x', 'w').write('x' * 10**7)": 3,
    "kept = bytearray(2**40)": 2,
    "while True: print('x' * 9999)": 2,
    "import time; time.sleep(60)": 1,
    "while True: pass": 1,
}
LEAK_LIMITS = Limits(cpu_seconds=0.05, wall_seconds=0.2, output_bytes=2**16, memory_bytes=2**27)


@dataclass(frozen=True)
class Measured:
    """One round of one side."""

    checks_per_second: float
    latencies: list[float]  # seconds


def bwrap_command(source: str) -> list[str]:
    """The interpreter of this benchmark behind bubblewrap, with what it needs and nothing else."""
    base = sys.base_prefix
    folders = [path for path in ("/usr/lib", "/usr/lib64", base) if os.path.isdir(path)]
    command = ["bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--clearenv"]
    for folder in dict.fromkeys(folders):
        command += ["--ro-bind", folder, folder]
    for link in ("/lib", "/lib64"):
        if os.path.islink(link):
            command += ["--symlink", os.readlink(link), link]
    command += ["--dev", "/dev", "--tmpfs", "/tmp", "--chdir", "/tmp"]
    python = Path(base, "bin", f"python{sysconfig.get_python_version()}")
    return [*command, str(python), "-IS", "-c", source]


def with_bwrap(source: str, expected: bytes, checks: int, side_by_side: int) -> Measured:
    """A fresh sandbox and interpreter each."""
    command = bwrap_command(source)

    def check(_: int) -> float:
        begun = time.perf_counter()
        ended = subprocess.run(command, input=STDIN, capture_output=True, check=True)
        assert ended.stdout == expected, ended
        return time.perf_counter() - begun

    begun = time.perf_counter()
    with ThreadPoolExecutor(side_by_side) as threads:
        latencies = list(threads.map(check, range(checks)))
    return Measured(checks / (time.perf_counter() - begun), latencies)


def with_ours(sandbox: Sandbox, source: str, expected: bytes, checks: int, side_by_side: int) -> Measured:
    """One loop that drives `side_by_side` runs."""
    program = Program(source=source, stdin=STDIN)
    running: dict[Run, float] = {}
    latencies: list[float] = []
    begun = time.perf_counter()
    left = checks
    while left or running:
        while left and len(running) < side_by_side:
            moment = time.perf_counter()
            running[sandbox.start(program)] = moment
            left -= 1
        select.select(list(running), [], [])
        for run in list(running):
            if outcome := run.poll():
                assert outcome.stdout == expected, outcome
                latencies.append(time.perf_counter() - running.pop(run))
    return Measured(checks / (time.perf_counter() - begun), latencies)


def share(latencies: list[float], part: float) -> float:
    """A percentile, in milliseconds."""
    return 1e3 * sorted(latencies)[min(len(latencies) - 1, int(part * len(latencies)))]


def summary(rounds: list[Measured]) -> dict[str, float]:
    """Median rate of the rounds, percentiles over all checks."""
    latencies = [latency for measured in rounds for latency in measured.latencies]
    return {
        "checks_per_second": statistics.median(measured.checks_per_second for measured in rounds),
        "p50_ms": share(latencies, 0.5),
        "p99_ms": share(latencies, 0.99),
    }


def compare(sandbox: Sandbox, arguments: argparse.Namespace) -> dict[str, Any]:
    """Both sides on every script."""
    found: dict[str, Any] = {}
    for name, source in SCRIPTS.items():
        expected = sandbox.run(Program(source=source, stdin=STDIN)).stdout
        sides: dict[str, Callable[[], Measured]] = {
            "ours": lambda s=source, e=expected: with_ours(sandbox, s, e, arguments.checks, arguments.side_by_side),
            "bwrap": lambda s=source, e=expected: with_bwrap(s, e, arguments.checks // 2, arguments.side_by_side),
        }
        rounds: dict[str, list[Measured]] = {side: [] for side in sides}
        for _ in range(arguments.rounds):
            for side, measure in sides.items():
                rounds[side].append(measure())
        result: dict[str, Any] = {side: summary(measured) for side, measured in rounds.items()}
        ratios = [
            ours.checks_per_second / theirs.checks_per_second
            for ours, theirs in zip(rounds["ours"], rounds["bwrap"], strict=True)
        ]
        result["times_as_many"] = statistics.median(ratios)
        found[name] = result
        for side in sides:
            row = result[side]
            print(
                f"{name:10} {side:6} {row['checks_per_second']:8.1f} checks/s   p50 {row['p50_ms']:6.2f} ms   "
                f"p99 {row['p99_ms']:6.2f} ms"
            )
        print(f"{name:10} ours is {result['times_as_many']:.2f} times as fast\n")
    return found


def resident_kib(pid: int) -> int:
    """Memory that a process has of its own and shares."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def state(sandbox: Sandbox) -> dict[str, int]:
    """All that could grow."""
    keeper = sandbox._kept.pid
    (zygote,) = children(keeper)
    memory = {line.split(":")[0]: int(line.split()[1]) for line in Path("/proc/meminfo").read_text().splitlines()}
    return {
        "owner_kib": resident_kib(os.getpid()),
        "zygote_kib": resident_kib(zygote),
        "keeper_kib": resident_kib(keeper),
        "kernel_slab_kib": memory["Slab"],
        "owner_descriptors": len(os.listdir("/proc/self/fd")),
        "zygote_descriptors": len(os.listdir(f"/proc/{zygote}/fd")),
        "zygote_children": len(children(zygote)),
        "zygote_mounts": len(Path(f"/proc/{zygote}/mountinfo").read_text().splitlines()),
        "host_mounts": len(Path("/proc/self/mountinfo").read_text().splitlines()),
        "control_groups": sum(1 for _ in Path("/sys/fs/cgroup").rglob(PREFIX + "*")),
    }


def end_of(run: Run) -> str:
    """How it ended, once it has; `void` where the host failed it, as one does that is short of CPU."""
    try:
        outcome = run.poll()
    except SandboxError:
        return "void"
    return outcome.ended if outcome else ""


def leak(sandbox: Sandbox, checks: int, side_by_side: int) -> dict[str, Any]:
    """Run many, and compare what there is before (after a tenth, when all is warm) and after."""
    draw = random.Random(0)
    programs = [Program(source=source, limits=LEAK_LIMITS) for source in LEAKY]
    weights = list(LEAKY.values())
    ended: Counter[str] = Counter()
    begun, before = time.perf_counter(), state(sandbox)
    for start, count in ((0, checks // 10), (checks // 10, checks)):
        running: list[Run] = []
        left = count - start
        while left or running:
            while left and len(running) < side_by_side:
                running.append(sandbox.start(draw.choices(programs, weights)[0]))
                left -= 1
            select.select(running, [], [])
            for run in list(running):
                if how := end_of(run):
                    ended[how] += 1
                    running.remove(run)
        time.sleep(0.5)  # the kernel takes namespaces apart by and by
        if start == 0:
            before = state(sandbox)
    after = state(sandbox)
    print(f"{checks} checks in {time.perf_counter() - begun:.0f} s: {dict(ended)}")
    for name, value in after.items():
        print(f"  {name:20} {before[name]:10} → {value:10}")
    return {"checks": checks, "ended": dict(ended), "before": before, "after": after}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checks", type=int, default=300, help="checks of our side in each round; bwrap's get half")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--side-by-side", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--leak", type=int, default=2000, help="checks of the leak run; 0: none")
    parser.add_argument("--long", action="store_true", help=f"a leak run of {LONG} checks")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "sandbox.json")
    arguments = parser.parse_args()
    if not shutil.which("bwrap"):
        sys.exit("bwrap is missing: install bubblewrap (Debian: apt-get install bubblewrap)")
    with Sandbox(slots=2 * arguments.side_by_side) as sandbox:
        print(sandbox.walls.described(), "\n")
        result = {
            "machine": {
                "python": platform.python_version(),
                "kernel": platform.release(),
                "cores": os.cpu_count(),
                "owner": os.geteuid(),
            },
            "walls_missing": sandbox.walls.missing,
            "side_by_side": arguments.side_by_side,
            "scripts": compare(sandbox, arguments),
        }
        if checks := LONG if arguments.long else arguments.leak:
            result["leak"] = leak(sandbox, checks, 2 * arguments.side_by_side)
    arguments.out.parent.mkdir(exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written: {arguments.out}")


if __name__ == "__main__":
    main()
