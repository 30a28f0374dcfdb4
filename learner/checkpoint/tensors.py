"""The tensors of a training checkpoint: weights, optimizer moments and random states, by name.

They are written and read by `torch.distributed.checkpoint` in safetensors files, each rank its own shards, so that a
checkpoint can be read by another number of ranks, and by one process for the weights alone. No pickle is in them.

Names: `policy.<parameter>`, `optimizer.state.<parameter>.<moment>`, `random.<rank>.<device>`, and
`reference.<parameter>` where the reference policy is replaced in the course of a run. What two parameters
share (tied embeddings) is stored once. Hyperparameters of the optimizer are not stored: the configuration has them.
"""

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeAlias

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from learner.checkpoint.shards import ShardWriter
from learner.distributed import Ranks
from learner.optimizer import Optimizer
from learner.policy import lora
from learner.policy.model import Policy

Tensors: TypeAlias = dict[str, torch.Tensor]

POLICY, OPTIMIZER, REFERENCE, RANDOM = "policy.", "optimizer.", "reference.", "random."
NETWORK = f"{POLICY}network."  # what follows is the HF name
OPTIONS = StateDictOptions(flatten_optimizer_state_dict=True)


def snapshot(policy: Policy, optimizer: Optimizer, reference: Policy | None, ranks: Ranks) -> Tensors:
    """A copy in CPU memory of what this rank must keep; training may go on when it returns."""
    if optimizer.inner.state:
        weights, moments = get_state_dict(policy, optimizer.inner, options=OPTIONS)
    else:  # every step so far was skipped: there are no moments, and asking for them would make some
        weights, moments = get_model_state_dict(policy, options=OPTIONS), {}
    live = _stored_weights(POLICY, policy, weights) | _tensors(OPTIMIZER, moments) | _random_states(ranks)
    if reference is not None:
        live |= _stored_weights(REFERENCE, reference, get_model_state_dict(reference, options=OPTIONS))
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in live.items()}


def write(directory: Path, tensors: Tensors, group: dist.ProcessGroup) -> None:
    """Write this rank's shards to `directory`. Collective over `group`; when it returns all ranks have written."""
    save(tensors, storage_writer=ShardWriter(directory), process_group=group)


def read(
    directory: Path,
    policy: Policy,
    optimizer: Optimizer,
    reference: Policy | None,
    ranks: Ranks,
    group: dist.ProcessGroup,
) -> None:
    """Give `policy`, `optimizer` and `reference` what `write` wrote, and this rank its random states, if it was there.

    Collective over `group`. Raises `ValueError` when the checkpoint is of another model, or damaged.
    """
    stored = _stored(directory)
    if any(name.startswith(OPTIMIZER) for name in stored):
        weights, moments = get_state_dict(policy, optimizer.inner, options=OPTIONS)
    else:
        weights, moments = get_model_state_dict(policy, options=OPTIONS), {}
    wanted = _stored_weights(POLICY, policy, weights) | _tensors(OPTIMIZER, moments)
    anchored = {} if reference is None else get_model_state_dict(reference, options=OPTIONS)
    if reference is not None:
        wanted |= _stored_weights(REFERENCE, reference, anchored)
    _demand_equal_shapes(directory, stored, wanted)
    random = {name: state for name, state in _random_states(ranks).items() if name in stored}
    load(  # into the tensors themselves
        wanted | random, storage_reader=HuggingFaceStorageReader(str(directory)), process_group=group
    )
    if moments:
        set_state_dict(policy, optimizer.inner, model_state_dict=weights, optim_state_dict=moments, options=OPTIONS)
    else:
        set_model_state_dict(policy, weights, options=OPTIONS)
    if reference is not None:
        set_model_state_dict(reference, anchored, options=OPTIONS)
    for name, state in random.items():
        if name.endswith(".cpu"):
            torch.set_rng_state(state)
        else:
            torch.cuda.set_rng_state(state, ranks.device)


def read_policy(directory: Path, dtype: torch.dtype | None = None) -> Tensors:
    """The whole weights by their HF names, floating ones in `dtype` if given, in one process without a process group.

    LoRA adapters are merged, before weights are cast to `dtype`: that takes memory for the weights twice.
    Raises `ValueError` when the checkpoint is damaged.
    """
    stored = _stored(directory)
    read_as = None if NETWORK + lora.SCALE in stored else dtype
    tensors = {
        name: torch.empty(found.size, dtype=_target(found.properties.dtype, read_as))
        for name, found in stored.items()
        if name.startswith(NETWORK)
    }
    if not tensors:
        raise ValueError(f"{directory}: holds no weights of a policy")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)  # which is what we ask for
        load(tensors, storage_reader=HuggingFaceStorageReader(str(directory)), no_dist=True)
    network = {name.removeprefix(NETWORK): tensor for name, tensor in tensors.items()}
    return {name: tensor.to(_target(tensor.dtype, dtype)) for name, tensor in lora.merged(network)}


def _target(stored: torch.dtype, asked: torch.dtype | None) -> torch.dtype:
    return asked if asked is not None and stored.is_floating_point else stored


def _stored_weights(prefix: str, policy: Policy, weights: Mapping[str, object]) -> Tensors:
    """Those that are stored, as they are: of tied ones the first."""
    aliases = {name for name, _ in policy.named_parameters(remove_duplicate=False)}
    aliases -= {name for name, _ in policy.named_parameters()}
    return _tensors(prefix, {name: value for name, value in weights.items() if name not in aliases})


def _tensors(prefix: str, state: Mapping[str, object]) -> Tensors:
    """What is a tensor and not, say, a hyperparameter, under names with a prefix."""
    return {prefix + name: value for name, value in state.items() if isinstance(value, torch.Tensor)}


def _random_states(ranks: Ranks) -> Tensors:
    """Copies of the states of torch's generators on this rank."""
    states = {f"{RANDOM}{ranks.rank}.cpu": torch.get_rng_state()}
    if ranks.device.type == "cuda":
        states[f"{RANDOM}{ranks.rank}.cuda"] = torch.cuda.get_rng_state(ranks.device)
    return states


def _stored(directory: Path) -> dict[str, TensorStorageMetadata]:
    """What the checkpoint holds, by name."""
    try:
        found = HuggingFaceStorageReader(str(directory)).read_metadata().state_dict_metadata
    except SafetensorError as error:
        raise ValueError(f"{directory}: a safetensors file is damaged: {error}") from None
    return {name: each for name, each in found.items() if isinstance(each, TensorStorageMetadata)}


def _demand_equal_shapes(directory: Path, stored: Mapping[str, TensorStorageMetadata], wanted: Tensors) -> None:
    """Refuse a checkpoint whose weights and moments are not those that are wanted, in name or shape."""
    there = {name: list(found.size) for name, found in stored.items() if not name.startswith(RANDOM)}
    here = {name: list(tensor.shape) for name, tensor in wanted.items()}
    for name in _sorted_names(there, here):
        if there.get(name) != here.get(name):
            raise ValueError(
                f"{directory}: is a checkpoint of another model: {name} is {there.get(name, 'not in it')}, the model's "
                f"{here.get(name, 'does not exist')}"
            )


def _sorted_names(*mappings: Iterable[str]) -> list[str]:
    return sorted(set().union(*mappings))
