"""What a journal holds, told without touching it: beside its broker, after a kill, and after an end in good order."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from stream_world import finish, new_stream, rollout, train

from learner.broker.config import JOURNAL, BrokerRoot, StreamConfig, identity
from learner.broker.inspect import as_text, inspect, main
from learner.broker.journal import Journal, JournalFailed
from learner.broker.stream import Stream
from protocol.messages import LeaseFailed

OPTIONS = {"group_size": 2, "groups_per_step": 2, "max_staleness": 2}
RUN = identity(BrokerRoot(model="m", stream=StreamConfig(**OPTIONS)))


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / JOURNAL, RUN)


def busy() -> Stream:
    """Groups 0 1 are trained, 2 dropped, 3 4 handed out, 5 ready, 6 verifying, 7 pending, 8 leased."""
    stream = new_stream(**OPTIONS)
    stream.resume(0, (), checkpoints=True)
    leases = {}
    for actor, groups in (("a", 3), ("lost", 1), ("b", 2)):
        for _ in range(groups):
            lease = stream.grant(actor, 100, 0.0)
            assert lease is not None
            leases[lease.group_id] = lease
    for group in (0, 1):
        finish(stream, leases[group])
    stream.lease_failed(LeaseFailed(lease_id=leases[2].lease_id, reason="prompt_too_long", detail=""))
    train(stream)
    for group in (4, 5):
        finish(stream, leases[group])
    stream.actor_lost("lost")
    again = stream.grant("b", 100, 0.0)
    assert again is not None
    assert again.group_id == 3
    finish(stream, again)
    assert stream.batch(1)
    for group in (6, 7, 8):
        lease = stream.grant("gone" if group == 7 else "c", 100, 0.0)
        assert lease is not None
        leases[group] = lease
    for sample in (0, 1):
        stream.rollout_done(rollout(leases[6], sample, [1]))
    stream.rollout_done(rollout(leases[8], 1, [1]))
    stream.actor_lost("gone")
    return stream


def test_every_group_is_told_where_it_stands(journal: Journal) -> None:
    journal.commit(busy())
    found = inspect(journal.path.parent)
    assert found == inspect(journal.path)
    assert found.groups == {
        "pending": (7,),
        "leased": (8,),
        "verifying": (6,),
        "ready": (5,),
        "handed_out": (3, 4),
        "trained": (0, 1),
    }
    assert found.batches == {0: (0, 1), 1: (3, 4)}
    assert found.dropped == {2: "prompt_too_long"}
    assert found.dropped_by_reason == {"prompt_too_long": 1}
    assert (found.policy_version, found.furthest, found.retained_from) == (1, 1, 0)
    assert (found.groups_granted, found.admission_limit, found.groups_trained, found.next_group) == (8, 8, 2, 9)
    assert {actor: (held.groups, held.samples, held.missing) for actor, held in found.leases.items()} == {
        "c": ((8,), 2, 1)
    }
    assert found.samples == {"pending": 2, "leased": 1, "verifying": 3, "scored": 6, "void": 0}
    assert found.run["stream.groups_per_step"] == 2
    assert found.waiting_for == "the learner to train step 2"
    assert found.waits == (
        "1 rollouts of groups 8 by c",
        "an actor for samples of groups 7",
        "3 verdicts by verifiers",
        "step 2 by the learner, on groups 3 4",
    )
    journal.close()


def test_a_batch_that_must_not_be_taken_yet_names_the_groups_that_hold_it_back(tmp_path: Path) -> None:
    options = OPTIONS | {"groups_per_step": 1, "max_staleness": 1}
    stream = new_stream(**options)
    straggler, quick = stream.grant("a", 100, 0.0), stream.grant("b", 100, 0.0)
    assert straggler
    assert quick
    finish(stream, quick)
    train(stream)
    later = stream.grant("b", 100, 0.0)
    assert later
    finish(stream, later)
    assert stream.batch(1) is None
    journal = Journal(tmp_path / JOURNAL, identity(BrokerRoot(model="m", stream=StreamConfig(**options))))
    journal.commit(stream)
    assert inspect(tmp_path).waits == (
        "2 rollouts of groups 0 by a",
        "groups 0, before which the next batch must not be taken",
    )
    journal.close()


def test_it_is_read_while_a_broker_writes_and_after_its_death_and_nothing_is_changed(journal: Journal) -> None:
    stream = busy()
    journal.commit(stream)
    live = inspect(journal.path)
    assert live.held_by == os.getpid()
    assert live.log_bytes > 0
    killed = journal.path.parent / "killed"
    killed.mkdir()
    for path in journal.path.parent.glob(f"{JOURNAL}*"):
        shutil.copy(path, killed)
    before = {path.name: path.read_bytes() for path in killed.glob(f"{JOURNAL}*") if not path.name.endswith("-shm")}
    dead = inspect(killed)
    assert dead.held_by is None
    assert dead.groups == live.groups
    assert before == {path.name: path.read_bytes() for path in killed.glob(f"{JOURNAL}*") if path.name in before}
    assert stream.grant("d", 100, 0.0)
    journal.commit(stream)
    assert "d" in inspect(journal.path).leases, "readers hold nobody up"
    journal.close()
    directory = sorted(path.name for path in journal.path.parent.iterdir())
    closed = inspect(journal.path)
    assert (closed.held_by, closed.log_bytes) == (None, 0)
    assert "d" in closed.leases
    assert directory == sorted(path.name for path in journal.path.parent.iterdir())


def test_the_command_prints_text_and_json(journal: Journal, capsys: pytest.CaptureFixture[str]) -> None:
    journal.commit(busy())
    journal.close()
    main([str(journal.path.parent)])
    text = capsys.readouterr().out
    for line in (
        "no broker holds it",
        "waits for  the learner to train step 2",
        "owed: 3 verdicts by verifiers",
        "leases     c: 1 leases, 1 of 2 samples missing, groups 8",
        "groups     1 pending, 1 leased, 1 verifying, 1 ready, 2 handed_out, 2 trained",
        "dropped    1 prompt_too_long",
        "batches    version 0, trained, kept: 0 1",
        "           version 1, handed out: 3 4",
        "8 of 8 groups are leased and not dropped; 2 are trained; group 9 is next",
    ):
        assert line in text
    main([str(journal.path), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["groups"]["handed_out"] == [3, 4]
    assert found["leases"]["c"] == {"leases": [9], "groups": [8], "samples": 2, "missing": 1}


def test_it_is_a_command_of_its_own(journal: Journal) -> None:
    journal.commit(busy())
    command = [sys.executable, "-m", "learner.broker.inspect", str(journal.path.parent)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    assert f"held by process {os.getpid()}" in shown
    expected = as_text(inspect(journal.path)).splitlines()
    assert len(shown.splitlines()) == len(expected)
    for line, wanted in zip(shown.splitlines(), expected, strict=True):
        assert line == wanted or line.startswith("size "), "the log is copied into the journal in the background"
    journal.close()


def test_a_journal_of_a_run_that_has_not_begun_is_shown_too(journal: Journal) -> None:
    assert inspect(journal.path).waiting_for == "the learner to publish its first weights"
    journal.close()


def test_what_is_no_journal_is_told_from_what_is_damaged(tmp_path: Path, journal: Journal) -> None:
    journal.commit(busy())
    with pytest.raises(JournalFailed, match="nowhere: is not there; give the directory of a run"):
        inspect(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(JournalFailed, match=r"empty/journal\.sqlite: is not there"):
        inspect(tmp_path / "empty")
    (tmp_path / "text").write_text("not a database at all, but long enough to be looked at" * 100)
    with pytest.raises(JournalFailed, match="text: is damaged: DatabaseError: file is not a database"):
        inspect(tmp_path / "text")
    (tmp_path / "nothing").write_bytes(b"")
    with pytest.raises(JournalFailed, match="nothing: holds no journal, nothing was ever written to it"):
        inspect(tmp_path / "nothing")
    other = sqlite3.connect(tmp_path / "other")
    other.execute("CREATE TABLE songs (name TEXT)")
    other.close()
    with pytest.raises(JournalFailed, match=r"other: holds no journal$"):
        inspect(tmp_path / "other")
    journal._database.execute("UPDATE groups SET task = x'00' WHERE group_id = 6")
    with pytest.raises(JournalFailed, match=r"journal\.sqlite: is damaged: MalformedMessage: body"):
        inspect(journal.path)
    journal._database.execute("UPDATE meta SET value = '7' WHERE name = 'format'")
    with pytest.raises(JournalFailed, match=r"is of format 7, this version reads 1$"):
        inspect(journal.path)
    with pytest.raises(SystemExit, match=r"^inspect: .*is of format 7"):
        main([str(journal.path)])
    journal.close()
