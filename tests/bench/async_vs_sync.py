"""Asynchronous against synchronous: the quickstart at `max_staleness` 2 and 0, one core each for actor and learner.

    python tests/bench/async_vs_sync.py [--steps 25] [--repeats 3] [--out results.json] [overrides…]

Both train the same number of steps of the same shape from the same cold start, alternating, so that a noisy machine
treats them alike. Times are of the training itself: from the end of the first step to the end of the last one.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PLACED = ["placement=auto", "learner.threads=1", "engine.threads=1"]  # one core each


def launch(name: str, directory: Path, *overrides: str) -> Path:
    """Run the launcher to the end; returns the run's directory."""
    run = directory / name
    command = [sys.executable, "-m", "deploy.local", "experiment=quickstart", f"run.name={name}", f"run.dir={run}"]
    finished = subprocess.run(
        [*command, "view=none", "report=false", *overrides], cwd=ROOT, capture_output=True, text=True
    )
    if finished.returncode:
        sys.exit(f"{name} failed:\n{finished.stdout[-2000:]}\n{finished.stderr[-2000:]}")
    return run


def measure(run: Path) -> dict[str, float]:
    """What a run's files say of its speed."""
    rows: list[dict[str, Any]] = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    counted = rows[1:]
    seconds = rows[-1]["time_s"] - rows[0]["time_s"]
    return {
        "seconds": seconds,
        "steps_per_second": len(counted) / seconds,
        "trained_tokens_per_second": (rows[-1]["trained_tokens"] - rows[0]["trained_tokens"]) / seconds,
        "learner_waiting": sum(row["seconds"]["receive"] for row in counted) / seconds,
        "staleness_mean": statistics.fmean(row["staleness_mean"] for row in counted),
        "staleness_max": max(row["staleness_max"] for row in counted),
        "mixed_version_rollouts": sum(row["mixed_version_rollouts"] for row in counted),
        "reward_end": statistics.fmean(row["reward_mean"] for row in rows[-3:]),
    }


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("async_vs_sync.json"))
    options, overrides = parser.parse_known_args()
    results: dict[int, list[dict[str, float]]] = {2: [], 0: []}
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        start = launch("cold", directory, "learner.steps=1", *PLACED, *overrides) / "cold_start" / "model"
        for repeat in range(options.repeats):
            for staleness in results:
                run = launch(
                    f"staleness{staleness}-{repeat}",
                    directory,
                    *("cold_start=false", f"model={start}", f"stream.max_staleness={staleness}"),
                    *(f"learner.steps={options.steps}", "learner.target_reward=0"),
                    *PLACED,
                    *overrides,
                )
                results[staleness].append(measure(run))
    medians = {
        staleness: {name: statistics.median(each[name] for each in measured) for name in measured[0]}
        for staleness, measured in results.items()
    }
    print(f"{'':28}{'max_staleness=2':>18}{'max_staleness=0':>18}")
    for name in medians[2]:
        print(f"{name:28}{medians[2][name]:18.3f}{medians[0][name]:18.3f}")
    print(f"wall-clock, synchronous / asynchronous: {medians[0]['seconds'] / medians[2]['seconds']:.2f}")
    content = {"machine": platform.platform(), "processor": platform.processor(), "steps": options.steps}
    options.out.write_text(json.dumps(content | {"runs": results, "medians": medians}, indent=2) + "\n")


if __name__ == "__main__":
    main()
