"""`make demo-scale`: the quickstart, whose actors are doubled in mid-run by `python -m deploy.local scale`.

It starts a launcher, waits for `SCALE_AFTER` steps, asks for twice the actors, and at the end tells what that did:
tokens generated a second and the share of the time that the learner waited, before and after. On a machine with fewer
cores than processes the actors share what there is, and the figures say so.
"""

import statistics
import subprocess
import sys
import time
from pathlib import Path

from omegaconf import OmegaConf

from deploy.local import scale
from deploy.local.progress import Lines, Row

STEPS, SCALE_AFTER = 40, 15
WARM_UP = 3  # steps left out at the beginning, and after new actors came
POLL_SECONDS = 0.2
RUN = Path("runs/demo-scale")


def main() -> None:
    """Run, scale, compare."""
    command = [sys.executable, "-m", "deploy.local", "experiment=quickstart", f"run.dir={RUN}", "run.name=demo-scale"]
    limits = [f"learner.steps={STEPS}", "learner.target_reward=0", "overwrite=true"]
    launcher = subprocess.Popen([*command, *limits, *sys.argv[1:]])
    metrics = Lines(RUN / "metrics.jsonl")
    try:
        before = double(launcher, metrics)
        code = launcher.wait()
    except KeyboardInterrupt:
        sys.exit(launcher.wait())  # it got the signal too
    if code:
        sys.exit(code)
    metrics.read_on()
    for line in compare(metrics.rows, before):
        print(line)


def double(launcher: "subprocess.Popen[bytes]", metrics: Lines) -> int:
    """Ask for twice the actors after `SCALE_AFTER` steps; returns how many there were."""
    while not _begun(metrics):
        if launcher.poll() is not None:
            sys.exit(launcher.returncode or f"demo-scale: the run was over before step {SCALE_AFTER}")
        time.sleep(POLL_SECONDS)
    before = int(OmegaConf.load(RUN / "config" / "run_local.yaml").actors)
    scale.ask(RUN, {"actor": 2 * before})
    return before


def _begun(metrics: Lines) -> bool:
    """Whether this run, not one that was in the directory before it, has come to the step."""
    metrics.read_on()
    return bool(metrics.rows) and metrics.rows[-1]["step"] in range(SCALE_AFTER, STEPS)


def compare(rows: list[Row], before: int) -> list[str]:
    """A line for each number of actors that the broker counted: steps, tokens a second, the learner's waiting."""
    after = next((row["step"] for row in rows if row["actors"] >= 2 * before), None)
    if after is None:
        return [f"the new actors did not join before the last step; the run is too short for {2 * before} actors"]
    parts = {
        before: [row for row in rows if WARM_UP < row["step"] <= SCALE_AFTER],
        2 * before: [row for row in rows if row["step"] > after + WARM_UP],
    }
    return [_told(actors, part) for actors, part in parts.items() if part]


def _told(actors: int, rows: list[Row]) -> str:
    seconds = sum(row["seconds"]["total"] for row in rows)
    waiting = sum(row["seconds"]["receive"] for row in rows) / seconds
    generated = statistics.fmean(row["generated_tokens_per_second"] for row in rows)
    steps = f"steps {rows[0]['step']} to {rows[-1]['step']}"
    return (
        f"{actors} actor{'' if actors == 1 else 's'}, {steps}: {generated:,.0f} tokens/s generated, "
        f"{len(rows) / seconds:.2f} steps/s, the learner waited {waiting:.0%} of the time"
    )


if __name__ == "__main__":
    main()
