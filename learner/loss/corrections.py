"""Corrections for tokens that an older policy sampled: a factor of each token's objective, without gradient.

Legend: `learner.loss.tokens`. `log_rho` [N] is log p/μ for an objective with an anchor of its own, else log π/μ: what
lies between the sampler and the policy that the objective starts from. Weights estimate an expectation under that
policy; filters (factor 0 or 1) throw away what no weight could repair. Bounds are on the ratio to the sampler, never on
its inverse. Rejected tokens stay in every denominator: dividing by those that were kept would inflate the gradient.
"""

from dataclasses import dataclass

import torch

from learner.loss.tokens import LOG_RATIO_BOUND, Tokens, exp_bounded


@dataclass(frozen=True, slots=True)
class Factor:
    """A correction's factor and where it was capped or rejected something."""

    weight: torch.Tensor  # [N] float32 ≥ 0
    acted: torch.Tensor  # [N] bool


def is_token(tokens: Tokens, log_rho: torch.Tensor) -> Factor:
    """ρ, uncapped: the plain importance weight of decoupled PPO (Fu et al. 2025, AReaL, eq. 5).

    Fails by variance: a single token of weight 100 outweighs its whole batch.
    """
    return Factor(exp_bounded(log_rho), log_rho.abs() > LOG_RATIO_BOUND)


def tis_token(tokens: Tokens, log_rho: torch.Tensor, *, cap: float) -> Factor:
    """min(ρ, cap): truncated importance sampling (Yao et al. 2025).

    Fails where ρ is far from 1 for many tokens in a row, since it bounds each token alone.
    """
    weight = exp_bounded(log_rho)
    return Factor(weight.clamp(max=cap), weight > cap)


def tis_sequence(tokens: Tokens, log_rho: torch.Tensor, *, cap: float) -> Factor:
    """min(W, cap) for every token of a sequence: unbiased at the level of sequences but for the cap (Yao et al. 2025).

    Fails on long sequences: W is 0 or capped for nearly all of them.
    """
    weight = exp_bounded(tokens.sequences.sum(log_rho))
    return Factor(weight.clamp(max=cap), weight > cap)


def mis_sequence(tokens: Tokens, log_rho: torch.Tensor, *, low: float, high: float) -> Factor:
    """W where low ≤ W ≤ high, else 0: masked importance sampling (Liu et al. 2025).

    Fails like `tis_sequence`, but by rejecting: long sequences all go.
    """
    weight = exp_bounded(tokens.sequences.sum(log_rho))
    outside = (weight < low) | (weight > high)
    return Factor(torch.where(outside, 0.0, weight), outside)


def icepop(tokens: Tokens, log_rho: torch.Tensor, *, low: float, high: float) -> Factor:
    """ρ where low ≤ ρ ≤ high, else 0: IcePop (Ring-1T, 2025). Bounds on both sides mask noise of either sign.

    Fails with a narrow band: real drift looks like noise, and learning stops where the policy changed most.
    """
    weight = exp_bounded(log_rho)
    outside = (weight < low) | (weight > high)
    return Factor(torch.where(outside, 0.0, weight), outside)


def geometric_band(tokens: Tokens, log_rho: torch.Tensor, *, low: float, high: float) -> Factor:
    """1 for sequences with low ≤ W^{1/T} ≤ high, else 0 (Liu et al. 2025).

    A band of 0.999–1.001 fits the numerical mismatch of two engines only; staleness needs a wider one, or all is
    rejected. Fails to see few bad tokens in a long sequence.
    """
    mean = exp_bounded(tokens.sequences.mean(log_rho))
    return _keep((mean >= low) & (mean <= high))


def k3_band(tokens: Tokens, log_rho: torch.Tensor, *, bound: float) -> Factor:
    """1 for sequences whose mean of ρ − log ρ − 1 is at most `bound`, else 0: an upper bound on KL(μ‖π) a sequence.

    Fails gently: unlike W^{1/T} it cannot be fooled by drifts that cancel, but one huge ρ rejects a long sequence.
    """
    divergence = exp_bounded(log_rho) - log_rho - 1
    return _keep(tokens.sequences.mean(divergence) <= bound)


def veto(tokens: Tokens, log_rho: torch.Tensor, *, floor: float) -> Factor:
    """0 for every token of a sequence that holds a token with ρ < floor, else 1 (Liu et al. 2025).

    Such a token can all but not be sampled by the policy any more: what follows it is another world's context.
    Fails when the floor is high: the longer a sequence, the surer its end.
    """
    hopeless = (exp_bounded(log_rho) < floor).to(log_rho.dtype)
    return _keep(tokens.sequences.sum(hopeless) == 0)


def opsm(tokens: Tokens, log_rho: torch.Tensor, *, delta: float) -> Factor:
    """0 for sequences with A < 0 and mean log μ/π > delta, else 1: off-policy sequence mask (DeepSeek-V3.2, 2025, §3).

    Bad examples that the policy has already left teach nothing but noise, and pushing on destabilises it.
    Fails with a small delta at high staleness: no bad example is left, and entropy collapses.
    """
    gone = tokens.sequences.mean(-log_rho) > delta
    return _keep(~(gone & (tokens.advantages < 0)))


def _keep(kept: torch.Tensor) -> Factor:
    return Factor(kept.float(), ~kept)
