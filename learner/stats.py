"""What a step says of the gap between sampler and learner, from per-token numbers gathered over the ranks.

Legend: N tokens of the whole batch, S sequences; ρ = π/μ of a token, W = Π ρ of a sequence.
"""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch
import torch.distributed as dist

from learner.batch import MicroBatch
from learner.distributed import data_group
from learner.loss.compose import TokenLoss
from learner.loss.tokens import LOG_RATIO_BOUND

COLUMNS = (
    *("log_ratio", "entropy", "bounded", "weight", "advantage"),
    *("sequence", "group", "staleness", "kl", "loss"),
)
BUCKETS = (0, 1, 2, 4, 8, 16, 32, 64)  # greatest staleness of each bucket; the last one also holds what is older

TokenStats: TypeAlias = dict[str, torch.Tensor]  # column → [n] float64


def of_tokens(batch: MicroBatch, logprobs: torch.Tensor, entropy: torch.Tensor, token: TokenLoss) -> TokenStats:
    """The columns of the trained tokens of a micro-batch."""
    columns = (
        *(logprobs - batch.behaviour_logprobs, entropy, token.bounded, token.weight, batch.advantages),
        *(batch.sequence_index, batch.group_index, batch.staleness, token.kl, token.value.detach()),
    )
    return {name: column[batch.loss_mask].double() for name, column in zip(COLUMNS, columns, strict=True)}


def join(parts: Sequence[TokenStats]) -> TokenStats:
    """Several micro-batches as one."""
    return {name: torch.cat([part[name] for part in parts]) for name in COLUMNS}


def gather(parts: Sequence[TokenStats]) -> TokenStats:
    """The tokens of all parts of all ranks, on the CPU. Collective; parts may be none, if so on every rank."""
    if not parts:
        return {name: torch.empty(0, dtype=torch.float64) for name in COLUMNS}
    own = join(parts)
    rows = gather_rows(torch.stack([own[name] for name in COLUMNS], dim=-1)).cpu()  # [N, columns]
    return dict(zip(COLUMNS, rows.t().contiguous(), strict=True))


def gather_rows(rows: torch.Tensor) -> torch.Tensor:
    """The rows of all ranks, [N, C] from [n, C] each. Collective."""
    group = data_group()
    world = dist.get_world_size(group)
    if world == 1:
        return rows
    counts = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(world)]
    dist.all_gather(counts, torch.tensor([len(rows)], dtype=torch.int64, device=rows.device), group=group)
    longest = int(max(count.item() for count in counts))
    padded = rows.new_zeros(longest, rows.shape[1])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded, group=group)
    return torch.cat([part[: int(count.item())] for part, count in zip(parts, counts, strict=True)])


def describe(tokens: TokenStats, *, truncation: float) -> dict[str, object]:
    """Metrics of a step from its trained tokens; `truncation` is the cap used for `ess_truncated`. None: no such token.

    `kl_k1`, `kl_k3`: KL(μ‖π) estimated on the sampler's tokens (Schulman 2020), at lag 0 (the weights that sampled are
    the weights that are trained: what is left is numerics) and above it (drift) apart. `chi2`: mean (ρ − 1)². `ess`:
    (ΣW)² / (S ΣW²) of the sequence weights. `ess_truncated`: the same of the token weights min(ρ, truncation).
    `clip_fraction`: tokens whose gradient the objective cut or whose weight it capped; `mask_fraction`: tokens that a
    correction rejected; both also by the sign of the advantage.
    """
    ratios = tokens["log_ratio"].clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND).exp()  # [N]
    fresh, rejected = tokens["staleness"] == 0, tokens["weight"] == 0  # [N]
    up, down = tokens["advantage"] > 0, tokens["advantage"] < 0  # [N]
    everything = torch.ones_like(fresh)
    return {
        "entropy": _mean(tokens["entropy"], everything),
        "reference_kl": _mean(tokens["kl"], everything),
        "clip_fraction": _mean(tokens["bounded"], everything),
        "clip_fraction_positive": _mean(tokens["bounded"], up),
        "clip_fraction_negative": _mean(tokens["bounded"], down),
        "mask_fraction": _mean(rejected.double(), everything),
        "mask_fraction_positive": _mean(rejected.double(), up),
        "mask_fraction_negative": _mean(rejected.double(), down),
        **_gap(tokens, everything),
        "kl_k3_lag0": _gap(tokens, fresh)["kl_k3"],
        "kl_k3_stale": _gap(tokens, ~fresh)["kl_k3"],
        "ess": sequence_ess(tokens) if len(ratios) else None,
        "ess_truncated": effective_share(ratios.clamp(max=truncation)) if len(ratios) else None,
        "by_staleness": _by_staleness(tokens, ratios, rejected),
    }


