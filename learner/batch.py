"""From sequences with their training signal to micro-batches: packed up to a token budget, shared evenly by the ranks.

The ranks' collectives tie each micro-batch of a rank to those that the others work on at the same time, so that the
slowest of such a round sets the pace. Rounds are therefore filled one by one, the longest sequences first, each with
about equal work for every rank; and the sequences of a micro-batch have similar lengths, so that attention pads little.

Legend: T completion tokens of one sequence, P its prompt tokens; M packed tokens of a micro-batch, N the completion
tokens among them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch

from learner.policy.attention import Packing, pack
from learner.policy.cost import CostModel

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
    """The input of one forward pass, its sequences packed, and, aligned with its N completion tokens, of the loss."""

    input_ids: torch.Tensor  # [M] int64
    position_ids: torch.Tensor  # [M] int64, from 0 in each sequence
    packing: Packing
    positions: torch.Tensor  # [N] int64 into [M]: the places that predict the targets
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
    sequences: Sequence[TrainingSequence],
    *,
    budget: int,
    cost: CostModel,
    rank: int,
    world: int,
    device: torch.device,
) -> list[MicroBatch]:
    """The micro-batches of `rank`. Every rank gets as many as the others, so that their collectives match.

    `budget` bounds their tokens, but a single longer sequence still makes a micro-batch of its own.
    """
    rounds = deal(sequences, budget=budget, cost=cost, world=world)
    shortest = min(sequences, key=lambda sequence: (sequence.length, sequence.index))
    return [assemble(dealt[rank], device) if dealt[rank] else idle(shortest, device) for dealt in rounds]


def deal(
    sequences: Sequence[TrainingSequence], *, budget: int, cost: CostModel, world: int
) -> list[list[list[TrainingSequence]]]:
    """Rounds of one micro-batch a rank, as rows: [round][rank][row].

    In each round the costliest micro-batch goes to the rank with the least work in the rounds before, and so on. So
    neither in a round nor in the whole do two ranks' costs differ by more than the costliest sequence.
    """
    work = np.zeros(world)
    rounds = []
    for parts in fill(sequences, budget=budget, cost=cost, world=world):
        loads = np.array([sum(cost.of(row.length) for row in part) for part in parts])
        ranks, places = work.argsort(kind="stable"), (-loads).argsort(kind="stable")
        work[ranks] += loads[places]
        dealt = dict(zip(ranks.tolist(), places.tolist(), strict=True))
        rounds.append([parts[dealt[rank]] for rank in range(world)])
    return rounds


def fill(
    sequences: Sequence[TrainingSequence], *, budget: int, cost: CostModel, world: int
) -> Iterator[list[list[TrainingSequence]]]:
    """Rounds of `world` micro-batches of about equal cost: [part][row].

    Each sequence, by falling length, joins the part of least cost (LPT: Graham 1969, "Bounds on multiprocessing timing
    anomalies"); where it exceeds that part's budget, it opens the next round.
    """
    parts: list[list[TrainingSequence]] = [[] for _ in range(world)]
    loads, tokens = np.zeros(world), np.zeros(world, dtype=np.int64)
    for sequence in sorted(sequences, key=lambda item: (-item.length, item.index)):
        lightest = int(loads.argmin())
        if parts[lightest] and tokens[lightest] + sequence.length > budget:
            yield parts
            parts = [[] for _ in range(world)]
            loads[:], tokens[:], lightest = 0, 0, 0
        parts[lightest].append(sequence)
        loads[lightest] += cost.of(sequence.length)
        tokens[lightest] += sequence.length
    yield parts


def assemble(rows: Sequence[TrainingSequence], device: torch.device) -> MicroBatch:
    """Pack `rows`, in their order, to one micro-batch."""
    lengths = [row.length for row in rows]
    starts = np.cumsum(lengths) - lengths
    completions = [len(row.token_ids) for row in rows]

    def spread(values: Sequence[float], dtype: torch.dtype) -> torch.Tensor:
        """One value a row to one a token, [N]."""
        return torch.tensor(np.repeat(values, completions), dtype=dtype, device=device)

    def joined(arrays: Sequence[np.ndarray[Any, Any]], dtype: torch.dtype) -> torch.Tensor:
        """Arrays of the rows one after the other."""
        return torch.tensor(np.concatenate(arrays), dtype=dtype, device=device)

    return MicroBatch(
        input_ids=joined([ids for row in rows for ids in (row.prompt_ids, row.token_ids)], torch.int64),
        position_ids=joined([np.arange(length) for length in lengths], torch.int64),
        packing=pack(lengths, device),
        positions=joined(
            [start + np.arange(len(row.prompt_ids), row.length) - 1 for start, row in zip(starts, rows, strict=True)],
            torch.int64,
        ),
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
