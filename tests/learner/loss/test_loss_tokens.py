"""Token losses against the slow truth: each objective, each correction and each divergence, in value and gradient."""

import itertools
import math
from dataclasses import replace

import draws
import numpy as np
import pytest
import torch
import truth
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.loss.advantages import ADVANTAGES, advantages
from learner.loss.compose import CORRECTIONS, LOSSES, REFERENCE_KL, TokenLoss, token_loss
from learner.loss.config import ANCHORED, PROXIMAL, REJECTIONS, WEIGHTED, WEIGHTS, LossConfig, check_loss
from learner.loss.regularisers import kl_k3
from learner.loss.tokens import Tokens, exp_bounded


def is_allowed(config: LossConfig) -> bool:
    try:
        check_loss(config)
    except ValueError:
        return False
    return True


ALLOWED = [  # every composition of objective, anchor and corrections
    config
    for name in (*ANCHORED, *WEIGHTED)
    for proximal in PROXIMAL
    for weight in ([], *([one] for one in WEIGHTS))
    for count in range(len(REJECTIONS) + 1)
    for rejections in itertools.combinations(REJECTIONS, count)
    if is_allowed(
        config := LossConfig(
            name=name,
            proximal=proximal,
            corrections=[*weight, *rejections],
            aggregation="seq_mean_token_mean",
        )
    )
]
TERMS = [  # what is added to the objective
    {},
    {"kl_coefficient": 0.3, "kl_estimator": "k3"},
    {"kl_coefficient": 0.3, "kl_estimator": "k2", "entropy_bonus": 0.1},
    {"kl_coefficient": 0.3, "kl_estimator": "k1_reward"},
]


def plain(name: str, **options: object) -> LossConfig:
    """An objective alone, around the sampler if it has an anchor."""
    return LossConfig(name=name, **options)  # type: ignore[arg-type]


def recomputed(name: str, *corrections: str, **options: object) -> LossConfig:
    """An objective whose anchor is what the batch says, and corrections of p/μ."""
    return LossConfig(name=name, proximal="recompute", corrections=[*corrections], **options)  # type: ignore[arg-type]


def gradient(loss: TokenLoss, tokens: Tokens, coefficients: np.ndarray | None = None) -> torch.Tensor:
    """∇ Σ coefficient · loss by log π, [N]."""
    weights = (
        torch.ones_like(loss.value) if coefficients is None else torch.tensor(coefficients, dtype=loss.value.dtype)
    )
    (found,) = torch.autograd.grad((loss.value * weights).sum(), tokens.learner_logprobs, retain_graph=True)
    return found


def one_token(
    learner: float,
    behaviour: float,
    advantage: float,
    *,
    staleness: int = 0,
    reference: float = 0.0,
    dtype: torch.dtype = torch.float64,
) -> Tokens:
    """A batch of one token, with p = sg(π)."""
    return Tokens(
        learner_logprobs=torch.tensor([learner], dtype=dtype, requires_grad=True),
        behaviour_logprobs=torch.tensor([behaviour], dtype=dtype),
        proximal_logprobs=None,
        advantages=torch.tensor([advantage], dtype=dtype),
        loss_mask=torch.tensor([True]),
        sequence_index=torch.tensor([3]),
        group_index=torch.tensor([1]),
        staleness=torch.tensor([staleness]),
        reference_logprobs=torch.tensor([reference], dtype=dtype),
    )


