"""The stream's invariants, against a random world of actors, verifiers and a learner on a simulated clock."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stream_world import NumberedTasks, World, equal_rewards, fingerprint, finish, judged, new_stream, rollout, train

from learner.broker.config import StreamConfig
from learner.broker.errors import InvalidEvent
from learner.broker.retirement import Retirement
from learner.broker.stream import Stream
from learner.group_ranges import merged
from protocol.messages import GroupRange, Lease, LeaseFailed, VerifyDone


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    max_staleness=st.integers(0, 4),
    groups_per_step=st.integers(1, 5),
    group_size=st.integers(2, 10),
    death_rate=st.sampled_from([0.0, 0.02, 0.2]),
    void_rate=st.sampled_from([0.0, 0.1, 0.6]),
    equal_rate=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
    zero_variance=st.sampled_from(["keep", "resample"]),
    resample_limit=st.sampled_from([1, 3, 20]),
    tasks=st.sampled_from([NumberedTasks(end, size) for end in (None, 20) for size in (0, 1, 9)]),
    retire_pass_rate=st.sampled_from([0.0, 0.4, 0.9]),
)
def test_no_token_is_older_than_allowed_and_every_group_ends_once(
    seed: int,
    max_staleness: int,
    groups_per_step: int,
    group_size: int,
    death_rate: float,
    void_rate: float,
    equal_rate: float,
    zero_variance: str,
    resample_limit: int,
    tasks: NumberedTasks,
    retire_pass_rate: float,
) -> None:
    config = StreamConfig(
        max_staleness=max_staleness,
        groups_per_step=groups_per_step,
        group_size=group_size,
        lease_seconds=20.0,
        lease_attempts=5,
        zero_variance=zero_variance,
        resample_limit=resample_limit,
    )
    retirement = Retirement(retire_pass_rate if tasks.epoch_size else 0.0, after=4)
    world = World(Stream(tasks, config, 0, retirement), random.Random(seed), death_rate, void_rate, equal_rate)
    stream = world.stream
    steps = 6
    world.run(steps)
    may_end = tasks.end is not None or retirement.pass_rate > 0
    assert stream.version == steps or (may_end and stream.dry), f"stuck: {stream.waiting_for}"
    assert world.oldest <= max_staleness
    assert len(world.trained) == len(set(world.trained)) == stream.version * groups_per_step
    live = set(stream.groups)
    assert not live & set(world.trained)
    kept = world.equal_trained + sum(equal_rewards(group.rewards) for group in stream.groups.values() if group.finished)
    resampling = zero_variance == "resample"
    assert stream.counts["resample_limit_reached"] == (kept if resampling else 0)
    assert world.most_resampled <= (resample_limit if resampling else 0)
    stream.close()
    leased = stream.cursor.next_index - stream.counts["tasks_skipped"]
    assert leased == stream.consumed_groups + sum(stream.dropped.values())
    assert stream.granted == stream.consumed_groups
    assert not stream.leases.running


def test_admission_stops_at_the_bound_and_moves_with_the_learner() -> None:
    stream = new_stream(max_staleness=1, groups_per_step=2, group_size=2)
    leases = [stream.grant("a", 1000, 0.0) for _ in range(5)]
    assert [lease is not None for lease in leases] == [True] * 4 + [False]
    for lease in leases[:4]:
        assert lease is not None
        finish(stream, lease)
    groups = stream.batch(0)
    assert groups is not None
    stream.published(1, fingerprint(1))
    stream.consumed(1, [group.group_id for group in groups])
    more = [stream.grant("a", 1000, 0.0) for _ in range(3)]
    assert [lease is not None for lease in more] == [True, True, False]
    assert more[0] is not None
    assert more[0].min_version == 1


def test_nothing_is_leased_before_the_first_weights() -> None:
    stream = Stream(NumberedTasks(), StreamConfig(), seed=0)
    assert stream.grant("a", 1000, 0.0) is None
    assert "first weights" in stream.waiting_for


def test_the_batch_waits_for_a_straggler_that_would_become_too_old() -> None:
    stream = new_stream(max_staleness=1, groups_per_step=1, group_size=2)
    straggler, quick = stream.grant("a", 10, 0.0), stream.grant("a", 10, 0.0)
    assert straggler is not None
    assert quick is not None
    finish(stream, quick)
    first = stream.batch(0)
    assert first is not None, "at version 0 the straggler may still wait one step"
    assert first[0].group_id == quick.group_id
    stream.published(1, fingerprint(1))
    stream.consumed(1, [quick.group_id])
    third = stream.grant("a", 10, 0.0)
    assert third is not None
    finish(stream, third)
    assert stream.batch(1) is None
    finish(stream, straggler)
    second = stream.batch(1)
    assert second is not None
    assert second[0].group_id == straggler.group_id


def test_only_the_missing_samples_of_a_dead_actors_lease_are_leased_again_with_the_same_seeds() -> None:
    stream = new_stream(groups_per_step=1, group_size=4)
    lease = stream.grant("a", 4, 0.0)
    assert lease is not None
    stream.rollout_done(rollout(lease, 1, [0]))
    stream.actor_lost("a")
    again = stream.grant("b", 4, 0.0)
    assert again is not None
    assert again.group_id == lease.group_id
    assert again.sample_indexes == (0, 2, 3)
    assert again.seeds == tuple(lease.seeds[index] for index in (0, 2, 3))


def test_a_late_rollout_of_an_overdue_lease_counts_once() -> None:
    stream = new_stream(groups_per_step=1, group_size=2, lease_seconds=5.0)
    late = stream.grant("slow", 4, 0.0)
    assert late is not None
    assert [lease.actor for lease in stream.overdue(6.0)] == ["slow"]
    again = stream.grant("quick", 4, 6.0)
    assert again is not None
    finish(stream, late)
    finish(stream, again)
    assert stream.counts["rollouts"] == 2
    assert stream.counts["duplicates"] == 2
    groups = stream.batch(0)
    assert groups is not None
    assert len(groups[0].scored) == 2


def test_a_group_whose_leases_keep_expiring_is_dropped_with_its_reason() -> None:
    stream = new_stream(groups_per_step=1, group_size=2, lease_seconds=1.0, lease_attempts=2)
    for attempt in range(2):
        lease = stream.grant("a", 2, attempt * 10.0)
        assert lease is not None
        assert lease.group_id == 0
        stream.overdue(attempt * 10.0 + 2.0)
    assert stream.dropped == {"lease_expired": 1}
    replacement = stream.grant("a", 2, 30.0)
    assert replacement is not None
    assert replacement.group_id == 1


def test_an_impossible_prompt_drops_its_group_and_a_run_of_them_is_noticed() -> None:
    stream = new_stream(groups_per_step=1, group_size=2, max_staleness=0)
    for _ in range(3):
        lease = stream.grant("a", 2, 0.0)
        assert lease is not None
        stream.lease_failed(LeaseFailed(lease_id=lease.lease_id, reason="prompt_too_long", detail=""))
    assert stream.dropped == {"prompt_too_long": 3}
    assert stream.drops_in_a_row == 3
    lease = stream.grant("a", 2, 0.0)
    assert lease is not None
    finish(stream, lease)
    assert stream.drops_in_a_row == 0


def test_void_is_tried_again_and_never_becomes_a_reward() -> None:
    stream = new_stream(groups_per_step=1, group_size=3, verify_attempts=2)
    lease = stream.grant("a", 3, 0.0)
    assert lease is not None
    for sample in range(3):
        stream.rollout_done(rollout(lease, sample, [0]))
    first = [stream.assign("v", 10) for _ in range(3)]
    for job, reward in zip(first, [None, 1.0, 0.0], strict=True):
        assert job is not None
        stream.verify_done(judged(job, reward))
    assert stream.batch(0) is None
    again = stream.assign("v", 10)
    assert again is not None
    stream.verify_done(judged(again, None))
    groups = stream.batch(0)
    assert groups is not None
    assert [scored.rollout.sample_index for scored in groups[0].scored] == [1, 2]
    assert stream.counts["void_verdicts"] == 2


def test_a_group_with_fewer_than_two_rewards_is_dropped_as_void() -> None:
    stream = new_stream(groups_per_step=1, group_size=2, verify_attempts=1)
    lease = stream.grant("a", 2, 0.0)
    assert lease is not None
    for sample in range(2):
        stream.rollout_done(rollout(lease, sample, [0]))
    for reward in (1.0, None):
        job = stream.assign("v", 10)
        assert job is not None
        stream.verify_done(judged(job, reward))
    assert stream.dropped == {"void": 1}


def test_rollouts_of_other_weights_than_the_published_ones_are_refused() -> None:
    stream = new_stream(group_size=2)
    lease = stream.grant("a", 2, 0.0)
    assert lease is not None
    with pytest.raises(InvalidEvent, match="version 1, which is not published"):
        stream.rollout_done(rollout(lease, 0, [0, 1]))
    stream.published(1, "another")
    with pytest.raises(InvalidEvent, match="fingerprint"):
        stream.rollout_done(rollout(lease, 0, [0, 1]))
    with pytest.raises(InvalidEvent, match="two learners"):
        stream.published(1, "a third")


def test_rollouts_older_than_their_lease_allows_are_refused() -> None:
    stream = new_stream(max_staleness=0, groups_per_step=1, group_size=2)
    lease = stream.grant("a", 2, 0.0)
    assert lease is not None
    finish(stream, lease)
    assert stream.batch(0) is not None
    stream.published(1, fingerprint(1))
    stream.consumed(1, [lease.group_id])
    fresh = stream.grant("a", 2, 0.0)
    assert fresh is not None
    with pytest.raises(InvalidEvent, match="the lease asks for 1"):
        stream.rollout_done(rollout(fresh, 0, [0]))


def test_a_verifiers_jobs_are_sent_again_when_it_dies() -> None:
    stream = new_stream(group_size=2)
    lease = stream.grant("a", 2, 0.0)
    assert lease is not None
    for sample in range(2):
        stream.rollout_done(rollout(lease, sample, [0]))
    lost = [stream.assign("v", 10) for _ in range(2)]
    stream.verifier_lost("v")
    again = [stream.assign("w", 10) for _ in range(2)]
    assert [job.text for job in again if job] == [job.text for job in lost if job]
    assert {job.job_id for job in again if job}.isdisjoint({job.job_id for job in lost if job})


def test_credit_bounds_what_a_peer_holds() -> None:
    stream = new_stream(group_size=4, groups_per_step=10)
    assert stream.grant("a", 3, 0.0) is not None, "a group larger than the capacity goes to an idle actor"
    assert stream.grant("a", 3, 0.0) is None
    granted = 0
    while stream.grant("b", 10, 0.0):
        granted += 1
    assert granted == 2
    assert stream.leases.owed("b") == 8


def test_the_same_batch_is_given_again_until_it_is_consumed() -> None:
    stream = new_stream(max_staleness=2, groups_per_step=1, group_size=2)
    second, first = stream.grant("a", 10, 0.0), stream.grant("a", 10, 0.0)
    assert first is not None
    assert second is not None
    finish(stream, first)
    handed = stream.batch(0)
    finish(stream, second)
    assert handed is not None
    again = stream.batch(0)
    assert again is not None
    assert [group.group_id for group in again] == [group.group_id for group in handed]
    with pytest.raises(InvalidEvent, match="not the groups"):
        stream.consumed(1, [second.group_id])


def test_finite_tasks_end_the_stream() -> None:
    stream = new_stream(size=3, groups_per_step=2, group_size=2)
    while lease := stream.grant("a", 100, 0.0):
        finish(stream, lease)
    assert not stream.dry
    assert stream.batch(0) is not None
    stream.published(1, fingerprint(1))
    stream.consumed(1, [0, 1])
    assert stream.dry


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    max_staleness=st.integers(0, 4),
    groups_per_step=st.integers(1, 5),
    before=st.integers(0, 5),
    size=st.one_of(st.none(), st.integers(0, 12)),
)
def test_after_a_restart_the_rest_is_trained_holes_included_nothing_twice_and_no_token_too_old(
    seed: int, max_staleness: int, groups_per_step: int, before: int, size: int | None
) -> None:
    chance = random.Random(seed)
    total = before * groups_per_step
    consumed = sorted(chance.sample(range(total + 10), total))
    finite = None if size is None else total + 10 + size
    stream = Stream(
        NumberedTasks(finite),
        StreamConfig(max_staleness=max_staleness, groups_per_step=groups_per_step, group_size=2),
        seed=0,
    )
    stream.resume(before, merged((), consumed))
    world = World(stream, chance, death_rate=0.02, void_rate=0.0)
    for _ in range(20_000):
        world.turn()
        assert stream.granted <= stream.admission_limit
        assert stream.granted == stream.consumed_groups + len(stream.groups)
        if stream.dry or stream.version >= before + 6:
            break
    assert stream.dry or stream.version == before + 6, f"stuck: {stream.waiting_for}"
    assert world.oldest <= max_staleness
    assert not set(world.trained) & set(consumed)
    assert len(world.trained) == len(set(world.trained)) == (stream.version - before) * groups_per_step
    assert stream.consumed_groups == stream.version * groups_per_step
    reached = set(range(stream.cursor.next_index)) - set(consumed)
    assert set(world.trained) | set(stream.groups) <= reached
    assert len(reached) == len(world.trained) + len(stream.groups) + sum(stream.dropped.values()), "no hole is left out"


def test_a_resumed_stream_leases_the_holes_first_and_then_what_follows() -> None:
    stream = Stream(NumberedTasks(), StreamConfig(max_staleness=0, groups_per_step=4, group_size=2), seed=0)
    stream.resume(2, merged((), [0, 1, 3, 4, 5, 8, 9, 12]))
    assert (stream.version, stream.granted, stream.consumed_groups) == (2, 8, 8)
    stream.published(2, fingerprint(2))
    leases = [stream.grant("a", 1000, 0.0) for _ in range(5)]
    assert [lease.group_id for lease in leases if lease] == [2, 6, 7, 10]
    for lease in leases[:4]:
        assert lease is not None
        assert lease.min_version == 2
        finish(stream, lease)
    groups = stream.batch(2)
    assert groups is not None
    stream.published(3, fingerprint(3))
    stream.consumed(3, [group.group_id for group in groups])
    more = [stream.grant("a", 1000, 0.0) for _ in range(4)]
    assert [lease.group_id for lease in more if lease] == [11, 13, 14, 15]


def test_groups_have_the_same_seeds_before_and_after_a_restart() -> None:
    stream = new_stream(groups_per_step=1, group_size=2, max_staleness=3)
    straight = [stream.grant("a", 100, 0.0) for _ in range(4)]
    again = Stream(NumberedTasks(), StreamConfig(groups_per_step=1, group_size=2, max_staleness=3), seed=0)
    again.resume(1, (GroupRange(first=1, last=1),))
    again.published(1, fingerprint(1))
    resumed = [again.grant("a", 100, 0.0) for _ in range(3)]
    assert [(lease.group_id, lease.seeds) for lease in resumed if lease] == [
        (lease.group_id, lease.seeds) for lease in straight if lease and lease.group_id != 1
    ]


def test_a_learner_at_a_version_that_the_stream_has_let_go_of_is_refused() -> None:
    stream = new_stream(groups_per_step=1, group_size=2)
    for _ in range(3):
        lease = stream.grant("a", 10, 0.0)
        assert lease is not None
        finish(stream, lease)
        train(stream)
    with pytest.raises(InvalidEvent, match=r"begins at 1, .* versions 3 to 3 consume: .* or remove journal"):
        stream.resume(1, (GroupRange(first=0, last=0),))
    with pytest.raises(InvalidEvent, match="begins at 5"):
        stream.resume(5, (GroupRange(first=0, last=4),))
    assert stream.resume(3, (GroupRange(first=0, last=2),))


def test_a_checkpoint_of_another_batch_size_is_refused() -> None:
    stream = Stream(NumberedTasks(), StreamConfig(groups_per_step=3), seed=0)
    with pytest.raises(InvalidEvent, match=r"holds 4 groups, 2 steps of 3 take 6: stream\.groups_per_step must stay"):
        stream.resume(2, (GroupRange(first=0, last=3),))
    assert (stream.version, stream.granted) == (0, 0)


def test_what_was_consumed_before_a_restart_does_not_come_again_behind_retired_tasks() -> None:
    config = StreamConfig(max_staleness=9, groups_per_step=3, group_size=2)
    retirement = Retirement(pass_rate=1.0, after=2)
    stream = Stream(NumberedTasks(epoch_size=4), config, seed=0, retirement=retirement)
    stream.resume(2, merged((), [1, 2, 5, 6, 7, 9]))
    stream.published(2, fingerprint(2))
    retirement.finished(NumberedTasks(epoch_size=4).task_id(3) or "", [1.0, 1.0])  # it would be at 4 and at 11 too
    leases = [stream.grant("a", 1000, 0.0) for _ in range(5)]
    assert [lease.group_id for lease in leases if lease] == [0, 8, 10, 13, 14]
    assert stream.counts["tasks_skipped"] == 4


def straggling(straggler: str) -> tuple[Stream, int]:
    """A stream at version 1 whose next batch would leave a group of version 0 behind; that group's lease."""
    stream = new_stream(max_staleness=1, groups_per_step=1, group_size=2, straggler=straggler)
    slow, quick = stream.grant("slow", 2, 0.0), stream.grant("a", 10, 0.0)
    assert slow is not None
    assert quick is not None
    finish(stream, quick)
    assert train(stream) == [quick.group_id]
    third = stream.grant("a", 10, 0.0)
    assert third is not None
    finish(stream, third)
    return stream, slow.lease_id


