"""Log-probabilities and entropies of chosen tokens; the memory for logits grows neither with those nor the vocabulary.

The logits exist one tile at a time, `chunk` tokens by `BLOCK` entries of the vocabulary: the forward pass merges the
tiles' normalisers and entropies as it goes, the backward pass computes each tile again and adds its share to the one
gradient of the head. What fits into a single tile takes the plain way, which computes nothing twice.

Liger's `LigerFusedLinearScaledCrossEntropyFunction` (0.8.2) gives the same two values, but it is a kernel on Hopper
GPUs alone and elsewhere chunks of the whole vocabulary, takes neither a bias nor a float32 head, and needs Triton even
to be imported. Torch's own `linear_cross_entropy` (2.13) gives no entropy; multiplying once more for it would cost more
than it saves.

Legend: N tokens, H hidden size, V vocabulary, C tokens and W entries of a tile.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from learner.policy.linear import linear, product

BLOCK = 4096  # entries of the vocabulary in a tile: by 1,024 tokens 16 MiB, small enough for a CPU's caches to help


def chunked_logprobs(
    hidden: torch.Tensor,  # [N, H], the states that predict the tokens
    head: torch.Tensor,  # [V, H]
    bias: torch.Tensor | None,  # [V]
    targets: torch.Tensor,  # [N] int64
    *,
    temperature: float,
    chunk: int,
    fp32_head: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability [N] float32 (nats) of each target and entropy [N] of its distribution, at `temperature`.

    Logits are rounded to the dtype of `hidden` and `head`, as samplers do by default; with `fp32_head` they keep the
    float32 in which they are summed. All that follows is float32 either way (float64 for float64 states). A target
    outside the vocabulary is never passed over: it raises, or gives nan where the vocabulary is in blocks.
    """
    way = _plain if len(hidden) <= chunk and len(head) <= BLOCK else _tiled
    return way(hidden, head, bias, targets, temperature, chunk, fp32_head)


