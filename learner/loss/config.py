"""The options of the loss, and which combinations make sense. The formulas are in the modules beside this one."""

import math
from dataclasses import dataclass

from protocol.options import option

ANCHORED = ("ppo_clip", "decoupled_ppo", "gspo", "gmpo", "sapo")  # they hold π/p; a correction may weigh p/μ
WEIGHTED = ("cispo", "vtrace", "aipo", "topr", "vespo", "dppo_tv", "m2po")  # they hold π/μ themselves
WHOLE_SEQUENCE = ("gspo", "gmpo")  # one value for a whole sequence
WEIGHTS = ("is_token", "tis_token", "tis_sequence", "mis_sequence", "icepop")  # corrections that weigh
REJECTIONS = ("geometric_band", "k3_band", "veto", "opsm")  # corrections that only reject
ADVANTAGE_NAMES = ("grpo", "dr_grpo", "rloo", "batch_std", "reinforce_pp", "reinforce_pp_baseline", "opo")
AGGREGATION_NAMES = ("token_mean", "seq_mean_token_mean", "seq_mean_token_sum_norm", "prompt_mean")
FILTERS = ("zero_variance", "truncated")
PROXIMAL = ("behaviour", "loglinear", "recompute")
KL_ESTIMATORS = ("k3", "k2", "k1_reward")


def _names(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names)


