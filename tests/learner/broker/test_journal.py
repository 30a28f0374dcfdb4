"""The journal against random worlds: a broker that dies at any turn goes on as if it had not."""

import random
import resource
import sqlite3
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stream_world import NumberedTasks, World, fingerprint, finish, judged, new_stream, pictured, rollout, train

from learner.broker import journal as journal_file
from learner.broker.config import StreamConfig
from learner.broker.errors import InvalidEvent
from learner.broker.groups import SampleState
from learner.broker.journal import Journal, JournalDamaged, JournalFailed
from learner.broker.retirement import Retirement
from learner.broker.stream import Stream
from learner.group_ranges import merged

RUN = {"run.seed": 0}
SIZE = 3


@dataclass
class MortalWorld(World):
    """A world whose broker dies now and then and comes back from its journal, and whose learner from a checkpoint."""

    journal: Journal = field(kw_only=True)
    broker_deaths: float = 0.0
    learner_deaths: float = 0.0
    checkpoint_every: int = 2
    checkpoint: list[int] = field(default_factory=list)  # the groups that it holds, in order
    furthest: list[int] = field(default_factory=list)  # the longest order of training that there was
    deaths: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.stream.resume(0, (), checkpoints=self.checkpoint_every > 0)

    def turn(self) -> None:
        super().turn()
        self.journal.commit(self.stream)
        if self.chance.random() < self.broker_deaths:
            self.kill_broker()
        if self.checkpoint_every and self.chance.random() < self.learner_deaths:
            self.kill_learner()

    def learn(self) -> None:
        before = len(self.trained)
        super().learn()
        if len(self.trained) > before and self.checkpoint_every:
            assert self.furthest[: len(self.trained)] == self.trained[: len(self.furthest)], "steps made anew differ"
            self.furthest = max(self.furthest, list(self.trained), key=len)
            if self.stream.version % self.checkpoint_every == 0:
                self.checkpoint = list(self.trained)
                self.stream.checkpointed(self.stream.version)

    def kill_broker(self) -> None:
        """Everything in memory is lost; verifiers deliver nothing that they were given before."""
        self.deaths += 1
        again = Stream(self.stream.cursor.tasks, self.stream.config, 0, Retirement(*self.retirement()))
        again.restore(self.journal.load(self.stream.config.group_size, 0), self.now)
        assert pictured(again) == pictured(self.stream)
        self.stream = again
        for name, held in self.actors.items():
            self.stream.renew(name, [lease.lease_id for lease in held], self.now)
        for name in self.stream.leases.holders - self.actors.keys():
            self.stream.actor_lost(name)
        for held_jobs in self.verifiers.values():
            if self.chance.random() < 0.5:
                held_jobs.clear()  # the others bring verdicts on jobs that nobody remembers

    def kill_learner(self) -> None:
        self.deaths += 1
        self.trained = list(self.checkpoint)
        version = len(self.checkpoint) // self.stream.config.groups_per_step
        consumed = merged((), self.checkpoint)
        self.journal.commit(self.stream)
        if not self.stream.resume(version, consumed, checkpoints=True):
            self.stream.restore(self.journal.load(self.stream.config.group_size, 0), self.now, version)
            assert self.stream.resume(version, consumed, checkpoints=True)
        self.resampled = self.stream.dropped["zero_variance"]

    def retirement(self) -> tuple[float, int]:
        return self.stream.retirement.pass_rate, self.stream.retirement.after


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    max_staleness=st.integers(0, 4),
    groups_per_step=st.integers(1, 4),
    death_rate=st.sampled_from([0.0, 0.05]),
    void_rate=st.sampled_from([0.0, 0.3]),
    broker_deaths=st.sampled_from([0.02, 0.2]),
    learner_deaths=st.sampled_from([0.0, 0.05]),
    checkpoint_every=st.sampled_from([0, 1, 3]),
    zero_variance=st.sampled_from(["keep", "resample"]),
    straggler=st.sampled_from(["wait", "drop", "train"]),
    retire=st.booleans(),
)
def test_any_death_at_any_turn_loses_nothing_and_trains_nothing_twice(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    max_staleness: int,
    groups_per_step: int,
    death_rate: float,
    void_rate: float,
    broker_deaths: float,
    learner_deaths: float,
    checkpoint_every: int,
    zero_variance: str,
    straggler: str,
    retire: bool,
) -> None:
    config = StreamConfig(
        max_staleness=max_staleness,
        groups_per_step=groups_per_step,
        group_size=SIZE,
        lease_seconds=20.0,
        lease_attempts=1000,
        zero_variance=zero_variance,
        resample_limit=3,
        straggler=straggler,
    )
    journal = Journal(tmp_path_factory.mktemp("journal") / "journal.sqlite", RUN, sync="off")
    tasks = NumberedTasks(epoch_size=9) if retire else NumberedTasks()
    stream = Stream(tasks, config, 0, Retirement(0.9 if retire else 0.0, after=6))
    world = MortalWorld(
        stream,
        random.Random(seed),
        death_rate,
        void_rate,
        0.5,
        journal=journal,
        broker_deaths=broker_deaths,
        learner_deaths=learner_deaths,
        checkpoint_every=checkpoint_every,
    )
    world.run(8)
    stream = world.stream
    assert stream.version == 8 or (retire and stream.dry), f"stuck: {stream.waiting_for}"
    assert len(world.trained) == len(set(world.trained)) == stream.consumed_groups == stream.version * groups_per_step
    if straggler != "train":
        assert world.oldest <= max_staleness
    leased = stream.cursor.next_index - stream.counts["tasks_skipped"]
    assert leased == stream.consumed_groups + len(stream.groups) + sum(stream.dropped.values()), "a group is lost"
    dropped = {group for (group,) in journal._database.execute("SELECT group_id FROM dropped")}
    assert len(dropped) == sum(stream.dropped.values())
    assert not dropped & (set(world.trained) | set(stream.groups))
    assert not set(world.trained) & set(stream.groups)
    journal.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.sqlite"


