"""Log-probabilities and entropies of chosen tokens, without ever holding all logits.

Legend: N tokens, H hidden size, V vocabulary, C tokens a chunk. Of the [N, V] logits only [C, V] exist at a time, in
the forward pass and, recomputed, in the backward pass; what fits into one chunk is kept for the backward pass instead.
"""

import torch
from torch.utils.checkpoint import checkpoint

from learner.linear import linear


def chunked_logprobs(
    hidden: torch.Tensor,  # [N, H], the states that predict the tokens
    head: torch.Tensor,  # [V, H]
    bias: torch.Tensor | None,  # [V]
    targets: torch.Tensor,  # [N] int64
    *,
    temperature: float,
    chunk: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability [N] float32 (nats) of each target and entropy [N] of its distribution, at `temperature`."""
    if len(targets) <= chunk:
        return _logprobs(hidden, head, bias, targets, temperature)
    logprobs, entropies = [], []
    for start in range(0, len(targets), chunk):
        piece = slice(start, start + chunk)
        logprob, entropy = checkpoint(
            _logprobs, hidden[piece], head, bias, targets[piece], temperature, use_reentrant=False
        )
        logprobs.append(logprob)
        entropies.append(entropy)
    return torch.cat(logprobs), torch.cat(entropies)


def _logprobs(
    hidden: torch.Tensor, head: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    logits = linear(hidden, head, bias).float() / temperature  # [C, V]
    normaliser = logits.logsumexp(-1)  # [C]
    logprob = logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1) - normaliser
    entropy = normaliser - (logits.softmax(-1) * logits).sum(-1)
    return logprob, entropy
