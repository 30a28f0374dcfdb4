"""One optimizer step: the training signal of a batch, then forward, loss, backward, update."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from learner import stats
from learner.advantage import group_advantages
from learner.aggregation import token_weights
from learner.batch import MicroBatch, TrainingSequence
from learner.config import LossConfig
from learner.distributed import data_group
from learner.losses import TokenInputs, objective
from learner.model import Policy
from learner.optimizer import Optimizer
from protocol.messages import GroupBatch


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one step did. `applied` is False when its gradient was not finite and the weights stayed as they were."""

    loss: float
    grad_norm: float
    lr: float
    applied: bool
    described: dict[str, object]  # see learner.stats.describe

    def row(self) -> dict[str, Any]:
        """Its part of a line of metrics.jsonl."""
        return {"loss": self.loss, "grad_norm": self.grad_norm, "lr": self.lr, **self.described}


def training_sequences(batch: GroupBatch, config: LossConfig, longest: int) -> list[TrainingSequence]:
    """The sequences of a batch in its order, each with its advantage and token weight; `longest` as in aggregation."""
    scored = [item for group in batch.groups for item in group.scored]
    advantages = np.concatenate(
        [
            group_advantages(
                config.advantage, np.array([item.verdict.reward for item in group.scored], dtype=np.float64)
            )
            for group in batch.groups
        ]
    )  # [S]
    lengths = np.array([len(item.rollout.token_ids) for item in scored])  # [S]
    groups = np.array([item.rollout.group_id for item in scored])  # [S]
    weights = token_weights(config.aggregation, lengths, groups, longest)  # [S]
    return [
        TrainingSequence(
            prompt_ids=item.rollout.prompt_ids,
            token_ids=item.rollout.token_ids,
            behaviour_logprobs=item.rollout.behaviour_logprobs,
            staleness=(batch.policy_version - item.rollout.token_versions).astype(np.int32),
            advantage=float(advantage),
            token_weight=float(weight),
            index=index,
        )
        for index, (item, advantage, weight) in enumerate(zip(scored, advantages, weights, strict=True))
    ]


def train_step(
    policy: Policy,
    optimizer: Optimizer,
    micro_batches: Sequence[MicroBatch],
    config: LossConfig,
    *,
    temperature: float,
) -> StepResult:
    """Accumulate the gradient of all micro-batches and update once. Collective: every rank has as many of them.

    With one update a batch the policy at its start is the policy of the forward pass, so that the `recompute` anchor
    p = sg(π) costs no second pass.
    """
    total = torch.zeros((), dtype=torch.float64)
    rows: list[torch.Tensor] = []
    for batch in micro_batches:
        logprobs, entropy = policy(batch, temperature)  # [N], [N]
        current = logprobs.detach()
        inputs = TokenInputs(
            learner_logprobs=logprobs,
            behaviour_logprobs=batch.behaviour_logprobs,
            proximal_logprobs=batch.behaviour_logprobs if config.proximal == "behaviour" else current,
            advantages=batch.advantages,
        )
        token = objective(inputs, config)
        loss = masked_sum(-token.value * batch.token_weights, batch.loss_mask)
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.detach().double().cpu()
        log_ratio = current - batch.behaviour_logprobs
        columns = (log_ratio, entropy.detach(), token.bounded, batch.sequence_index, batch.staleness)
        rows.append(torch.stack([column.double() for column in columns], dim=-1)[batch.loss_mask])
    lr = optimizer.lr
    norm = optimizer.step()
    if dist.get_world_size() > 1:
        total = total.to(rows[0].device)
        dist.all_reduce(total, group=data_group())
    tokens = stats.gather_tokens(torch.cat(rows)).cpu()
    cap = config.cispo_cap if config.name == "cispo" else config.tis_cap
    return StepResult(float(total), norm, lr, bool(np.isfinite(norm)), stats.describe(tokens, truncation=cap))


def masked_sum(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Sum of the values where `mask` holds; a value elsewhere, NaN included, neither counts nor gets a gradient."""
    return torch.where(mask, values, torch.zeros_like(values)).sum()
