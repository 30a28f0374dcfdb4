"""From sequences with their training signal to micro-batches: cut by a token budget, shared by the ranks.

Legend: T completion tokens of one sequence, P its prompt tokens; B rows of a micro-batch, L their padded length, N
their completion tokens. A sequence has a row of its own, so that attention never crosses from one to another; rows of
similar length are put together, so that little is padded.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch

Ints: TypeAlias = np.ndarray[Any, np.dtype[np.int32]]
Floats: TypeAlias = np.ndarray[Any, np.dtype[np.float32]]
Bools: TypeAlias = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSequence:
    """One completion and what the loss needs to know of it."""

    prompt_ids: Ints  # [P] int32
    token_ids: Ints  # [T] int32
    behaviour_logprobs: Floats  # [T] float32, nats
    staleness: Ints  # [T] int32, steps
    advantage: float
    token_weight: float  # of each of its tokens in the global loss, see learner.loss.aggregation
    index: int  # place in the whole batch
    group: int  # group_id of its rollout
    loss_mask: Bools | None = None  # [T] bool, True where the token is trained; None: all of them

    @property
    def length(self) -> int:
        """Prompt and completion tokens."""
        return len(self.prompt_ids) + len(self.token_ids)

    @property
    def trained_tokens(self) -> int:
        """Completion tokens that are trained."""
        return len(self.token_ids) if self.loss_mask is None else int(self.loss_mask.sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """The input of one forward pass and, aligned with its N completion tokens, of the loss."""

    input_ids: torch.Tensor  # [B, L] int64, padded on the right
    positions: torch.Tensor  # [N] int64 into [B·L]: the places that predict the targets
    targets: torch.Tensor  # [N] int64
    behaviour_logprobs: torch.Tensor  # [N] float32
    staleness: torch.Tensor  # [N] int64
    advantages: torch.Tensor  # [N] float32
    token_weights: torch.Tensor  # [N] float32
    sequence_index: torch.Tensor  # [N] int64
    group_index: torch.Tensor  # [N] int64
    loss_mask: torch.Tensor  # [N] bool; all False in a micro-batch that only keeps the ranks in step
    proximal_logprobs: torch.Tensor | None = None  # [N] float32, where they were scored before the loss
    reference_logprobs: torch.Tensor | None = None  # [N] float32, likewise


def share(
    sequences: Sequence[TrainingSequence], *, budget: int, rank: int, world: int, device: torch.device
) -> list[MicroBatch]:
    """The micro-batches of `rank`. Every rank gets as many as the others, so that their collectives match.

    Sequences are dealt by falling length, so that ranks get about equal work. `budget` bounds B·L, but a single longer
    sequence still makes a micro-batch of its own.
    """
    ordered = sorted(sequences, key=lambda item: (-item.length, item.index))
    cuts = [cut(ordered[place::world], budget) for place in range(world)]
    rounds = max(map(len, cuts))
    batches = [assemble(rows, device) for rows in cuts[rank]]
    return batches + [idle(ordered[-1], device)] * (rounds - len(batches))


def cut(sequences: Sequence[TrainingSequence], budget: int) -> list[list[TrainingSequence]]:
    """Sequences of falling length, cut where one more row would exceed the budget."""
    cuts: list[list[TrainingSequence]] = []
    for sequence in sequences:
        if cuts and (len(cuts[-1]) + 1) * cuts[-1][0].length <= budget:
            cuts[-1].append(sequence)
        else:
            cuts.append([sequence])
    return cuts


def assemble(rows: Sequence[TrainingSequence], device: torch.device) -> MicroBatch:
    """Pad `rows` to one micro-batch."""
    longest = max(row.length for row in rows)
    input_ids = np.zeros((len(rows), longest), dtype=np.int64)
    positions: list[np.ndarray[Any, Any]] = []
    for place, row in enumerate(rows):
        prompt = len(row.prompt_ids)
        input_ids[place, :prompt] = row.prompt_ids
        input_ids[place, prompt : row.length] = row.token_ids
        positions.append(place * longest + np.arange(prompt - 1, row.length - 1))
    lengths = [len(row.token_ids) for row in rows]

    def spread(values: Sequence[float], dtype: torch.dtype) -> torch.Tensor:
        """One value a row to one a token, [N]."""
        return torch.tensor(np.repeat(values, lengths), dtype=dtype, device=device)

    def joined(arrays: Sequence[np.ndarray[Any, Any]], dtype: torch.dtype) -> torch.Tensor:
        """Arrays of the rows one after the other, [N]."""
        return torch.tensor(np.concatenate(arrays), dtype=dtype, device=device)

    return MicroBatch(
        input_ids=torch.tensor(input_ids, device=device),
        positions=joined(positions, torch.int64),
        targets=joined([row.token_ids for row in rows], torch.int64),
        behaviour_logprobs=joined([row.behaviour_logprobs for row in rows], torch.float32),
        staleness=joined([row.staleness for row in rows], torch.int64),
        advantages=spread([row.advantage for row in rows], torch.float32),
        token_weights=spread([row.token_weight for row in rows], torch.float32),
        sequence_index=spread([row.index for row in rows], torch.int64),
        group_index=spread([row.group for row in rows], torch.int64),
        loss_mask=joined([mask_of(row) for row in rows], torch.bool),
    )


def mask_of(sequence: TrainingSequence) -> Bools:
    """Which of its completion tokens are trained, [T] bool."""
    return np.ones(len(sequence.token_ids), dtype=np.bool_) if sequence.loss_mask is None else sequence.loss_mask


def idle(row: TrainingSequence, device: torch.device) -> MicroBatch:
    """A micro-batch that trains nothing: it lets a rank take part in the collectives of the others."""
    batch = assemble([row], device)
    batch.loss_mask.fill_(False)
    return batch