def _wide(dtype: torch.dtype) -> torch.dtype:
    """What follows the logits is computed in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _plain(
    hidden: torch.Tensor,
    head: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    temperature: float,
    chunk: int,
    fp32_head: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    wide = _wide(hidden.dtype)
    if fp32_head:
        hidden, head, bias = hidden.to(wide), head.to(wide), None if bias is None else bias.to(wide)
    logits = linear(hidden, head, bias).to(wide) / temperature  # [N, V]
    normaliser = logits.logsumexp(-1)  # [N]
    logprob = logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1) - normaliser
    entropy = normaliser - (logits.softmax(-1) * logits).sum(-1)
    return logprob, entropy


def _tiled(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
    logprob, entropy = _Tiled.apply(*arguments)  # type: ignore[no-untyped-call]
    return logprob, entropy


class _Tiled(torch.autograd.Function):
    """For logits z and p = softmax(z): ∂ log p(t) / ∂z = 1[t] − p; for the entropy E: ∂E / ∂z = −p · (log p + E)."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        head: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        temperature: float,
        chunk: int,
        fp32_head: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        chosen = hidden.new_full((len(hidden),), torch.nan, dtype=_wide(hidden.dtype))  # [N] the targets' logits
        normaliser = torch.full_like(chosen, torch.finfo(chosen.dtype).min)  # [N] log Σ exp z so far
        entropy = torch.zeros_like(chosen)  # [N] so far
        for block in _slices(len(head), BLOCK):
            for rows in _slices(len(hidden), chunk):
                logits = _logits(hidden[rows], head, bias, block, temperature, fp32_head)  # [C, W]
                place, inside = _place(targets[rows], block)
                chosen[rows] = torch.where(inside, logits.gather(1, place).squeeze(1), chosen[rows])
                normaliser[rows], entropy[rows] = _merged(normaliser[rows], entropy[rows], *_summary(logits))
                del logits  # before the next tile is made
        ctx.save_for_backward(hidden, head, bias, targets, normaliser, entropy)
        ctx.options = temperature, chunk, fp32_head
        ctx.set_materialize_grads(False)  # an entropy that is only reported costs the backward pass nothing
        return chosen - normaliser, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_logprob: torch.Tensor | None, of_entropy: torch.Tensor | None) -> tuple[Any, ...]:
        hidden, head, bias, targets, normaliser, entropy = ctx.saved_tensors
        temperature, chunk, fp32_head = ctx.options
        wants_hidden, wants_head, wants_bias, *_ = ctx.needs_input_grad
        pull = torch.zeros_like(entropy) if of_logprob is None else of_logprob / temperature  # [N]
        spread = None if of_entropy is None else of_entropy / temperature  # [N]
        of_hidden = torch.zeros_like(hidden, dtype=entropy.dtype) if wants_hidden else None  # [N, H]
        of_head = torch.empty_like(head) if wants_head else None  # [V, H]
        of_bias = torch.zeros_like(bias, dtype=entropy.dtype) if wants_bias else None  # [V]
        for block in _slices(len(head), BLOCK):
            share = torch.zeros_like(head[block], dtype=entropy.dtype) if wants_head else None  # [W, H]
            for rows in _slices(len(hidden), chunk):
                logits = _logits(hidden[rows], head, bias, block, temperature, fp32_head)  # [C, W]
                place, inside = _place(targets[rows], block)
                logprobs = logits.sub_(normaliser[rows, None])
                if spread is None:
                    gradient = logprobs.exp_().mul_(-pull[rows, None])
                else:
                    gradient = logprobs.exp()
                    gradient *= logprobs.add_(entropy[rows, None]).mul_(-spread[rows, None]).sub_(pull[rows, None])
                gradient.scatter_add_(1, place, (pull[rows] * inside).unsqueeze(1))
                if gradient.is_cuda:  # tensor cores multiply halves; autograd would round the gradient just so
                    gradient = gradient.to(head.dtype)
                if of_hidden is not None:
                    of_hidden[rows] += product(gradient, head[block].t(), of_hidden.dtype)
                if share is not None:
                    share += product(gradient.t(), hidden[rows].t(), share.dtype)
                if of_bias is not None:
                    of_bias[block] += gradient.sum(0, dtype=of_bias.dtype)
                del logits, logprobs, gradient  # before the next tile is made
            if of_head is not None and share is not None:
                of_head[block] = share
        return of_hidden, of_head, of_bias, None, None, None, None  # autograd casts them to the inputs' dtypes


def _slices(length: int, size: int) -> Iterator[slice]:
    """0 to `length` in pieces of `size`."""
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))


def _logits(
    hidden: torch.Tensor, head: torch.Tensor, bias: torch.Tensor | None, block: slice, temperature: float, fp32: bool
) -> torch.Tensor:
    """The tile [C, W] of hidden [C, H] and a block of the head, at `temperature`; the caller may write into it."""
    wide = _wide(hidden.dtype)
    part = None if bias is None else bias[block]
    if fp32:
        logits = product(hidden, head[block], wide)
        if part is not None:
            logits += part
    else:
        logits = linear(hidden, head[block], part).to(wide)
    return logits if temperature == 1 else logits.div_(temperature)


def _place(targets: torch.Tensor, block: slice) -> tuple[torch.Tensor, torch.Tensor]:
    """The column of each target in the tile, or of any if it is not there, [C, 1], and whether it is there, [C]."""
    place = targets - block.start
    width = block.stop - block.start
    return place.clamp(0, width - 1).unsqueeze(1), (place >= 0) & (place < width)  # no wait for a GPU's answer


def _summary(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Normaliser and entropy [C] of one tile alone. Writes into the logits [C, W]."""
    peak = logits.amax(1, keepdim=True)
    weights = logits.sub_(peak).exp()
    total = weights.sum(1)
    mean = weights.mul_(logits).sum(1) / total
    return peak.squeeze(1) + total.log(), total.log() - mean


def _merged(
    normaliser: torch.Tensor, entropy: torch.Tensor, other_normaliser: torch.Tensor, other_entropy: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Normaliser and entropy [C] of two parts together: E = Σ w · (E of the part − log w) for their shares w."""
    both = torch.logaddexp(normaliser, other_normaliser)
    share, other = normaliser - both, other_normaliser - both  # log w
    return both, share.exp() * (entropy - share) + other.exp() * (other_entropy - other)
