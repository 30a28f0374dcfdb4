"""Policy objectives that weigh each token by its distance from the sampler, ρ = π/μ or W, and need no anchor.

Corrections that would weigh once more are refused with them; those that only reject compose. Legend:
`learner.loss.tokens`; sg(·) passes no gradient.
"""

import torch

from learner.loss.tokens import LOG_RATIO_BOUND, Objective, Tokens, exp_bounded, importance_weights, nowhere


def truncated_reinforce(tokens: Tokens, *, cap: float) -> Objective:
    """sg(min(ρ, cap)) · A · log π: every token keeps a gradient, of bounded weight. Known by three names:

    CISPO (MiniMax-M1 2025, eq. 4; cap 5, ScaleRL finds 4–8 alike), V-trace without a critic (Espeholt et al. 2018,
    eq. 1; ρ̄ = 1), AIPO (LlamaRL, Wu et al. 2025; cap 2–10).
    Fails when many weights reach the cap: the estimate is then biased towards tokens that the sampler disliked.
    """
    weight = importance_weights(tokens).detach()
    return Objective(weight.clamp(max=cap) * tokens.advantages * tokens.learner_logprobs, weight > cap)


def topr(tokens: Tokens) -> Objective:
    """A log π for A > 0, sg(min(W, 1)) · A · log π for A < 0. TOPR (Le Roux et al. 2025), eq. 8.

    Good sequences are learnt like supervised data, bad ones fade out as the policy leaves them behind.
    Fails on long sequences: W of a bad one falls to 0 at the least drift, and only positive examples are left.
    """
    weight = exp_bounded(_log_sequence_weight(tokens))  # [N], W of the token's sequence
    negative = tokens.advantages < 0
    tapered = torch.where(negative, weight.clamp(max=1.0), torch.ones_like(weight))
    return Objective(tapered * tokens.advantages * tokens.learner_logprobs, negative & (weight > 1))


def vespo(tokens: Tokens, *, positive: tuple[float, float], negative: tuple[float, float]) -> Objective:
    """sg(φ(W)) · A · log π with φ(W) = W^k e^{λ(1 − W)}, (k, λ) = positive for A > 0 and negative otherwise.

    VESPO (2026): a smooth kernel of the sequence weight, 1 at W = 1, which fades in both directions.
    Fails on long sequences, as every whole-sequence weight does: W leaves the kernel's width after few tokens of drift.
    """
    log_weight = _log_sequence_weight(tokens)  # [N]
    above = tokens.advantages > 0
    power = torch.where(above, positive[0], negative[0])
    slope = torch.where(above, positive[1], negative[1])
    kernel = (power * log_weight + slope * (1 - log_weight.exp())).exp()
    return Objective(kernel * tokens.advantages * tokens.learner_logprobs, nowhere(tokens))


def dppo_tv(tokens: Tokens, *, delta: float, cap: float) -> Objective:
    """M · sg(min(ρ, cap)) · A · log π; M = 0 where (A > 0 and π − μ > δ) or (A < 0 and π − μ < −δ), else 1.

    DPPO with the binary total variation (Qi et al. 2026): the trust region is a distance of probabilities, which frees
    rare tokens (a ratio bound stops them at once) and holds frequent ones.
    Fails where a rare token rises from 1e-6 to 0.1: that is a ratio of 1e5 inside the region; `cap` bounds its weight.
    """
    gap = (tokens.learner_logprobs.exp() - tokens.behaviour_logprobs.exp()).detach()  # [N], of probabilities
    outside = ((tokens.advantages > 0) & (gap > delta)) | ((tokens.advantages < 0) & (gap < -delta))
    weight = importance_weights(tokens).detach()
    value = weight.clamp(max=cap) * tokens.advantages * tokens.learner_logprobs
    return Objective(torch.where(outside, torch.zeros_like(value), value), outside | (weight > cap))


def m2po(tokens: Tokens) -> Objective:
    """M · ρ · A; M = 0 for tokens at risk whose (log ρ)² is above `tokens.m2_bound`. M2PO (Zheng et al. 2025), §4.

    The bound belongs to the whole batch (`second_moment_bound`), so that it is the same for every micro-batch and rank.
    Fails when the drift is everywhere: then the second moment is met by masking most of what would teach most.
    """
    log_rho = (tokens.learner_logprobs - tokens.behaviour_logprobs).detach().clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)
    outside = at_risk(log_rho, tokens.advantages) & (log_rho.double().square() > tokens.m2_bound)
    value = importance_weights(tokens) * tokens.advantages
    return Objective(torch.where(outside, torch.zeros_like(value), value), outside)


def at_risk(log_rho: torch.Tensor, advantages: torch.Tensor) -> torch.Tensor:
    """Where a step goes on away from the sampler: A > 0 and ρ > 1, or A < 0 and ρ < 1; [N] bool."""
    return ((advantages > 0) & (log_rho > 0)) | ((advantages < 0) & (log_rho < 0))


def second_moment_bound(log_rho: torch.Tensor, threshold: float) -> float:
    """The largest (log ρ)² that may stay, so that the mean over those that stay is at most `threshold`.

    `log_rho` [M] are the tokens at risk of the whole batch. From the largest square down, all are taken out until the
    mean of the others is at most the threshold: M2PO (Zheng et al. 2025), algorithm 1. Equal squares stay or go
    together, as one bound cannot tell them apart. Below 0 when none can stay.
    """
    squares = log_rho.double().clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND).square()  # [M]
    values, counts = torch.unique(squares, return_counts=True)  # rising
    means = (values * counts).cumsum(0) / counts.cumsum(0)  # of all up to each value: rising too
    stay = int((means <= threshold).sum())
    return float(values[stay - 1]) if stay else -1.0


def _log_sequence_weight(tokens: Tokens) -> torch.Tensor:
    """log W of the sequence of each token, [N], clamped to ±20, without gradient."""
    log_rho = (tokens.learner_logprobs - tokens.behaviour_logprobs).detach()
    return tokens.sequences.sum(log_rho).clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)