@dataclass(kw_only=True, slots=True)
class LossConfig:
    """The training signal; formulas, sources and failure modes in `learner/loss/`."""

    name: str = option("ppo_clip", f"policy loss: with an anchor {_names(ANCHORED)}; without {_names(WEIGHTED)}")
    advantage: str = option("grpo", f"group-relative advantage: {_names(ADVANTAGE_NAMES)}")
    aggregation: str = option("token_mean", _names(AGGREGATION_NAMES))
    corrections: list[str] = option(
        [],
        f"off-policy corrections: at most one that weighs ({_names(WEIGHTS)}) and any that reject "
        f"({_names(REJECTIONS)}); `[]`: none",
    )
    filters: list[str] = option(
        ["zero_variance"], "rollouts left out: groups of equal rewards (`zero_variance`), completions cut (`truncated`)"
    )
    proximal: str = option(
        "behaviour",
        "anchor of the losses that have one: `behaviour` (the sampler), `loglinear`, `recompute` (the learner)",
    )
    minibatches: int = option(1, "optimizer updates a batch, each on as many groups as the others")
    clip_low: float = option(0.2, "ppo_clip, decoupled_ppo: lower clip ε")
    clip_high: float = option(0.28, "ppo_clip, decoupled_ppo: upper clip ε")
    dual_clip: float = option(
        3.0, "ppo_clip, decoupled_ppo: bound c on the loss of negative advantages; 0 turns it off"
    )
    gspo_low: float = option(3e-4, "gspo: lower clip ε of the sequence ratio")
    gspo_high: float = option(4e-4, "gspo: upper clip ε of the sequence ratio")
    gmpo_clip: float = option(0.4, "gmpo: bound of log r, on one side by the advantage's sign")
    sapo_positive: float = option(1.0, "sapo: temperature τ for positive advantages")
    sapo_negative: float = option(1.05, "sapo: temperature τ for negative advantages")
    cispo_cap: float = option(5.0, "cispo: cap c of ρ")
    vtrace_cap: float = option(1.0, "vtrace: cap ρ̄ of ρ")
    aipo_cap: float = option(5.0, "aipo: cap of ρ")
    vespo_positive_power: float = option(2.0, "vespo: k for positive advantages")
    vespo_positive_slope: float = option(3.0, "vespo: λ for positive advantages")
    vespo_negative_power: float = option(3.0, "vespo: k for negative advantages")
    vespo_negative_slope: float = option(2.0, "vespo: λ for negative advantages")
    dppo_delta: float = option(0.2, "dppo_tv: largest change δ of a token's probability")
    dppo_cap: float = option(20.0, "dppo_tv: cap of ρ")
    m2po_threshold: float = option(0.04, "m2po: largest mean of (log ρ)² over the tokens at risk")
    tis_cap: float = option(2.0, "tis_token, tis_sequence: cap C of the weight")
    mis_low: float = option(0.5, "mis_sequence: lowest W kept")
    mis_high: float = option(2.0, "mis_sequence: highest W kept")
    icepop_low: float = option(0.5, "icepop: lowest ρ kept")
    icepop_high: float = option(5.0, "icepop: highest ρ kept")
    geometric_low: float = option(
        0.99, "geometric_band: lowest W^(1/T) kept; 0.999 fits engine mismatch without staleness"
    )
    geometric_high: float = option(1.01, "geometric_band: highest W^(1/T) kept")
    k3_bound: float = option(0.1, "k3_band: highest mean of ρ − log ρ − 1 kept, in nats")
    veto_floor: float = option(1e-4, "veto: a sequence with a lower ρ is rejected")
    opsm_delta: float = option(0.5, "opsm: a negative sequence with a higher mean log μ/π is rejected, in nats")
    ess_lr: bool = option(
        False, "scale each update by √(ESS of the sequence weights), which falls with staleness (VCPO)"
    )
    kl_coefficient: float = option(0.0, "β of the KL to a reference policy; 0: no reference is loaded")
    kl_estimator: str = option("k3", "`k3` or `k2` in the loss, `k1_reward` in the reward")
    kl_reference: str = option(
        "", "HF checkpoint directory of the reference; empty: the model that training starts from"
    )
    kl_replace_every: int = option(
        0, "steps after which the current policy becomes the reference (R1-Zero: 400); 0: never"
    )
    entropy_bonus: float = option(0.0, "weight of the mean entropy in the objective")
    overlong_buffer: int = option(
        0, "soft overlong penalty: last tokens before the limit in which a completion loses 0 to 1"
    )
    truncated_penalty: float = option(0.0, "taken off the reward of a completion that hit the limit")

    @property
    def kl_in_loss(self) -> bool:
        """Whether a KL term stands in the loss."""
        return self.kl_coefficient > 0 and self.kl_estimator != "k1_reward"

    @property
    def kl_in_reward(self) -> bool:
        """Whether the KL is taken off the reward."""
        return self.kl_coefficient > 0 and self.kl_estimator == "k1_reward"

    @property
    def scores_first(self) -> bool:
        """Whether the batch's current log-probabilities are needed before its first update, by a pass of their own."""
        recomputed = self.name in ANCHORED and self.proximal == "recompute" and self.minibatches > 1
        return recomputed or self.kl_in_reward


def check_loss(loss: LossConfig) -> None:
    """Refuse, with the reason, values and combinations that make no sense. Raises `ValueError`."""
    for key, values, allowed in (
        ("name", [loss.name], ANCHORED + WEIGHTED),
        ("advantage", [loss.advantage], ADVANTAGE_NAMES),
        ("aggregation", [loss.aggregation], AGGREGATION_NAMES),
        ("corrections", loss.corrections, WEIGHTS + REJECTIONS),
        ("filters", loss.filters, FILTERS),
        ("proximal", [loss.proximal], PROXIMAL),
        ("kl_estimator", [loss.kl_estimator], KL_ESTIMATORS),
    ):
        for value in values:
            if value not in allowed:
                raise ValueError(f"loss.{key}={value}: must be one of {', '.join(allowed)}")
        if len(set(values)) < len(values):
            raise ValueError(f"loss.{key}={values}: names something twice")
    _check_combinations(loss)
    _check_numbers(loss)


