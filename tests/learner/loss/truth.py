"""The token losses in slow double precision, one token after the other, written from the papers and not from the code.

A sequence is the list of its trained tokens. Of each token's log π there are two copies: `now`, which differences move,
and `frozen`, the value inside stop-gradients; a central difference in `now` is thus the gradient that a paper means.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

from learner.loss.config import LossConfig

BOUND = 20.0  # log-ratios are clamped to ± this before exp


@dataclass(frozen=True, slots=True)
class Token:
    """One trained token; all log-probabilities in nats."""

    now: float  # log π
    frozen: float  # log π inside stop-gradients
    behaviour: float  # log μ
    proximal: float | None  # log p as it was recomputed, if it was
    advantage: float
    staleness: int
    reference: float
    entropy: float

    def moved(self, distance: float) -> "Token":
        """The same token with another log π outside stop-gradients."""
        return replace(self, now=self.now + distance)


Sequence: TypeAlias = list[Token]


@dataclass(frozen=True, slots=True)
class Setting:
    """What the formulas need beside the tokens of one sequence."""

    config: LossConfig
    m2_bound: float = math.inf


def power(log_ratio: float) -> float:
    """A ratio from its logarithm."""
    return math.exp(min(BOUND, max(-BOUND, log_ratio)))


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def anchor(token: Token, config: LossConfig) -> float:
    """log p, frozen."""
    if config.proximal == "behaviour":
        return token.behaviour
    if config.proximal == "loglinear":  # AReaL: the step makes v + 1 of v, the token is of v − staleness
        share = 1 - 1 / (token.staleness + 1)
        return (1 - share) * token.behaviour + share * token.frozen
    return token.frozen if token.proximal is None else token.proximal


# ---- objectives, to be maximised: one value a token -----------------------------------------------------------------


def clip(ratio: float, low: float, high: float) -> float:
    return min(max(ratio, 1 - low), 1 + high)


def ppo_clip(sequence: Sequence, setting: Setting) -> list[float]:
    """Schulman et al. 2017, eq. 7; DAPO's two bounds; Ye et al. 2020, eq. 3."""
    c, values = setting.config, []
    for token in sequence:
        r, a = power(token.now - anchor(token, c)), token.advantage
        value = min(r * a, clip(r, c.clip_low, c.clip_high) * a)
        values.append(max(value, c.dual_clip * a) if a < 0 and c.dual_clip else value)
    return values


def gspo(sequence: Sequence, setting: Setting) -> list[float]:
    """Zheng et al. 2025, eq. 5–7: the geometric mean of the ratios takes the place of each."""
    c = setting.config
    s = power(mean([token.now - anchor(token, c) for token in sequence]))
    return [min(s * token.advantage, clip(s, c.gspo_low, c.gspo_high) * token.advantage) for token in sequence]


def geometric_mean(sequence: Sequence, c: LossConfig) -> float:
    """(Π min(r^±, clip(r^±, e^−ε, e^ε))^±)^{1/T}, ± the sign of A: Zhao et al. 2025, eq. 4."""
    product = 1.0
    for token in sequence:
        r = math.exp(token.now - anchor(token, c))
        sign = (token.advantage > 0) - (token.advantage < 0)
        if sign:
            oriented = r**sign
            r = min(oriented, min(max(oriented, math.exp(-c.gmpo_clip)), math.exp(c.gmpo_clip))) ** sign
        product *= r
    return float(product ** (1 / len(sequence)))


def gmpo(sequence: Sequence, setting: Setting) -> list[float]:
    """Zhao et al. 2025, eq. 4."""
    mean_ratio = power(math.log(geometric_mean(sequence, setting.config)))
    return [mean_ratio * token.advantage for token in sequence]


def sapo(sequence: Sequence, setting: Setting) -> list[float]:
    """Gao et al. 2025, eq. 6: (4/τ) σ(τ(r − 1)) A."""
    c, values = setting.config, []
    for token in sequence:
        tau = c.sapo_positive if token.advantage > 0 else c.sapo_negative
        z = tau * (power(token.now - anchor(token, c)) - 1)
        gate = 1 / (1 + math.exp(-z)) if z > -700 else 0.0
        values.append(4 / tau * gate * token.advantage)
    return values


def truncated(cap: Callable[[LossConfig], float]) -> "Objective":
    """MiniMax-M1 2025, eq. 4; Espeholt et al. 2018, eq. 1 without critic and γ; LlamaRL 2025: sg(min(ρ, c)) A log π."""

    def objective(sequence: Sequence, setting: Setting) -> list[float]:
        bound = cap(setting.config)
        return [min(power(t.frozen - t.behaviour), bound) * t.advantage * t.now for t in sequence]

    return objective


def sequence_weight(sequence: Sequence) -> float:
    """W, frozen."""
    return power(sum(token.frozen - token.behaviour for token in sequence))


def topr(sequence: Sequence, setting: Setting) -> list[float]:
    """Le Roux et al. 2025, eq. 8: positives as they are, negatives tapered by W clipped to [0, 1]."""
    w = min(max(sequence_weight(sequence), 0.0), 1.0)
    return [(w if token.advantage < 0 else 1.0) * token.advantage * token.now for token in sequence]


