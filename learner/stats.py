"""What a step says of the gap between sampler and learner, from per-token tensors gathered over the ranks.

Legend: N tokens of the whole batch, S sequences; ρ = π/μ of a token, W = Π ρ of a sequence.
"""

import numpy as np
import torch
import torch.distributed as dist

from learner.distributed import data_group
from learner.losses import LOG_RATIO_BOUND

COLUMNS = 5  # log ρ, entropy, bounded, sequence index, staleness


def gather_tokens(tokens: torch.Tensor) -> torch.Tensor:
    """The rows of all ranks, [N, COLUMNS] from [n, COLUMNS] each. Collective."""
    group = data_group()
    world = dist.get_world_size(group)
    if world == 1:
        return tokens
    counts = [torch.zeros(1, dtype=torch.int64, device=tokens.device) for _ in range(world)]
    dist.all_gather(counts, torch.tensor([len(tokens)], dtype=torch.int64, device=tokens.device), group=group)
    longest = int(max(count.item() for count in counts))
    padded = torch.zeros(longest, COLUMNS, dtype=tokens.dtype, device=tokens.device)
    padded[: len(tokens)] = tokens
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded, group=group)
    return torch.cat([part[: int(count.item())] for part, count in zip(parts, counts, strict=True)])


def describe(tokens: torch.Tensor, *, truncation: float) -> dict[str, object]:
    """Metrics of a step from its tokens [N, COLUMNS] (float64); `truncation` is the cap used for `ess_truncated`.

    `kl_k1`, `kl_k3`: KL(μ‖π) estimated on the sampler's tokens (Schulman 2020); `kl_k3_lag0` on tokens of the very
    weights that are trained, where only numerics differ (None without such tokens). `ess`: (ΣW)² / (S ΣW²) of the
    sequence weights. `ess_truncated`: the same of the token weights min(ρ, truncation), which are what the loss uses.
    """
    log_ratio, entropy, bounded, sequence, staleness = tokens.unbind(-1)
    clamped = log_ratio.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)
    ratios = clamped.exp()
    k3, fresh = ratios - 1 - clamped, staleness == 0
    quantiles = np.quantile(ratios.numpy(), [0.0, 0.5, 0.99, 1.0]).tolist()  # torch's refuses more than 2²⁴ values
    place = torch.unique(sequence, return_inverse=True)[1]  # [N]
    sums = torch.zeros(int(place.max()) + 1, dtype=log_ratio.dtype).index_add_(0, place, log_ratio)  # [S]
    return {
        "entropy": float(entropy.mean()),
        "clip_fraction": float(bounded.mean()),
        "ratio": dict(zip(("min", "p50", "p99", "max"), quantiles, strict=True)),
        "kl_k1": float(-clamped.mean()),
        "kl_k3": float(k3.mean()),
        "kl_k3_lag0": float(k3[fresh].mean()) if fresh.any() else None,
        "ess": effective_share((sums - sums.max()).exp()),  # a common factor changes nothing, and none overflows
        "ess_truncated": effective_share(ratios.clamp(max=truncation)),
    }


def effective_share(weights: torch.Tensor) -> float:
    """(Σw)² / (n Σw²) of weights [n]: 1 when all are equal, 1/n when one outweighs the rest."""
    return float(weights.sum() ** 2 / (len(weights) * (weights**2).sum()))