def written(path: Path, stream: Stream) -> Stream:
    """The stream that a broker would find after this one was killed."""
    journal = Journal(path, RUN)
    journal.commit(stream)
    journal.close()
    return found(path, stream.config)


def found(path: Path, config: StreamConfig) -> Stream:
    journal = Journal(path, RUN)
    again = Stream(NumberedTasks(), config, 0)
    again.restore(journal.load(config.group_size, 0), 0.0)
    journal.close()
    return again


def test_leases_rollouts_and_verdicts_outlive_the_broker(path: Path) -> None:
    stream = new_stream(groups_per_step=1, group_size=3)
    lease = stream.grant("a", 10, 0.0)
    assert lease is not None
    for sample in (0, 1):
        stream.rollout_done(rollout(lease, sample, [0]))
    job = stream.assign("v", 1)
    assert job is not None
    stream.verify_done(judged(job, 0.5))
    again = written(path, stream)
    samples = again.groups[0].samples
    assert [each.state for each in samples] == [SampleState.SCORED, SampleState.VERIFYING, SampleState.LEASED]
    assert again.leases.owed("a") == 1
    assert again.groups[0].task.task_id == "0"
    again.renew("a", [lease.lease_id], 5.0)
    assert not again.overdue(5.0)
    again.rollout_done(rollout(lease, 2, [0]))
    again.rollout_done(rollout(lease, 0, [0]))
    assert again.counts["duplicates"] == 1
    while late := again.assign("v", 9):
        again.verify_done(judged(late))
    assert again.batch(0) is not None


def test_a_lease_that_its_actor_never_heard_of_is_leased_again(path: Path) -> None:
    stream = new_stream(groups_per_step=1, group_size=2)
    assert stream.grant("a", 10, 0.0) is not None
    again = written(path, stream)
    assert [lease.lease_id for lease in again.renew("a", [], 1.0)] == [0]
    lease = again.grant("b", 10, 1.0)
    assert lease is not None
    assert (lease.lease_id, lease.group_id, lease.sample_indexes) == (1, 0, (0, 1))


