"""From scored groups to training sequences: what is shaped, what is filtered, how minibatches are cut."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner.credit import Credited, credit, minibatches, untrained_sequences
from learner.loss.config import LossConfig
from protocol.messages import GroupBatch, RolloutGroup

MakeBatch = Callable[..., GroupBatch]
PLAIN = LossConfig(advantage="dr_grpo", filters=[])


def with_rewards(
    batch: GroupBatch, rewards: list[list[float]], truncated: tuple[tuple[int, int], ...] = ()
) -> GroupBatch:
    """The batch with these rewards a group (and as many rollouts), those at `truncated` cut at the limit."""

    def group(place: int, old: RolloutGroup) -> RolloutGroup:
        return dataclasses.replace(
            old,
            scored=tuple(
                dataclasses.replace(
                    item,
                    rollout=dataclasses.replace(
                        item.rollout, finish_reason="length" if (place, number) in truncated else "stop"
                    ),
                    verdict=dataclasses.replace(item.verdict, reward=reward),
                )
                for number, (item, reward) in enumerate(zip(old.scored, rewards[place], strict=False))
            ),
        )

    return dataclasses.replace(batch, groups=tuple(group(place, old) for place, old in enumerate(batch.groups)))


def advantages_of(credited: Credited) -> dict[int, float]:
    return {sequence.index: sequence.advantage for sequence in credited.sequences}


def test_groups_of_equal_rewards_are_left_out_and_counted_by_prompt_length(make_batch: MakeBatch) -> None:
    received = with_rewards(make_batch(3, 2), [[1, 1], [0, 1], [0, 0]])
    credited = credit(received, dataclasses.replace(PLAIN, filters=["zero_variance"]), longest=12)
    assert [sequence.index for sequence in credited.sequences] == [2, 3]
    assert credited.groups_filtered == {"zero_variance": 2}
    assert credited.zero_variance_by_prompt == {4: 2}
    assert credited.tokens == sum(len(item.rollout.token_ids) for item in received.groups[1].scored)


def test_without_the_filter_groups_of_equal_rewards_stay_with_no_advantage(make_batch: MakeBatch) -> None:
    credited = credit(with_rewards(make_batch(2, 2), [[1, 1], [0, 1]]), PLAIN, longest=12)
    assert advantages_of(credited) == {0: 0, 1: 0, 2: -0.5, 3: 0.5}
    assert credited.groups_filtered == {}


@pytest.mark.parametrize("filters", [[], ["zero_variance"]])
def test_a_group_of_one_is_dropped_with_its_own_count(make_batch: MakeBatch, filters: list[str]) -> None:
    received = with_rewards(make_batch(2, 2), [[1], [0, 1]])
    credited = credit(received, dataclasses.replace(PLAIN, filters=filters), longest=12)
    assert credited.groups_filtered == {"singleton": 1}
    assert credited.zero_variance_by_prompt == {}
    assert advantages_of(credited) == {1: -0.5, 2: 0.5}


def test_truncated_rollouts_are_left_out_but_stay_in_the_baseline(make_batch: MakeBatch) -> None:
    received = with_rewards(make_batch(1, 4), [[1, 0, 0, 1]], truncated=((0, 1),))
    credited = credit(received, dataclasses.replace(PLAIN, filters=["truncated"]), longest=12)
    assert advantages_of(credited) == {0: 0.5, 2: -0.5, 3: 0.5}
    assert credited.rollouts_filtered == 1
    kept = credit(received, PLAIN, longest=12)
    assert set(advantages_of(kept)) == {0, 1, 2, 3}
    assert kept.rollouts_filtered == 0


def test_a_penalty_for_truncation_makes_a_difference_where_verdicts_make_none(make_batch: MakeBatch) -> None:
    received = with_rewards(make_batch(1, 2), [[0, 0]], truncated=((0, 1),))
    config = LossConfig(advantage="dr_grpo", truncated_penalty=0.5)
    assert advantages_of(credit(received, config, longest=12)) == {0: 0.25, 1: -0.25}
    assert [item.verdict.reward for item in received.groups[0].scored] == [0, 0]  # verdicts are never overwritten


def test_long_completions_lose_reward_in_the_buffer(make_batch: MakeBatch) -> None:
    received = with_rewards(make_batch(1, 6, seed=3), [[1.0] * 6])
    credited = credit(received, dataclasses.replace(PLAIN, overlong_buffer=6), longest=12)
    shaped = []
    for item in received.groups[0].scored:
        over = len(item.rollout.token_ids) - 6
        shaped.append(1.0 - max(0, over) / 6)
    expected = np.array(shaped) - np.mean(shaped)
    assert len(set(shaped)) > 1
    assert [advantages_of(credited)[place] for place in range(6)] == pytest.approx(expected.tolist())


def test_the_distance_from_the_reference_is_taken_off_the_reward(make_batch: MakeBatch) -> None:
    received = with_rewards(make_batch(1, 2), [[1, 1]])
    config = LossConfig(advantage="dr_grpo", kl_coefficient=0.1, kl_estimator="k1_reward")
    credited = credit(received, config, longest=12, reference_kl=np.array([1.0, 3.0]))
    assert advantages_of(credited) == pytest.approx({0: 0.1, 1: -0.1})


@given(groups=st.integers(1, 7), parts=st.integers(1, 5), seed=st.integers(0, 5))
def test_minibatches_hold_every_group_once_and_whole(make_batch: MakeBatch, groups: int, parts: int, seed: int) -> None:
    received = make_batch(groups, 3, seed=seed)
    config = dataclasses.replace(PLAIN, minibatches=parts)
    found = minibatches(credit(received, config, longest=12).sequences, config, longest=12)
    assert len(found) == min(parts, groups)
    assert sorted(one.index for part in found for one in part) == list(range(3 * groups))
    owners = [{one.group for one in part} for part in found]
    assert sum(map(len, owners)) == len(set().union(*owners))
    assert max(map(len, owners)) - min(map(len, owners)) <= 1
    for part in found:  # each is an update of its own
        assert sum(one.token_weight * len(one.token_ids) for one in part) == pytest.approx(1)


def test_nothing_left_makes_no_minibatch() -> None:
    assert minibatches([], PLAIN, longest=12) == []


def test_untrained_sequences_are_all_of_the_batch_in_order(make_batch: MakeBatch) -> None:
    received = make_batch(2, 3)
    sequences = untrained_sequences(received)
    scored = [item for group in received.groups for item in group.scored]
    assert [one.index for one in sequences] == list(range(6))
    for one, item in zip(sequences, scored, strict=True):
        assert one.token_ids is item.rollout.token_ids
        assert one.group == item.rollout.group_id
