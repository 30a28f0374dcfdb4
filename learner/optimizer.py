"""AdamW with linear warm-up and, where the end is known, linear decay, on sharded parameters."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from learner.config import OptimizerConfig
from learner.distributed import whole
from learner.policy.model import Policy


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a gradient."""

    norm: float  # before clipping
    lr: float  # of the update, 0 when there was none
    skipped: str  # why the weights stayed as they were: `not_finite`, `no_signal`, or nothing

    @property
    def broken(self) -> bool:
        """Whether the gradient held a NaN or an infinity."""
        return self.skipped == "not_finite"


@dataclass(slots=True)
class Optimizer:
    """Clips, then steps. A gradient that is not finite is thrown away, and so is one of zero: AdamW would make a step
    of its momentum alone.
    """

    policy: Policy
    config: OptimizerConfig
    inner: torch.optim.AdamW
    decay_steps: int = 0
    steps: int = 0

    @property
    def lr(self) -> float:
        """Learning rate of the next step."""
        warmth = min(1.0, (self.steps + 1) / max(1, self.config.warmup_steps))
        left = max(0.0, 1 - self.steps / self.decay_steps) if self.decay_steps else 1.0
        return self.config.lr * warmth * left

    def step(self, scale: float = 1.0) -> Outcome:
        """One update from the gradients there are, which it clears, at `scale` times the learning rate. Collective."""
        norm, lr = self._clip(), self.lr * scale
        skipped = "not_finite" if not math.isfinite(norm) else "no_signal" if norm == 0 else ""
        if not skipped:
            for group in self.inner.param_groups:
                group["lr"] = lr
            self.inner.step()
        self.inner.zero_grad()
        self.steps += 1
        return Outcome(norm, 0.0 if skipped else lr, skipped)

    def discard(self) -> float:
        """Throw the gradients away; returns their norm. Collective."""
        norm = self._clip()
        self.inner.zero_grad()
        return norm

    def _clip(self) -> float:
        return clip((group["params"] for group in self.inner.param_groups), self.config.max_grad_norm)


def build(policy: Policy, config: OptimizerConfig, *, decay_steps: int = 0) -> Optimizer:
    """AdamW over what `policy` trains; its rate falls linearly to 0 over `decay_steps`, or stays if that is 0."""
    inner = torch.optim.AdamW(
        [{"params": parameters} for parameters in by_mesh(policy)],
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        weight_decay=config.weight_decay,
    )
    return Optimizer(policy, config, inner, decay_steps)


def by_mesh(policy: Policy) -> list[list[nn.Parameter]]:
    """What `policy` trains, apart by the mesh over which it is sharded: no operation takes tensors of several.

    With tensor parallelism the slices of layers have another mesh than what is whole in every process.
    """
    found: dict[DeviceMesh | None, list[nn.Parameter]] = {}
    for parameter in policy.parameters():
        if parameter.requires_grad:
            mesh = parameter.device_mesh if isinstance(parameter, DTensor) else None
            found.setdefault(mesh, []).append(parameter)
    return list(found.values())


def clip(groups: Iterable[Sequence[nn.Parameter]], bound: float) -> float:
    """Scale all gradients down to a common norm of `bound`, if it is larger. Returns the norm before. Collective."""
    groups = list(groups)
    norms = [
        whole(get_total_norm([each.grad for each in parameters if each.grad is not None])) for parameters in groups
    ]
    norm = torch.linalg.vector_norm(torch.stack(norms))
    for parameters in groups:
        clip_grads_with_norm_(parameters, bound, norm)
    return float(norm)
