"""`status`: the jobs of a run as Slurm has them, what each said last, and what the broker says of them."""

from collections.abc import Iterator

from deploy.local.plain import duration, number, printable
from deploy.local.progress import Progress
from deploy.slurm import queue
from deploy.slurm.layout import Run
from deploy.slurm.queue import Job


def lines(run: Run) -> Iterator[str]:
    """The state of a run in lines."""
    progress = Progress(run.directory)
    progress.look()
    yield f"run {run.name} in {run.directory}: {_stands(progress)}"
    roles = run.job_names
    jobs = {_process(roles[each.name], each): each for each in queue.jobs(list(roles))}
    said = {path.name: path.read_text().strip() for path in (run.slurm / "state").iterdir()}
    peers = {str(peer.get("name")): peer for peer in progress.status.get("peers") or []}
    for name in sorted({*jobs, *said}, key=_order):
        yield _line(name, jobs.get(name), peers.get(name), said.get(name, ""))
    if not said and not jobs:
        yield from _nothing(run)
    if (over := run.slurm / "over").exists():
        yield f"over: {over.read_text().strip()}"


def _stands(progress: Progress) -> str:
    if not progress.last:
        waiting = str(progress.status.get("waiting_for") or "")
        return f"no step yet{f', waiting for {printable(waiting)}' if waiting else ''}"
    step = f"step {progress.last.get('step')}{f' of {progress.steps}' if progress.steps else ''}"
    left = "finished" if (progress.directory / "summary.json").exists() else duration(progress.seconds_left()) + " left"
    return f"{step}, reward {number(progress.last.get('reward_mean'), 3)}, {left}"


def _process(role: str, job: Job) -> str:
    return role if job.index is None else f"{role}-{job.index}"


def _order(name: str) -> tuple[int, int, str]:
    role, _, index = name.rpartition("-")
    roles = ("cold_start", "learner", "actor", "verifier")
    known = role or name
    return (roles.index(known) if known in roles else len(roles), int(index) if index.isdigit() else 0, name)


def _line(name: str, job: Job | None, peer: dict[str, object] | None, said: str) -> str:
    if job is None:
        return f"{name:<12} ended          {printable(said)}"
    where = job.nodes or f"({job.reason})"
    pieces = [f"{name:<12} {job.state.lower():<12}", f"job {job.identity}", f"on {where}", job.elapsed]
    if peer is not None:
        waiting = str(peer.get("waiting_for") or "")
        pieces += [f"version {peer.get('policy_version')}", f"waits for {printable(waiting)}" if waiting else "works"]
    elif job.running and name != "cold_start":
        pieces.append("not joined")
    elif said:
        pieces.append(printable(said))
    return "  ".join(pieces)


def _nothing(run: Run) -> Iterator[str]:
    """No job has ever said a word, and none is in the queue."""
    yield "no job of this run is in the queue, and none has begun"
    if number := queue.unlaunched(run.job_name("learner")):
        yield (
            f"job {number} could not be launched: its node does not see {run.directory}/logs; put run.dir on a file "
            "system that all nodes share, at the same path"
        )
