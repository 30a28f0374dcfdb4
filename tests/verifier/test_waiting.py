"""The order of jobs, on a clock that the test turns: short ones gain, and no job is kept waiting past its bound."""

import heapq
import random
import statistics
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verifier.waiting import STRETCH, Expected, Waiting


@dataclass
class SimulatedJob:
    arrives: float
    takes: float
    expected: float
    worst: float
    begun: float = -1.0
    ended: float = -1.0


def simulate(jobs: list[SimulatedJob], *, workers: int, patience: float) -> None:
    """Serve all jobs, worker 0 being the steady one; notes when each began and ended."""
    waiting: Waiting[SimulatedJob] = Waiting(patience)
    ahead = sorted(jobs, key=lambda job: job.arrives)[::-1]
    idle = list(range(workers))
    busy: list[tuple[float, int]] = []
    while ahead or busy:
        moment = min([job.arrives for job in ahead[-1:]] + [end for end, _ in busy[:1]])
        while ahead and ahead[-1].arrives <= moment:
            job = ahead.pop()
            waiting.add(job, arrived=job.arrives, expected_seconds=job.expected, worst_seconds=job.worst)
        while busy and busy[0][0] <= moment:
            idle.append(heapq.heappop(busy)[1])
        idle.sort()
        while idle and len(waiting):
            worker = idle.pop(0)
            job = waiting.take(moment, steady=worker == 0)
            job.begun, job.ended = moment, moment + job.takes
            heapq.heappush(busy, (job.ended, worker))


def became_oldest(job: SimulatedJob, jobs: list[SimulatedJob]) -> float:
    """When the last of those that came before it was over."""
    older = [other.ended for other in jobs if other is not job and other.arrives < job.arrives]
    return max([job.arrives, *older])


JOBS = st.lists(
    st.builds(
        lambda arrives, share, expected, worst: SimulatedJob(arrives, share * worst, expected, worst),
        arrives=st.floats(0, 60),
        share=st.floats(0, 1),  # what is expected need not come true
        expected=st.sampled_from([0.0, 0.01, 0.1, 1.0, 10.0]),
        worst=st.sampled_from([0.1, 1.0, 2.0, 10.0, 30.0]),
    ),
    max_size=60,
    unique_by=lambda job: job.arrives,
)


@settings(max_examples=300, deadline=None)
@given(jobs=JOBS, workers=st.integers(1, 4), patience=st.sampled_from([0.0, 1.0, 5.0, 20.0]))
def test_the_oldest_job_begins_within_its_bound_whatever_comes_after_it(
    jobs: list[SimulatedJob], workers: int, patience: float
) -> None:
    simulate(jobs, workers=workers, patience=patience)
    for job in jobs:
        assert job.begun <= max(job.arrives + patience, became_oldest(job, jobs)) + 1e-9


@settings(max_examples=200, deadline=None)
@given(jobs=JOBS, workers=st.integers(1, 4), patience=st.sampled_from([0.0, 1.0, 5.0]))
def test_nothing_that_comes_later_than_the_patience_goes_before_a_job(
    jobs: list[SimulatedJob], workers: int, patience: float
) -> None:
    simulate(jobs, workers=workers, patience=patience)
    for job in jobs:
        head_start = min(STRETCH * job.expected, patience)
        passed = [other for other in jobs if other.arrives > job.arrives and other.begun < job.begun]
        assert all(other.arrives <= job.arrives + head_start + 1e-9 for other in passed)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_stream_of_short_jobs_that_never_ends_does_not_starve_a_long_one(workers: int) -> None:
    short = [SimulatedJob(0.001 + 0.1 * number, 0.11 * workers, 0.01, 1.0) for number in range(3000)]  # overloaded
    long = SimulatedJob(0.0005, 5.0, 5.0, 10.0)
    first = [SimulatedJob(0.0001 * number, 0.5, 0.01, 1.0) for number in range(workers)]
    simulate([*first, long, *short], workers=workers, patience=10.0)
    assert 0.5 <= long.begun <= 10.0005
    assert max(job.begun for job in short) > 250, "they went on coming all the time"


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_short_jobs_wait_less_than_in_the_order_of_arrival(workers: int) -> None:
    def waits(patience: float) -> tuple[float, float]:
        chance = random.Random(0)
        kinds = [(0.01, 1.0)] * 9 + [(1.0, 2.0)]
        jobs = []
        for number in range(2000):
            takes, worst = chance.choice(kinds)
            jobs.append(SimulatedJob(0.125 * number / workers + 1e-6 * number, takes, takes, worst))
        simulate(jobs, workers=workers, patience=patience)
        short = statistics.mean(job.begun - job.arrives for job in jobs if job.takes < 0.1)
        return short, max(job.begun - job.arrives for job in jobs)

    (quick, longest), (in_order, _) = waits(10.0), waits(0.0)
    assert quick < 0.7 * in_order
    assert longest < 30.0


@pytest.mark.parametrize("steady", [True, False])
def test_without_patience_jobs_go_in_the_order_of_arrival(steady: bool) -> None:
    waiting: Waiting[int] = Waiting(0.0)
    for number, expected in enumerate([5.0, 0.0, 1.0]):
        waiting.add(number, arrived=float(number), expected_seconds=expected, worst_seconds=1.0)
    assert [waiting.take(9.0, steady=steady) for _ in range(3)] == [0, 1, 2]
    assert waiting.next(9.0, steady=steady) is None
    with pytest.raises(IndexError):
        waiting.take(9.0, steady=steady)


def test_the_expected_time_follows_what_checks_take() -> None:
    expected = Expected()
    assert expected.seconds("code") == 0.0
    for _ in range(200):
        expected.saw("code", 2.0)
        expected.saw("format", 0.001)
    assert expected.seconds("code") == pytest.approx(2.0)
    for _ in range(200):
        expected.saw("code", 1.0)
    assert expected.seconds("code") == pytest.approx(1.0, abs=0.01)
    assert expected.seconds("format") == pytest.approx(0.001)
