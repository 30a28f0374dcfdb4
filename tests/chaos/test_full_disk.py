"""A full disk under the journal or under the checkpoints: the run waits for room and goes on, or says what to do.

Two ways to fill a disk: a small tmpfs, where this user may mount one, and the kernel's limit of a file's size.
"""

import os
import resource
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from chaos_truth import check_journal, check_steps, steps
from chaos_world import Run, run_in

from learner.broker.config import JOURNAL

DISK = "8m"


class Disk(ABC):
    """Where the files of a test lie, and a way to leave no room for what one process writes there."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @abstractmethod
    def fill(self, run: Run, name: str) -> None:
        """Leave no room for what the process `name` writes."""

    @abstractmethod
    def free(self, run: Run, name: str) -> None:
        """Make room again."""


class SmallDisk(Disk):
    """A file system of its own, and a file that takes all of it."""

    def fill(self, run: Run, name: str) -> None:
        with (self.directory / "filler").open("wb", buffering=0) as file:
            for size in (2**16, 2**12, 1):
                try:
                    while True:
                        file.write(bytes(size))
                except OSError:
                    continue

    def free(self, run: Run, name: str) -> None:
        (self.directory / "filler").unlink()


class SmallFiles(Disk):
    """No file of the process may grow much, but its log."""

    def fill(self, run: Run, name: str) -> None:
        self._limit(run, name, len(run.log(name)) + 50_000)

    def free(self, run: Run, name: str) -> None:
        self._limit(run, name, resource.RLIM_INFINITY)

    def _limit(self, run: Run, name: str, size: int) -> None:
        pid = run.processes[name].pid
        assert pid
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


@pytest.fixture(params=["small disk", "small files"])
def disk(tmp_path: Path, request: pytest.FixtureRequest) -> Disk:
    if request.param == "small disk":
        disk: Disk = request.getfixturevalue("small_disk")
        return disk
    directory = tmp_path / "files"
    directory.mkdir()
    return SmallFiles(directory)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Disk]:
    directory = tmp_path / "disk"
    directory.mkdir()
    mounted = (
        os.geteuid() == 0
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", directory], capture_output=True, check=False
        ).returncode
    )
    if not mounted:
        pytest.skip("only who may mount a tmpfs has a small disk")
    yield SmallDisk(directory)
    subprocess.run(["umount", "--lazy", directory], check=True)


@contextmanager
def training(directory: Path, **options: object) -> Iterator[Run]:
    with run_in(directory, **options) as run:
        run.start_broker()
        run.start_learner()
        run.start_actor("actor-0")
        run.start_verifier("verifier-0")
        run.until_it_trains(5, "the run begins")
        yield run


def audit(run: Run) -> None:
    made = steps(run.ledger())
    check_steps(made, groups_per_step=4, group_size=3, max_staleness=2)
    check_journal(run.journal(), made)


def test_a_broker_whose_disk_is_full_says_so_and_goes_on_when_there_is_room(tmp_path: Path, disk: Disk) -> None:
    with training(tmp_path / "run", journal__path=disk.directory / JOURNAL) as run:
        for _ in range(2):
            disk.fill(run, "broker")
            run.until(
                lambda: "room for the journal" in run.status()["waiting_for"], "the broker says what it waits for"
            )
            stood = run.steps
            assert "the journal cannot be written" in run.log("broker")
            run.all_alive()
            assert run.steps <= stood + 1, "nothing goes on that is not written"
            disk.free(run, "broker")
            run.until_it_trains(5, "it goes on")
        assert run.log("broker").count("the journal can be written again") == 2
        run.finish()
        audit(run)


def test_a_broker_whose_disk_stays_full_ends_with_the_cure_and_loses_nothing(tmp_path: Path, disk: Disk) -> None:
    options = {"journal__path": disk.directory / JOURNAL, "journal__full_seconds": 0.5}
    with training(tmp_path / "run", **options) as run:
        disk.fill(run, "broker")
        assert run.ended("broker") == 1
        assert run.log("broker").rstrip().endswith(", for 0 s: make room on its disk")
        if isinstance(disk, SmallDisk):
            run.again("broker")
            assert run.ended("broker") == 1
            assert "make room on its disk" in run.log("broker").splitlines()[-1]
            disk.free(run, "broker")
        run.again("broker")
        run.until_it_trains(5, "all the others waited for it")
        run.finish()
        audit(run)


def test_a_learner_whose_disk_is_full_ends_with_the_path_and_another_goes_on_from_what_is_whole(
    tmp_path: Path, small_disk: Disk
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").symlink_to(small_disk.directory)
    with training(tmp_path / "run") as run:
        small_disk.fill(run, "learner")
        assert run.ended("learner") == 1
        assert "No space left" in run.log("learner")
        run.until(lambda: "learner" in run.status()["waiting_for"], "the others wait for another")
        small_disk.free(run, "learner")
        run.again("learner")
        run.until_it_trains(5, "it goes on")
        run.finish()
        audit(run)