def assert_true(tokens: Tokens, config: LossConfig, seed: int = 0) -> None:
    """Values and gradients are those of the truth, sequence by sequence, and 0 behind the mask."""
    coefficients = np.random.default_rng(seed).normal(size=len(tokens.loss_mask))
    loss = token_loss(tokens, config)
    values, slopes = loss.value.detach().numpy(), gradient(loss, tokens, coefficients).numpy()
    hidden = ~tokens.loss_mask.numpy()
    assert (values[hidden] == 0).all()
    assert (slopes[hidden] == 0).all()
    exact = 1e-5 if config.proximal == "loglinear" else 1e-7  # some constants are float32
    true_values, true_slopes = draws.losses(tokens, config), draws.gradients(tokens, config, coefficients)
    for chosen in draws.places(tokens):
        np.testing.assert_allclose(values[chosen], true_values[chosen], rtol=10 * exact, atol=1e-12)
        known = [place for place in chosen if not math.isnan(true_slopes[place])]
        rounding = 1e-9 * np.abs(coefficients[chosen] * true_values[chosen]).sum()  # of a difference
        np.testing.assert_allclose(slopes[known], true_slopes[known], rtol=1e-5 + 10 * exact, atol=1e-9 + rounding)


# ---- one part at a time ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(LOSSES))
@settings(max_examples=20)
@given(tokens=draws.batches())
def test_an_objective_is_the_formula_of_its_paper(name: str, tokens: Tokens) -> None:
    assert_true(tokens, plain(name))


@pytest.mark.parametrize("proximal", ["loglinear", "behaviour"])
@settings(max_examples=25)
@given(tokens=draws.batches(), name=st.sampled_from(ANCHORED))
def test_an_objective_is_its_formula_behind_every_anchor(proximal: str, tokens: Tokens, name: str) -> None:
    assert_true(tokens, plain(name, proximal=proximal))


@pytest.mark.parametrize("name", ["ppo_clip", "decoupled_ppo"])
@settings(max_examples=20)
@given(tokens=draws.batches())
def test_without_a_dual_clip_negative_advantages_are_bounded_on_one_side_alone(name: str, tokens: Tokens) -> None:
    assert_true(tokens, plain(name, dual_clip=0.0))


@pytest.mark.parametrize("name", sorted(CORRECTIONS))
@settings(max_examples=20)
@given(tokens=draws.batches())
def test_a_correction_is_the_formula_of_its_paper_and_has_no_gradient(name: str, tokens: Tokens) -> None:
    config = LossConfig(name="ppo_clip", proximal="recompute", corrections=[name])
    found = token_loss(tokens, config).weight
    assert not found.requires_grad
    for chosen in draws.places(tokens):
        sequence = draws.as_truth(tokens, chosen)
        np.testing.assert_allclose(found[chosen].numpy(), truth.factors(sequence, config), rtol=1e-9)
    assert_true(tokens, config)


@pytest.mark.parametrize("estimator", sorted(REFERENCE_KL))
@settings(max_examples=25)
@given(tokens=draws.batches())
def test_a_divergence_is_its_formula_and_is_reported_without_gradient(estimator: str, tokens: Tokens) -> None:
    config = plain("ppo_clip", kl_coefficient=0.5, kl_estimator=estimator)
    found = token_loss(tokens, config).kl
    assert not found.requires_grad
    for chosen in draws.places(tokens):
        expected = [truth.REFERENCE_KL[estimator](token) for token in draws.as_truth(tokens, chosen)]
        np.testing.assert_allclose(found[chosen].numpy(), expected, rtol=1e-9, atol=1e-12)
    assert_true(tokens, config)


@settings(max_examples=25)
@given(tokens=draws.batches())
def test_the_entropy_bonus_rewards_the_entropy_of_trained_tokens_alone(tokens: Tokens) -> None:
    config = plain("ppo_clip", entropy_bonus=0.25)
    loss = token_loss(tokens, config)
    (slopes,) = torch.autograd.grad(loss.value.sum(), tokens.entropy, retain_graph=True)
    torch.testing.assert_close(slopes, -0.25 * tokens.loss_mask.double(), rtol=0, atol=0)
    assert_true(tokens, config)


