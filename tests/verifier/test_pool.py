"""The pool against workers that the test plays itself, so that they can lie, die and run out of memory."""

import os
import socket
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from protocol.clock import Deadline
from protocol.messages import Verdict, VerifyJob
from verifier.channel import MAX_FROM_WORKER, Channel, ChannelClosed, worker_receive, worker_send
from verifier.pool import FAILED_STARTS, Pool, PoolBroken
from verifier.reports import BadReport, Checked, Ready, pack, unpack
from verifier.rewards import REWARDS
from verifier.rewards.score import Score
from verifier.starter import Zygote
from verifier.worker import judge


class PlayedWorkers:
    """A starter whose workers are the test: it holds their ends of the channels."""

    def __init__(self) -> None:
        self.ends: list[socket.socket] = []
        self.ended: list[int] = []
        self.loaded: list[str] = []
        self._reader, self._writer = os.pipe()

    def start(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        theirs.settimeout(5.0)
        self.ends.append(theirs)
        return ours

    def end(self, pid: int) -> None:
        self.ended.append(pid)

    def load(self, library: str) -> None:
        self.loaded.append(library)

    def deaths(self) -> list[tuple[int, int]]:
        return []

    def fileno(self) -> int:
        return self._reader

    def close(self) -> None:
        for end in self.ends:
            end.close()
        os.close(self._reader)
        os.close(self._writer)


@pytest.fixture
def workers() -> PlayedWorkers:
    return PlayedWorkers()


@pytest.fixture
def pool(workers: PlayedWorkers) -> Iterator[Pool]:
    pool = Pool(workers, workers=1, checks_per_worker=100)
    yield pool
    pool.close()


def ready(workers: PlayedWorkers) -> socket.socket:
    """The newest worker, after it has reported that it is ready as this process."""
    worker_send(workers.ends[-1], pack(Ready(os.getpid(), time.process_time())))
    return workers.ends[-1]


def job(number: int = 1, reward: str = "0.5*accuracy + 0.5*format", seconds: float = 30.0) -> VerifyJob:
    metadata = {"accuracy": "exact"}
    return VerifyJob(
        job_id=number,
        group_id=1,
        sample_index=0,
        text="?",
        reward=reward,
        reference="1",
        metadata=metadata,
        deadline_seconds=seconds,
    )


def checked(number: int = 1, reward: str = "accuracy", value: float | None = 1.0, outcome: str = "scored") -> list[Any]:
    return ["checked", number, reward, value, outcome, "because", 0.25, time.process_time()]


def verdict(pool: Pool) -> Verdict:
    """The next verdict of the pool."""
    limit = Deadline(10.0)
    while not (ended := pool.turn()):
        assert not limit.passed, "no verdict"
        time.sleep(0.001)
    ((_, verdict),) = ended
    return verdict


def test_parts_are_summed_by_weight(pool: Pool, workers: PlayedWorkers) -> None:
    worker = ready(workers)
    pool.add(job(reward="0.25*accuracy + 2*format"))
    pool.turn()
    assert worker_receive(worker) == [1, ["accuracy", "format"], "?", "1", {"accuracy": "exact"}, 30.0]
    worker_send(worker, checked(value=1.0))
    worker_send(worker, checked(reward="format", value=0.5))
    found = verdict(pool)
    assert found.reward == 1.25
    assert found.parts == {"accuracy": 1.0, "format": 0.5}
    assert found.reason == "accuracy: because; format: because"
    assert found.seconds == 0.5


@pytest.mark.parametrize(
    "lie",
    [
        checked(number=2),
        checked(reward="format"),
        checked(value=2.0),
        checked(value=float("nan")),
        checked(value=None),
        checked(outcome="void"),
        checked(outcome="splendid"),
        checked()[:-1],
        ["ready", 1, 0.0],
        ["ready"],
        {},
        None,
        "x" * MAX_FROM_WORKER,
    ],
)
def test_a_worker_that_talks_nonsense_is_replaced_and_its_check_void(
    pool: Pool, workers: PlayedWorkers, lie: Any
) -> None:
    worker = ready(workers)
    pool.add(job())
    pool.turn()
    worker_send(worker, lie)
    found = verdict(pool)
    assert found.void
    assert "the worker was lost" in found.reason
    assert workers.ended == [os.getpid()]
    assert len(workers.ends) == 2


def test_a_check_out_of_memory_scores_nothing_and_the_rest_goes_to_a_new_worker(
    pool: Pool, workers: PlayedWorkers
) -> None:
    worker = ready(workers)
    pool.add(job())
    pool.turn()
    worker_send(worker, checked(value=0.0, outcome="memory"))
    pool.turn()
    successor = ready(workers)
    assert successor is not worker
    pool.turn()
    assert worker_receive(successor)[:2] == [1, ["format"]]
    worker_send(successor, checked(reward="format"))
    found = verdict(pool)
    assert found.reward == 0.5
    assert found.parts == {"accuracy": 0.0, "format": 1.0}


def test_what_a_worker_says_after_it_is_replaced_does_not_count(pool: Pool, workers: PlayedWorkers) -> None:
    worker = ready(workers)
    pool.add(job(reward="accuracy"))
    pool.turn()
    worker_send(worker, checked(value=0.0, outcome="memory"))
    worker_send(worker, pack(Ready(1, 0.0)))  # would have process 1 killed at the next deadline
    assert verdict(pool).reward == 0.0
    pool.add(job(2, "accuracy"))
    pool.turn()
    assert pool.queued == 1


def test_a_void_part_makes_the_whole_verdict_void_and_the_worker_goes_on(pool: Pool, workers: PlayedWorkers) -> None:
    worker = ready(workers)
    pool.add(job())
    pool.turn()
    assert worker_receive(worker)[0] == 1
    worker_send(worker, checked(value=None, outcome="void"))
    found = verdict(pool)
    assert found.void
    assert found.reason == "accuracy: because"
    pool.add(job(2, "format"))
    pool.turn()
    assert worker_receive(worker)[0] == 2
    worker_send(worker, checked(2, "format"))
    assert verdict(pool).reward == 1.0
    assert len(workers.ends) == 1


def test_a_worker_that_computes_past_its_deadline_is_a_timeout(pool: Pool, workers: PlayedWorkers) -> None:
    ready(workers)
    pool.add(job(reward="accuracy", seconds=0.05))
    pool.turn()
    limit = Deadline(0.2)
    while not limit.passed:
        sum(range(1000))  # this process is the worker: it computes
    found = verdict(pool)
    assert found.reward == 0.0
    assert found.reason == "accuracy: timeout after 0.05 s"


@pytest.fixture
def patient(workers: PlayedWorkers, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pool]:
    """A pool that tries twice more what the host failed, without a pause."""
    monkeypatch.setattr("verifier.pool.RETRY_PAUSE_SECONDS", 0.0)
    pool = Pool(workers, workers=1, checks_per_worker=100, retries=2)
    yield pool
    pool.close()


def test_what_the_sandbox_failed_is_tried_again_and_the_parts_that_are_known_stay(
    patient: Pool, workers: PlayedWorkers
) -> None:
    worker = ready(workers)
    patient.add(job())
    patient.turn()
    assert worker_receive(worker)[1] == ["accuracy", "format"]
    worker_send(worker, checked(value=0.5))
    worker_send(worker, checked(reward="format", value=None, outcome="failed"))
    assert patient.turn() == []
    assert worker_receive(worker)[1] == ["format"]
    worker_send(worker, checked(reward="format"))
    assert verdict(patient).parts == {"accuracy": 0.5, "format": 1.0}


def test_the_host_is_given_so_many_attempts_and_then_the_job_is_void(patient: Pool, workers: PlayedWorkers) -> None:
    worker = ready(workers)
    patient.add(job(reward="format"))
    for _ in range(3):
        assert patient.turn() == []
        assert worker_receive(worker)[0] == 1
        worker_send(worker, checked(reward="format", value=None, outcome="failed"))
    found = verdict(patient)
    assert found.void
    assert found.reason == "format: because"
    assert (patient.queued, patient.running) == (0, 0)


def test_attempts_that_cost_more_than_the_broker_waits_are_not_repeated(patient: Pool, workers: PlayedWorkers) -> None:
    worker = ready(workers)
    patient.answer_within(1.0)  # a third of it for failures: one check of 0.25 s
    patient.add(job(reward="format"))
    for _ in range(2):
        assert patient.turn() == []
        assert worker_receive(worker)[0] == 1
        worker_send(worker, checked(reward="format", value=None, outcome="failed"))
    assert verdict(patient).void


@pytest.mark.parametrize(("value", "outcome"), [(0.0, "scored"), (0.0, "timeout"), (None, "void")])
def test_a_wrong_answer_and_a_bad_task_are_never_tried_again(
    patient: Pool, workers: PlayedWorkers, value: float | None, outcome: str
) -> None:
    worker = ready(workers)
    patient.add(job(reward="format"))
    patient.turn()
    worker_send(worker, checked(reward="format", value=value, outcome=outcome))
    assert verdict(patient).reward == value


def test_a_worker_that_talks_nonsense_gets_its_text_no_second_attempt(patient: Pool, workers: PlayedWorkers) -> None:
    worker = ready(workers)
    patient.add(job())
    patient.turn()
    worker_send(worker, checked(value=2.0))
    assert verdict(patient).void


def test_the_successor_of_a_lost_worker_goes_on_with_its_job_before_any_other(
    patient: Pool, workers: PlayedWorkers
) -> None:
    worker = ready(workers)
    patient.add(job(1))
    patient.add(job(2))
    patient.turn()
    worker.close()
    patient.turn()
    assert (patient.queued, patient.running) == (1, 1)
    successor = ready(workers)
    patient.turn()
    assert worker_receive(successor)[0] == 1


def test_jobs_of_a_reward_that_is_quick_go_first_on_all_workers_but_the_steady_one(workers: PlayedWorkers) -> None:
    pool = Pool(workers, workers=2, checks_per_worker=100, patience_seconds=9.0)
    for end in workers.ends:
        worker_send(end, pack(Ready(os.getpid(), time.process_time())))
    pool.turn()
    steady, other = workers.ends
    slow = ["checked", 1, "accuracy", 1.0, "scored", "because", 5.0, time.process_time()]
    pool.add(job(1, "accuracy"))
    pool.add(job(2, "accuracy"))
    pool.turn()  # what accuracy takes is not known yet
    assert [worker_receive(end)[0] for end in (steady, other)] == [1, 2]
    worker_send(steady, slow)
    pool.turn()
    for number, reward in ((3, "accuracy"), (4, "accuracy"), (5, "format"), (6, "format")):
        pool.add(job(number, reward))
    pool.turn()
    assert worker_receive(steady)[0] == 3
    worker_send(other, [*slow[:1], 2, *slow[2:]])
    pool.turn()
    assert worker_receive(other)[0] == 5
    pool.close()


def test_a_job_waits_for_a_worker_with_its_library(pool: Pool, workers: PlayedWorkers) -> None:
    first = ready(workers)
    pool.turn()
    pool.add(job(reward="reasoning_gym"))
    pool.turn()
    assert workers.loaded == ["reasoning_gym"]
    assert first is not workers.ends[-1]
    second = ready(workers)
    pool.turn()
    assert worker_receive(second)[1] == ["reasoning_gym"]


def test_workers_that_never_start_end_the_service(pool: Pool, workers: PlayedWorkers) -> None:
    for _ in range(FAILED_STARTS - 1):
        workers.ends[-1].close()
        assert pool.turn() == []
    workers.ends[-1].close()
    with pytest.raises(PoolBroken, match=f"{FAILED_STARTS} workers in a row"):
        pool.turn()


def test_a_zygote_that_cannot_start_ends_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    pool = Pool(Zygote(2**30, 1), workers=1, checks_per_worker=1)
    limit = Deadline(10.0)

    def turn_until_broken() -> None:
        while not limit.passed:
            pool.turn()
            time.sleep(0.01)

    with pytest.raises(PoolBroken, match="the log says more"):
        turn_until_broken()
    pool.close()


def test_a_bug_in_a_reward_is_void_and_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(text: str, reference: str, metadata: Any) -> Score:
        raise KeyError("oops")

    monkeypatch.setitem(REWARDS, "broken", broken)
    assert judge("broken", "", "", {}) == (None, "void", "bug in the reward: KeyError: 'oops'")


def test_a_reward_out_of_memory_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    def greedy(text: str, reference: str, metadata: Any) -> Score:
        raise MemoryError

    monkeypatch.setitem(REWARDS, "greedy", greedy)
    assert judge("greedy", "", "", {}) == (0.0, "memory", "memory")


def test_reports_survive_the_channel_and_long_reasons_are_cut() -> None:
    report = Checked(7, "format", 1.0, "scored", "x" * 5000, 0.1, 0.2)
    assert unpack(pack(report)) == Checked(7, "format", 1.0, "scored", "x" * 1000, 0.1, 0.2)
    assert unpack(pack(Ready(5, 0.5))) == Ready(5, 0.5)
    with pytest.raises(BadReport):
        unpack(["ready", "5", 0.5])


def test_a_job_larger_than_the_sockets_buffer_goes_through_without_blocking() -> None:
    ours, theirs = socket.socketpair()
    channel, text = Channel(ours), "x" * 2**22
    channel.send([text])
    assert channel.unsent
    theirs.setblocking(False)
    received = bytearray()
    while channel.unsent:
        received += theirs.recv(2**20)
        channel.flush()
    assert len(received) <= len(text) + 16
    theirs.close()
    with pytest.raises(ChannelClosed):
        channel.receive()
    channel.close()