def test_a_batch_that_was_handed_out_is_handed_out_again(path: Path) -> None:
    stream = new_stream(groups_per_step=1, group_size=2, max_staleness=2)
    leases = [stream.grant("a", 10, 0.0) for _ in range(2)]
    assert leases[0]
    assert leases[1]
    finish(stream, leases[1])
    first = stream.batch(0)
    assert first is not None
    finish(stream, leases[0])
    again = written(path, stream)
    groups = again.batch(0)
    assert groups is not None
    assert [group.group_id for group in groups] == [1], "group 0 is older now, but the learner may have trained group 1"
    again.consumed(1, [1])
    assert [group.group_id for group in again.batch(1) or ()] == [0]


def test_the_word_of_a_step_that_was_lost_with_the_broker_is_taken_from_the_checkpoint(path: Path) -> None:
    stream = new_stream(groups_per_step=1, group_size=2)
    stream.resume(0, (), checkpoints=True)
    lease = stream.grant("a", 10, 0.0)
    assert lease is not None
    finish(stream, lease)
    assert stream.batch(0)
    again = written(path, stream)
    assert again.resume(1, merged((), [0]), checkpoints=True)
    assert (again.version, again.consumed_groups) == (1, 1)


def test_the_word_of_several_steps_may_come_again_when_no_acknowledgement_did(path: Path) -> None:
    """Two brokers in a row died after they had written a step and before they could say so."""
    stream = new_stream(groups_per_step=1, group_size=2, max_staleness=2)
    stream.resume(0, (), checkpoints=True)
    order = []
    for _ in range(3):
        lease = stream.grant("a", 10, 0.0)
        assert lease is not None
        finish(stream, lease)
        order += train(stream)
    again = written(path, stream)
    for version, group in enumerate(order, start=1):
        again.consumed(version, [group])
    assert (again.version, again.consumed_groups, again.counts["duplicates"]) == (3, 3, 3)
    with pytest.raises(InvalidEvent, match="not the groups that were handed out"):
        again.consumed(2, [order[0]])
    with pytest.raises(InvalidEvent, match="not the groups that were handed out"):
        again.consumed(4, [order[0]])


def test_a_learner_that_comes_back_gets_the_same_batches_and_nothing_new_until_it_stands_where_it_stood(
    path: Path,
) -> None:
    stream = new_stream(groups_per_step=1, group_size=2, max_staleness=1)
    stream.resume(0, (), checkpoints=True)
    order = []
    for step in range(4):
        while lease := stream.grant("a", 100, 0.0):
            finish(stream, lease)
        order += train(stream)
        if step == 0:
            stream.checkpointed(1)
    journal = Journal(path, RUN)
    journal.commit(stream)
    assert not stream.resume(1, merged((), order[:1]), checkpoints=True)
    stream.restore(journal.load(2, 0), 0.0, 1)
    assert stream.resume(1, merged((), order[:1]), checkpoints=True)
    journal.close()
    replayed = []
    while stream.version < 4:
        assert stream.grant("a", 1000, 0.0) is None
        assert "anew, of 4" in stream.waiting_for
        stream.published(stream.version, "made anew")
        groups = stream.batch(stream.version)
        assert groups is not None
        replayed += [group.group_id for group in groups]
        stream.consumed(stream.version + 1, [group.group_id for group in groups])
    assert replayed == order[1:]
    assert stream.grant("a", 1000, 0.0) is not None


