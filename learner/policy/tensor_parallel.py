"""Tensor parallelism: the processes of one place compute a slice of every decoder layer each.

Which layers are cut, and how, is transformers' own plan of the architecture. Embeddings, norms and the LM head stay
whole in every process, so that log-probabilities are computed as without it.
"""

from collections.abc import Callable, Mapping

from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from transformers import PreTrainedModel

STYLES: Mapping[str, Callable[[], ParallelStyle]] = {  # by their names in transformers
    "colwise": ColwiseParallel,
    "rowwise": RowwiseParallel,
    # Norms of single heads, between a colwise and a rowwise layer: inputs [B, L, heads, D] are cut by heads.
    "replicated_with_grad_allreduce": lambda: SequenceParallel(sequence_dim=2, use_local_output=True),
}


def split(network: PreTrainedModel, mesh: DeviceMesh) -> None:
    """Leave each process of `mesh` its slice of the decoder layers, in place.

    Raises `ValueError` for an architecture whose layers cannot be cut into as many equal slices.
    """
    config, size = network.config, mesh.size()
    refused = f"policy.tensor_parallel={size} with a {config.model_type} model"
    plan = {name: style for name, style in (config.base_model_tp_plan or {}).items() if name.startswith("layers.")}
    if not plan:
        raise ValueError(f"{refused}: transformers has no plan for it; use policy.tensor_parallel=1")
    if strange := sorted(set(plan.values()) - set(STYLES)):
        raise ValueError(
            f"{refused}: its layers need {', '.join(strange)}, of which there is only {', '.join(STYLES)}; "
            "use policy.tensor_parallel=1"
        )
    for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
        if getattr(config, name) % size:
            raise ValueError(f"{refused}: must divide its {name}={getattr(config, name)}")
    parallelize_module(network.base_model, mesh, {name: STYLES[style]() for name, style in plan.items()})
