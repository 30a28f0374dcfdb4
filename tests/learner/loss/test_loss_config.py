"""What may be configured: the sensible, and with a reason for the rest."""

import itertools
import math
from collections.abc import Iterator

import pytest

from learner.loss import config as names
from learner.loss.config import ANCHORED, PROXIMAL, REJECTIONS, WEIGHTED, WEIGHTS, LossConfig, check_loss

WHOLE = {"aggregation": "seq_mean_token_mean"}
REFUSED: list[tuple[dict[str, object], str]] = [
    ({"name": "nobody"}, r"loss\.name=nobody: must be one of ppo_clip, "),
    ({"name": "likelihood"}, r"loss\.name=likelihood: must be one of"),
    ({"advantage": "gae"}, r"loss\.advantage=gae: must be one of grpo, "),
    ({"aggregation": "sum"}, r"loss\.aggregation=sum: must be one of token_mean, "),
    ({"corrections": ["tis"]}, r"loss\.corrections=tis: must be one of is_token, "),
    ({"corrections": ["veto", "none"]}, r"loss\.corrections=none: must be one of"),
    ({"filters": ["long"]}, r"loss\.filters=long: must be one of zero_variance, truncated"),
    ({"proximal": "ema"}, r"loss\.proximal=ema: must be one of behaviour, loglinear, recompute"),
    ({"kl_estimator": "k1"}, r"loss\.kl_estimator=k1: must be one of k3, k2, k1_reward"),
    ({"corrections": ["veto", "veto"]}, r"loss\.corrections=\['veto', 'veto'\]: names something twice"),
    ({"filters": ["truncated", "truncated"]}, r"names something twice"),
    ({"corrections": ["tis_token", "veto", "icepop"]}, r"tis_token and icepop would weigh every token twice"),
    (
        {"name": "cispo", "corrections": ["tis_token"]},
        r"with cispo: the loss holds π/μ already and tis_token would weigh it twice; use .*=\[\]$",
    ),
    (
        {"name": "topr", "corrections": ["veto", "mis_sequence", "opsm"]},
        r"with topr: .* mis_sequence would weigh it twice; use loss\.corrections=\[veto,opsm\]$",
    ),
    (
        {"corrections": ["icepop", "veto"]},
        r"with loss\.proximal=behaviour: .* icepop would weigh it twice; .*=\[veto\], or another loss\.proximal$",
    ),
    ({"name": "decoupled_ppo"}, r"p is μ, nothing is decoupled; use loss\.proximal=recompute, or loss\.name=ppo_clip"),
    ({"name": "cispo", "proximal": "loglinear"}, r"proximal=loglinear with cispo: .* no anchor"),
    ({"name": "m2po", "proximal": "recompute"}, r"proximal=recompute with m2po: .* no anchor"),
    ({"name": "gspo"}, r"aggregation=token_mean with gspo: .* use loss\.aggregation=seq_mean_token_mean"),
    ({"name": "gmpo", "aggregation": "prompt_mean"}, r"aggregation=prompt_mean with gmpo: .* once for each"),
    ({"kl_reference": "/model"}, r"kl_reference and loss\.kl_replace_every do nothing while loss\.kl_coefficient is 0"),
    ({"kl_replace_every": 400}, r"do nothing while loss\.kl_coefficient is 0"),
    ({"minibatches": 0}, r"loss\.minibatches=0: must be at least 1"),
    *(
        ({name: value}, rf"loss\.{name}={value}: must be at least 0 and below 1, ratios are clipped at 1 − ε")
        for name in ("clip_low", "gspo_low")
        for value in (-0.1, 1.0, math.nan)
    ),
    *(
        ({name: value}, rf"loss\.{name}={value}: must not be below 0")
        for name in (
            *("clip_high", "gspo_high", "k3_bound", "opsm_delta", "kl_coefficient", "entropy_bonus"),
            *("truncated_penalty", "vespo_positive_slope", "vespo_negative_slope"),
            *("vespo_positive_power", "vespo_negative_power"),
        )
        for value in (-0.1, math.nan)
    ),
    *(
        ({name: math.inf}, rf"loss\.{name}=inf: must be finite")
        for name in ("vespo_positive_power", "vespo_negative_slope")
    ),
    ({"kl_coefficient": 0.1, "kl_replace_every": -1}, r"loss\.kl_replace_every=-1: must not be below 0"),
    ({"overlong_buffer": -1}, r"loss\.overlong_buffer=-1: must not be below 0"),
    *(
        ({name: value}, rf"loss\.{name}={value}: must be above 0")
        for name in (
            *("cispo_cap", "vtrace_cap", "aipo_cap", "dppo_cap", "tis_cap", "gmpo_clip"),
            *("sapo_positive", "sapo_negative", "dppo_delta", "m2po_threshold"),
        )
        for value in (0.0, -1.0, math.nan)
    ),
    *(
        ({"dual_clip": value}, r"loss\.dual_clip=.*: must be above 1, or 0 to turn it off")
        for value in (1.0, 0.5, -3.0, math.nan)
    ),
    *(
        ({f"{name}_{side}": value}, rf"loss\.{name}_low=.*, loss\.{name}_high=.*: the band must hold 1")
        for name in ("mis", "icepop", "geometric")
        for side, value in (("low", 1.1), ("low", -0.1), ("high", 0.9), ("high", math.nan))
    ),
    *(({"veto_floor": value}, r"loss\.veto_floor=.*: must be at least 0 and below 1") for value in (-1e-4, 1.0)),
]