@given(
    learner=st.floats(-30, 0),
    behaviour=st.floats(-30, 0),
    staleness=st.integers(0, 9),
)
def test_the_loglinear_anchor_goes_from_the_sampler_to_the_policy_with_age(
    learner: float, behaviour: float, staleness: int
) -> None:
    tokens = one_token(learner, behaviour, 1.0, staleness=staleness)
    config = LossConfig(name="ppo_clip", corrections=["is_token"], proximal="loglinear")
    weight = token_loss(tokens, config).weight.item()  # p/μ
    expected = truth.power(staleness / (staleness + 1) * (learner - behaviour))
    assert weight == pytest.approx(expected, rel=1e-5)
    assert staleness or weight == 1


# ---- compositions ---------------------------------------------------------------------------------------------------


@settings(max_examples=200)
@given(tokens=draws.batches(), config=st.sampled_from(ALLOWED), terms=st.sampled_from(TERMS), seed=st.integers(0, 99))
def test_a_composition_is_the_truth_in_value_and_gradient(
    tokens: Tokens, config: LossConfig, terms: dict[str, object], seed: int
) -> None:
    assert_true(tokens, replace(config, **terms), seed)


@pytest.mark.parametrize("name", [*ANCHORED, *WEIGHTED])
def test_every_allowed_composition_runs_and_is_the_truth_in_value(name: str) -> None:
    random = np.random.default_rng(len(name))
    for config in (each for each in ALLOWED if each.name == name):
        tokens = draws.tokens_of(random, [3, 1, 4], ["little", "numerics", "none"], ["all", "all", "some"])
        loss = token_loss(tokens, config)
        np.testing.assert_allclose(loss.value.detach().numpy(), draws.losses(tokens, config), rtol=1e-5, atol=1e-9)
        assert gradient(loss, tokens).isfinite().all()


@settings(max_examples=60)
@given(
    tokens=draws.batches(torch.float32, ("extreme", "much")),
    config=st.sampled_from(ALLOWED),
    terms=st.sampled_from(TERMS),
)
def test_extreme_ratios_are_finite_in_single_precision(
    tokens: Tokens, config: LossConfig, terms: dict[str, object]
) -> None:
    loss = token_loss(tokens, replace(config, **terms))
    assert loss.value.dtype == loss.weight.dtype == loss.kl.dtype == torch.float32
    assert loss.value.isfinite().all()
    assert gradient(loss, tokens).isfinite().all()
    assert loss.weight.isfinite().all()
    assert loss.kl.isfinite().all()


@settings(max_examples=60)
@given(tokens=draws.batches(), config=st.sampled_from(ALLOWED), terms=st.sampled_from(TERMS))
def test_what_stands_behind_the_mask_changes_nothing(
    tokens: Tokens, config: LossConfig, terms: dict[str, object]
) -> None:
    config = replace(config, **terms)
    seen, hidden = token_loss(tokens, config), token_loss(tokens.without_masked(), config)
    for field in ("value", "bounded", "weight", "kl"):
        torch.testing.assert_close(getattr(seen, field), getattr(hidden, field), rtol=0, atol=0)
    torch.testing.assert_close(gradient(seen, tokens), gradient(hidden, tokens), rtol=0, atol=0)


