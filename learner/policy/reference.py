"""The reference policy of the KL term: frozen, or replaced by the current policy every so many steps."""

from pathlib import Path

import torch
from torch.distributed.fsdp import FSDPModule

from learner.config import LearnerRoot
from learner.distributed import Ranks
from learner.policy.model import Policy, load


def load_reference(config: LearnerRoot, ranks: Ranks) -> Policy | None:
    """The reference that the loss needs, sharded like the policy; None without a KL term. Raises `ValueError`."""
    if not config.loss.kl_coefficient:
        return None
    directory = Path(config.loss.kl_reference or config.model)
    try:
        reference = load(directory, ranks, config.policy)
    except ValueError as error:
        raise ValueError(f"the reference policy of the KL term (loss.kl_reference): {error}") from None
    return reference.requires_grad_(False)


@torch.no_grad()
def replace(reference: Policy, policy: Policy) -> None:
    """Let `reference` hold the present weights of `policy`, shard by shard."""
    for module in (*reference.modules(), *policy.modules()):
        if isinstance(module, FSDPModule):
            module.reshard()  # a forward pass may have left whole parameters behind
    for old, new in zip(reference.parameters(), policy.parameters(), strict=True):
        old.copy_(new)
