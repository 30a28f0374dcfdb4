"""`up`: a run's jobs, submitted in an order in which nobody holds nodes that an earlier one waits for.

cold start ─ afterok ─► learner + broker ─ after ─► actors (array)
                                         └ after ─► verifiers (array)
"""

import sys
from pathlib import Path

from omegaconf import DictConfig

from deploy.local import layout as local_layout
from deploy.slurm import layout, queue
from deploy.slurm.config import ROLES, SlurmLauncherConfig, job, settle
from deploy.slurm.layout import Run
from deploy.slurm.queue import SlurmRefused
from learner.broker.config import journal_path


def up(tree: DictConfig) -> tuple[Run, dict[str, str]]:
    """Set the run up and submit its jobs; returns their numbers by role.

    Raises `ValueError` for what cannot work, `SlurmRefused` for what Slurm cannot do; nothing is submitted then.
    """
    config = settle(tree)
    directory = Path(tree.run.dir)
    layout.demand_shared(directory, shared=config.slurm.shared)
    queue.demand_commands()
    _demand_partitions(config)
    planned = Run(tree.run.name, directory, config.slurm.notice_seconds)
    if going_on := queue.jobs(list(planned.job_names)):
        names = ", ".join(each.identity for each in going_on)
        raise ValueError(f"{directory}: jobs of this run are in the queue ({names}); end them by `down`, or `drain` it")
    journal = journal_path(tree.journal.path, str(directory))
    local_layout.claim(directory, journal, overwrite=config.overwrite, resume=config.resume)
    run = layout.write(tree, config, interpreter=sys.executable, working_directory=Path.cwd())
    wanted = _wanted(tree, config)
    for role in wanted:
        queue.try_out(run.slurm / f"{role}.sbatch")
    return run, _submit(run, wanted)


def _wanted(tree: DictConfig, config: SlurmLauncherConfig) -> list[str]:
    """The roles that get jobs now, in the order in which they start."""
    first = ["cold_start"] if config.cold_start and not layout.model_is_made(tree) else []
    peers = [role for role, count in (("actor", config.actors), ("verifier", config.verifiers)) if count]
    return [*first, "learner", *peers]


def _submit(run: Run, roles: list[str]) -> dict[str, str]:
    numbers: dict[str, str] = {}
    try:
        for role in roles:
            options = []
            if role == "learner" and "cold_start" in numbers:
                options = [f"--dependency=afterok:{numbers['cold_start']}", "--kill-on-invalid-dep=yes"]
            elif role in ("actor", "verifier"):
                options = [f"--dependency=after:{numbers['learner']}"]
            numbers[role] = queue.submit(run.slurm / f"{role}.sbatch", *options)
    except SlurmRefused:
        queue.cancel(queue.jobs(list(run.job_names)))
        raise
    return numbers


def _demand_partitions(config: SlurmLauncherConfig) -> None:
    known = queue.partitions()
    for role in ROLES:
        for name, value in (
            (f"jobs.{role}.partition", job(config, role).partition),
            ("slurm.partition", config.slurm.partition),
        ):
            if unknown := [each for each in value.split(",") if each and each not in known]:
                raise ValueError(f"{name}={value}: the cluster has no partition {unknown[0]}, but {', '.join(known)}")
