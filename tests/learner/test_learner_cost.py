"""What a sequence costs, against torch's own count of the operations of a forward and a backward pass."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from learner.policy.cost import cost_of

SHAPES = {
    "llama": {"num_key_value_heads": 2},
    "qwen2": {"num_key_value_heads": 1},
    "qwen3": {"num_key_value_heads": 4, "head_dim": 32},  # heads wider than the hidden size
}


def network_of(architecture: str, *, tied: bool) -> PreTrainedModel:
    described = AutoConfig.for_model(
        architecture,
        vocab_size=40,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        tie_word_embeddings=tied,
        pad_token_id=None,
        **SHAPES[architecture],
    )
    return AutoModelForCausalLM.from_config(described, attn_implementation="eager")


def counted(network: PreTrainedModel, length: int) -> int:
    """FLOP of one training step on one sequence; eager attention multiplies all pairs, also those that it masks."""
    counter = FlopCounterMode(display=False)
    with counter:
        network(input_ids=torch.ones(1, length, dtype=torch.int64)).logits.sum().backward()
    return int(counter.get_total_flops())


@pytest.mark.parametrize(
    ("architecture", "tied"), [("llama", True), ("llama", False), ("qwen2", True), ("qwen3", False)]
)
def test_the_cost_is_the_count_of_multiplications_with_half_of_attention(architecture: str, tied: bool) -> None:
    network = network_of(architecture, tied=tied)
    cost = cost_of(network)
    matrices = {id(each.weight): each.weight for each in network.modules() if isinstance(each, nn.Linear)}
    assert cost.linear == pytest.approx(6 * sum(each.numel() for each in matrices.values()), rel=0.02)  # but for norms
    for length in (10, 200):
        whole = cost.linear * length + 2 * cost.quadratic * length**2
        assert counted(network, length) == pytest.approx(whole, rel=0.02)


def test_frozen_weights_cost_no_gradient_of_their_own() -> None:
    network = network_of("llama", tied=False)
    trained = cost_of(network)
    network.requires_grad_(False)
    assert cost_of(network).linear == pytest.approx(trained.linear * 4 / 6)
    assert cost_of(network).quadratic == trained.quadratic


def test_a_long_sequence_costs_more_than_its_tokens_apart() -> None:
    cost = cost_of(network_of("llama", tied=True))
    assert cost.of(100) > 10 * cost.of(10)
    assert cost.of(100) == cost.linear * 100 + cost.quadratic * 100**2
