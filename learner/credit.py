"""From scored groups to training sequences: shape the rewards → filter → advantage; and their cut into minibatches.

Legend: S rollouts of a batch in its order. Nothing here needs torch or other ranks: every rank computes the same.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from learner.batch import TrainingSequence
from learner.loss import filters, rewards
from learner.loss.advantages import Floats, Ints, advantages
from learner.loss.aggregation import token_weights
from learner.loss.config import LossConfig
from learner.loss.filters import Mask
from protocol.messages import GroupBatch, ScoredRollout


@dataclass(frozen=True, slots=True)
class Credited:
    """What a batch has to teach."""

    sequences: list[TrainingSequence]  # those that are trained, in the batch's order
    groups_filtered: dict[str, int]  # groups left out, by reason
    zero_variance_by_prompt: dict[int, int]  # groups of equal rewards by prompt length, rounded up to a power of two
    rollouts_filtered: int  # truncated rollouts left out of groups that are trained

    @property
    def tokens(self) -> int:
        """Completion tokens that are trained."""
        return sum(sequence.trained_tokens for sequence in self.sequences)


def untrained_sequences(batch: GroupBatch) -> list[TrainingSequence]:
    """The sequences of all rollouts of a batch, without advantage: what a policy can score."""
    return [
        TrainingSequence(
            prompt_ids=item.rollout.prompt_ids,
            token_ids=item.rollout.token_ids,
            behaviour_logprobs=item.rollout.behaviour_logprobs,
            staleness=(batch.policy_version - item.rollout.token_versions).astype(np.int32),
            advantage=0.0,
            token_weight=0.0,
            index=index,
            group=item.rollout.group_id,
        )
        for index, item in enumerate(_scored(batch))
    ]


def credit(batch: GroupBatch, config: LossConfig, *, longest: int, reference_kl: Floats | None = None) -> Credited:
    """The training sequences of a batch with their advantages, those filtered out left away.

    `longest` is the limit of a completion, in tokens; `reference_kl` [S] are the sums of log π/π_ref of each rollout,
    needed for `kl_estimator=k1_reward`.
    """
    scored = _scored(batch)
    lengths = np.array([len(item.rollout.token_ids) for item in scored])  # [S]
    groups = np.array([item.rollout.group_id for item in scored])  # [S]
    truncated = np.array([item.rollout.finish_reason == "length" for item in scored])  # [S]
    shaped = shaped_rewards(scored, lengths, truncated, config, longest=longest, reference_kl=reference_kl)  # [S]

    paired = filters.singletons(groups)
    mixed = filters.zero_variance(shaped, groups) | ~paired if "zero_variance" in config.filters else paired | True
    ended = filters.complete(truncated) if "truncated" in config.filters else paired | True
    compared = paired & mixed  # [S]; truncated ones stay in their group's baseline
    values = np.zeros(len(scored))
    if compared.any():
        values[compared] = advantages(config.advantage, shaped[compared], groups[compared], lengths[compared])
    sequences = untrained_sequences(batch)
    return Credited(
        sequences=[
            replace(sequence, advantage=float(values[sequence.index]))
            for sequence in sequences
            if compared[sequence.index] and ended[sequence.index]
        ],
        groups_filtered={
            reason: len(np.unique(groups[~kept]))
            for reason, kept in (("singleton", paired), ("zero_variance", mixed))
            if not kept.all()
        },
        zero_variance_by_prompt=_by_prompt_length(sequences, mixed),
        rollouts_filtered=int((compared & ~ended).sum()),
    )


def shaped_rewards(
    scored: Sequence[ScoredRollout],
    lengths: Ints,
    truncated: Mask,
    config: LossConfig,
    *,
    longest: int,
    reference_kl: Floats | None,
) -> Floats:
    """The verdicts' rewards [S] plus what the configuration adds for length and distance from the reference."""
    shaped = np.array([item.verdict.reward for item in scored], dtype=np.float64)
    if config.overlong_buffer:
        shaped = shaped + rewards.soft_overlong(lengths, longest=longest, buffer=config.overlong_buffer)
    if config.truncated_penalty:
        shaped = shaped + rewards.truncated_penalty(truncated, config.truncated_penalty)
    if config.kl_in_reward:
        assert reference_kl is not None, "a KL in the reward needs the sums of log π/π_ref"
        shaped = shaped + rewards.reference_kl(reference_kl, config.kl_coefficient)
    return shaped


def minibatches(
    sequences: Sequence[TrainingSequence], config: LossConfig, *, longest: int
) -> list[list[TrainingSequence]]:
    """The sequences cut by groups into `config.minibatches` parts (fewer, if there are fewer groups), in order.

    The weights of the tokens of each part are those of an update of its own.
    """
    names = list(dict.fromkeys(sequence.group for sequence in sequences))
    parts = [set(part) for part in np.array_split(names, min(config.minibatches, len(names)))] if names else []
    return [_weighted([one for one in sequences if one.group in part], config, longest) for part in parts]


def _weighted(sequences: list[TrainingSequence], config: LossConfig, longest: int) -> list[TrainingSequence]:
    lengths = np.array([sequence.trained_tokens for sequence in sequences])
    groups = np.array([sequence.group for sequence in sequences])
    weights = token_weights(config.aggregation, lengths, groups, longest)
    return [replace(sequence, token_weight=float(weight)) for sequence, weight in zip(sequences, weights, strict=True)]


def _scored(batch: GroupBatch) -> list[ScoredRollout]:
    return [item for group in batch.groups for item in group.scored]


def _by_prompt_length(sequences: Sequence[TrainingSequence], mixed: Mask) -> dict[int, int]:
    prompts = {one.group: len(one.prompt_ids) for one in sequences if not mixed[one.index]}  # the groups left out
    return dict(sorted(Counter(1 << max(length - 1, 0).bit_length() for length in prompts.values()).items()))
