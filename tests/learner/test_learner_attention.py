"""Packed attention against a plain loop, how it packs, and what it refuses."""

import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.masking_utils import create_causal_mask

from learner.policy import attention
from learner.policy.attention import SIMILAR, alike, pack, packed_attention

CPU = torch.device("cpu")
LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=12)


def module(**config: Any) -> Any:
    return SimpleNamespace(is_causal=True, config=SimpleNamespace(model_type="some", **config))


def random_states(tokens: int, heads: int, shared: int, seed: int = 0) -> list[torch.Tensor]:
    """Query [1, H, M, D], key and value [1, K, M, D], in float64."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((1, each, tokens, 8) for each in (heads, heads // shared, heads // shared))
    return [torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True) for shape in shapes]


def slow_attention(states: list[torch.Tensor], lengths: list[int], scaling: float, window: int | None) -> torch.Tensor:
    """Token by token, head by head, [1, M, H, D]."""
    query, key, value = (each[0] for each in states)
    shared = len(query) // len(key)
    starts = np.repeat(np.cumsum([0, *lengths[:-1]]), lengths)
    tokens = []
    for token, start in enumerate(starts.tolist()):
        first = start if window is None else max(start, token + 1 - window)
        seen = slice(first, token + 1)
        heads = []
        for head in range(len(query)):
            weights = (key[head // shared, seen] @ query[head, token] * scaling).softmax(0)
            heads.append(weights @ value[head // shared, seen])
        tokens.append(torch.stack(heads))
    return torch.stack(tokens).unsqueeze(0)


@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=6),
    shared=st.sampled_from([1, 2, 4]),
    window=st.sampled_from([None, 1, 3, 50]),
)
def test_attention_and_its_gradient_equal_a_plain_loop(lengths: list[int], shared: int, window: int | None) -> None:
    states = random_states(sum(lengths), 4, shared)
    packing = pack(lengths, CPU)
    found, none = packed_attention(
        module(), *states, None, packing=packing, scaling=0.3, sliding_window=window, dropout=0.0
    )
    truth = slow_attention(states, lengths, 0.3, window)
    assert none is None
    torch.testing.assert_close(found, truth)
    direction = torch.linspace(-1, 1, truth.numel(), dtype=torch.float64).view_as(truth)
    for mine, theirs in zip(
        torch.autograd.grad(found, states, direction), torch.autograd.grad(truth, states, direction), strict=True
    ):
        torch.testing.assert_close(mine, theirs)


def documented_kernel(
    query: torch.Tensor,  # [M, H, D]
    key: torch.Tensor,  # [M, K, D]
    value: torch.Tensor,  # [M, K, D]
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
) -> torch.Tensor:
    """What torch says of varlen_attn, where flash-attention's window counts the tokens before each."""
    assert enable_gqa or query.shape[1] == key.shape[1]
    assert cu_seq_q is cu_seq_k
    assert cu_seq_q.dtype == torch.int32
    lengths = cu_seq_q.diff().tolist()
    assert max_q == max_k == max(lengths)
    before, after = window_size
    assert after == 0
    assert scale is not None
    states = [each.transpose(0, 1).unsqueeze(0) for each in (query, key, value)]
    return slow_attention(states, lengths, scale, None if before < 0 else before + 1)[0]