def _check_combinations(loss: LossConfig) -> None:
    weights = [name for name in loss.corrections if name in WEIGHTS]
    if len(weights) > 1:
        raise ValueError(f"loss.corrections={loss.corrections}: {' and '.join(weights)} would weigh every token twice")
    if loss.name in WEIGHTED and loss.proximal != "behaviour":
        raise ValueError(f"loss.proximal={loss.proximal} with {loss.name}: this loss has no anchor; leave it out")
    if loss.name == "decoupled_ppo" and loss.proximal == "behaviour":
        raise ValueError(
            "loss.proximal=behaviour with decoupled_ppo: p is μ, nothing is decoupled; use loss.proximal=recompute, or "
            "loss.name=ppo_clip"
        )
    if weights and loss.proximal == "behaviour":
        holder = loss.name if loss.name in WEIGHTED else "loss.proximal=behaviour"
        kept = [name for name in loss.corrections if name in REJECTIONS]
        raise ValueError(
            f"loss.corrections={loss.corrections} with {holder}: the loss holds π/μ already and {weights[0]} would "
            f"weigh it twice; use loss.corrections=[{','.join(kept)}]"
            + ("" if loss.name in WEIGHTED else ", or another loss.proximal")
        )
    if loss.name in WHOLE_SEQUENCE and loss.aggregation != "seq_mean_token_mean":
        raise ValueError(
            f"loss.aggregation={loss.aggregation} with {loss.name}: its value belongs to a whole sequence and would "
            "count once for each of its tokens; use loss.aggregation=seq_mean_token_mean"
        )
    if loss.kl_coefficient == 0 and (loss.kl_reference or loss.kl_replace_every):
        raise ValueError("loss.kl_reference and loss.kl_replace_every do nothing while loss.kl_coefficient is 0")


def _check_numbers(loss: LossConfig) -> None:
    if loss.minibatches < 1:
        raise ValueError(f"loss.minibatches={loss.minibatches}: must be at least 1")
    for name in ("clip_low", "gspo_low"):
        if not 0 <= getattr(loss, name) < 1:
            raise ValueError(
                f"loss.{name}={getattr(loss, name)}: must be at least 0 and below 1, ratios are clipped at 1 − ε"
            )
    for name in (
        *("clip_high", "gspo_high", "k3_bound", "opsm_delta", "kl_coefficient", "kl_replace_every", "entropy_bonus"),
        *("overlong_buffer", "truncated_penalty", "vespo_positive_slope", "vespo_negative_slope"),
        *("vespo_positive_power", "vespo_negative_power"),
    ):
        if not getattr(loss, name) >= 0:
            raise ValueError(f"loss.{name}={getattr(loss, name)}: must not be below 0")
    for sign in ("positive", "negative"):
        for name in (f"vespo_{sign}_power", f"vespo_{sign}_slope"):
            if getattr(loss, name) == math.inf:
                raise ValueError(f"loss.{name}=inf: must be finite, W^k e^(λ(1−W)) would be no number")
    for name in (
        *("cispo_cap", "vtrace_cap", "aipo_cap", "dppo_cap", "tis_cap", "gmpo_clip", "sapo_positive", "sapo_negative"),
        *("dppo_delta", "m2po_threshold"),
    ):
        if not getattr(loss, name) > 0:
            raise ValueError(f"loss.{name}={getattr(loss, name)}: must be above 0")
    if loss.dual_clip != 0 and not loss.dual_clip > 1:
        raise ValueError(
            f"loss.dual_clip={loss.dual_clip}: must be above 1, or 0 to turn it off; lower, it would cut the gradient "
            "of tokens whose probability has not changed"
        )
    for name in ("mis", "icepop", "geometric"):
        low, high = getattr(loss, f"{name}_low"), getattr(loss, f"{name}_high")
        if not 0 <= low <= 1 <= high:
            raise ValueError(
                f"loss.{name}_low={low}, loss.{name}_high={high}: the band must hold 1, where nothing drifted"
            )
    if not 0 <= loss.veto_floor < 1:
        raise ValueError(f"loss.veto_floor={loss.veto_floor}: must be at least 0 and below 1")
