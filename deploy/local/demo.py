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

from deploy.local import presence, scale
from deploy.local.progress import Lines, Row

STEPS, SCALE_AFTER, COMPARED = 60, 15, 12  # the last steps are compared with those before the new actors came
WARM_UP = 3  # steps left out at the beginning, and after new actors joined
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
    """Whether this run has come to the step; one that was there before it is cleared when its launcher is at work."""
    if not presence.at_work(RUN):
        return False
    metrics.read_on()
    return bool(metrics.rows) and metrics.rows[-1]["step"] >= SCALE_AFTER


def compare(rows: list[Row], before: int) -> list[str]:
    """A line for the steps before the new actors came, and one for the last steps."""
    joined = next((row["step"] for row in rows if row["actors"] >= 2 * before), None)
    last = [row for row in rows if joined is not None and row["step"] > max(joined + WARM_UP, STEPS - COMPARED)]
    if not last:
        return [f"the new actors did not join in time before the last of {len(rows)} steps"]
    first = [row for row in rows if WARM_UP < row["step"] <= SCALE_AFTER]
    return [_told(before, first), _told(2 * before, last)]


def _told(actors: int, rows: list[Row]) -> str:
    """Medians: a machine that others use too has pauses."""
    seconds = statistics.median(row["seconds"]["total"] for row in rows)
    waiting = statistics.median(row["seconds"]["receive"] / row["seconds"]["total"] for row in rows)
    generated = statistics.median(row["generated_tokens_per_second"] for row in rows)
    return (
        f"{actors} actor{'' if actors == 1 else 's'}, steps {rows[0]['step']} to {rows[-1]['step']}: "
        f"{generated:,.0f} tokens/s generated, a step takes {seconds:.2f} s, the learner waits {waiting:.0%} of it"
    )


if __name__ == "__main__":
    main()