def vespo(sequence: Sequence, setting: Setting) -> list[float]:
    """φ(W) = W^k e^{λ(1 − W)}, (k, λ) by the sign of A."""
    c, w, values = setting.config, sequence_weight(sequence), []
    for token in sequence:
        if token.advantage > 0:
            phi = w**c.vespo_positive_power * math.exp(c.vespo_positive_slope * (1 - w))
        else:
            phi = w**c.vespo_negative_power * math.exp(c.vespo_negative_slope * (1 - w))
        values.append(phi * token.advantage * token.now)
    return values


def dppo_tv(sequence: Sequence, setting: Setting) -> list[float]:
    """Qi et al. 2026: nothing where the probability has already moved by more than δ the way that A wants."""
    c, values = setting.config, []
    for token in sequence:
        moved = math.exp(token.frozen) - math.exp(token.behaviour)
        done = (token.advantage > 0 and moved > c.dppo_delta) or (token.advantage < 0 and moved < -c.dppo_delta)
        weight = min(power(token.frozen - token.behaviour), c.dppo_cap)
        values.append(0.0 if done else weight * token.advantage * token.now)
    return values


def m2po(sequence: Sequence, setting: Setting) -> list[float]:
    """Zheng et al. 2025, §4: ρA, without the tokens at risk beyond the batch's bound of (log ρ)²."""
    values = []
    for token in sequence:
        log_rho = min(BOUND, max(-BOUND, token.frozen - token.behaviour))
        leaves = log_rho * token.advantage > 0
        masked = leaves and log_rho**2 > setting.m2_bound
        values.append(0.0 if masked else power(token.now - token.behaviour) * token.advantage)
    return values


def likelihood(sequence: Sequence, setting: Setting) -> list[float]:
    """log π."""
    return [token.now for token in sequence]


Objective: TypeAlias = Callable[[Sequence, Setting], list[float]]
OBJECTIVES: dict[str, Objective] = {
    "ppo_clip": ppo_clip,
    "decoupled_ppo": ppo_clip,
    "gspo": gspo,
    "gmpo": gmpo,
    "sapo": sapo,
    "cispo": truncated(lambda c: c.cispo_cap),
    "vtrace": truncated(lambda c: c.vtrace_cap),
    "aipo": truncated(lambda c: c.aipo_cap),
    "topr": topr,
    "vespo": vespo,
    "dppo_tv": dppo_tv,
    "m2po": m2po,
    "likelihood": likelihood,
}
BEHIND_AN_ANCHOR = {"ppo_clip", "decoupled_ppo", "gspo", "gmpo", "sapo"}

# ---- corrections: one factor a token, from log ρ of the tokens and their advantages ---------------------------------


def is_token(log_rhos: list[float], advantages: list[float], c: LossConfig) -> list[float]:
    return [power(x) for x in log_rhos]


def tis_token(log_rhos: list[float], advantages: list[float], c: LossConfig) -> list[float]:
    return [min(power(x), c.tis_cap) for x in log_rhos]


def tis_sequence(log_rhos: list[float], advantages: list[float], c: LossConfig) -> list[float]:
    return [min(power(sum(log_rhos)), c.tis_cap)] * len(log_rhos)


def mis_sequence(log_rhos: list[float], advantages: list[float], c: LossConfig) -> list[float]:
    w = power(sum(log_rhos))
    return [w if c.mis_low <= w <= c.mis_high else 0.0] * len(log_rhos)


def icepop(log_rhos: list[float], advantages: list[float], c: LossConfig) -> list[float]:
    return [power(x) if c.icepop_low <= power(x) <= c.icepop_high else 0.0 for x in log_rhos]


def geometric_band(log_rhos: list[float], advantages: list[float], c: LossConfig) -> list[float]:
    inside = c.geometric_low <= power(mean(log_rhos)) <= c.geometric_high
    return [float(inside)] * len(log_rhos)


def k3_band(log_rhos: list[float], advantages: list[float], c: LossConfig) -> list[float]:
    inside = mean([power(x) - x - 1 for x in log_rhos]) <= c.k3_bound
    return [float(inside)] * len(log_rhos)


def veto(log_rhos: list[float], advantages: list[float], c: LossConfig) -> list[float]:
    hopeless = any(power(x) < c.veto_floor for x in log_rhos)
    return [float(not hopeless)] * len(log_rhos)


def opsm(log_rhos: list[float], advantages: list[float], c: LossConfig) -> list[float]:
    """DeepSeek-V3.2, §3: the mean of log μ/π says how far the policy has left the sequence behind."""
    left = mean([-x for x in log_rhos]) > c.opsm_delta
    return [float(not (left and a < 0)) for a in advantages]


