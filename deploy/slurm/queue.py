"""Slurm as this launcher sees it: jobs by name, submitted, signalled and cancelled by its own commands.

Every call has a deadline. What Slurm says when it refuses is passed on.
"""

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SECONDS = 60.0  # longest wait for an answer of slurmctld
COMMANDS = ("sbatch", "squeue", "scancel", "scontrol", "sinfo")
ENDED = ("COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "DEADLINE", "BOOT_FAIL")
FIELDS = "%i|%A|%K|%j|%T|%M|%N|%r"


class SlurmRefused(Exception):
    """Slurm cannot do what it was asked; the text says why."""


@dataclass(frozen=True, slots=True)
class Job:
    """A job, or one task of an array, in the queue."""

    identity: str  # as scancel takes it: 17, or 17_3
    name: str
    index: int | None  # within the array
    state: str  # PENDING, RUNNING, …
    elapsed: str
    nodes: str
    reason: str  # why it is pending

    @property
    def running(self) -> bool:
        """Whether its script runs."""
        return self.state == "RUNNING"

    @property
    def pending(self) -> bool:
        """Whether it has no node."""
        return self.state in ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SUSPENDED")


def demand_commands() -> None:
    """Raises `SlurmRefused` when this is no host from which a cluster can be used."""
    missing = [name for name in COMMANDS if shutil.which(name) is None]
    if missing:
        raise SlurmRefused(f"{', '.join(missing)} not on PATH: run this on a login node of the cluster")


def jobs(names: Sequence[str]) -> list[Job]:
    """All tasks of this user's jobs of these names that are in the queue, arrays unfolded."""
    text = _run("squeue", "--me", "--array", "--noheader", f"--name={','.join(names)}", f"--format={FIELDS}")
    return [found for found in map(_job, text.splitlines()) if found.state not in ENDED]


def _job(line: str) -> Job:
    identity, _, index, name, state, elapsed, nodes, reason = line.split("|", 7)
    return Job(identity, name, int(index) if index.isdigit() else None, state, elapsed, nodes, reason)


def partitions() -> list[str]:
    """The names of all partitions."""
    return sorted(set(_run("sinfo", "--noheader", "--format=%R").split()))


def try_out(script: Path, *options: str) -> None:
    """Raises `SlurmRefused` when `script` could not be submitted."""
    _run("sbatch", "--test-only", *options, str(script))


def submit(script: Path, *options: str) -> str:
    """Submit `script`, `options` winning over its own; returns the job's number."""
    return _run("sbatch", "--parsable", *options, str(script)).strip().partition(";")[0]


def cancel(those: Sequence[Job]) -> None:
    """End them: SIGTERM, and SIGKILL after the cluster's KillWait."""
    if those:
        _run("scancel", "--quiet", *(each.identity for each in those))


def tell(those: Sequence[Job], signal: str) -> None:
    """Send a signal to their scripts alone."""
    if those:
        _run("scancel", "--quiet", "--batch", f"--signal={signal}", *(each.identity for each in those))


def _run(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise SlurmRefused(f"{command[0]}: no answer within {SECONDS:g} s: is slurmctld up? (scontrol ping)") from None
    if done.returncode:
        said = [re.sub(rf"^{command[0]}: (error: )?", "", line) for line in done.stderr.splitlines() if line.strip()]
        raise SlurmRefused(f"{command[0]}: {'; '.join(said) or f'exit code {done.returncode}'}")
    return done.stdout


def unlaunched(name: str) -> str:
    """The number of a job of this name that ended before its script began, if Slurm remembers one; else empty.

    That is exit code 0:53: the node could not open the job's log.
    """
    for line in _run("scontrol", "--oneliner", "show", "jobs").splitlines():
        shown = dict(word.split("=", 1) for word in line.split() if "=" in word)
        if shown.get("JobName") == name and shown.get("ExitCode") == "0:53":
            return shown.get("JobId", "")
    return ""
