"""Chunked log-probabilities and entropies against the plain way."""

import pytest
import torch

from learner import logprobs
from learner.linear import linear as learner_linear
from learner.logprobs import chunked_logprobs

TOKENS, HIDDEN, VOCABULARY = 13, 8, 29


def plain(
    hidden: torch.Tensor, head: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    logits = hidden @ head.T + (0 if bias is None else bias)
    logprobs = (logits / temperature).log_softmax(-1)  # [N, V]
    return logprobs[range(len(targets)), targets], -(logprobs.exp() * logprobs).sum(-1)


def problem(with_bias: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    hidden = torch.randn(TOKENS, HIDDEN, generator=random).requires_grad_()
    head = torch.randn(VOCABULARY, HIDDEN, generator=random).requires_grad_()
    bias = torch.randn(VOCABULARY, generator=random).requires_grad_() if with_bias else None
    return hidden, head, bias, torch.randint(0, VOCABULARY, (TOKENS,), generator=random)


@pytest.mark.parametrize("chunk", [1, 4, 12, 13, 100])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("with_bias", [False, True])
def test_chunks_equal_the_plain_way_in_value_and_gradient(chunk: int, temperature: float, with_bias: bool) -> None:
    hidden, head, bias, targets = problem(with_bias)
    leaves = [leaf for leaf in (hidden, head, bias) if leaf is not None]
    found = chunked_logprobs(hidden, head, bias, targets, temperature=temperature, chunk=chunk)
    expected = plain(hidden, head, bias, targets, temperature)
    for ours, truth in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-5, atol=1e-5)
        gradients = torch.autograd.grad((ours * torch.arange(TOKENS)).sum(), leaves, retain_graph=True)
        truths = torch.autograd.grad((truth * torch.arange(TOKENS)).sum(), leaves, retain_graph=True)
        torch.testing.assert_close(gradients, truths, rtol=1e-4, atol=1e-4)


def test_no_tokens_give_no_logprobs_and_a_zero_gradient() -> None:
    hidden, head, _, targets = problem(False)
    logprob, entropy = chunked_logprobs(hidden[:0], head, None, targets[:0], temperature=1.0, chunk=4)
    assert logprob.shape == entropy.shape == (0,)
    (logprob.sum() + entropy.sum()).backward()  # type: ignore[no-untyped-call]
    assert head.grad is not None
    assert (head.grad == 0).all()


@pytest.mark.parametrize("chunk", [3, 13])
def test_logits_never_exist_for_more_tokens_than_a_chunk(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[torch.Tensor] = []  # logits of the passes so far, as the graph holds them
    shapes: list[tuple[int, ...]] = []
    linear = learner_linear

    def watched(*arguments: torch.Tensor) -> torch.Tensor:
        logits = linear(*arguments)
        shapes.append(tuple(logits.shape))
        return logits

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if VOCABULARY in tensor.shape and HIDDEN not in tensor.shape:
            alive.append(tensor)
        return tensor

    monkeypatch.setattr(logprobs, "linear", watched)
    hidden, head, _, targets = problem(False)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        logprob, _ = chunked_logprobs(hidden, head, None, targets, temperature=0.7, chunk=chunk)
    forward = len(shapes)
    kept = {tensor.shape for tensor in alive}
    logprob.sum().backward()  # type: ignore[no-untyped-call]
    assert all(shape[0] <= chunk for shape in shapes)
    assert kept == (set() if chunk < TOKENS else {(TOKENS, VOCABULARY)})  # several chunks: recomputed, never kept
    assert len(shapes) == (2 * forward if chunk < TOKENS else forward)


def test_bfloat16_states_give_float32_logprobs() -> None:
    hidden, head, _, targets = problem(False)
    logprob, entropy = chunked_logprobs(hidden.bfloat16(), head.bfloat16(), None, targets, temperature=1.0, chunk=5)
    assert logprob.dtype == entropy.dtype == torch.float32
    torch.testing.assert_close(logprob, plain(hidden, head, None, targets, 1.0)[0], rtol=0.02, atol=0.1)
