"""`python -m deploy.slurm up|scale|status|logs|drain|down …`: runs on a Slurm cluster."""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import hydra
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig

from deploy.slurm import launch, layout, scaling, status
from deploy.slurm.config import SlurmRoot
from deploy.slurm.layout import Run
from deploy.slurm.queue import SlurmRefused, jobs

ConfigStore.instance().store(name="slurm_schema", node=SlurmRoot)

USAGE = """python -m deploy.slurm COMMAND …
  up experiment=… learner.nodes=… actors=… verifiers=… run.dir=…   set a run up and submit its jobs
  scale actors=24 verifiers=4      more or fewer of them while it goes on
  status                           jobs, who waits for whom, how far it has got
  logs [NAME …] [lines=20] [follow=true]   of broker-0, learner-0, actor-3, …; without a name: of all
  drain                            finish what has begun, write a checkpoint, end; `up … resume=true` goes on
  down                             cancel everything
All but `up` take run.dir=DIR or run.name=NAME (runs/NAME); without, the one run below runs/ that has jobs."""
KILL_SECONDS = 120.0  # for Slurm to end what was cancelled: its KillWait is 30 s by default

Words = Mapping[str, str]


@hydra.main(version_base="1.3", config_path="../conf", config_name="slurm")
def up(tree: DictConfig) -> None:
    """Compose, refuse what could not work, submit."""
    try:
        run, numbers = launch.up(tree)
    except (ValueError, OSError, SlurmRefused) as error:
        sys.exit(f"slurm: {error}")
    submitted = ", ".join(f"{role} {number}" for role, number in numbers.items())
    print(f"run {run.name} in {run.directory}\njobs: {submitted}; scripts: {run.slurm}/*.sbatch")
    print(f"next: python -m deploy.slurm status run.dir={run.directory}")


def scale(run: Run, words: Words, names: Sequence[str]) -> None:
    """More or fewer actors or verifiers."""
    if not words:
        raise ValueError("scale: say how many, as in `scale actors=24`")
    for plural, value in words.items():
        if not value.isdigit():
            raise ValueError(f"{plural}={value}: must be 0 or more")
        done = scaling.scale(run, plural.removesuffix("s"), int(value))
        begun = f"{len(done.begin)} submitted ({scaling.array(done.begin)})" if done.begin else "none submitted"
        left = ", ".join(str(task.index) for task in done.leave)
        print(f"{plural}={value}: {begun}, {f'told to leave: {left}' if left else 'none told to leave'}")


def show(run: Run, words: Words, names: Sequence[str]) -> None:
    """The state of a run."""
    for line in status.lines(run):
        print(line)


def logs(run: Run, words: Words, names: Sequence[str]) -> None:
    """The ends of its logs; `tail` shows them, and follows."""
    found = sorted((run.directory / "logs").glob("*.log"))
    files = [path for path in found if not names or path.stem in names or path.stem.rpartition("-")[0] in names]
    if missing := [
        name for name in names if not any(name in (path.stem, path.stem.rpartition("-")[0]) for path in files)
    ]:
        raise ValueError(f"{missing[0]}: no such log; there are {', '.join(path.stem for path in found) or 'none yet'}")
    if not files:
        raise ValueError(f"{run.directory / 'logs'} is empty: no job has begun; see `status`")
    follow = ["-F"] if words.get("follow") == "true" else []
    sys.stdout.flush()
    os.execvp("tail", ["tail", "-n", words.get("lines", "20"), *follow, *map(str, files)])


def drain(run: Run, words: Words, names: Sequence[str]) -> None:
    """Everybody finishes."""
    told = scaling.drain(run)
    print(f"told {len(told)} jobs to finish; waiting for them")
    _wait(run, run.notice_seconds + KILL_SECONDS)


def down(run: Run, words: Words, names: Sequence[str]) -> None:
    """Everything is cancelled."""
    cancelled = scaling.down(run)
    print(f"cancelled {len(cancelled)} jobs; waiting for them to be gone")
    _wait(run, KILL_SECONDS)


def _wait(run: Run, seconds: float) -> None:
    if left := scaling.wait(run, seconds):
        raise ValueError(f"still in the queue after {seconds:g} s: {', '.join(each.identity for each in left)}")
    print("all have left")


COMMANDS: Mapping[str, tuple[Callable[[Run, Words, Sequence[str]], None], tuple[str, ...]]] = {
    "scale": (scale, ("actors", "verifiers")),
    "status": (show, ()),
    "logs": (logs, ("lines", "follow")),
    "drain": (drain, ()),
    "down": (down, ()),
}


def the_run(words: Words) -> Run:
    """The run that is meant. Raises `ValueError` when none is, or several could be."""
    if directory := words.get("run.dir"):
        return layout.read(Path(directory).absolute())
    if name := words.get("run.name"):
        return layout.read((Path("runs") / name).absolute())
    found = [layout.read(path.absolute()) for path in layout.find(Path("runs"))]
    living = [run for run in found if jobs(list(run.job_names))] or found[:1]
    if len(living) == 1:
        return living[0]
    if not living:
        raise ValueError("no run below runs/: say which by run.dir=DIR")
    raise ValueError(f"several runs have jobs: say run.dir={' or run.dir='.join(str(run.directory) for run in living)}")


def main() -> None:
    """Do what the first word says."""
    command, arguments = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("", [])
    if command == "up":
        sys.argv[1:] = arguments
        up()
        return
    if command not in COMMANDS:
        sys.exit(USAGE if command in ("", "-h", "--help") else f"slurm: no command {command!r}\n{USAGE}")
    what, allowed = COMMANDS[command]
    words = dict(word.split("=", 1) for word in arguments if "=" in word)
    names = [word for word in arguments if "=" not in word]
    try:
        for word in [*words, *(names if command != "logs" else [])]:
            if word not in (*allowed, "run.dir", "run.name"):
                raise ValueError(f"{command}: does not take {word!r}; {USAGE}")
        run = the_run(words)
        what(run, {key: value for key, value in words.items() if not key.startswith("run.")}, names)
    except (ValueError, OSError, SlurmRefused) as error:
        sys.exit(f"slurm: {error}")


if __name__ == "__main__":
    main()
