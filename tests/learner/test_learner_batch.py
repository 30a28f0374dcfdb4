"""Micro-batches: every sequence once, within the budget, equally many on every rank, aligned with its tokens."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from learner.batch import MicroBatch, TrainingSequence, assemble, deal, share
from learner.policy.cost import CostModel

CPU = torch.device("cpu")
COST = CostModel(linear=100.0, quadratic=3.0)  # from 34 tokens on, attention costs more than all else
LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=40)
Make = Callable[..., list[TrainingSequence]]


def cost_of(rows: list[TrainingSequence]) -> float:
    return sum(100.0 * row.length + 3.0 * row.length**2 for row in rows)


@given(lengths=LENGTHS, budget=st.integers(1, 200), world=st.integers(1, 5))
def test_every_sequence_is_trained_once_within_the_budget(
    make_sequences: Make, lengths: list[int], budget: int, world: int
) -> None:
    sequences = make_sequences(lengths)
    dealt = [share(sequences, budget=budget, cost=COST, rank=rank, world=world, device=CPU) for rank in range(world)]
    assert len({len(batches) for batches in dealt}) == 1  # collectives match
    trained: list[int] = []
    for batch in (batch for batches in dealt for batch in batches):
        indexes = sorted(set(batch.sequence_index.tolist()))
        assert len(batch.input_ids) == sum(sequences[index].length for index in indexes)
        assert len(indexes) == 1 or len(batch.input_ids) <= budget
        if batch.loss_mask.any():
            assert batch.loss_mask.all()
            trained += indexes
    assert sorted(trained) == list(range(len(sequences)))


@given(lengths=LENGTHS, budget=st.integers(1, 400), world=st.integers(2, 5))
def test_ranks_differ_by_no_more_than_the_costliest_sequence_in_each_round_and_in_all(
    make_sequences: Make, lengths: list[int], budget: int, world: int
) -> None:
    rounds = deal(make_sequences(lengths), budget=budget, cost=COST, world=world)
    costs = np.array([[cost_of(part) for part in parts] for parts in rounds])  # [rounds, ranks]
    costliest = [max(cost_of([row]) for part in parts for row in part) for parts in rounds]
    assert all(np.ptp(costs, axis=1) <= np.array(costliest) + 1e-6)
    assert np.ptp(costs.sum(0)) <= max(costliest) + 1e-6


@given(lengths=st.lists(st.integers(1, 40), min_size=2, max_size=8), world=st.integers(2, 3))
def test_the_slowest_rank_is_near_the_best_of_all_ways_to_deal(
    make_sequences: Make, lengths: list[int], world: int
) -> None:
    sequences = make_sequences(lengths)
    (parts,) = deal(sequences, budget=10**6, cost=COST, world=world)
    costs = [cost_of([sequence]) for sequence in sequences]
    best = min(
        max(sum(cost for cost, rank in zip(costs, ranks, strict=True) if rank == each) for each in range(world))
        for ranks in itertools.product(range(world), repeat=len(costs))
    )
    assert max(map(cost_of, parts)) <= (4 / 3 - 1 / (3 * world)) * best + 1e-6  # Graham's bound for LPT


@given(lengths=st.lists(st.integers(1, 40), min_size=8, max_size=40), world=st.integers(2, 4))
def test_a_wide_budget_makes_one_micro_batch_a_rank(make_sequences: Make, lengths: list[int], world: int) -> None:
    (parts,) = deal(make_sequences(lengths), budget=10**6, cost=COST, world=world)
    assert all(parts)


@given(lengths=LENGTHS, budget=st.integers(1, 400), world=st.integers(1, 4))
def test_rounds_go_from_long_sequences_to_short_ones(
    make_sequences: Make, lengths: list[int], budget: int, world: int
) -> None:
    rounds = deal(make_sequences(lengths), budget=budget, cost=COST, world=world)
    ordered = [[row.length for part in parts for row in part] for parts in rounds]
    assert all(min(longer) >= max(shorter) for longer, shorter in itertools.pairwise(ordered))
    for part in (part for parts in rounds for part in parts):
        assert [row.length for row in part] == sorted((row.length for row in part), reverse=True)


def test_ranks_share_by_cost_not_by_tokens(make_sequences: Make) -> None:
    sequences = make_sequences([60, *[4] * 60], seed=1)
    for cost, equal in (
        (COST, cost_of),
        (CostModel(linear=1.0, quadratic=0.0), lambda rows: sum(r.length for r in rows)),
    ):
        (parts,) = deal(sequences, budget=10**6, cost=cost, world=2)
        first, second = map(equal, parts)
        assert abs(first - second) <= 0.1 * max(first, second)
    dear, cheap = deal(sequences, budget=10**6, cost=COST, world=2)[0]
    assert sum(row.length for row in dear) < 0.8 * sum(row.length for row in cheap)  # attention counts


def test_every_rank_deals_alike_whatever_the_order(make_sequences: Make) -> None:
    sequences = make_sequences([5, 9, 9, 2, 30, 9, 5, 1, 17])
    there = deal(sequences, budget=25, cost=COST, world=3)
    again = deal(sequences[::-1], budget=25, cost=COST, world=3)
    assert [[[row.index for row in part] for part in parts] for parts in there] == [
        [[row.index for row in part] for part in parts] for parts in again
    ]


def slow_rows(batch: MicroBatch, sequences: list[TrainingSequence]) -> None:
    """Check token by token that `batch` says of each what its sequence says."""
    place = start = 0
    for sequence in sequences:
        for step, token in enumerate(sequence.token_ids):
            before = np.concatenate([sequence.prompt_ids, sequence.token_ids[:step]])
            position = int(batch.positions[place])
            assert position == start + len(before) - 1
            assert batch.input_ids[start : position + 1].tolist() == before.tolist()
            assert batch.position_ids[position] == len(before) - 1
            assert batch.targets[place] == token
            assert batch.behaviour_logprobs[place] == sequence.behaviour_logprobs[step]
            assert batch.staleness[place] == sequence.staleness[step]
            assert batch.advantages[place] == pytest.approx(sequence.advantage)
            assert batch.token_weights[place] == pytest.approx(sequence.token_weight)
            assert batch.sequence_index[place] == sequence.index
            place += 1
        start += sequence.length
    assert (place, start) == (len(batch.targets), len(batch.input_ids))


@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=8))
def test_each_place_predicts_its_token(make_sequences: Make, lengths: list[int]) -> None:
    sequences = make_sequences(lengths)
    slow_rows(assemble(sequences, CPU), sequences)


@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=8))
def test_positions_restart_where_the_packing_says_that_a_sequence_starts(
    make_sequences: Make, lengths: list[int]
) -> None:
    sequences = make_sequences(lengths)
    batch = assemble(sequences, CPU)
    starts = batch.packing.starts.tolist()
    assert np.diff(starts).tolist() == [sequence.length for sequence in sequences]
    assert (batch.position_ids == 0).nonzero().flatten().tolist() == starts[:-1]
    for start, end in itertools.pairwise(starts):
        assert batch.position_ids[start:end].tolist() == list(range(end - start))


def test_an_idle_micro_batch_trains_nothing(make_sequences: Make) -> None:
    sequences = make_sequences([9, 3, 5])
    dealt = [share(sequences, budget=1, cost=COST, rank=rank, world=2, device=CPU) for rank in range(2)]
    trains = [[bool(batch.loss_mask.any()) for batch in batches] for batches in dealt]
    assert trains == [[True, False], [True, True]]  # the rank with the longest sequence has done the most
    assert all(len(batch.targets) for batches in dealt for batch in batches)
