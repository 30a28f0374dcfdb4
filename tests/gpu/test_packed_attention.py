"""On a GPU: torch's varlen kernel is the attention that padded rectangles compute, and keeps sequences apart."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from learner.batch import TrainingSequence, assemble
from learner.policy import attention
from learner.policy.attention import pack, packed_attention
from learner.policy.model import Policy

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

LENGTHS = [300, 257, 256, 64, 63, 17, 5, 1]
EXACT = 1e-5  # of float32 sums
MODULE: Any = SimpleNamespace(is_causal=True, config=SimpleNamespace(model_type="some"))


@pytest.fixture(scope="module")
def gpu() -> torch.device:
    return torch.device("cuda", 0)


def states_of(gpu: torch.device, heads: int, shared: int, size: int) -> list[torch.Tensor]:
    """Query [1, H, M, D], key and value [1, K, M, D], in float32 but exact in bfloat16."""
    generator = torch.Generator(gpu).manual_seed(0)
    shapes = ((1, each, sum(LENGTHS), size) for each in (heads, heads // shared, heads // shared))
    return [torch.randn(shape, generator=generator, device=gpu).bfloat16().float() for shape in shapes]


def attended(states: list[torch.Tensor], window: int | None) -> list[torch.Tensor]:
    """Attention and the gradients of query, key and value, in float32."""
    leaves = [each.detach().requires_grad_() for each in states]
    packing = pack(LENGTHS, leaves[0].device)
    found, _ = packed_attention(MODULE, *leaves, None, packing=packing, scaling=0.11, sliding_window=window)
    direction = torch.linspace(-1, 1, found.numel(), device=found.device).view_as(found).to(found.dtype)
    return [found.detach().float(), *(each.float() for each in torch.autograd.grad(found, leaves, direction))]


def distance(found: torch.Tensor, truth: torch.Tensor) -> float:
    return float((found - truth).norm() / truth.norm())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("window", [None, 1, 40, 256])
@pytest.mark.parametrize(("shared", "size"), [(1, 64), (4, 128), (8, 32)])
def test_the_kernel_is_as_near_to_float32_as_rectangles_are(
    gpu: torch.device, shared: int, size: int, window: int | None, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = states_of(gpu, 8, shared, size)
    halves = [each.to(dtype) for each in states]
    truths = attended(states, window)
    assert attention.kernel_takes(*halves)
    by_kernel = attended(halves, window)
    monkeypatch.setattr(attention, "kernel_takes", lambda *_: False)
    by_rectangles = attended(halves, window)
    for mine, other, truth in zip(by_kernel, by_rectangles, truths, strict=True):
        assert distance(mine, truth) < max(2 * distance(other, truth), 1e-2)


@pytest.mark.parametrize("shared", [1, 4])
def test_a_kernel_that_shares_no_heads_is_given_copies(
    gpu: torch.device, shared: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    halves = [each.bfloat16() for each in states_of(gpu, 8, shared, 64)]
    shares = attended(halves, None)
    monkeypatch.setattr(attention, "KERNEL_SHARES_HEADS", False)
    for mine, truth in zip(attended(halves, None), shares, strict=True):
        assert distance(mine, truth) < 1e-2


def test_float32_does_without_the_kernel(gpu: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "varlen_attn", None)  # to call it would fail
    states = states_of(gpu, 8, 2, 64)
    on_gpu, on_cpu = attended(states, None), attended([each.cpu() for each in states], None)
    for mine, truth in zip(on_gpu, on_cpu, strict=True):
        assert distance(mine.cpu(), truth) < EXACT


@pytest.mark.parametrize("changed", [0, 3, 6])
def test_a_sequence_does_not_move_another_by_a_bit(gpu: torch.device, changed: int) -> None:
    halves = [each.bfloat16() for each in states_of(gpu, 8, 2, 64)]
    others = [each.clone() for each in halves]
    start = sum(LENGTHS[:changed])
    mine = slice(start, start + LENGTHS[changed])
    for each in others:
        each[:, :, mine] = each[:, :, mine].flip(-1)
    before, after = attended(halves, None)[0], attended(others, None)[0]  # [1, M, H, D]
    rest = torch.ones(sum(LENGTHS), dtype=torch.bool, device=gpu)
    rest[mine] = False
    assert torch.equal(before[:, rest], after[:, rest])
    assert not torch.equal(before[:, mine], after[:, mine])


def sequences() -> list[TrainingSequence]:
    random = np.random.default_rng(0)
    return [
        TrainingSequence(
            prompt_ids=random.integers(0, 40, 4).astype(np.int32),
            token_ids=random.integers(0, 40, length).astype(np.int32),
            behaviour_logprobs=np.zeros(length, dtype=np.float32),
            staleness=np.zeros(length, dtype=np.int32),
            advantage=1.0,
            token_weight=1.0 / sum(LENGTHS),
            index=index,
            group=index,
        )
        for index, length in enumerate(LENGTHS)
    ]


def scored(device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logprobs and the gradient of their mean, in float32 on the CPU, of a small qwen3."""
    described = AutoConfig.for_model(
        "qwen3",
        vocab_size=40,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        initializer_range=0.1,
        pad_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = AutoModelForCausalLM.from_config(described, attn_implementation=attention.NAME)
    attention.check_packable(network)
    network = network.to(device, dtype)
    batch = assemble(sequences(), device)
    logprobs, _ = Policy(network, chunk=256, fp32_head=False)(batch, 1.0)
    (logprobs * batch.token_weights).sum().backward()
    gradient = {name: each.grad.float().cpu() for name, each in network.named_parameters()}
    return logprobs.detach().cpu(), gradient


def test_a_model_scores_and_learns_as_in_float32_on_the_cpu(gpu: torch.device) -> None:
    logprobs, gradient = scored(gpu, torch.bfloat16)
    expected, truths = scored(torch.device("cpu"), torch.float32)
    torch.testing.assert_close(logprobs, expected, rtol=0, atol=0.2)
    assert float((logprobs - expected).abs().mean()) < 0.02
    for name, truth in truths.items():
        assert distance(gradient[name], truth) < 0.05, name