@pytest.mark.parametrize("shares_heads", [True, False])
@pytest.mark.parametrize("shared", [1, 2])
@pytest.mark.parametrize("window", [None, 1, 3, 50])
def test_the_kernel_is_asked_for_the_same_attention(
    window: int | None, shared: int, shares_heads: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    states, packing = random_states(12, 4, shared), pack([5, 1, 6], CPU)
    by_rectangles, _ = packed_attention(module(), *states, None, packing=packing, scaling=0.3, sliding_window=window)
    monkeypatch.setattr(attention, "kernel_takes", lambda *_: True)
    monkeypatch.setattr(attention, "varlen_attn", documented_kernel)
    monkeypatch.setattr(attention, "KERNEL_SHARES_HEADS", shares_heads)
    by_kernel, _ = packed_attention(module(), *states, None, packing=packing, scaling=0.3, sliding_window=window)
    torch.testing.assert_close(by_kernel, by_rectangles)


def test_the_kernel_takes_half_precision_on_a_gpu_alone() -> None:
    def states(dtype: torch.dtype, cuda: bool, size: int = 64, of_values: int = 64) -> list[Any]:
        return [SimpleNamespace(dtype=dtype, is_cuda=cuda, shape=(1, 1, each)) for each in (size, size, of_values)]

    assert attention.kernel_takes(*states(torch.bfloat16, True))
    assert attention.kernel_takes(*states(torch.float16, True))
    assert not attention.kernel_takes(*states(torch.float32, True))
    assert not attention.kernel_takes(*states(torch.bfloat16, False))
    assert not attention.kernel_takes(*states(torch.bfloat16, True, size=36, of_values=36))
    assert not attention.kernel_takes(*states(torch.bfloat16, True, of_values=32))


@given(lengths=LENGTHS)
def test_runs_hold_all_tokens_in_order_and_little_padding(lengths: list[int]) -> None:
    packing = pack(sorted(lengths, reverse=True), CPU)
    assert sum(run.tokens for run in packing.runs) == sum(lengths)
    assert sum(run.rows for run in packing.runs) == len(lengths)
    assert packing.longest == max(lengths)
    for run in packing.runs:
        assert run.tokens >= SIMILAR * run.rows * run.length
        if run.source is not None and run.places is not None:
            assert run.source[run.places].tolist() == list(range(run.tokens))


@given(lengths=LENGTHS)
def test_runs_are_as_few_as_similar_lengths_allow(lengths: list[int]) -> None:
    runs = alike(lengths)
    assert [length for run in runs for length in run] == lengths
    for run, following in itertools.pairwise(runs):
        assert min(run) >= SIMILAR * max(run)
        joined = [*run, following[0]]
        assert min(joined) < SIMILAR * max(joined)


def test_equal_lengths_are_not_copied() -> None:
    (run,) = pack([7, 7, 7], CPU).runs
    assert (run.source, run.places) == (None, None)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"softcap": 30.0}, r"some: attention keyword softcap=30\.0"),
        ({"s_aux": torch.zeros(4)}, "some: attention keyword s_aux=Tensor"),
        ({"position_bias": torch.zeros(1)}, "some: attention keyword position_bias"),
        ({"attention_mask": torch.zeros(1, 1, 5, 5)}, "some: attention keyword attention_mask"),
        ({"output_attentions": True}, "some: attention keyword output_attentions=True"),
        ({"is_causal": False}, "some: is_causal=False"),
        ({"dropout": 0.1}, r"some: dropout=0\.1"),
        ({"packing": None}, "some: .* the keyword `packing`"),
    ],
)
def test_what_attention_lacks_is_refused_by_name(keywords: dict[str, Any], message: str) -> None:
    states = random_states(5, 4, 1)
    given_by_model = {"packing": pack([2, 3], CPU), "attention_mask": None, **keywords}
    with pytest.raises(ValueError, match=message):
        packed_attention(module(), *states, **given_by_model)


def test_keywords_that_ask_nothing_are_let_through() -> None:
    states = random_states(5, 4, 1)
    asked: dict[str, Any] = {"softcap": None, "position_ids": torch.zeros(1, 5), "use_cache": False, "is_causal": True}
    found, _ = packed_attention(module(), *states, None, packing=pack([2, 3], CPU), **asked)
    plain, _ = packed_attention(module(), *states, None, packing=pack([2, 3], CPU))
    torch.testing.assert_close(found, plain, rtol=0, atol=0)


def test_a_window_that_the_model_keeps_to_itself_is_refused_where_it_would_count() -> None:
    states = random_states(7, 4, 1)
    packed_attention(module(sliding_window=4), *states, None, packing=pack([4, 3], CPU))
    with pytest.raises(ValueError, match=r"some: declares sliding_window=4 .* one has 5 tokens"):
        packed_attention(module(sliding_window=4), *states, None, packing=pack([5, 2], CPU))


def network_of(architecture: str, **shape: Any) -> PreTrainedModel:
    common = {"vocab_size": 20, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": None}
    described = AutoConfig.for_model(architecture, **{**common, **heads, **shape})
    return AutoModelForCausalLM.from_config(described, attn_implementation=attention.NAME)


def test_transformers_builds_no_mask_for_packed_rows() -> None:
    described = network_of("llama").config
    row = torch.zeros(1, 6, 32)
    positions = torch.tensor([[0, 1, 2, 0, 1, 2]])
    mask = create_causal_mask(
        config=described, inputs_embeds=row, attention_mask=None, past_key_values=None, position_ids=positions
    )
    assert mask is None


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "mistral", "gemma"])
def test_usual_decoders_pass_the_check(architecture: str) -> None:
    attention.check_packable(network_of(architecture))


@pytest.mark.parametrize(
    ("architecture", "shape", "message"),
    [
        ("gemma2", {"head_dim": 16}, r"gemma2: attention keyword softcap=50\.0"),
        ("lfm2", {"layer_types": ["conv", "full_attention"]}, "lfm2: layers of conv cannot"),
        ("bloom", {"n_layer": 2, "n_head": 2}, "bloom: packed sequences see each other"),
        ("mamba", {}, "mamba: layers of linear_attention cannot"),
    ],
)
def test_a_model_that_would_mix_sequences_is_refused(architecture: str, shape: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attention.check_packable(network_of(architecture, **shape))


def test_lengths_at_which_sequences_would_share_frequencies_are_refused() -> None:
    positions = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    stretched = network_of("llama", rope_parameters=positions, max_position_embeddings=16).config
    attention.check_lengths(stretched, pack([16, 3], CPU))
    with pytest.raises(ValueError, match=r"llama: dynamic positions .* beyond 16 tokens, one has 17; sample fewer"):
        attention.check_lengths(stretched, pack([17, 3], CPU))
    attention.check_lengths(network_of("llama", max_position_embeddings=16).config, pack([17, 3], CPU))
