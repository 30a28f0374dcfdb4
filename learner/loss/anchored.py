"""Policy objectives that hold the policy near an anchor p, by r = π/p. The sampler's own distance from p is left to a
correction (`learner.loss.corrections`); with p = μ there is none. Legend: `learner.loss.tokens`.
"""

import torch

from learner.loss.tokens import Objective, Tokens, exp_bounded, nowhere


def ppo_clip(tokens: Tokens, *, low: float, high: float, dual: float) -> Objective:
    """min(rA, clip(r, 1 − low, 1 + high)A), and for A < 0 at least dual·A when dual > 0.

    PPO (Schulman et al. 2017), eq. 7; asymmetric bounds: DAPO (Yu et al. 2025); dual clip: Ye et al. 2020, eq. 3.
    Fails when the policy is far from the anchor: most gradients are cut, and those that are left lead further away.
    """
    r, advantages = exp_bounded(tokens.learner_logprobs - tokens.anchor), tokens.advantages
    return _clipped(r, advantages, low=low, high=high, dual=dual)


def gspo(tokens: Tokens, *, low: float, high: float) -> Objective:
    """min(sA, clip(s, 1 − low, 1 + high)A) with s = (Π r)^{1/T}, one ratio for the whole sequence.

    GSPO (Zheng et al. 2025), eq. 5–7; its bounds are three orders narrower than PPO's, since s is a geometric mean.
    Fails when one part of a sequence moved and the rest did not: all or nothing of it is clipped.
    """
    s = exp_bounded(tokens.sequences.mean(tokens.learner_logprobs - tokens.anchor))
    return _clipped(s, tokens.advantages, low=low, high=high, dual=0.0)


def gmpo(tokens: Tokens, *, clip: float) -> Objective:
    """(Π clipped r)^{1/T} · A, each log r clipped to at most clip (A > 0) or at least −clip (A < 0).

    GMPO (Zhao et al. 2025), eq. 4: the geometric mean is less sensitive to single tokens than PPO's arithmetic one.
    Fails on long sequences: the gradient of each token is 1/T of it, and few outliers are ever clipped.
    """
    log_r, advantages = tokens.learner_logprobs - tokens.anchor, tokens.advantages
    clipped = torch.where(advantages > 0, log_r.clamp(max=clip), log_r)
    clipped = torch.where(advantages < 0, log_r.clamp(min=-clip), clipped)
    return Objective(exp_bounded(tokens.sequences.mean(clipped)) * advantages, clipped != log_r)


def sapo(tokens: Tokens, *, positive: float, negative: float) -> Objective:
    """(4/τ) σ(τ(r − 1)) · A, with τ = positive for A > 0 and negative otherwise: a soft clip whose slope at r = 1 is 1.

    SAPO (Gao et al. 2025), eq. 6. Nothing is cut, so nothing is reported as bounded.
    Fails slowly: tokens far from the anchor keep a small gradient, which adds up over many of them.
    """
    r, advantages = exp_bounded(tokens.learner_logprobs - tokens.anchor), tokens.advantages
    tau = torch.where(advantages > 0, positive, negative)
    return Objective(4 / tau * torch.sigmoid(tau * (r - 1)) * advantages, nowhere(tokens))


def _clipped(r: torch.Tensor, advantages: torch.Tensor, *, low: float, high: float, dual: float) -> Objective:
    plain, clipped = r * advantages, r.clamp(1 - low, 1 + high) * advantages
    value, bounded = torch.minimum(plain, clipped), clipped < plain
    if dual > 0:
        floor = dual * advantages
        floored = (advantages < 0) & (value < floor)
        value, bounded = torch.where(floored, floor, value), bounded | floored
    return Objective(value, bounded)
