"""Policy objectives, token by token, and the corrections that compose with them. Pure functions of tensors.

Legend: N completion tokens of any number of sequences; μ behaviour policy (sampler), p proximal policy (anchor), π
current policy; r = π/p, ρ = π/μ. Log-ratios are clamped to ±20 before exp. An objective is maximised; the loss of a
step is −Σ token_weight · correction · objective over its unmasked tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch

from learner.config import LossConfig

LOG_RATIO_BOUND = 20.0


@dataclass(frozen=True, slots=True)
class TokenInputs:
    """What a loss sees of N tokens."""

    learner_logprobs: torch.Tensor  # [N] float32, with gradient
    behaviour_logprobs: torch.Tensor  # [N] float32
    proximal_logprobs: torch.Tensor  # [N] float32, no gradient
    advantages: torch.Tensor  # [N] float32


@dataclass(frozen=True, slots=True)
class TokenObjective:
    """An objective [N] and where its bound was active ([N] bool: the gradient of that token is cut or scaled)."""

    value: torch.Tensor
    bounded: torch.Tensor


def ratio(log_numerator: torch.Tensor, log_denominator: torch.Tensor) -> torch.Tensor:
    """exp of the clamped difference, [N]; it passes the gradient of the unclamped tokens."""
    return (log_numerator - log_denominator).clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND).exp()


def ppo_clip(inputs: TokenInputs, *, low: float, high: float, dual: float) -> TokenObjective:
    """min(rA, clip(r, 1 − low, 1 + high)A); for A < 0 at least dual·A when dual > 0. PPO (Schulman et al. 2017), eq. 7;
    asymmetric bounds from DAPO (Yu et al. 2025); dual clip from Ye et al. 2020.

    Fails when the policy is far from the anchor: most gradients are cut, and what is left favours staying away.
    """
    r, advantages = ratio(inputs.learner_logprobs, inputs.proximal_logprobs), inputs.advantages
    plain, clipped = r * advantages, r.clamp(1 - low, 1 + high) * advantages
    value, bounded = torch.minimum(plain, clipped), clipped < plain
    if dual > 0:
        floor = dual * advantages
        floored = (advantages < 0) & (value < floor)
        value, bounded = torch.where(floored, floor, value), bounded | floored
    return TokenObjective(value, bounded)


def cispo(inputs: TokenInputs, *, cap: float) -> TokenObjective:
    """sg(min(ρ, cap)) · A · log π: every token keeps a gradient of bounded weight. CISPO (MiniMax-M1, 2025), eq. 4.

    Fails when many weights reach the cap: the estimate is then biased towards tokens that the sampler disliked.
    """
    weight = ratio(inputs.learner_logprobs, inputs.behaviour_logprobs).detach()
    return TokenObjective(weight.clamp(max=cap) * inputs.advantages * inputs.learner_logprobs, weight > cap)


def tis_token(inputs: TokenInputs, *, cap: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight sg(min(p/μ, cap)) [N] and where it was capped [N]. Truncated importance sampling (Yao et al. 2025).

    Corrects for the sampler when the objective's anchor is not μ; fails where ρ is far from 1 for many tokens in a row,
    since it bounds each token alone.
    """
    weight = ratio(inputs.proximal_logprobs, inputs.behaviour_logprobs)
    return weight.clamp(max=cap), weight > cap


Loss: TypeAlias = Callable[[TokenInputs, LossConfig], TokenObjective]
Correction: TypeAlias = Callable[[TokenInputs, LossConfig], tuple[torch.Tensor, torch.Tensor]]

LOSSES: dict[str, Loss] = {
    "ppo_clip": lambda inputs, config: ppo_clip(
        inputs, low=config.clip_low, high=config.clip_high, dual=config.dual_clip
    ),
    "cispo": lambda inputs, config: cispo(inputs, cap=config.cispo_cap),
}
CORRECTIONS: dict[str, Correction] = {
    "tis_token": lambda inputs, config: tis_token(inputs, cap=config.tis_cap),
}


def objective(inputs: TokenInputs, config: LossConfig) -> TokenObjective:
    """The objective that `config` names, times its correction (`none`: no factor)."""
    token = LOSSES[config.name](inputs, config)
    if config.correction == "none":
        return token
    weight, capped = CORRECTIONS[config.correction](inputs, config)
    return TokenObjective(weight * token.value, token.bounded | capped)
