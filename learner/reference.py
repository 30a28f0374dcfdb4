"""The reference policy of the KL term: frozen, or replaced by the current policy every so many steps."""

from pathlib import Path

import torch

from learner.config import LearnerRoot
from learner.distributed import Ranks
from learner.model import Policy, load


def load_reference(config: LearnerRoot, ranks: Ranks) -> Policy | None:
    """The reference that the loss needs, sharded like the policy; None without a KL term. Raises `ValueError`."""
    if not config.loss.kl_coefficient:
        return None
    directory = Path(config.loss.kl_reference or config.model)
    settings = config.learner
    reference = load(directory, ranks, param_dtype=settings.param_dtype, chunk=settings.logprob_chunk)
    return reference.requires_grad_(False)


@torch.no_grad()
def replace(reference: Policy, policy: Policy) -> None:
    """Let `reference` hold the present weights of `policy`, shard by shard."""
    for old, new in zip(reference.parameters(), policy.parameters(), strict=True):
        old.copy_(new)
