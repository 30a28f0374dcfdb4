"""One training step: score what must be known beforehand, then forward, loss, backward, update for each minibatch."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from learner import stats
from learner.batch import MicroBatch
from learner.distributed import data_group
from learner.loss.advantages import Floats
from learner.loss.compose import token_loss
from learner.loss.config import LossConfig
from learner.loss.tokens import Tokens
from learner.loss.weighted import at_risk, second_moment_bound
from learner.optimizer import Optimizer
from learner.policy.model import Policy
from learner.stats import TokenStats


@dataclass(frozen=True, slots=True)
class Update:
    """What one optimizer update did."""

    loss: float
    grad_norm: float
    lr: float
    skipped: str  # why the weights stayed as they were: `not_finite`, `no_signal`, or nothing
    culprits: tuple[int, ...]  # groups that made the gradient not finite
    tokens: TokenStats  # of this rank


@dataclass(frozen=True, slots=True)
class StepResult:
    """What the updates of one batch did together."""

    loss: float  # mean over the updates, like the next two
    grad_norm: float
    lr: float
    updates: int
    skipped: dict[str, int]  # updates that left the weights as they were, by reason
    culprits: tuple[int, ...]
    described: dict[str, object]  # see learner.stats.describe

    def row(self) -> dict[str, Any]:
        """Its part of a line of metrics.jsonl."""
        numbers = {"loss": self.loss, "grad_norm": self.grad_norm, "lr": self.lr, "updates": self.updates}
        return {**numbers, "updates_skipped": self.skipped, **self.described}


def train_step(
    policy: Policy,
    optimizer: Optimizer,
    minibatches: Sequence[Sequence[MicroBatch]],
    config: LossConfig,
    *,
    temperature: float,
    reference: Policy | None = None,
) -> StepResult:
    """One update a minibatch. Collective: every rank has as many minibatches, and in each as many micro-batches.

    With one update a batch the policy at its start is the policy of the forward pass, so that the `recompute` anchor
    p = sg(π) costs no pass of its own.
    """
    scored = [list(micro_batches) for micro_batches in minibatches]
    if config.scores_first:
        scored = [with_scores(policy, each, "proximal_logprobs", temperature) for each in scored]
    if reference is not None and config.kl_in_loss:
        scored = [with_scores(reference, each, "reference_logprobs", temperature) for each in scored]
    updates = [update(policy, optimizer, each, config, temperature=temperature) for each in scored]
    tokens = stats.gather([each.tokens for each in updates])
    return StepResult(
        loss=_mean([each.loss for each in updates]),
        grad_norm=_mean([each.grad_norm for each in updates]),
        lr=_mean([each.lr for each in updates]),
        updates=len(updates),
        skipped=dict(Counter(each.skipped for each in updates if each.skipped)),
        culprits=tuple(sorted({group for each in updates for group in each.culprits})),
        described=stats.describe(tokens, truncation=truncation(config)),
    )


def update(
    policy: Policy,
    optimizer: Optimizer,
    micro_batches: Sequence[MicroBatch],
    config: LossConfig,
    *,
    temperature: float,
) -> Update:
    """Accumulate the gradient of all micro-batches, then step once, unless it is not finite or zero. Collective."""
    bound = m2_bound(policy, micro_batches, config, temperature) if config.name == "m2po" else math.inf
    total = torch.zeros((), dtype=torch.float64)
    rows: list[TokenStats] = []
    for batch in micro_batches:
        loss, token_stats = backward(policy, batch, config, temperature, bound)
        total += loss.detach().double().cpu()
        rows.append(token_stats)
    tokens = stats.join(rows)
    scale = math.sqrt(stats.sequence_ess(stats.gather([tokens]))) if config.ess_lr else 1.0
    outcome = optimizer.step(scale)
    culprits = find_culprits(policy, optimizer, micro_batches, config, temperature, bound) if outcome.broken else ()
    loss_sum = _sum_over_ranks(total.to(tokens["loss"].device))
    return Update(loss_sum, outcome.norm, outcome.lr, outcome.skipped, culprits, tokens)


def backward(
    policy: Policy, batch: MicroBatch, config: LossConfig, temperature: float, bound: float
) -> tuple[torch.Tensor, TokenStats]:
    """Add the gradient of a micro-batch; returns its share of the loss, and what its tokens were like."""
    logprobs, entropy = policy(batch, temperature)  # [N], [N]
    token = token_loss(as_tokens(batch, logprobs, entropy, bound), config)
    loss = (token.value * batch.token_weights).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    return loss, stats.of_tokens(batch, logprobs.detach(), entropy.detach(), token)


@torch.no_grad()
def mean_loss(policy: Policy, micro_batches: Sequence[MicroBatch], config: LossConfig, *, temperature: float) -> float:
    """The loss of some micro-batches of all ranks, and no gradient. Collective."""
    total = torch.zeros((), dtype=torch.float64, device=micro_batches[0].loss_mask.device)
    for batch in micro_batches:
        token = token_loss(as_tokens(batch, *policy(batch, temperature)), config)
        total += (token.value * batch.token_weights).sum()
    return _sum_over_ranks(total)


def as_tokens(batch: MicroBatch, logprobs: torch.Tensor, entropy: torch.Tensor, bound: float = math.inf) -> Tokens:
    """The tokens of a micro-batch under the current policy, as a loss sees them."""
    return Tokens(
        learner_logprobs=logprobs,
        behaviour_logprobs=batch.behaviour_logprobs,
        proximal_logprobs=batch.proximal_logprobs,
        advantages=batch.advantages,
        loss_mask=batch.loss_mask,
        sequence_index=batch.sequence_index,
        group_index=batch.group_index,
        staleness=batch.staleness,
        reference_logprobs=batch.reference_logprobs,
        entropy=entropy,
        m2_bound=bound,
    )


@torch.no_grad()
def with_scores(policy: Policy, micro_batches: Sequence[MicroBatch], name: str, temperature: float) -> list[MicroBatch]:
    """The micro-batches with `policy`'s log-probabilities of their tokens as field `name`. Collective."""
    return [replace(batch, **{name: policy(batch, temperature)[0]}) for batch in micro_batches]


