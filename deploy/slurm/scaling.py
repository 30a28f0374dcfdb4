"""`scale`, `drain` and `down`: what is done to the jobs of a run that goes on.

An actor or a verifier that is to leave finishes what it has begun; its index may be used again when it is gone.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from deploy.slurm import queue
from deploy.slurm.layout import Run
from deploy.slurm.queue import Job

POLL_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Plan:
    """How a role gets to its number: which indices begin, which tasks leave."""

    begin: tuple[int, ...]
    leave: tuple[Job, ...]


def plan(tasks: Sequence[Job], leaving: Iterable[int], wanted: int) -> Plan:
    """`tasks` are those in the queue, `leaving` the indices of which some were told to leave before.

    Those without a node leave first, then the highest indices; the lowest free indices begin.
    """
    gone = set(leaving)
    staying = [task for task in tasks if task.index not in gone and task.index is not None]
    if len(staying) >= wanted:
        order = sorted(staying, key=lambda task: (not task.pending, -(task.index or 0)))
        return Plan((), tuple(order[: len(staying) - wanted]))
    taken = {task.index for task in tasks}
    free = (index for index in range(wanted + len(tasks)) if index not in taken)
    return Plan(tuple(index for index, _ in zip(free, range(wanted - len(staying)), strict=False)), ())


def array(indices: Sequence[int]) -> str:
    """`indices`, ascending, as --array takes them: `0-2,5`."""
    spans: list[list[int]] = []
    for index in indices:
        if spans and spans[-1][1] == index - 1:
            spans[-1][1] = index
        else:
            spans.append([index, index])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)


def scale(run: Run, role: str, wanted: int) -> Plan:
    """Bring `role` to `wanted` tasks. Raises `ValueError` when the run is over, `SlurmRefused` when Slurm cannot."""
    learner = queue.jobs([run.job_name("learner")])
    if not learner:
        raise ValueError(f"{run.directory}: its learner is not in the queue, nothing can be scaled; see `status`")
    marks = run.slurm / "leaving"
    tasks = queue.jobs([run.job_name(role)])
    marked = [int(path.name.rpartition("-")[2]) for path in marks.glob(f"{role}-*")]
    todo = plan(tasks, marked, wanted)
    for task in todo.leave:
        (marks / f"{role}-{task.index}").touch()
    _send_home(todo.leave)
    if todo.begin:
        for index in todo.begin:
            (marks / f"{role}-{index}").unlink(missing_ok=True)
        options = [f"--array={array(todo.begin)}"]
        if learner[0].pending:
            options.append(f"--dependency=after:{learner[0].identity}")
        queue.submit(run.slurm / f"{role}.sbatch", *options)
    return todo


def _send_home(tasks: Sequence[Job]) -> None:
    queue.cancel([task for task in tasks if task.pending])
    queue.tell([task for task in tasks if not task.pending], "USR2")


def drain(run: Run) -> list[Job]:
    """Tell all to finish: actors what they have begun, the learner a checkpoint. Returns whom it told."""
    found = queue.jobs(list(run.job_names))
    learners = [each for each in found if each.name == run.job_name("learner")]
    if not any(each.running for each in learners):
        (run.slurm / "over").write_text("drained before the learner ran; go on with resume=true\n")
    cold_start = [each for each in found if each.name == run.job_name("cold_start")]
    queue.cancel(cold_start)
    _send_home([each for each in found if each not in cold_start])
    return found


def down(run: Run) -> list[Job]:
    """Cancel everything; returns what was cancelled."""
    found = queue.jobs(list(run.job_names))
    if found:
        (run.slurm / "over").write_text("cancelled by `down`; go on with resume=true\n")
    queue.cancel(found)
    return found


def wait(run: Run, seconds: float) -> list[Job]:
    """Until none of the run's jobs is in the queue, `seconds` at most; returns those that are."""
    deadline = time.monotonic() + seconds
    while (left := queue.jobs(list(run.job_names))) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    return left
