"""What every token-level formula sees, and the sums over sequences that some of them need.

Legend: N tokens of K sequences, whole sequences only; μ behaviour policy (the sampler), p proximal policy (the
trust-region anchor), π current policy; r = π/p, ρ = π/μ, W = Π ρ over a sequence of T tokens. Logarithms are natural.
Log-ratios are clamped to ±20 before exp. A token outside `loss_mask` counts nowhere, whatever its numbers are.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import torch

LOG_RATIO_BOUND = 20.0


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """The completion tokens of some whole sequences."""

    learner_logprobs: torch.Tensor  # [N] float32, nats, with gradient: log π
    behaviour_logprobs: torch.Tensor  # [N] float32, nats: log μ
    proximal_logprobs: torch.Tensor | None  # [N] float32, nats: log p; None: the current policy without its gradient
    advantages: torch.Tensor  # [N] float32
    loss_mask: torch.Tensor  # [N] bool, True where the token is trained
    sequence_index: torch.Tensor  # [N] int64, equal for the tokens of one sequence
    group_index: torch.Tensor  # [N] int64, equal for the tokens of one group
    staleness: torch.Tensor  # [N] int64, learner steps since the token was sampled
    reference_logprobs: torch.Tensor | None = None  # [N] float32, nats: the KL's reference policy
    entropy: torch.Tensor | None = None  # [N] float32, nats, with gradient when there is an entropy bonus
    m2_bound: float = float("inf")  # largest (log ρ)² that the batch-wide trust region of m2po keeps

    @property
    def anchor(self) -> torch.Tensor:
        """log p [N], without gradient."""
        return self.learner_logprobs.detach() if self.proximal_logprobs is None else self.proximal_logprobs

    @cached_property
    def sequences(self) -> "Sequences":
        """Sums and means over the sequences."""
        return Sequences(self.sequence_index, self.loss_mask)

    def without_masked(self) -> "Tokens":
        """The same tokens with zeros where `loss_mask` is False: not even a NaN there reaches a gradient."""

        def clean(values: torch.Tensor) -> torch.Tensor:
            return torch.where(self.loss_mask, values, torch.zeros_like(values))

        return replace(
            self,
            learner_logprobs=clean(self.learner_logprobs),
            behaviour_logprobs=clean(self.behaviour_logprobs),
            proximal_logprobs=None if self.proximal_logprobs is None else clean(self.proximal_logprobs),
            advantages=clean(self.advantages),
            reference_logprobs=None if self.reference_logprobs is None else clean(self.reference_logprobs),
            entropy=None if self.entropy is None else clean(self.entropy),
        )


class Sequences:
    """Sums and means of token values over the unmasked tokens of each sequence, given back to all its tokens."""

    def __init__(self, sequence_index: torch.Tensor, loss_mask: torch.Tensor) -> None:
        names, self.place = torch.unique(sequence_index, return_inverse=True)  # [K], [N] in 0…K−1
        self.number = len(names)
        self.mask = loss_mask

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Σ over the sequence of each token, [N]."""
        kept = torch.where(self.mask, values, torch.zeros_like(values))
        return values.new_zeros(self.number).index_add(0, self.place, kept)[self.place]

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """Mean over the sequence of each token, [N]; 0 for a sequence that is masked altogether."""
        return self.sum(values) / self.sum(torch.ones_like(values)).clamp(min=1)


@dataclass(frozen=True, slots=True)
class Objective:
    """What is maximised, token by token, and where a bound held the policy's gradient back."""

    value: torch.Tensor  # [N] float32, with gradient
    bounded: torch.Tensor  # [N] bool: the gradient of the token was cut or its weight capped


def exp_bounded(log_ratio: torch.Tensor) -> torch.Tensor:
    """exp of a log-ratio clamped to ±20, [N]; beyond the clamp its gradient is 0."""
    return log_ratio.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND).exp()


def importance_weights(tokens: Tokens) -> torch.Tensor:
    """ρ = π/μ of each token, [N], with gradient."""
    return exp_bounded(tokens.learner_logprobs - tokens.behaviour_logprobs)


def nowhere(tokens: Tokens) -> torch.Tensor:
    """False for every token, [N] bool."""
    return torch.zeros_like(tokens.loss_mask)
