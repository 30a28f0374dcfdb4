"""Random batches of tokens, odd ones on purpose, and how they look to the slow truth."""

import math
from dataclasses import replace

import numpy as np
import torch
import truth
from hypothesis import strategies as st

from learner.loss.config import LossConfig
from learner.loss.tokens import Tokens

EXTREMES = (-100.0, -20.0, -19.0, 0.0, 19.0, 20.0, 100.0)
DRIFTS = ("none", "numerics", "little", "much", "extreme")  # how far apart the policies of a sequence are
POISON = (math.nan, math.inf, -math.inf, 1e30)  # what may stand behind the mask


def log_ratios(random: np.random.Generator, drift: str, length: int) -> np.ndarray:
    """Differences of two policies' log-probabilities on the tokens of one sequence."""
    spread = {"none": 0.0, "numerics": 1e-3, "little": 0.2, "much": 3.0}
    return random.choice(EXTREMES, length) if drift == "extreme" else spread[drift] * random.normal(size=length)


def tokens_of(
    random: np.random.Generator,
    lengths: list[int],
    drifts: list[str],
    masks: list[str],
    *,
    recomputed: bool = True,
    interleaved: bool = False,
    dtype: torch.dtype = torch.float64,
) -> Tokens:
    """Sequences of those lengths, in an order and under names that mean nothing; the numbers are valid but for masks.

    A mask is `all` trained, `some`, or `none`; what is not trained is NaN, infinite or absurd in every field.
    """
    count = len(lengths)
    names = random.permutation(1000)[:count]
    groups = random.integers(0, 3, count) * 7
    columns: dict[str, list[np.ndarray]] = {}
    for place, (length, drift, mask) in enumerate(zip(lengths, drifts, masks, strict=True)):
        others = {
            name: -log_ratios(random, drift, length)
            for name in ("behaviour_logprobs", "proximal_logprobs", "reference_logprobs")
        }
        highest = np.max([np.zeros(length), *others.values()], axis=0)
        learner = -highest - random.integers(0, 12, length) / 4  # [T]: no policy is surer than certain
        trained = {"all": np.ones(length, bool), "none": np.zeros(length, bool), "some": random.random(length) < 0.6}
        row = {
            "learner_logprobs": learner,
            **{name: learner + other for name, other in others.items()},
            "advantages": np.full(length, random.choice([0.0, 1.0, -1.0, *random.normal(size=4)])),
            "entropy": random.exponential(size=length),
        }
        for values in row.values():
            values[~trained[mask]] = random.choice(POISON, length)[~trained[mask]]
        row["loss_mask"] = trained[mask]
        row["sequence_index"] = np.full(length, names[place])
        row["group_index"] = np.full(length, groups[place])
        row["staleness"] = random.integers(0, 5, length)
        for name, values in row.items():
            columns.setdefault(name, []).append(values)
    order = random.permutation(sum(lengths)) if interleaved else np.arange(sum(lengths))
    joined = {name: torch.tensor(np.concatenate(parts)[order]) for name, parts in columns.items()}
    fields = {name: values.to(dtype) if values.is_floating_point() else values for name, values in joined.items()}
    if not recomputed:
        fields["proximal_logprobs"] = None
    fields["learner_logprobs"].requires_grad_()
    fields["entropy"].requires_grad_()
    return Tokens(**fields, m2_bound=float(random.choice([math.inf, 0.5, 1e-6, -1.0])))


@st.composite
def batches(draw: st.DrawFn, dtype: torch.dtype = torch.float64, drifts: tuple[str, ...] = DRIFTS) -> Tokens:
    """Up to five sequences of up to five tokens, of every kind of drift and mask."""
    lengths = draw(st.lists(st.integers(1, 5), min_size=1, max_size=5))
    many = {"min_size": len(lengths), "max_size": len(lengths)}
    return tokens_of(
        np.random.default_rng(draw(st.integers(0, 2**32 - 1))),
        lengths,
        draw(st.lists(st.sampled_from(drifts), **many)),
        draw(st.lists(st.sampled_from(("all", "all", "some", "none")), **many)),
        recomputed=draw(st.booleans()),
        interleaved=draw(st.booleans()),
        dtype=dtype,
    )


def places(tokens: Tokens) -> list[list[int]]:
    """Where the trained tokens of each sequence stand; nothing for one that is masked altogether."""
    found: dict[int, list[int]] = {}
    for place, (name, trained) in enumerate(
        zip(tokens.sequence_index.tolist(), tokens.loss_mask.tolist(), strict=True)
    ):
        if trained:
            found.setdefault(name, []).append(place)
    return list(found.values())


def as_truth(tokens: Tokens, chosen: list[int]) -> truth.Sequence:
    """Those tokens, as the truth sees them."""

    def at(values: torch.Tensor | None, place: int) -> float:
        assert values is not None
        return float(values[place].detach())

    return [
        truth.Token(
            now=at(tokens.learner_logprobs, place),
            frozen=at(tokens.learner_logprobs, place),
            behaviour=at(tokens.behaviour_logprobs, place),
            proximal=None if tokens.proximal_logprobs is None else at(tokens.proximal_logprobs, place),
            advantage=at(tokens.advantages, place),
            staleness=int(tokens.staleness[place]),
            reference=at(tokens.reference_logprobs, place),
            entropy=at(tokens.entropy, place),
        )
        for place in chosen
    ]


def losses(tokens: Tokens, config: LossConfig) -> np.ndarray:
    """The true loss of each token [N]; 0 where it is masked."""
    setting, values = truth.Setting(config, tokens.m2_bound), np.zeros(len(tokens.loss_mask))
    for chosen in places(tokens):
        values[chosen] = truth.losses(as_truth(tokens, chosen), setting)
    return values


def gradients(tokens: Tokens, config: LossConfig, coefficients: np.ndarray) -> np.ndarray:
    """The true gradient of Σ coefficient · loss by log π [N]; 0 where masked, NaN where a kink is near."""
    setting, values = truth.Setting(config, tokens.m2_bound), np.zeros(len(tokens.loss_mask))
    for chosen in places(tokens):
        values[chosen] = truth.differences(as_truth(tokens, chosen), coefficients[chosen].tolist(), setting)
    return values


def part(tokens: Tokens, chosen: torch.Tensor) -> Tokens:
    """Some of the tokens, or all in another order: `chosen` are their places."""
    fields = ("learner_logprobs", "behaviour_logprobs", "proximal_logprobs", "advantages", "loss_mask")
    fields += ("sequence_index", "group_index", "staleness", "reference_logprobs", "entropy")
    values = {name: getattr(tokens, name) for name in fields}
    return replace(tokens, **{name: None if each is None else each[chosen] for name, each in values.items()})