@pytest.mark.parametrize(
    ("options", "reason"), REFUSED, ids=lambda value: str(value) if isinstance(value, dict) else ""
)
def test_what_makes_no_sense_is_refused_with_its_reason(options: dict[str, object], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        check_loss(LossConfig(**options))  # type: ignore[arg-type]


def test_the_defaults_are_accepted() -> None:
    check_loss(LossConfig())


@pytest.mark.parametrize("name", [*ANCHORED, *WEIGHTED])
def test_every_loss_is_accepted_with_its_own_defaults(name: str) -> None:
    aggregation = "seq_mean_token_mean" if name in ("gspo", "gmpo") else "token_mean"
    proximal = "recompute" if name == "decoupled_ppo" else "behaviour"
    check_loss(LossConfig(name=name, proximal=proximal, aggregation=aggregation))


@pytest.mark.parametrize(
    "options",
    [
        {"clip_low": 0.0, "clip_high": 0.0, "dual_clip": 0.0},
        {
            "proximal": "recompute",
            "corrections": ["icepop", *REJECTIONS],
            "veto_floor": 0.0,
            "k3_bound": 0.0,
            "opsm_delta": 0.0,
        },
        {"mis_low": 0.0, "mis_high": math.inf, "geometric_low": 1.0, "geometric_high": 1.0},
        {"filters": []},
        {"filters": ["zero_variance", "truncated"]},
        {"kl_coefficient": 0.001, "kl_reference": "/model", "kl_replace_every": 400},
        {"name": "cispo", "corrections": ["opsm", "veto"], "cispo_cap": math.inf},
    ],
    ids=str,
)
def test_the_edges_of_what_makes_sense_are_accepted(options: dict[str, object]) -> None:
    check_loss(LossConfig(**options))  # type: ignore[arg-type]


def makes_sense(name: str, proximal: str, corrections: tuple[str, ...], aggregation: str) -> bool:
    """π/μ is weighed once at most, an anchor is set where there is one, a sequence's value counts once."""
    sampler_weights = len(set(corrections) & set(WEIGHTS)) + (name in WEIGHTED or proximal == "behaviour")
    idle_anchor = name in WEIGHTED and proximal != "behaviour"
    not_decoupled = name == "decoupled_ppo" and proximal == "behaviour"
    once = name not in ("gspo", "gmpo") or aggregation == "seq_mean_token_mean"
    return sampler_weights <= 1 and not idle_anchor and not not_decoupled and once


def combinations() -> Iterator[tuple[str, str, tuple[str, ...], str]]:
    for name, proximal, aggregation in itertools.product(ANCHORED + WEIGHTED, PROXIMAL, names.AGGREGATION_NAMES):
        for count in range(3):
            for corrections in itertools.permutations(WEIGHTS + REJECTIONS, count):
                yield name, proximal, corrections, aggregation


def test_a_combination_is_refused_if_and_only_if_it_makes_no_sense() -> None:
    for name, proximal, corrections, aggregation in combinations():
        config = LossConfig(name=name, proximal=proximal, corrections=list(corrections), aggregation=aggregation)
        try:
            check_loss(config)
            accepted = True
        except ValueError:
            accepted = False
        assert accepted == makes_sense(name, proximal, corrections, aggregation), config


@pytest.mark.parametrize(
    ("options", "in_loss", "in_reward", "first"),
    [
        ({}, False, False, False),
        ({"kl_coefficient": 0.1}, True, False, False),
        ({"kl_coefficient": 0.1, "kl_estimator": "k2"}, True, False, False),
        ({"kl_coefficient": 0.1, "kl_estimator": "k1_reward"}, False, True, True),
        ({"kl_estimator": "k1_reward"}, False, False, False),
        ({"minibatches": 2}, False, False, False),
        ({"minibatches": 2, "proximal": "recompute"}, False, False, True),
        ({"minibatches": 2, "proximal": "loglinear"}, False, False, False),
        ({"minibatches": 2, "name": "cispo"}, False, False, False),
    ],
    ids=str,
)
def test_what_a_configuration_needs_follows_from_it(
    options: dict[str, object], in_loss: bool, in_reward: bool, first: bool
) -> None:
    config = LossConfig(**options)  # type: ignore[arg-type]
    assert (config.kl_in_loss, config.kl_in_reward, config.scores_first) == (in_loss, in_reward, first)
