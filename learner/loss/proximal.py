"""The proximal policy p: the anchor of the trust region. Legend: `learner.loss.tokens`.

Three ways to have it: `recompute` takes the current policy at the start of the batch, exactly (AReaL, Fu et al. 2025);
with one update a batch that is sg(π) and costs nothing, with several it costs one more forward pass. `behaviour` takes
the sampler. `loglinear` interpolates between the two, at no cost.
"""

import torch


def loglinear(
    learner_logprobs: torch.Tensor,  # [N]
    behaviour_logprobs: torch.Tensor,  # [N]
    staleness: torch.Tensor,  # [N] int64, of the batch's policy version
) -> torch.Tensor:
    """log p = log μ + α (sg(log π) − log μ) [N], α = d/(d + 1) for a token of staleness d.

    The step leads from version v to v + 1; p, the policy at v, lies d/(d + 1) of the way from the sampler's version
    v − d to v + 1. At d = 0 the sampler was the anchor itself. AReaL (2026), proximal approximation.
    Fails when the policy did not move at a steady pace, as right after a warm-up or a skipped step.
    """
    alpha = staleness / (staleness + 1)
    return behaviour_logprobs + alpha * (learner_logprobs.detach() - behaviour_logprobs)