def test_a_straggler_is_dropped_and_counted_where_that_is_asked_for() -> None:
    stream, lease_id = straggling("drop")
    assert train(stream) == [2]
    assert dict(stream.dropped) == {"straggler": 1}
    assert lease_id not in stream.leases.running
    assert stream.leases.owed("slow") == 0
    assert stream.granted == stream.consumed_groups == 2


def test_a_straggler_is_trained_late_and_counted_where_that_is_asked_for() -> None:
    stream, lease_id = straggling("train")
    assert train(stream) == [2]
    assert not stream.dropped
    slow = stream.leases.running[lease_id]
    for sample in slow.leased:
        lease = Lease(
            lease_id=lease_id,
            group_id=slow.group.group_id,
            task=slow.group.task,
            sample_indexes=slow.leased,
            seeds=(0, 0),
            min_version=0,
            deadline_seconds=1.0,
        )
        stream.rollout_done(rollout(lease, sample, [0]))
    while job := stream.assign("v", 9):
        stream.verify_done(judged(job))
    assert stream.counts["late_groups"] == 0
    assert train(stream) == [0]
    assert stream.counts["late_groups"] == 1


def test_a_verdict_on_a_job_that_nobody_remembers_still_counts_for_its_sample() -> None:
    stream = new_stream(groups_per_step=1, group_size=2)
    lease = stream.grant("a", 10, 0.0)
    assert lease is not None
    for sample in (0, 1):
        stream.rollout_done(rollout(lease, sample, [0]))
    first, second = stream.assign("v", 9), stream.assign("v", 9)
    assert first is not None
    assert second is not None
    stream.verifier_lost("v")
    stream.verify_done(judged(first, 0.25))
    stream.verify_done(judged(second, 0.75))
    groups = stream.batch(0)
    assert groups is not None
    assert [scored.verdict.reward for scored in groups[0].scored] == [0.25, 0.75]
    assert stream.assign("w", 9) is None, "what is judged is not sent again"


def test_a_job_is_not_another_samples() -> None:
    stream = new_stream(groups_per_step=1, group_size=2)
    lease = stream.grant("a", 10, 0.0)
    assert lease is not None
    stream.rollout_done(rollout(lease, 0, [0]))
    job = stream.assign("v", 9)
    assert job is not None
    with pytest.raises(InvalidEvent, match="job_id: 0 is sample 0 of group 0"):
        stream.verify_done(VerifyDone(job_id=0, group_id=0, sample_index=1, verdict=judged(job).verdict))
