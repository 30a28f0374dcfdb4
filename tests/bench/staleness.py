"""The quickstart's task at forced staleness, for every loss: reward, collapse, effective sample size.

    python -m tests.bench.staleness --out staleness.json --plot staleness.png
    python -m tests.bench.staleness --lr-sweep --out lr.json --plot lr.png

The batch that version v trains was sampled by version max(0, v − k). All runs start from one checkpoint, which is
trained first and kept in `--work`. A run is saved as it ends: the same command started again goes on where it stopped.
"""

import argparse
import itertools
import json
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from omegaconf import OmegaConf

from learner.config import LearnerRoot, check
from learner.loss.config import LossConfig
from tests.bench.staleness_plot import Cells, plot_curves, plot_rewards
from tests.bench.staleness_run import Run
from tests.bench.workers import ROOT, Worker

OWN = {"proximal": "recompute"}  # p is the learner's own policy: with one update a batch, r is 1
WHOLE = {"aggregation": "seq_mean_token_mean"}  # for losses with one value a sequence
ROWS: dict[str, dict[str, Any]] = {  # what each row of the table changes in LossConfig
    "naive": OWN,  # the control: PPO around the learner's own policy, nothing corrects for the sampler
    "ppo_behaviour": {},
    "ppo_tis": {**OWN, "corrections": ["tis_token"]},
    "decoupled_ppo": {"name": "decoupled_ppo", **OWN},
    "decoupled_loglinear": {"name": "decoupled_ppo", "proximal": "loglinear"},
    "cispo": {"name": "cispo"},
    "gspo": {"name": "gspo", **WHOLE},
    "gmpo": {"name": "gmpo", **WHOLE},
    "sapo": {"name": "sapo"},
    "topr": {"name": "topr"},
    "vespo": {"name": "vespo"},
    "dppo_tv": {"name": "dppo_tv"},
    "m2po": {"name": "m2po"},
    "vtrace": {"name": "vtrace"},
    "cispo_opsm_ess": {
        "name": "cispo",
        "corrections": ["opsm"],
        "advantage": "batch_std",
        "aggregation": "prompt_mean",
        "ess_lr": True,
    },
}
RECOMMENDED = "ppo_behaviour"  # by the table; the defaults
STALENESS = [0, 1, 2, 4, 8, 16, 32, 64]
LEARNING_RATES = [5e-5, 1e-4, 2e-4, 4e-4, 8e-4]
QUICKSTART = ROOT / "deploy" / "conf" / "experiment" / "quickstart.yaml"
FIGURES = {  # key of a result → title of its table, format
    "held_out_reward": ("reward of the last weights, held out", ".3f"),
    "final_reward": ("reward of the last batches", ".3f"),
    "best_reward": ("best reward", ".3f"),
    "mask_fraction_mean": ("tokens that a correction rejected, share", ".3f"),
    "ess_mean": ("effective samples, share", ".3f"),
    "kl_k3_mean": ("KL of sampler and learner, nats", ".2g"),
}


