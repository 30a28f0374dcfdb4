"""The planner against real runs: what `deploy.plan` says of a run, and what that run did.

    python tests/bench/plan.py [--model DIR] [--steps 40] [--out plan.json] [overrides…]
    python tests/bench/plan.py --again plan.json    # foretell anew from the speeds that were measured then

Each run is the quickstart on this machine with another bound on staleness or another batch of the engine. Its parts are
measured while it goes on (`deploy.plan.measure`); the planner then says from these speeds alone how many steps a second
come of it, how long the learner is busy and how old the tokens are. `own` is foretold from a run's own speeds, `first`
from the speeds of the first run, for what had not been run when they were measured: a machine that others use too
changes its speed between two runs, which only the second kind of prediction suffers from.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from deploy.plan import records
from deploy.plan.measure import evaluate, look
from deploy.plan.rates import Rates, parse
from deploy.plan.simulation import Simulation

ROOT = Path(__file__).parents[2]
EVERY = 2.0  # seconds between two looks
WITHIN = 0.15
SPEED, SHARES = "steps_per_second", ("learner_busy", "staleness_mean")
RUNS = (  # of the first, the others are foretold
    ("staleness2", ("stream.max_staleness=2",)),
    ("synchronous", ("stream.max_staleness=0",)),
    ("staleness1", ("stream.max_staleness=1",)),
    ("small_batches", ("stream.max_staleness=2", "engine.max_num_seqs=48")),
)
PLACED = ("placement=auto", "learner.threads=1", "engine.threads=1")  # one core for the learner, one for the actors


def launch(directory: Path, *overrides: str) -> "subprocess.Popen[bytes]":
    """The launcher, in a run directory of its own."""
    command = [sys.executable, "-m", "deploy.local", "experiment=quickstart", f"run.dir={directory}", "run.name=plan"]
    return subprocess.Popen(
        [*command, "view=none", "report=false", "learner.target_reward=0", *PLACED, *overrides], cwd=ROOT
    )


def run(directory: Path, *overrides: str) -> tuple[Rates, dict[str, float]]:
    """A run to its end: the speeds of its parts, and what came of them."""
    process = launch(directory, *overrides)
    looks = []
    while process.poll() is None:
        try:
            process.wait(EVERY)
        except subprocess.TimeoutExpired:
            if (directory / "metrics.jsonl").is_file():
                try:
                    looks.append(look(directory))
                except ValueError:
                    continue  # it is ending
    if process.returncode:
        sys.exit(f"{directory.name} failed: see {directory}/logs")
    rows = records.steps(directory)
    rates = evaluate(records.base(directory, rows), [each for each in looks if each])
    return rates, truth(rows)


def truth(rows: list[dict[str, Any]]) -> dict[str, float]:
    """What a run did, in the words of the prediction."""
    seconds = sum(row["seconds"]["total"] for row in rows)
    return {
        "steps_per_second": len(rows) / seconds,
        "learner_busy": 1 - sum(row["seconds"]["receive"] for row in rows) / seconds,
        "staleness_mean": statistics.fmean(row["staleness_mean"] for row in rows),
    }


def foretell(rates: Rates, steps: int) -> dict[str, float]:
    """What the planner says of one actor and one verifier."""
    outcome = Simulation(rates, actors=1, verifiers=1).run(steps)
    return {name: round(getattr(outcome, name), 4) + 0.0 for name in (SPEED, *SHARES)}


def predicted(runs: list[tuple[str, Rates, dict[str, float]]], steps: int) -> list[dict[str, Any]]:
    """Each run beside both predictions of it."""
    results = []
    for name, rates, real in runs:
        first = runs[0][1]
        actor = replace(first.actor, max_num_seqs=rates.actor.max_num_seqs, room=rates.actor.room)
        borrowed = replace(first, stream=rates.stream, actor=actor)
        results.append(
            {"run": name, "real": real, "own": foretell(rates, steps), "first": foretell(borrowed, steps)}
            | {"rates": asdict(rates)}
        )
    return results


def ran(options: argparse.Namespace, overrides: list[str]) -> list[tuple[str, Rates, dict[str, float]]]:
    """All runs, one after the other: their speeds, and what came of them."""
    runs = []
    with tempfile.TemporaryDirectory() as temporary:
        model = options.model
        if not model:
            cold = Path(temporary) / "cold"
            if launch(cold, "learner.steps=1").wait():
                sys.exit("the cold start failed")
            model = str(cold / "cold_start" / "model")
        for name, setting in RUNS:
            limits = ("cold_start=false", f"model={model}", f"learner.steps={options.steps}")
            runs.append((name, *run(Path(temporary) / name, *limits, *setting, *overrides)))
    return runs


def main() -> None:
    """Run, foretell, print, write JSON; exit code 1 when an own prediction of speed is off by more than 15 %."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", default="", help="HF checkpoint to train; empty: a cold start of the quickstart first"
    )
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path("plan.json"))
    parser.add_argument("--again", type=Path, help="a file of this script's, whose runs are foretold anew and not run")
    options, overrides = parser.parse_known_args()
    if options.again:
        content = json.loads(options.again.read_text())
        options.out = options.again
        runs = [(each["run"], parse(each["rates"]), each["real"]) for each in content["runs"]]
    else:
        content = {"machine": platform.platform(), "cores": os.cpu_count(), "steps": options.steps}
        runs = ran(options, overrides)
    results = predicted(runs, content["steps"])
    print(f"{'':16}{'steps/s':>30}{'learner busy':>30}{'staleness':>30}")
    print(f"{'':16}" + f"{'real':>10}{'own':>10}{'first':>10}" * 3)
    for each in results:
        cells = [f"{each[kind][name]:10.3f}" for name in results[0]["real"] for kind in ("real", "own", "first")]
        print(f"{each['run']:16}{''.join(cells)}")
    errors = {
        kind: {each["run"]: round(each[kind][SPEED] / each["real"][SPEED] - 1, 4) for each in results}
        for kind in ("own", "first")
    }
    for kind, found in errors.items():
        print(f"steps/s, {kind}: " + ", ".join(f"{name} {error:+.1%}" for name, error in found.items()))
    options.out.write_text(json.dumps(content | {"errors": errors, "runs": results}) + "\n")
    sys.exit(any(abs(error) > WITHIN for error in errors["own"].values()))


if __name__ == "__main__":
    main()