@settings(max_examples=60)
@given(
    tokens=draws.batches(),
    config=st.sampled_from(ALLOWED),
    terms=st.sampled_from(TERMS),
    seed=st.integers(0, 99),
)
def test_the_order_of_tokens_changes_no_token(
    tokens: Tokens, config: LossConfig, terms: dict[str, object], seed: int
) -> None:
    order = torch.tensor(np.random.default_rng(seed).permutation(len(tokens.loss_mask)))
    config = replace(config, **terms)
    straight, shuffled = token_loss(tokens, config), token_loss(draws.part(tokens, order), config)
    torch.testing.assert_close(shuffled.value, straight.value[order], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(shuffled.weight, straight.weight[order], rtol=1e-9, atol=1e-12)
    assert (shuffled.bounded == straight.bounded[order]).all()
    torch.testing.assert_close(gradient(shuffled, tokens), gradient(straight, tokens), rtol=1e-8, atol=1e-12)


@settings(max_examples=60)
@given(
    tokens=draws.batches(),
    config=st.sampled_from(ALLOWED),
    terms=st.sampled_from(TERMS),
    cut=st.integers(0, 5),
)
def test_a_batch_cut_between_sequences_has_the_same_token_losses(
    tokens: Tokens, config: LossConfig, terms: dict[str, object], cut: int
) -> None:
    config = replace(config, **terms)
    whole = token_loss(tokens, config)
    first = torch.isin(tokens.sequence_index, tokens.sequence_index.unique()[:cut])
    for chosen in (first.nonzero()[:, 0], (~first).nonzero()[:, 0]):  # one of them may be empty
        piece = token_loss(draws.part(tokens, chosen), config)
        for field in ("value", "bounded", "weight", "kl"):
            torch.testing.assert_close(getattr(piece, field), getattr(whole, field)[chosen], rtol=1e-9, atol=1e-12)


# ---- nothing to learn -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("drift", [-100.0, -25.0])
@pytest.mark.parametrize("rejection", ["mis_sequence", "icepop", *REJECTIONS])
def test_a_batch_that_is_rejected_altogether_has_no_gradient(rejection: str, drift: float, dtype: torch.dtype) -> None:
    others = {*REJECTIONS} - {rejection}
    configs = [each for each in ALLOWED if rejection in each.corrections and not others & {*each.corrections}]
    assert configs
    for config in configs:
        logprobs = torch.full((4,), drift - 1, dtype=dtype, requires_grad=True)
        tokens = Tokens(
            learner_logprobs=logprobs,
            behaviour_logprobs=torch.full((4,), -1.0, dtype=dtype),
            proximal_logprobs=None,
            advantages=torch.full((4,), -0.5, dtype=dtype),
            loss_mask=torch.tensor([True, True, False, True]),
            sequence_index=torch.tensor([2, 2, 2, 0]),
            group_index=torch.zeros(4, dtype=torch.int64),
            staleness=torch.full((4,), 9),  # so old that the log-linear anchor is close to π
        )
        loss = token_loss(tokens, config)
        assert (loss.weight[tokens.loss_mask] == 0).all()
        assert (loss.value == 0).all()
        assert (gradient(loss, tokens) == 0).all()


@settings(max_examples=50)
@given(tokens=draws.batches(), config=st.sampled_from(ALLOWED))
def test_an_advantage_of_zero_teaches_nothing(tokens: Tokens, config: LossConfig) -> None:
    tokens = replace(tokens, advantages=torch.zeros_like(tokens.advantages))
    loss = token_loss(tokens, config)
    assert (loss.value == 0).all()
    assert (gradient(loss, tokens) == 0).all()


def test_groups_of_equal_rewards_have_no_gradient() -> None:
    lengths, groups = np.array([3, 1, 2, 5]), np.array([7, 7, 7, 7])
    tokens = draws.tokens_of(np.random.default_rng(0), lengths.tolist(), ["little"] * 4, ["all"] * 4)
    for config, name in zip(ALLOWED[::5], itertools.cycle(sorted(ADVANTAGES)), strict=False):
        found = advantages(name, np.full(4, 0.75), groups, lengths)
        equal = replace(tokens, advantages=torch.tensor(np.repeat(found, lengths)))
        assert (gradient(token_loss(equal, config), tokens) == 0).all()


@settings(max_examples=50)
@given(tokens=draws.batches(), config=st.sampled_from(ALLOWED), terms=st.sampled_from(TERMS))
def test_a_batch_that_is_masked_altogether_has_no_loss_and_no_gradient(
    tokens: Tokens, config: LossConfig, terms: dict[str, object]
) -> None:
    nan = torch.full_like(tokens.advantages, math.nan)
    tokens = replace(
        tokens,
        loss_mask=torch.zeros_like(tokens.loss_mask),
        learner_logprobs=nan.clone().requires_grad_(),
        behaviour_logprobs=nan,
        advantages=nan,
        reference_logprobs=nan,
    )
    loss = token_loss(tokens, replace(config, **terms))
    assert (loss.value == 0).all()
    assert (gradient(loss, tokens) == 0).all()


# ---- what the objectives mean ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*ANCHORED, *WEIGHTED])
def test_a_policy_that_has_not_moved_gets_the_policy_gradient_and_no_bound(name: str) -> None:
    tokens = draws.tokens_of(np.random.default_rng(1), [3, 2, 4], ["none"] * 3, ["all"] * 3)
    for proximal in (None, tokens.proximal_logprobs):
        loss = token_loss(replace(tokens, proximal_logprobs=proximal), plain(name))
        torch.testing.assert_close(gradient(loss, tokens), -tokens.advantages, rtol=1e-7, atol=1e-12)
        assert not loss.bounded.any()


CUTTING = ("ppo_clip", "decoupled_ppo", "gspo", "gmpo", "m2po", "dppo_tv")
CAPS = {"cispo": 5.0, "vtrace": 1.0, "aipo": 5.0, "dppo_tv": 20.0}


@pytest.mark.parametrize("name", sorted(LOSSES))
@settings(max_examples=20)
@given(tokens=draws.batches(drifts=("none", "numerics", "little", "much")))
def test_a_token_is_called_bounded_where_its_gradient_was_cut_or_its_weight_capped(name: str, tokens: Tokens) -> None:
    config = plain(name)
    bounded = token_loss(tokens, config).bounded
    slopes = draws.gradients(tokens, config, np.ones(len(bounded)))
    for chosen in draws.places(tokens):
        sequence = draws.as_truth(tokens, chosen)
        for place, token in zip(chosen, sequence, strict=True):
            if token.advantage == 0 or math.isnan(slopes[place]):
                continue
            capped = truth.power(token.frozen - token.behaviour) > CAPS.get(name, math.inf)
            if name == "topr":
                capped = token.advantage < 0 and sum(each.frozen - each.behaviour for each in sequence) > 0
            cut = name in CUTTING and slopes[place] == 0
            assert bool(bounded[place]) == (cut or capped)


@given(st.floats(-1e4, 1e4))
def test_a_ratio_is_never_beyond_its_bounds(log_ratio: float) -> None:
    found = exp_bounded(torch.tensor([log_ratio], dtype=torch.float64)).item()
    assert found == pytest.approx(truth.power(log_ratio), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("estimator", sorted(REFERENCE_KL))
@settings(max_examples=20)
@given(
    distance=st.one_of(st.floats(-100, 100), st.sampled_from([-100.0, -20.0, 0.0, 20.0, 100.0])),
    drift=st.one_of(st.floats(-3, 3), st.sampled_from([-100.0, -20.0, 0.0, 20.0, 100.0])),
)
def test_the_gradient_of_a_divergence_is_the_weight_times_the_log_ratio_however_far_the_reference(
    estimator: str, dtype: torch.dtype, distance: float, drift: float
) -> None:
    tokens = one_token(-150.0, -150.0 - drift, 0.0, reference=-150.0 - distance, dtype=dtype)
    loss = token_loss(tokens, plain("ppo_clip", kl_coefficient=1.0, kl_estimator=estimator))
    near = {"rel": 1e-4, "abs": 2e-5 * truth.power(drift)} if dtype == torch.float32 else {"rel": 1e-9, "abs": 1e-12}
    assert gradient(loss, tokens).item() == pytest.approx(truth.power(drift) * distance, **near)


@settings(max_examples=25)
@given(tokens=draws.batches(), seed=st.integers(0, 99))
def test_sums_and_means_are_over_the_trained_tokens_of_each_sequence(tokens: Tokens, seed: int) -> None:
    values = torch.tensor(np.random.default_rng(seed).normal(size=len(tokens.loss_mask)))
    names, trained = tokens.sequence_index.tolist(), tokens.loss_mask.tolist()
    poisoned = torch.where(tokens.loss_mask, values, math.nan)
    for place, name in enumerate(names):
        own = [values[other].item() for other in range(len(names)) if names[other] == name and trained[other]]
        assert tokens.sequences.sum(poisoned)[place].item() == pytest.approx(sum(own), abs=1e-12)
        assert tokens.sequences.mean(poisoned)[place].item() == pytest.approx(sum(own) / max(len(own), 1), abs=1e-12)


# ---- expectations under the sampler, by counting over a small vocabulary --------------------------------------------


def vocabulary(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits of π with gradient, log μ, log π_ref and the advantage of each of six tokens."""
    random = np.random.default_rng(seed)
    logits, behaviour, reference = (torch.tensor(random.normal(size=6)) for _ in range(3))
    return (
        logits.requires_grad_(),
        behaviour.log_softmax(0),
        reference.log_softmax(0),
        torch.tensor(random.normal(size=6)),
    )


def sampled(config: LossConfig, proximal: torch.Tensor | None = None) -> torch.Tensor:
    """∇ of the expected loss over all tokens that μ may draw, by the logits of π."""
    logits, behaviour, reference, advantage = vocabulary()
    tokens = Tokens(
        learner_logprobs=logits.log_softmax(0),
        behaviour_logprobs=behaviour,
        proximal_logprobs=proximal,
        advantages=advantage if config.kl_coefficient == 0 else torch.zeros(6, dtype=torch.float64),
        loss_mask=torch.ones(6, dtype=torch.bool),
        sequence_index=torch.arange(6),  # each a sequence of one token
        group_index=torch.zeros(6, dtype=torch.int64),
        staleness=torch.ones(6, dtype=torch.int64),
        reference_logprobs=reference,
    )
    (found,) = torch.autograd.grad((behaviour.exp() * token_loss(tokens, config).value).sum(), logits)
    return found


@pytest.mark.parametrize("estimator", sorted(REFERENCE_KL))
def test_the_divergence_has_the_gradient_of_the_true_divergence_in_expectation_under_the_sampler(
    estimator: str,
) -> None:
    logits, _, reference, _ = vocabulary()
    logprobs = logits.log_softmax(0)
    (expected,) = torch.autograd.grad((logprobs.exp() * (logprobs - reference)).sum(), logits)
    found = sampled(plain("ppo_clip", kl_coefficient=1.0, kl_estimator=estimator))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "config",
    [
        recomputed("decoupled_ppo"),
        recomputed("ppo_clip", "is_token"),
        recomputed("gspo", "tis_sequence", tis_cap=1e6),
        recomputed("ppo_clip", "mis_sequence", mis_low=0.0, mis_high=1e6),
        recomputed("sapo", "icepop", icepop_low=0.0, icepop_high=1e6, sapo_negative=1.0),
        plain("ppo_clip", clip_low=0.999, clip_high=1e6, dual_clip=0.0),
        plain("cispo", cispo_cap=1e6),
        plain("m2po"),
        plain("dppo_tv", dppo_cap=1e6, dppo_delta=1.0),
    ],
    ids=lambda config: "-".join([config.name, config.proximal, *config.corrections]),
)
def test_without_truncation_an_off_policy_loss_has_the_true_policy_gradient_in_expectation(config: LossConfig) -> None:
    logits, _, _, advantage = vocabulary()
    (expected,) = torch.autograd.grad(-(logits.softmax(0) * advantage).sum(), logits)
    torch.testing.assert_close(sampled(config), expected, rtol=1e-6, atol=1e-12)


def test_unweighted_tokens_of_another_policy_have_another_gradient() -> None:
    logits, _, _, advantage = vocabulary()
    (expected,) = torch.autograd.grad(-(logits.softmax(0) * advantage).sum(), logits)
    assert not torch.allclose(sampled(recomputed("ppo_clip")), expected, rtol=0.05)


def test_k3_is_never_below_zero() -> None:
    tokens = [one_token(-1.0, -1.0, 0.0, reference=-1.0 - distance) for distance in np.linspace(-30, 1, 63)]
    assert all(kl_k3(each).item() >= 0 for each in tokens)
