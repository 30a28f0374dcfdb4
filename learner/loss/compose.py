"""From a configuration to one number a token: objective × corrections, minus KL, plus entropy. Legend: `tokens`."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch

from learner.loss import anchored, corrections, proximal, regularisers, weighted
from learner.loss.config import ANCHORED, WEIGHTS, LossConfig
from learner.loss.corrections import Factor
from learner.loss.tokens import Objective, Tokens, nowhere

Loss: TypeAlias = Callable[[Tokens, LossConfig], Objective]
Correction: TypeAlias = Callable[[Tokens, torch.Tensor, LossConfig], Factor]


@dataclass(frozen=True, slots=True)
class TokenLoss:
    """The loss of each token before its share in the batch's sum, and what the metrics want to know of it."""

    value: torch.Tensor  # [N] float32, with gradient, to be minimised
    bounded: torch.Tensor  # [N] bool: the objective cut the gradient or capped a weight
    weight: torch.Tensor  # [N] float32, the corrections' factor; 0 where they rejected the token
    kl: torch.Tensor  # [N] float32, KL to the reference as estimated on this token; 0 without one


def _ppo(tokens: Tokens, config: LossConfig) -> Objective:
    return anchored.ppo_clip(tokens, low=config.clip_low, high=config.clip_high, dual=config.dual_clip)


def _likelihood(tokens: Tokens, config: LossConfig) -> Objective:
    return Objective(tokens.learner_logprobs, nowhere(tokens))


LOSSES: dict[str, Loss] = {
    "ppo_clip": _ppo,
    "decoupled_ppo": _ppo,  # what makes it decoupled is the weight p/μ, see `_correction_names`
    "gspo": lambda tokens, c: anchored.gspo(tokens, low=c.gspo_low, high=c.gspo_high),
    "gmpo": lambda tokens, c: anchored.gmpo(tokens, clip=c.gmpo_clip),
    "sapo": lambda tokens, c: anchored.sapo(tokens, positive=c.sapo_positive, negative=c.sapo_negative),
    "cispo": lambda tokens, c: weighted.truncated_reinforce(tokens, cap=c.cispo_cap),
    "vtrace": lambda tokens, c: weighted.truncated_reinforce(tokens, cap=c.vtrace_cap),
    "aipo": lambda tokens, c: weighted.truncated_reinforce(tokens, cap=c.aipo_cap),
    "topr": lambda tokens, c: weighted.topr(tokens),
    "vespo": lambda tokens, c: weighted.vespo(
        tokens,
        positive=(c.vespo_positive_power, c.vespo_positive_slope),
        negative=(c.vespo_negative_power, c.vespo_negative_slope),
    ),
    "dppo_tv": lambda tokens, c: weighted.dppo_tv(tokens, delta=c.dppo_delta, cap=c.dppo_cap),
    "m2po": lambda tokens, c: weighted.m2po(tokens),
    "likelihood": _likelihood,  # log π: supervised training
}

CORRECTIONS: dict[str, Correction] = {
    "is_token": lambda tokens, log_rho, c: corrections.is_token(tokens, log_rho),
    "tis_token": lambda tokens, log_rho, c: corrections.tis_token(tokens, log_rho, cap=c.tis_cap),
    "tis_sequence": lambda tokens, log_rho, c: corrections.tis_sequence(tokens, log_rho, cap=c.tis_cap),
    "mis_sequence": lambda tokens, log_rho, c: corrections.mis_sequence(
        tokens, log_rho, low=c.mis_low, high=c.mis_high
    ),
    "icepop": lambda tokens, log_rho, c: corrections.icepop(tokens, log_rho, low=c.icepop_low, high=c.icepop_high),
    "geometric_band": lambda tokens, log_rho, c: corrections.geometric_band(
        tokens, log_rho, low=c.geometric_low, high=c.geometric_high
    ),
    "k3_band": lambda tokens, log_rho, c: corrections.k3_band(tokens, log_rho, bound=c.k3_bound),
    "veto": lambda tokens, log_rho, c: corrections.veto(tokens, log_rho, floor=c.veto_floor),
    "opsm": lambda tokens, log_rho, c: corrections.opsm(tokens, log_rho, delta=c.opsm_delta),
}

REFERENCE_KL: dict[str, Callable[[Tokens], torch.Tensor]] = {"k3": regularisers.kl_k3, "k2": regularisers.kl_k2}


def token_loss(tokens: Tokens, config: LossConfig) -> TokenLoss:
    """−factor · objective + β · KL − entropy bonus, for each token; 0 where `loss_mask` is False."""
    tokens = anchor(tokens.without_masked(), config)
    objective = LOSSES[config.name](tokens, config)
    weight = correction_factor(tokens, config)
    value = torch.where(weight > 0, -weight * objective.value, torch.zeros_like(objective.value))
    kl = torch.zeros_like(value)
    if config.kl_in_loss:
        estimate = REFERENCE_KL[config.kl_estimator](tokens)
        value, kl = value + config.kl_coefficient * estimate, estimate.detach()
    if config.entropy_bonus:
        assert tokens.entropy is not None, "an entropy bonus needs entropies"
        value = value - config.entropy_bonus * tokens.entropy
    return TokenLoss(torch.where(tokens.loss_mask, value, torch.zeros_like(value)), objective.bounded, weight, kl)


def anchor(tokens: Tokens, config: LossConfig) -> Tokens:
    """The same tokens with the proximal policy that `config.proximal` names."""
    if config.name not in ANCHORED or config.proximal == "recompute":
        return tokens
    if config.proximal == "behaviour":
        return replace(tokens, proximal_logprobs=tokens.behaviour_logprobs)
    between = proximal.loglinear(tokens.learner_logprobs, tokens.behaviour_logprobs, tokens.staleness)
    return replace(tokens, proximal_logprobs=between)


def correction_factor(tokens: Tokens, config: LossConfig) -> torch.Tensor:
    """The product of all corrections of `config`, [N]."""
    weight = torch.ones_like(tokens.behaviour_logprobs)
    log_rho = correction_log_ratio(tokens, config)
    for name in _correction_names(config):
        weight = weight * CORRECTIONS[name](tokens, log_rho, config).weight
    return weight


def correction_log_ratio(tokens: Tokens, config: LossConfig) -> torch.Tensor:
    """log p/μ when the objective has an anchor of its own, else log π/μ; [N], without gradient."""
    decoupled = config.name in ANCHORED and config.proximal != "behaviour"
    start = tokens.anchor if decoupled else tokens.learner_logprobs.detach()
    return start - tokens.behaviour_logprobs


def _correction_names(config: LossConfig) -> list[str]:
    plain = config.name == "decoupled_ppo" and not set(config.corrections) & set(WEIGHTS)
    return ["is_token", *config.corrections] if plain else config.corrections
