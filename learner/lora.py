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
from learner.model_config import ALL_LINEAR

ADAPTER = "default"  # peft's name of the only adapter
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


def merged(network: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """Every parameter and buffer whole, by its HF name, adapters added to a copy of their weights. Collective."""
    state = network.state_dict()
    layers = {name: layer for name, layer in network.named_modules() if isinstance(layer, LoraLayer)}
    for name, tensor in state.items():
        layer_name, base, own = name.partition(".base_layer.")
        if base:
            weight = whole(tensor)
            if own == "weight":
                weight = weight + _product(state, layer_name, layers[layer_name])
            yield f"{layer_name}.{own}", weight
        elif ".lora_" not in name:
            yield name, whole(tensor)


def _product(state: Mapping[str, torch.Tensor], name: str, layer: LoraLayer) -> torch.Tensor:
    """(alpha / r) · B · A of one layer, [O, I]."""
    down, up = (whole(state[f"{name}.{which}.{ADAPTER}.weight"]) for which in ("lora_A", "lora_B"))  # [r, I], [O, r]
    scale: float = layer.scaling[ADAPTER]
    return scale * (up @ down)
