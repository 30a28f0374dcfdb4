"""LoRA: small trained matrices beside frozen linear layers, and the weights that result from both.

Legend: W [O, I] a frozen weight, A [r, I] and B [O, r] its adapter; the layer computes with W + (alpha / r) · B · A
(Hu et al. 2021, "LoRA", section 4.1). B starts at 0, so that the network starts as the checkpoint.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedModel

from learner.distributed import whole
from learner.policy.config import ALL_LINEAR

ADAPTER = "default"  # peft's name of the only adapter
SCALE = "lora_scale"  # the buffer that holds alpha / r, so that a training checkpoint can be merged by itself
SEED = 0  # of A; the same on all ranks, each of which keeps its shard


def add_adapters(network: PreTrainedModel, *, rank: int, alpha: float, targets: Sequence[str]) -> None:
    """Freeze `network` and put an adapter beside each linear layer that `targets` name, in place.

    Raises `ValueError` when a target names no linear layer, or the LM head.
    """
    names = _linear_layers(network, targets)
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=names, lora_dropout=0.0, bias="none")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        inject_adapter_in_model(config, network, adapter_name=ADAPTER)
    network.register_buffer(SCALE, torch.tensor(alpha / rank))


def _linear_layers(network: PreTrainedModel, targets: Sequence[str]) -> list[str]:
    """The full names of the linear layers that `targets` name by their last part, or all of them."""
    head = network.get_output_embeddings()
    layers = [name for name, module in network.named_modules() if isinstance(module, nn.Linear) and module is not head]
    kinds = {name.rpartition(".")[2] for name in layers}
    for target in targets:
        if target != ALL_LINEAR and target not in kinds:
            raise ValueError(
                f"policy.lora_targets: {target!r} names no linear layer inside the decoder; "
                f"there are {', '.join(sorted(kinds))}, or {ALL_LINEAR}"
            )
    return [name for name in layers if ALL_LINEAR in targets or name.rpartition(".")[2] in targets]


def merged(state: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """The state of a network under plain HF names: adapters are added to a copy of their weights. Collective.

    `state` holds whole or sharded tensors; those that are yielded are whole. Without adapters they are as they are.
    """
    scale = float(state[SCALE]) if SCALE in state else 0.0
    for name, tensor in state.items():
        layer, base, own = name.partition(".base_layer.")
        if base:
            weight = whole(tensor)
            if own == "weight":
                down, up = (whole(state[f"{layer}.{which}.{ADAPTER}.weight"]) for which in ("lora_A", "lora_B"))
                weight = weight + scale * (up @ down)  # [O, I]
            yield f"{layer}.{own}", weight
        elif ".lora_" not in name and name != SCALE:
            yield name, whole(tensor)


def demand_own_scale(network: nn.Module) -> None:
    """Refuse adapters that were trained with another scale than this network computes with. Raises `ValueError`."""
    stored = dict(network.named_buffers()).get(SCALE)
    layer = next((module for module in network.modules() if isinstance(module, LoraLayer)), None)
    if (
        stored is not None
        and layer is not None
        and float(stored) != (own := float(torch.tensor(layer.scaling[ADAPTER])))
    ):
        raise ValueError(
            f"policy.lora_alpha: adapters count {own:g} times, but were trained to count {float(stored):g} times; use "
            "the policy.lora_alpha of the run that is taken up"
        )