@pytest.mark.parametrize("goes_back", [False, True])
def test_a_run_that_ends_with_a_batch_handed_out_drops_it_and_may_go_on_later(path: Path, goes_back: bool) -> None:
    stream = new_stream(groups_per_step=1, group_size=2, max_staleness=1)
    stream.resume(0, (), checkpoints=True)
    order = []
    for _ in range(3):
        while lease := stream.grant("a", 100, 0.0):
            finish(stream, lease)
        order += train(stream)
    handed_out = stream.batch(3)
    assert handed_out
    journal = Journal(path, RUN)
    journal.commit(stream)
    if goes_back:
        stream.restore(journal.load(2, 0), 0.0, 1)
        assert stream.resume(1, merged((), order[:1]), checkpoints=True)
        assert stream.batch(1)
    stream.close()
    journal.commit(stream)
    journal.close()
    again = found(path, stream.config)
    stood = 1 if goes_back else 3
    assert (again.version, again.furthest, again.groups) == (stood, stood, {})
    assert all(version < stood for version in again.batches)
    dropped = again.dropped["run_ended"]
    assert again.cursor.next_index == again.consumed_groups + dropped
    assert again.resume(stood, merged((), order[:stood]), checkpoints=True)
    again.published(stood, fingerprint(stood))
    lease = again.grant("a", 100, 0.0)
    assert lease
    assert lease.group_id == again.consumed_groups + dropped
    finish(again, lease)
    assert train(again) == [lease.group_id]


def test_what_a_checkpoint_holds_leaves_the_journal(path: Path) -> None:
    stream = new_stream(groups_per_step=1, group_size=2)
    stream.resume(0, (), checkpoints=True)
    journal = Journal(path, RUN)

    def rows(table: str) -> int:
        journal.commit(stream)
        return int(journal._database.execute(f"SELECT count(*) FROM {table}").fetchone()[0])

    for _ in range(3):
        lease = stream.grant("a", 10, 0.0)
        assert lease is not None
        finish(stream, lease)
        train(stream)
    assert (rows("groups"), rows("rollouts"), rows("verdicts"), rows("batches")) == (3, 6, 6, 3)
    stream.checkpointed(2)
    assert (rows("groups"), rows("rollouts"), rows("verdicts"), rows("batches")) == (1, 2, 2, 1)
    stream.checkpointed(3)
    assert (rows("groups"), rows("rollouts"), rows("verdicts"), rows("batches"), rows("leases")) == (0, 0, 0, 0, 0)
    assert rows("versions") == 1
    journal.close()


def test_a_turn_is_written_whole_or_not_at_all(path: Path) -> None:
    stream = new_stream(groups_per_step=1, group_size=2)
    journal = Journal(path, RUN)
    journal.commit(stream)
    before = pictured(found_in(journal, stream.config))
    journal._database.execute(f"PRAGMA max_page_count={journal._database.execute('PRAGMA page_count').fetchone()[0]}")
    lease = stream.grant("a", 10, 0.0)
    assert lease is not None
    stream.rollout_done(rollout(lease, 0, [0]))
    arrived = stream.groups[0].samples[0]
    assert arrived.rollout is not None
    arrived.rollout = replace(arrived.rollout, text="t" * 100_000)
    with pytest.raises(JournalFailed, match="full"):
        journal.commit(stream)
    assert pictured(found_in(journal, stream.config)) == before
    journal._database.execute("PRAGMA max_page_count=1000000")
    journal.commit(stream)
    assert pictured(found_in(journal, stream.config)) == pictured(stream)
    journal.close()


def found_in(journal: Journal, config: StreamConfig) -> Stream:
    again = Stream(NumberedTasks(), config, 0)
    again.restore(journal.load(config.group_size, 0), 0.0)
    return again


def test_a_journal_is_of_one_run_and_held_by_one_broker(path: Path) -> None:
    journal = Journal(path, RUN)
    assert not journal.begun
    with pytest.raises(JournalFailed, match="another broker holds this run"):
        Journal(path, RUN)
    stream = new_stream()
    assert stream.grant("a", 100, 0.0)
    journal.commit(stream)
    assert journal.begun
    journal.close()
    with pytest.raises(JournalFailed, match=r"begun with run\.seed=0, now it is 1: .* choose another run\.name"):
        Journal(path, {"run.seed": 1})
    Journal(path, RUN).close()


def test_what_is_no_journal_is_refused_with_its_cure(path: Path) -> None:
    path.write_bytes(b"not a database at all, but long enough to be looked at" * 100)
    with pytest.raises(JournalFailed, match=r"journal\.sqlite: file is not a database; move it away"):
        Journal(path, RUN)
    path.unlink()
    journal = Journal(path, RUN)
    stream = new_stream()
    assert stream.grant("a", 100, 0.0)
    journal.commit(stream)
    journal._database.execute("UPDATE groups SET task = x'00'")
    with pytest.raises(JournalDamaged, match="is damaged: body"):
        journal.load(8, 0)
    journal.close()


