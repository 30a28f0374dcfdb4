"""Packing changes nothing: each sequence has the logprobs and the gradient that it has alone, in transformers."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from learner.batch import TrainingSequence, assemble
from learner.policy import attention
from learner.policy.model import Policy

CPU = torch.device("cpu")
TOLERANCE = 1e-5  # of logprobs in nats; of gradients, relative to the largest
VOCABULARY = 24
LENGTHS = [5, 17, 1, 9, 40, 2, 12, 9]  # of completions
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 4, "tie_word_embeddings": False},
    "llama, two heads a key": {"num_key_value_heads": 2, "tie_word_embeddings": False},
    "qwen2, four heads a key": {"num_key_value_heads": 1, "tie_word_embeddings": True},
    "qwen3, two heads a key": {"num_key_value_heads": 2, "tie_word_embeddings": False, "head_dim": 32},
    "mistral, each token sees five": {"num_key_value_heads": 2, "sliding_window": 5, "tie_word_embeddings": False},
}
Make = Callable[..., list[TrainingSequence]]


def network_of(name: str, implementation: str) -> PreTrainedModel:
    shape = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "initializer_range": 0.2,  # so that attention is far from uniform
        "pad_token_id": None,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        described = AutoConfig.for_model(name.partition(",")[0], **shape, **MODELS[name])
        return AutoModelForCausalLM.from_config(described, attn_implementation=implementation)


@dataclass(frozen=True, slots=True)
class Alone:
    """The sequences one by one through transformers: logprobs of each, and the gradient of their weighted sum."""

    policy: Policy
    sequences: list[TrainingSequence]
    logprobs: list[torch.Tensor]  # [T] each
    gradient: dict[str, torch.Tensor]


@pytest.fixture(scope="module", params=MODELS)
def alone(request: pytest.FixtureRequest, make_sequences: Make) -> Alone:
    plain = network_of(request.param, "eager")
    sequences = [
        replace(sequence, token_weight=weight)
        for sequence, weight in zip(
            make_sequences(LENGTHS, vocabulary=VOCABULARY), np.linspace(-1, 1, len(LENGTHS)), strict=True
        )
    ]
    logprobs = []
    for sequence in sequences:
        ids = torch.tensor([[*sequence.prompt_ids, *sequence.token_ids]], dtype=torch.int64)
        logits = plain(input_ids=ids).logits[0, len(sequence.prompt_ids) - 1 : -1]
        logprob = logits.log_softmax(-1)[range(len(logits)), sequence.token_ids.tolist()]
        (logprob * sequence.token_weight).sum().backward()  # type: ignore[no-untyped-call]
        logprobs.append(logprob.detach())
    gradient = {name: each.grad for name, each in plain.named_parameters() if each.grad is not None}
    network = network_of(request.param, attention.NAME)
    attention.check_packable(network)
    return Alone(Policy(network, chunk=1024, fp32_head=False), sequences, logprobs, gradient)


@settings(max_examples=10)
@given(
    owners=st.lists(st.integers(0, 3), min_size=len(LENGTHS), max_size=len(LENGTHS)),
    order=st.permutations(range(len(LENGTHS))),
    checkpointed=st.booleans(),
)
def test_any_packing_has_the_logprobs_and_gradient_of_each_sequence_alone(
    alone: Alone, owners: list[int], order: list[int], checkpointed: bool
) -> None:
    network = alone.policy.network
    network.zero_grad()
    if checkpointed:
        network.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    network.train(checkpointed)
    try:
        for owner in sorted(set(owners)):
            places = [place for place in order if owners[place] == owner]
            batch = assemble([alone.sequences[place] for place in places], CPU)
            logprobs, _ = alone.policy(batch, 1.0)
            truth = torch.cat([alone.logprobs[place] for place in places])
            torch.testing.assert_close(logprobs, truth, rtol=0, atol=TOLERANCE)
            (logprobs * batch.token_weights).sum().backward()
    finally:
        network.gradient_checkpointing_disable()
    found = {name: each.grad for name, each in network.named_parameters() if each.grad is not None}
    assert set(found) == set(alone.gradient)
    largest = max(float(each.abs().max()) for each in alone.gradient.values())
    for name, truth in alone.gradient.items():
        torch.testing.assert_close(found[name], truth, rtol=0, atol=TOLERANCE * largest, msg=name)


@settings(max_examples=20)
@given(changed=st.integers(0, len(LENGTHS) - 1), data=st.data())
def test_a_token_of_one_sequence_does_not_move_another_by_a_bit(
    alone: Alone, changed: int, data: st.DataObject
) -> None:
    place = data.draw(st.integers(0, LENGTHS[changed] - 1))
    ids = alone.sequences[changed].token_ids.copy()
    ids[place] = (ids[place] + 1) % VOCABULARY
    others = list(alone.sequences)
    others[changed] = replace(others[changed], token_ids=ids)
    before, after = assemble(alone.sequences, CPU), assemble(others, CPU)
    with torch.no_grad():
        was, now = alone.policy(before, 1.0)[0], alone.policy(after, 1.0)[0]
    other = before.sequence_index != changed
    assert torch.equal(was[other], now[other])
    assert not torch.equal(was[~other], now[~other])
