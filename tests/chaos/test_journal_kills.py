"""A journal holds whole turns, and every turn that anybody was told of: after kills in the middle of its writes, as it
lies at any moment of a live process, and cut off at any byte of its log.
"""

import random
import shutil
import signal
import struct
import time
from pathlib import Path

import chaos_journal
from chaos_journal import Truth, Writer, found, turns_told
from chaos_killer import torn, written
from chaos_world import PATIENCE, SEED, Run, run_in

from learner.broker.config import JOURNAL
from learner.broker.journal import Journal
from protocol.clock import Deadline

KILLS = 80
COPIES = 40
CUTS = 250
WRITE_SECONDS = 5e-4  # from the first write of a turn on


def writing(run: Run, seed: int) -> Path:
    """A process that writes a new journal."""
    path = run.directory / str(seed) / JOURNAL
    run.start("writer", chaos_journal.write, path, seed)
    run.until(lambda: turns_told(path).exists() and turns_told(path).stat().st_size > 0, "a turn is written")
    return path


def await_write(run: Run, log: Path, chance: random.Random) -> None:
    """Until some microseconds after a turn's write has begun."""
    before, end = written(log), Deadline(PATIENCE)
    while written(log) == before:
        assert not end.passed, f"nothing is written\n{run.tails()}"
    moment = time.perf_counter() + chance.random() * WRITE_SECONDS
    while time.perf_counter() < moment:
        pass


def test_a_kill_in_the_middle_of_a_write_leaves_every_turn_that_was_told_and_no_half_one(tmp_path: Path) -> None:
    print(f"seed {SEED}")
    chance = random.Random(SEED)
    halves = later = 0
    with run_in(tmp_path) as run:
        for seed in range(KILLS):
            path = writing(run, seed)
            log = path.with_name(f"{JOURNAL}-wal")
            time.sleep(chance.random() * 0.15)
            await_write(run, log, chance)
            run.kill("writer")
            halves += torn(log)
            told, truth, journal = turns_told(path).stat().st_size, Truth(seed), found(path)
            pictures = [truth.after(told), truth.after(told + 1)]
            assert journal in pictures, f"kill {seed}, after {told} turns"
            later += journal == pictures[1]
            shutil.rmtree(path.parent)
    print(f"{KILLS} kills, {halves} in the middle of a turn's write, {later} between a turn and its telling")
    assert halves, "no kill hit a write: the test tests nothing"


def test_a_copy_of_a_live_journal_holds_a_whole_turn(tmp_path: Path) -> None:
    """What a kill -9 would leave at that moment: the process is stopped while its files are copied."""
    chance, truth = random.Random(SEED), Truth(0)
    with run_in(tmp_path) as run:
        path = writing(run, 0)
        halves = 0
        for _ in range(COPIES):
            time.sleep(chance.random() * 0.05)
            await_write(run, path.with_name(f"{JOURNAL}-wal"), chance)
            run.signal("writer", signal.SIGSTOP)
            run.until(lambda: state_of(run) == "T", "it has stopped")
            copy = tmp_path / "copy" / JOURNAL
            copy.parent.mkdir()
            for name in (JOURNAL, f"{JOURNAL}-wal"):
                shutil.copy(path.with_name(name), copy.with_name(name))
            told = turns_told(path).stat().st_size
            halves += torn(copy.with_name(f"{JOURNAL}-wal"))
            assert found(copy) in (truth.after(told), truth.after(told + 1)), f"after {told} turns"
            shutil.rmtree(copy.parent)
            run.signal("writer", signal.SIGCONT)
    print(f"{COPIES} copies of up to {told} turns, {halves} in the middle of a turn's write")


def state_of(run: Run) -> str:
    """The letter by which the kernel names what a process does."""
    return Path(f"/proc/{run.processes['writer'].pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_log_that_is_cut_at_any_byte_or_ends_in_rubbish_holds_whole_turns(tmp_path: Path) -> None:
    """As a power cut leaves it: of what was not synced, any part may be there, or zeros, or something else."""
    chance = random.Random(SEED)
    path = tmp_path / "whole" / JOURNAL
    journal, writer = Journal(path, chaos_journal.RUN), Writer(1, "t")
    log = path.with_name(f"{JOURNAL}-wal")
    assert journal._copier is not None
    journal._copier.close()  # nothing of the log is synced into the file
    journal._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    ends = [0]  # sizes of the log at which a turn is whole
    while log.stat().st_size < 2_000_000:
        writer.turn()
        journal.commit(writer.stream)
        ends.append(log.stat().st_size)
    content = log.read_bytes()
    truth = Truth(1)
    pictures = [truth.after(turn) for turn in range(len(ends))]
    page = struct.unpack(">I", content[8:12])[0]
    turns_seen = set()
    for place in range(CUTS):
        size = chance.choice(
            [chance.randrange(len(content)), chance.choice(ends) + chance.choice([-1, 0, 1, 24 + page])]
        )
        size = min(max(size, 0), len(content))
        tail = [b"", bytes(3 * page), chance.randbytes(2 * page), content[:page]][place % 4]
        cut = content[:size] + tail
        whole = max(turn for turn, end in enumerate(ends) if cut[:end] == content[:end])  # a zero may have been a zero
        assert found_at(path, tmp_path, cut) == pictures[whole], f"cut at {size} of {len(content)}"
        turns_seen.add(whole)
    journal.close()
    print(f"{CUTS} cuts of {len(ends) - 1} turns in {len(content):,} bytes, {len(turns_seen)} different turns found")


def found_at(path: Path, directory: Path, log: bytes) -> object:
    """What a broker finds when the log is `log`."""
    copy = directory / "cut" / JOURNAL
    copy.parent.mkdir()
    shutil.copy(path, copy)
    copy.with_name(f"{JOURNAL}-wal").write_bytes(log)
    picture = found(copy)
    shutil.rmtree(copy.parent)
    return picture