@torch.no_grad()
def reference_kl(
    policy: Policy, reference: Policy, micro_batches: Sequence[MicroBatch], rollouts: int, temperature: float
) -> Floats:
    """Σ_t log π/π_ref of each rollout of the batch, [S] float64, on every rank. Collective."""
    sums = torch.zeros(rollouts, dtype=torch.float64)
    for batch in micro_batches:
        log_ratio = policy(batch, temperature)[0] - reference(batch, temperature)[0]  # [N]
        kept = torch.where(batch.loss_mask, log_ratio, torch.zeros_like(log_ratio)).double().cpu()
        sums.index_add_(0, batch.sequence_index.cpu(), kept)
    if dist.get_world_size() > 1:
        sums = sums.to(micro_batches[0].loss_mask.device)
        dist.all_reduce(sums, group=data_group())
    result: Floats = sums.cpu().numpy()
    return result


@torch.no_grad()
def m2_bound(policy: Policy, micro_batches: Sequence[MicroBatch], config: LossConfig, temperature: float) -> float:
    """The bound of m2po for this update, from a forward pass over all its tokens on all ranks. Collective."""
    risky: list[torch.Tensor] = []
    for batch in micro_batches:
        log_rho = policy(batch, temperature)[0] - batch.behaviour_logprobs  # [N]
        risky.append(log_rho[at_risk(log_rho, batch.advantages) & batch.loss_mask])
    return second_moment_bound(
        stats.gather_rows(torch.cat(risky).double().unsqueeze(-1)).squeeze(-1), config.m2po_threshold
    )


def find_culprits(
    policy: Policy,
    optimizer: Optimizer,
    micro_batches: Sequence[MicroBatch],
    config: LossConfig,
    temperature: float,
    bound: float,
) -> tuple[int, ...]:
    """The groups behind a gradient that is not finite, by doing each micro-batch again, alone. Collective.

    Where tokens have a loss that is not finite their groups are named; else all groups of the micro-batches (of all
    ranks, in the same turn) whose gradient is not finite.
    """
    found: set[int] = set()
    for batch in micro_batches:
        _, local = backward(policy, batch, config, temperature, bound)
        turn = stats.gather([local])
        if not math.isfinite(optimizer.discard()):
            broken = ~turn["loss"].isfinite()
            found.update(turn["group"][broken if broken.any() else slice(None)].long().tolist())
    return tuple(sorted(found))


def truncation(config: LossConfig) -> float:
    """The cap of token weights for which the truncated ESS is stated: the loss's own, or the correction's."""
    caps = {"cispo": config.cispo_cap, "vtrace": config.vtrace_cap, "aipo": config.aipo_cap, "dppo_tv": config.dppo_cap}
    return caps.get(config.name, config.tis_cap)


def _sum_over_ranks(total: torch.Tensor) -> float:
    if dist.get_world_size() > 1:
        dist.all_reduce(total, group=data_group())
    return float(total)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else 0.0