class Results:
    """The file of runs and their results; it is whole at any moment."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: list[dict[str, Any]] = json.loads(path.read_text())["runs"] if path.exists() else []

    def find(self, run: Run) -> Any:
        """The result of a run, None if it is still to be done."""
        described = asdict(run)
        return next((entry["result"] for entry in self.entries if entry["run"] == described), None)

    def add(self, run: Run, result: Any) -> None:
        """Keep a result, in the file too."""
        self.entries.append({"run": asdict(run), "result": result})
        content = {"machine": platform.platform(), "processor": platform.processor(), "runs": self.entries}
        unfinished = self.path.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(content) + "\n")
        unfinished.replace(self.path)


def check_row(name: str) -> None:
    """Refuse a row that the learner would refuse. Raises `ValueError`."""
    if name not in ROWS:
        raise ValueError(f"--rows: there is no {name!r}; there are {', '.join(ROWS)}")
    try:
        check(LearnerRoot(model="", loss=LossConfig(**ROWS[name])))
    except (TypeError, ValueError) as error:
        raise ValueError(f"row {name!r}: {error}") from None


def cold_start(work: Path, options: Mapping[str, Any]) -> Path:
    """The checkpoint that all runs start from; trained, with the options of the quickstart, unless it is there."""
    model = work.absolute() / "cold_start" / "model"
    if not model.exists():
        print(f"training the cold start, {model}", flush=True)
        overrides = [f"sft.{name}={value}" for name, value in options.items()]
        command = [sys.executable, "-m", "learner.sft", *overrides, f"sft.out={model.parent}", "sft.threads=1"]
        subprocess.run(command, cwd=ROOT, check=True)
    return model


def sweep(runs: Sequence[Run], checkpoint: Path, jobs: int, finished: Callable[[Run, Any], None]) -> None:
    """Do the runs, `jobs` at a time, one thread each; `finished` hears of each. Raises `RuntimeError` if one fails."""
    workers = [Worker("tests.bench.staleness_run", str(checkpoint), threads=1) for _ in range(min(jobs, len(runs)))]
    idle: SimpleQueue[Worker] = SimpleQueue()
    for worker in workers:
        idle.put(worker)

    def one(run: Run) -> Any:
        worker = idle.get()
        result = worker.ask(asdict(run))
        idle.put(worker)
        return result

    pool = ThreadPoolExecutor(max(len(workers), 1))
    try:
        started = {pool.submit(one, run): run for run in runs}
        for future in as_completed(started):
            finished(started[future], future.result())
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in workers:
            worker.close()


def told(run: Run, result: Any) -> str:
    """One line about a run."""
    return (
        f"{run.row}, staleness {run.staleness}, lr {run.lr:g}, seed {run.seed}: "
        f"reward {result['final_reward']:.3f}, held out {result['held_out_reward']:.3f}"
        f"{', collapsed' if result['collapsed'] else ''}; {result['seconds_per_step']['total']:.2f} s a step"
    )


def table(cells: Cells, name: str) -> str:
    """The mean over seeds of one figure in Markdown, a column a staleness; a ✗ for each seed whose run collapsed."""
    title, form = FIGURES[name]

    def cell(results: Sequence[Any]) -> str:
        values = [result[name] for result in results if result[name] is not None]
        mean = format(statistics.fmean(values), form) if values else "–"
        return f"{mean} {'✗' * sum(result['collapsed'] for result in results)}".strip()

    columns = sorted({staleness for line in cells.values() for staleness in line})
    rows = [[title, *map(str, columns)], ["---"] * (len(columns) + 1)]
    rows += [[line, *(cell(found.get(column, ())) for column in columns)] for line, found in cells.items()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def parse() -> argparse.Namespace:
    """The command line."""

    def listed(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
        return lambda text: [kind(part.strip()) for part in text.split(",")]

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=listed(str), help=f"some of {','.join(ROWS)}; all if not given")
    parser.add_argument("--staleness", type=listed(int), default=STALENESS, help="as 0,1,2")
    parser.add_argument("--lr", type=listed(float), help="as 1e-4,2e-4; that of the quickstart if not given")
    parser.add_argument("--lr-sweep", action="store_true", help=f"--rows {RECOMMENDED} --lr {LEARNING_RATES}")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--seeds", type=listed(int), default=[0], help="as 0,1,2")
    parser.add_argument("--groups", type=int, default=16, help="prompts a step")
    parser.add_argument("--group-size", type=int, default=8, help="rollouts a prompt")
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side, a thread each")
    parser.add_argument("--work", type=Path, default=Path("runs/staleness"), help="keeps the cold start")
    parser.add_argument("--out", type=Path, default=Path("staleness.json"))
    parser.add_argument("--plot", type=Path, help="PNG of rewards over staleness; the curves go to NAME_curves.png")
    return parser.parse_args()


def main() -> None:
    """Do what is not in `--out` yet, print tables, draw."""
    options = parse()
    quickstart: Any = OmegaConf.to_container(OmegaConf.load(QUICKSTART), resolve=True)
    rows = options.rows or ([RECOMMENDED] if options.lr_sweep else list(ROWS))
    rates = options.lr or (LEARNING_RATES if options.lr_sweep else [quickstart["optimizer"]["lr"]])
    try:
        for row in rows:
            check_row(row)
    except ValueError as error:
        sys.exit(f"staleness: {error}")
    runs = [
        Run(
            row=row,
            loss=ROWS[row],
            staleness=staleness,
            lr=lr,
            warmup_steps=quickstart["optimizer"]["warmup_steps"],
            seed=seed,
            steps=options.steps,
            groups=options.groups,
            group_size=options.group_size,
            digits=quickstart["task"]["digits"],
            max_tokens=quickstart["sampling"]["max_tokens"],
        )
        for seed, staleness, lr, row in itertools.product(options.seeds, options.staleness, rates, rows)
    ]
    results = Results(options.out)
    left = [run for run in runs if results.find(run) is None]

    def finished(run: Run, result: Any) -> None:
        results.add(run, result)
        print(f"{sum(results.find(each) is not None for each in runs)} of {len(runs)}: {told(run, result)}", flush=True)

    try:
        if left:
            sweep(left, cold_start(options.work, quickstart["sft"]), options.jobs, finished)
    except RuntimeError as error:
        sys.exit(f"staleness: {error}")
    cells: dict[str, dict[int, list[Any]]] = {}
    for run in runs:
        line = run.row if len(rates) == 1 else f"{run.row}, lr {run.lr:g}"
        cells.setdefault(line, {}).setdefault(run.staleness, []).append(results.find(run))
    for name in FIGURES:
        print(f"\n{table(cells, name)}")
    if options.plot:
        plot_rewards(cells).savefig(options.plot)
        plot_curves(cells).savefig(options.plot.with_stem(f"{options.plot.stem}_curves"))


if __name__ == "__main__":
    main()
