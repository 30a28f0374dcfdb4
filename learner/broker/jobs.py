"""Who judges what: the rollouts that wait for a verifier, and the jobs that verifiers hold."""

from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from learner.broker.changes import Changes


@dataclass(slots=True)
class RunningJob:
    """A verify job that a verifier holds."""

    job_id: int
    verifier: str
    group_id: int
    sample: int


class Jobs:
    """Running jobs by their number, oldest first, and what waits. A journal keeps the next number alone."""

    def __init__(self, changes: Changes) -> None:
        self.changes = changes
        self.running: dict[int, RunningJob] = {}
        self.next_id = 0
        self._waiting: deque[tuple[int, int]] = deque()  # (group, sample)
        self._held: Counter[str] = Counter()  # jobs by verifier

    def restore(self, unjudged: Iterable[tuple[int, int]]) -> None:
        """What is `unjudged` waits, but for what a verifier holds."""
        held = {(job.group_id, job.sample) for job in self.running.values()}
        self._waiting = deque(each for each in unjudged if each not in held)

    def put(self, group_id: int, sample: int) -> None:
        """A rollout waits for its verdict."""
        self._waiting.append((group_id, sample))

    def waiting(self) -> Iterator[tuple[int, int]]:
        """Takes what waits, one by one: whoever wants none of them any more goes on to the next."""
        while self._waiting:
            yield self._waiting.popleft()

    def open(self, verifier: str, group_id: int, sample: int) -> RunningJob:
        """Give a rollout that was taken to `verifier`."""
        job = self.running[self.next_id] = RunningJob(self.next_id, verifier, group_id, sample)
        self.next_id += 1
        self._held[verifier] += 1
        self.changes.state = True  # a job's number never comes again
        return job

    def end(self, job: RunningJob) -> None:
        """It is judged, or never will be."""
        del self.running[job.job_id]
        self._held[job.verifier] -= 1
        if not self._held[job.verifier]:
            del self._held[job.verifier]

    def give_back(self, verifier: str) -> list[RunningJob]:
        """What `verifier` holds waits again, first of all."""
        lost = [job for job in self.running.values() if job.verifier == verifier] if self._held[verifier] else []
        for job in reversed(lost):
            self.end(job)
            self._waiting.appendleft((job.group_id, job.sample))
        return lost

    def oldest(self, verifier: str) -> RunningJob | None:
        """Of the jobs that `verifier` holds the one that it was given first."""
        if not self._held[verifier]:
            return None
        return next(job for job in self.running.values() if job.verifier == verifier)

    def held(self, verifier: str) -> int:
        """Verdicts that `verifier` owes."""
        return self._held[verifier]

    @property
    def queued(self) -> int:
        """Rollouts that wait for a verifier with room."""
        return len(self._waiting)
