"""The options of the policy network: precision, memory, adapters. Apart from the code that imports torch."""

import os
from dataclasses import dataclass

from protocol.options import option

ALL_LINEAR = "all-linear"


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    """The network that is trained: precision, memory, LoRA."""

    param_dtype: str = option(
        "float32", "compute dtype of FSDP2 mixed precision: `float32` or `bfloat16`; masters are float32"
    )
    fp32_head: bool = option(False, "keep logits in the float32 in which they are summed, whatever `param_dtype` says")
    logprob_chunk: int = option(1024, "completion tokens whose logits exist at the same time")
    activation_checkpointing: bool = option(
        False, "keep only the inputs of decoder layers and compute the rest again in the backward pass"
    )
    reshard: bool = option(
        True, "free a layer's gathered weights after its forward pass; `false`: keep them for the backward pass"
    )
    tensor_parallel: int = option(
        1, "ranks that compute a slice of every decoder layer each, on the same part of a batch; divides all ranks"
    )
    cpu_offload: bool = option(False, "keep weights, gradients and optimizer state in host memory; for `cuda` alone")
    compile: bool = option(False, "compile each decoder layer by torch.compile, with dynamic shapes")
    lora_rank: int = option(0, "rank of LoRA adapters, which alone are trained; 0: every weight is trained")
    lora_alpha: float = option(32.0, "LoRA: adapters count `lora_alpha / lora_rank` times")
    lora_targets: list[str] = option(
        [ALL_LINEAR], "LoRA: names of linear layers such as `q_proj`; `all-linear`: all but the LM head"
    )


def check_model(model: ModelConfig, device: str) -> None:
    """Refuse what could not work on `device` (`auto`, `cpu` or `cuda`). Raises `ValueError`."""
    if model.param_dtype not in ("float32", "bfloat16"):
        raise ValueError(f"policy.param_dtype={model.param_dtype}: must be one of float32, bfloat16")
    if model.logprob_chunk < 1:
        raise ValueError(f"policy.logprob_chunk={model.logprob_chunk}: must be at least 1")
    if model.tensor_parallel < 1:
        raise ValueError(f"policy.tensor_parallel={model.tensor_parallel}: must be at least 1")
    if model.tensor_parallel > 1 and model.lora_rank:
        raise ValueError(
            f"policy.tensor_parallel={model.tensor_parallel} with policy.lora_rank={model.lora_rank}: adapters of "
            "sliced layers are not there; use one of them"
        )
    if model.tensor_parallel > 1 and model.compile:
        raise ValueError(
            f"policy.tensor_parallel={model.tensor_parallel} with policy.compile=true: torch's compiler fails "
            "on the gradient of sliced layers; use one of them"
        )
    if model.cpu_offload and device == "cpu":
        raise ValueError(
            "policy.cpu_offload=true on the device cpu: weights are in host memory already; use cpu_offload=false"
        )
    if model.compile and os.environ.get("TORCHDYNAMO_DISABLE") == "1":
        raise ValueError(
            "policy.compile=true with TORCHDYNAMO_DISABLE=1 in the environment, which turns the compiler off: unset it "
            "or use compile=false"
        )
    if model.lora_rank < 0:
        raise ValueError(f"policy.lora_rank={model.lora_rank}: must be 0 (no adapters) or more")
    if not model.lora_alpha > 0:
        raise ValueError(f"policy.lora_alpha={model.lora_alpha}: must be above 0, adapters are scaled by it")
    if model.lora_rank and not model.lora_targets:
        raise ValueError("policy.lora_targets=[]: adapters need a layer; use policy.lora_targets=[all-linear]")
