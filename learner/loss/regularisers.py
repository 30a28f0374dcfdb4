"""What is added to the policy objective: the divergence from a reference policy. Legend: `learner.loss.tokens`.

x = log π/π_ref. On tokens of another policy μ the expectation needs the weight ρ = π/μ, and its gradient must be that
of the divergence: of k1 the plain gradient is 0 on average, of unweighted k3 it is that of another divergence (Tang &
Munos 2025; Liu et al. 2025). k1 is right inside the reward, see `learner.loss.rewards`.
"""

import torch

from learner.loss.tokens import Tokens, exp_bounded, importance_weights


def k3(x: torch.Tensor) -> torch.Tensor:
    """e^{−x} − 1 + x ≥ 0, an estimate of KL(π‖π_ref) with little variance (Schulman 2020)."""
    return exp_bounded(-x) - 1 + x


def kl_k3(tokens: Tokens) -> torch.Tensor:
    """ρ · k3(x) [N], with the gradient of both factors, (ρ k3)′ = ρ x ∇log π: that of KL(π‖π_ref) under μ.

    The gradient is written out: those of the two factors cancel but for rounding, and beyond the clamp of e^{−x} they
    would not. Fails by variance where ρ is large.
    """
    weight, x = importance_weights(tokens), _log_ratio(tokens)
    slope = (weight * x).detach()
    moved = tokens.learner_logprobs - tokens.learner_logprobs.detach()  # 0, with a gradient of 1
    return (weight * k3(x)).detach() + slope * moved


def kl_k2(tokens: Tokens) -> torch.Tensor:
    """sg(ρ) · x²/2 [N]: the gradient of `kl_k3`, token by token, but a value that is only close to the divergence."""
    return importance_weights(tokens).detach() * _log_ratio(tokens).square() / 2


def _log_ratio(tokens: Tokens) -> torch.Tensor:
    assert tokens.reference_logprobs is not None, "a KL term needs the reference's log-probabilities"
    return tokens.learner_logprobs - tokens.reference_logprobs
