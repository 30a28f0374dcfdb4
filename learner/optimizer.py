"""AdamW with linear warm-up and, where the end is known, linear decay, on sharded parameters."""

import math
from dataclasses import dataclass

import torch
from torch.distributed.tensor import DTensor

from learner.config import OptimizerConfig
from learner.model import Policy


@dataclass(slots=True)
class Optimizer:
    """Clips, then steps; a gradient that is not finite is thrown away instead."""

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

    def step(self) -> float:
        """One update from the gradients there are, which it clears. Returns their norm before clipping.

        A norm that is not finite leaves weights and moments untouched.
        """
        found = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.config.max_grad_norm)
        norm = float(found.full_tensor() if isinstance(found, DTensor) else found)
        if math.isfinite(norm):
            for group in self.inner.param_groups:
                group["lr"] = self.lr
            self.inner.step()
        self.inner.zero_grad()
        self.steps += 1
        return norm


def build(policy: Policy, config: OptimizerConfig, *, decay_steps: int = 0) -> Optimizer:
    """AdamW over what `policy` trains; its rate falls linearly to 0 over `decay_steps`, or stays if that is 0."""
    inner = torch.optim.AdamW(
        [parameter for parameter in policy.parameters() if parameter.requires_grad],
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        weight_decay=config.weight_decay,
    )
    return Optimizer(policy, config, inner, decay_steps)