def sequence_ess(tokens: TokenStats) -> float:
    """(ΣW)² / (S ΣW²) of the sequence weights W; 1 without any sequence."""
    if not len(tokens["sequence"]):
        return 1.0
    place = torch.unique(tokens["sequence"], return_inverse=True)[1]  # [N]
    sums = torch.zeros(int(place.max()) + 1, dtype=torch.float64).index_add_(0, place, tokens["log_ratio"])  # [S]
    return effective_share((sums - sums.max()).exp())  # a common factor changes nothing, and none overflows


def effective_share(weights: torch.Tensor) -> float:
    """(Σw)² / (n Σw²) of weights [n]: 1 when all are equal, 1/n when one outweighs the rest."""
    return float(weights.sum() ** 2 / (len(weights) * (weights**2).sum()))


def bucket_name(place: int) -> str:
    """The name of a bucket of staleness: `0`, `1`, `2`, `3-4`, …, `33+`."""
    high = BUCKETS[place]
    low = BUCKETS[place - 1] + 1 if place else 0
    if place == len(BUCKETS) - 1:
        return f"{low}+"
    return str(high) if low == high else f"{low}-{high}"


def _by_staleness(tokens: TokenStats, ratios: torch.Tensor, rejected: torch.Tensor) -> dict[str, dict[str, object]]:
    """The same figures for each bucket of staleness that has tokens."""
    edges = torch.tensor(BUCKETS[:-1], dtype=torch.float64)
    place = torch.bucketize(tokens["staleness"], edges)  # [N]; a bucket's own edge is its greatest staleness
    return {
        bucket_name(bucket): {
            "tokens": int((place == bucket).sum()),
            **_gap(tokens, place == bucket),
            "ess": effective_share(ratios[place == bucket]),  # of token weights
            "clip_fraction": _mean(tokens["bounded"], place == bucket),
            "mask_fraction": _mean(rejected.double(), place == bucket),
        }
        for bucket in sorted(set(place.tolist()))
    }


def _gap(tokens: TokenStats, chosen: torch.Tensor) -> dict[str, object]:
    """Ratio quantiles and divergences of the chosen tokens."""
    log_ratio = tokens["log_ratio"][chosen].clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)
    if not len(log_ratio):
        return {"ratio": None, "kl_k1": None, "kl_k3": None, "chi2": None}
    ratios = log_ratio.exp()
    quantiles = np.quantile(ratios.numpy(), [0.0, 0.5, 0.99, 1.0]).tolist()  # torch's refuses more than 2²⁴ values
    return {
        "ratio": dict(zip(("min", "p50", "p99", "max"), quantiles, strict=True)),
        "kl_k1": float(-log_ratio.mean()),
        "kl_k3": float((ratios - 1 - log_ratio).mean()),
        "chi2": float((ratios - 1).square().mean()),
    }


def _mean(values: torch.Tensor, chosen: torch.Tensor) -> float | None:
    kept = values[chosen]
    return float(kept.mean()) if len(kept) else None
