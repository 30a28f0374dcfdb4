"""Micro-batches: every sequence once, within the budget, equally many on every rank, aligned with its tokens."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from learner.batch import MicroBatch, TrainingSequence, assemble, share

CPU = torch.device("cpu")
LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=40)
Make = Callable[..., list[TrainingSequence]]


@given(lengths=LENGTHS, budget=st.integers(1, 200), world=st.integers(1, 5))
def test_every_sequence_is_trained_once_within_the_budget(
    make_sequences: Make, lengths: list[int], budget: int, world: int
) -> None:
    sequences = make_sequences(lengths)
    dealt = [share(sequences, budget=budget, rank=rank, world=world, device=CPU) for rank in range(world)]
    assert len({len(batches) for batches in dealt}) == 1  # collectives match
    trained: list[int] = []
    for batch in (batch for batches in dealt for batch in batches):
        rows, longest = batch.input_ids.shape
        assert rows == 1 or rows * longest <= budget
        if batch.loss_mask.any():
            assert batch.loss_mask.all()
            trained += sorted(set(batch.sequence_index.tolist()))
    assert sorted(trained) == list(range(len(sequences)))


@given(lengths=st.lists(st.integers(1, 40), min_size=8, max_size=40), world=st.integers(2, 4))
def test_ranks_get_about_equal_work(make_sequences: Make, lengths: list[int], world: int) -> None:
    sequences = make_sequences(lengths)
    tokens = []
    for rank in range(world):
        batches = share(sequences, budget=10**6, rank=rank, world=world, device=CPU)
        assert all(batch.loss_mask.all() for batch in batches)  # a wide budget leaves no rank idle
        indexes = set(torch.cat([batch.sequence_index for batch in batches]).tolist())
        tokens.append(sum(sequences[index].length for index in indexes))
    assert max(tokens) - min(tokens) <= max(sequence.length for sequence in sequences)


def slow_rows(batch: MicroBatch, sequences: list[TrainingSequence]) -> None:
    """Check token by token that `batch` says of each what its sequence says."""
    flat, place = batch.input_ids.flatten(), 0
    columns = batch.input_ids.shape[1]
    for row, sequence in enumerate(sequences):
        for step, token in enumerate(sequence.token_ids):
            before = np.concatenate([sequence.prompt_ids, sequence.token_ids[:step]])
            position = int(batch.positions[place])
            assert position == row * columns + len(before) - 1
            assert flat[row * columns : position + 1].tolist() == before.tolist()
            assert batch.targets[place] == token
            assert batch.behaviour_logprobs[place] == sequence.behaviour_logprobs[step]
            assert batch.staleness[place] == sequence.staleness[step]
            assert batch.advantages[place] == pytest.approx(sequence.advantage)
            assert batch.token_weights[place] == pytest.approx(sequence.token_weight)
            assert batch.sequence_index[place] == sequence.index
            place += 1
    assert place == len(batch.targets)


@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=8))
def test_each_place_predicts_its_token(make_sequences: Make, lengths: list[int]) -> None:
    sequences = make_sequences(lengths)
    slow_rows(assemble(sequences, CPU), sequences)


def test_an_idle_micro_batch_trains_nothing(make_sequences: Make) -> None:
    sequences = make_sequences([9, 3, 5])
    batches = share(sequences, budget=1, rank=1, world=2, device=CPU)
    assert [bool(batch.loss_mask.any()) for batch in batches] == [True, False]
    assert all(len(batch.targets) for batch in batches)