CORRECTIONS: dict[str, Callable[[list[float], list[float], LossConfig], list[float]]] = {
    "is_token": is_token,
    "tis_token": tis_token,
    "tis_sequence": tis_sequence,
    "mis_sequence": mis_sequence,
    "icepop": icepop,
    "geometric_band": geometric_band,
    "k3_band": k3_band,
    "veto": veto,
    "opsm": opsm,
}
WEIGHING = {"is_token", "tis_token", "tis_sequence", "mis_sequence", "icepop"}


def correction_log_ratios(sequence: Sequence, config: LossConfig) -> list[float]:
    """log p/μ where the objective takes care of π/p, else log π/μ."""
    if config.name in BEHIND_AN_ANCHOR and config.proximal != "behaviour":
        return [anchor(token, config) - token.behaviour for token in sequence]
    return [token.frozen - token.behaviour for token in sequence]


def factors(sequence: Sequence, config: LossConfig) -> list[float]:
    """The product of the corrections for each token; decoupled PPO (Fu et al. 2025) is weighed by p/μ in any case."""
    names = list(config.corrections)
    if config.name == "decoupled_ppo" and not WEIGHING & set(names):
        names.append("is_token")
    log_rhos = correction_log_ratios(sequence, config)
    products = [1.0] * len(sequence)
    for name in names:
        each = CORRECTIONS[name](log_rhos, [token.advantage for token in sequence], config)
        products = [product * factor for product, factor in zip(products, each, strict=True)]
    return products


# ---- divergence from the reference, and the whole -------------------------------------------------------------------


def k3(token: Token) -> float:
    """ρ (e^{−x} − 1 + x), x = log π/π_ref (Schulman 2020), the weight with its gradient."""
    x = token.now - token.reference
    return power(token.now - token.behaviour) * (power(-x) - 1 + x)


def k2(token: Token) -> float:
    """sg(ρ) x²/2."""
    x = token.now - token.reference
    return power(token.frozen - token.behaviour) * x**2 / 2


REFERENCE_KL: dict[str, Callable[[Token], float]] = {"k3": k3, "k2": k2}


def losses(sequence: Sequence, setting: Setting) -> list[float]:
    """−factor · objective + β · KL − bonus · entropy of each token of a sequence."""
    config = setting.config
    values = []
    objective = OBJECTIVES[config.name](sequence, setting)
    for token, value, factor in zip(sequence, objective, factors(sequence, config), strict=True):
        loss = -factor * value
        if config.kl_coefficient and config.kl_estimator in REFERENCE_KL:
            loss += config.kl_coefficient * REFERENCE_KL[config.kl_estimator](token)
        values.append(loss - config.entropy_bonus * token.entropy)
    return values


# ---- where a difference says nothing --------------------------------------------------------------------------------

STEP = 2.0**-17  # of central differences: a power of two, so that moving a logprob rounds nothing off
DISTANCE = 1e-4  # of a log-ratio from a kink, below which the differences are not to be trusted


def differences(sequence: Sequence, coefficients: list[float], setting: Setting) -> list[float]:
    """The gradient of Σ coefficient · loss by the log π of each token; NaN where the truth itself has a kink."""
    found = []
    for place, token in enumerate(sequence):
        if near_a_kink(sequence, place, setting):
            found.append(math.nan)
            continue
        above, below = (
            losses([*sequence[:place], token.moved(distance), *sequence[place + 1 :]], setting)
            for distance in (STEP, -STEP)
        )
        pairs = zip(coefficients, above, below, strict=True)
        found.append(sum(c * (up - down) for c, up, down in pairs) / (2 * STEP))
    return found


def near_a_kink(sequence: Sequence, place: int, setting: Setting) -> bool:
    """Whether the loss has a kink close to the log π of this token, or a divergence that is clamped there."""
    c, token = setting.config, sequence[place]
    to_anchor = token.now - anchor(token, c)
    to_sampler, to_reference = token.now - token.behaviour, token.now - token.reference
    clamp = [BOUND, -BOUND]
    edges: list[tuple[float, list[float]]] = []  # a log-ratio, and the kinks of what is made of it
    if c.name in ("ppo_clip", "decoupled_ppo"):
        bounds = [1 - c.clip_low, 1 + c.clip_high, *([c.dual_clip] if c.dual_clip else [])]
        edges.append((to_anchor, [math.log(bound) for bound in bounds] + clamp))
    if c.name == "gspo":
        together = mean([each.now - anchor(each, c) for each in sequence])
        edges.append((together, [math.log(1 - c.gspo_low), math.log(1 + c.gspo_high), *clamp]))
    if c.name == "gmpo":
        edges.append((to_anchor, [c.gmpo_clip, -c.gmpo_clip]))
        edges.append((math.log(geometric_mean(sequence, c)), clamp))
    if c.name == "sapo":
        edges.append((to_anchor, clamp))
    if c.name == "m2po":
        edges.append((to_sampler, clamp))
    divergence_clamped = (
        bool(c.kl_coefficient)
        and c.kl_estimator == "k3"
        and (abs(to_sampler) > BOUND - DISTANCE or abs(to_reference) > BOUND - DISTANCE)
    )
    return divergence_clamped or any(abs(value - kink) < DISTANCE for value, kinks in edges for kink in kinks)
