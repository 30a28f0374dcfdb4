"""The policy: an HF causal language model, sharded by FSDP2, that scores completions.

Legend: M packed tokens of a micro-batch, N completion tokens among them, E hidden size.
"""

import logging
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from learner.batch import MicroBatch
from learner.distributed import Ranks
from learner.policy import attention, lora, tensor_parallel
from learner.policy.config import ModelConfig, check_model
from learner.policy.cost import cost_of
from learner.policy.linear import speed_up
from learner.policy.logprobs import chunked_logprobs

log = logging.getLogger("learner")


class Policy(nn.Module):
    """Wraps an HF model so that one sharded forward pass goes from token ids to log-probabilities."""

    network: PreTrainedModel

    def __init__(self, network: PreTrainedModel, *, chunk: int, fp32_head: bool) -> None:
        super().__init__()
        self.network = network
        self.chunk = chunk
        self.fp32_head = fp32_head
        self.cost = cost_of(network)

    def forward(self, batch: MicroBatch, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities [N] float32 of the completion tokens, in the sampler's convention, and entropies [N].

        The sequences are packed in one row; positions restart at each, and attention keeps them apart. Raises
        `ValueError` where something else of the network would not.
        """
        attention.check_lengths(self.network.config.get_text_config(), batch.packing)
        backbone, head = self.network.base_model, self.network.get_output_embeddings()
        hidden = backbone(
            input_ids=batch.input_ids.unsqueeze(0),
            position_ids=batch.position_ids.unsqueeze(0),
            packing=batch.packing,
            use_cache=False,
        ).last_hidden_state  # [1, M, E]
        chosen = hidden[0, batch.positions]  # [N, E]
        return chunked_logprobs(
            chosen,
            head.weight,
            head.bias,
            batch.targets,
            temperature=temperature,
            chunk=self.chunk,
            fp32_head=self.fp32_head,
        )


def load(directory: Path, ranks: Ranks, config: ModelConfig) -> Policy:
    """Load an HF checkpoint and shard it. Master weights are float32; compute runs in `config.param_dtype`.

    Raises `ValueError` when the directory holds no whole causal language model, or one that cannot be packed, and for
    an option that cannot work here.
    """
    check_model(config, ranks.device.type)
    if not (directory / "config.json").is_file():
        raise ValueError(f"model={directory}: must be a directory with an HF checkpoint, but has no config.json")
    try:
        described = AutoConfig.from_pretrained(directory, local_files_only=True)
        if config.activation_checkpointing:
            still(described.get_text_config())
        network, loading = AutoModelForCausalLM.from_pretrained(
            directory,
            config=described,
            dtype=torch.float32,
            attn_implementation=attention.NAME,
            local_files_only=True,
            output_loading_info=True,
        )
    except (
        OSError,
        ValueError,
        RuntimeError,
        KeyError,
        AttributeError,
    ) as error:  # the last two from old architectures
        problem = f"{type(error).__name__}: {error}"
        raise ValueError(f"model={directory}: cannot be loaded as an HF causal language model: {problem}") from None
    if loading["missing_keys"]:
        missing = ", ".join(sorted(loading["missing_keys"])[:3])
        raise ValueError(f"model={directory}: the checkpoint lacks weights ({missing}), they would start at random")
    attention.check_packable(network)
    if config.lora_rank:
        lora.add_adapters(network, rank=config.lora_rank, alpha=config.lora_alpha, targets=config.lora_targets)
    if ranks.tensor_mesh is None:
        speed_up(network)
    else:
        tensor_parallel.split(network, ranks.tensor_mesh)
    return shard(Policy(network, chunk=config.logprob_chunk, fp32_head=config.fp32_head), ranks, config)


def still(described: PretrainedConfig) -> None:
    """Turn off what makes a network random while it trains: its log-probabilities would not be the sampler's."""
    for name, value in described.to_dict().items():
        if ("drop" in name or "jitter" in name) and isinstance(value, float) and value > 0:
            log.info("%s=%g of the checkpoint is set to 0 while it trains", name, value)
            setattr(described, name, 0.0)


def shard(policy: Policy, ranks: Ranks, config: ModelConfig) -> Policy:
    """Shard each decoder layer, then the rest, over the ranks; gradients are summed, not averaged, over them."""
    network = policy.network
    if config.activation_checkpointing:
        network.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        policy.train()  # in evaluation transformers keeps every activation
    precision = MixedPrecisionPolicy(param_dtype=getattr(torch, config.param_dtype), reduce_dtype=torch.float32)
    offload = CPUOffloadPolicy() if config.cpu_offload else OffloadPolicy()
    for layer in network.base_model.layers:
        if config.compile:
            layer.compile(dynamic=True)
        fully_shard(
            layer, mesh=ranks.mesh, mp_policy=precision, offload_policy=offload, reshard_after_forward=config.reshard
        )
    fully_shard(policy, mesh=ranks.mesh, mp_policy=precision, offload_policy=offload, reshard_after_forward=False)
    for module in policy.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)  # the loss is normalised globally already
            module.set_force_sum_reduction_for_comms(True)  # gloo knows no other
    return policy


def full_state(policy: Policy) -> Iterator[tuple[str, torch.Tensor]]:
    """Every parameter and buffer whole, by its HF name, `lm_head.weight` also when tied. Collective over the ranks.

    LoRA adapters are part of the weights beside which they stand; the weights that are trained do not change by this.
    Raises `ValueError` when adapters were restored that had another `lora_alpha`.
    """
    lora.demand_own_scale(policy.network)
    return lora.merged(policy.network.state_dict())
