"""The policy: an HF causal language model, sharded by FSDP2, that scores completions.

Legend: M packed tokens of a micro-batch, N completion tokens among them, E hidden size.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from learner import attention
from learner.batch import MicroBatch
from learner.cost import cost_of
from learner.distributed import Ranks
from learner.linear import speed_up
from learner.logprobs import chunked_logprobs


class Policy(nn.Module):
    """Wraps an HF model so that one sharded forward pass goes from token ids to log-probabilities."""

    network: PreTrainedModel

    def __init__(self, network: PreTrainedModel, *, chunk: int) -> None:
        super().__init__()
        self.network = network
        self.chunk = chunk
        self.cost = cost_of(network)

    def forward(self, batch: MicroBatch, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities [N] float32 of the completion tokens, in the sampler's convention, and entropies [N].

        The sequences are packed in one row; positions restart at each, and attention keeps them apart.
        """
        backbone, head = self.network.base_model, self.network.get_output_embeddings()
        hidden = backbone(
            input_ids=batch.input_ids.unsqueeze(0),
            position_ids=batch.position_ids.unsqueeze(0),
            packing=batch.packing,
            use_cache=False,
        ).last_hidden_state  # [1, M, E]
        chosen = hidden[0, batch.positions]  # [N, E]
        return chunked_logprobs(
            chosen, head.weight, head.bias, batch.targets, temperature=temperature, chunk=self.chunk
        )


def load(directory: Path, ranks: Ranks, *, param_dtype: str, chunk: int) -> Policy:
    """Load an HF checkpoint and shard it. Master weights are float32; compute runs in `param_dtype`.

    Raises `ValueError` when the directory does not hold a whole causal language model, or one that cannot be packed.
    """
    if not (directory / "config.json").is_file():
        raise ValueError(f"model={directory}: must be a directory with an HF checkpoint, but has no config.json")
    try:
        network, loading = AutoModelForCausalLM.from_pretrained(
            directory,
            dtype=torch.float32,
            attn_implementation=attention.NAME,
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"model={directory}: cannot be loaded as an HF causal language model: {error}") from None
    if loading["missing_keys"]:
        missing = ", ".join(sorted(loading["missing_keys"])[:3])
        raise ValueError(f"model={directory}: the checkpoint lacks weights ({missing}), they would start at random")
    attention.check_packable(network)
    speed_up(network)
    return shard(Policy(network, chunk=chunk).to(ranks.device), ranks, param_dtype=param_dtype)


def shard(policy: Policy, ranks: Ranks, *, param_dtype: str) -> Policy:
    """Shard each decoder layer, then the rest, over the ranks; gradients are summed, not averaged, over them."""
    precision = MixedPrecisionPolicy(param_dtype=getattr(torch, param_dtype), reduce_dtype=torch.float32)
    for layer in policy.network.base_model.layers:
        fully_shard(layer, mesh=ranks.mesh, mp_policy=precision)
    fully_shard(policy, mesh=ranks.mesh, mp_policy=precision, reshard_after_forward=False)
    for module in policy.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)  # the loss is normalised globally already
            module.set_force_sum_reduction_for_comms(True)  # gloo knows no other
    return policy


def full_state(policy: Policy) -> Iterator[tuple[str, torch.Tensor]]:
    """Every parameter and buffer whole, by its HF name, `lm_head.weight` also when tied. Collective over the ranks."""
    for name, tensor in policy.network.state_dict().items():
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        yield name, whole.detach()