def test_a_journal_that_is_damaged_under_a_broker_is_not_written_in_hope(path: Path) -> None:
    stream, journal = new_stream(), Journal(path, RUN)
    assert stream.grant("a", 100, 0.0)
    journal.commit(stream)
    journal._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    journal._database.execute("PRAGMA shrink_memory")
    whole = path.stat().st_size
    path.write_bytes(path.read_bytes()[:4096] + b"\xff" * (whole - 4096))
    lease = stream.grant("b", 100, 0.0)
    assert lease
    with pytest.raises(JournalDamaged, match=r"journal\.sqlite: .*; move it away to begin anew from the learner's"):
        journal.commit(stream)
    journal.close()


def test_a_journal_on_a_full_disk_is_not_told_to_be_moved_away(path: Path) -> None:
    journal = Journal(path, RUN)
    stream = new_stream()
    assert stream.grant("a", 100, 0.0)
    journal.commit(stream)
    journal.close()
    before = path.read_bytes()
    room = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, room[1]))
    try:
        with pytest.raises(JournalFailed, match="disk I/O error; make room on its disk") as caught:
            Journal(path, RUN)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, room)
    assert not isinstance(caught.value, JournalDamaged)
    assert path.read_bytes() == before
    assert found(path, stream.config).leases


def test_a_reader_sees_a_whole_turn_while_the_broker_writes(path: Path) -> None:
    stream, journal = new_stream(group_size=2), Journal(path, RUN)
    lease = stream.grant("a", 10, 0.0)
    assert lease is not None
    journal.commit(stream)
    reader = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    reader.execute("BEGIN")
    assert reader.execute("SELECT count(*) FROM rollouts").fetchone() == (0,)
    stream.rollout_done(rollout(lease, 0, [0]))
    journal.commit(stream)
    assert reader.execute("SELECT count(*) FROM rollouts").fetchone() == (0,)
    reader.execute("COMMIT")
    assert reader.execute("SELECT count(*) FROM rollouts").fetchone() == (1,)
    reader.close()
    journal.close()


def test_fingerprints_are_forgotten_once_no_rollout_can_name_them(path: Path) -> None:
    stream = new_stream(groups_per_step=1, group_size=2, max_staleness=1)
    for _ in range(20):
        while lease := stream.grant("a", 100, 0.0):
            finish(stream, lease)
        train(stream)
    assert stream.fingerprints.known.keys() == {19, 20}
    assert stream.fingerprints.known[20] == (fingerprint(20),)
    assert written(path, stream).fingerprints.known == stream.fingerprints.known


def test_what_is_left_of_groups_that_are_gone_is_deleted_bit_by_bit_and_read_by_nobody(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_file, "LEFTOVERS_A_TURN", 2)
    stream = new_stream(groups_per_step=1, group_size=2, max_staleness=9)
    stream.resume(0, (), checkpoints=True)
    journal = Journal(path, RUN)

    def left(journal: Journal) -> tuple[int, ...]:
        tables = ("groups", "rollouts", "verdicts")
        return tuple(journal._database.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables)

    while lease := stream.grant("a", 1000, 0.0):
        finish(stream, lease)
    while stream.ready:
        train(stream)
    journal.commit(stream)
    stream.checkpointed(9)
    journal.commit(stream)
    assert left(journal) == (1, 20, 20), "the rollouts of groups that are gone are still there"
    journal.commit(stream)
    assert left(journal) == (1, 16, 16), "a turn in which nothing happened deletes some"
    journal.close()
    again = Journal(path, RUN)
    assert [group.group_id for group in again.load(2, 0).groups] == [9]
    stream = found_in(again, stream.config)
    for rows in (12, 8, 4, 2, 2):
        again.commit(stream)
        assert left(again) == (1, rows, rows)
    assert [group.group_id for group in again.load(2, 0).groups] == [9]
    again.close()
