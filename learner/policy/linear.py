"""The linear layer, by the faster of torch's two CPU libraries.

torch multiplies float32 matrices on the CPU by MKL, which uses half of what an AMD core can do; its oneDNN kernels use
all of it, so that a training step takes a quarter less. Elsewhere, in other dtypes, and in compiled code, whose
compiler cannot place that kernel between operations of its own, this is torch's own linear.
"""

from typing import Any

import torch
from torch import nn
from torch.autograd.function import FunctionCtx

HERE = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]


def linear(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """inputs [..., I] · weight [O, I]ᵀ + bias [O], as [..., O]."""
    fits = inputs.device.type == "cpu" and inputs.dtype == torch.float32 and inputs.dim() > 1 and inputs.numel() > 0
    if not (HERE and fits) or torch.compiler.is_compiling():
        return nn.functional.linear(inputs, weight, bias)
    product: torch.Tensor = _Product.apply(inputs, weight)  # type: ignore[no-untyped-call]
    return product if bias is None else product + bias


def product(left: torch.Tensor, right: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """left [M, K] · right [N, K]ᵀ, as [M, N] in `dtype`, which is summed in and never rounded on the way."""
    halves = left.dtype == right.dtype and left.dtype in (torch.bfloat16, torch.float16)
    if left.is_cuda and halves and dtype == torch.float32:
        return torch.mm(left, right.t(), out_dtype=dtype)  # tensor cores, without a float32 copy of either
    left, right = left.to(dtype), right.to(dtype)
    if HERE and left.device.type == "cpu" and dtype == torch.float32 and left.numel() > 0:
        return _multiply(left, right)
    return left @ right.t()


def speed_up(network: nn.Module) -> None:
    """Let every plain linear layer of `network` compute by `linear`."""
    for module in network.modules():
        if type(module) is nn.Linear:
            module.__class__ = _Linear


class _Linear(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return linear(input, self.weight, self.bias)


class _Product(torch.autograd.Function):
    """X · Wᵀ, with dX = G · W and dW = Gᵀ · X for the gradient G of the product. Transposes are never copied."""

    @staticmethod
    def forward(ctx: FunctionCtx, inputs: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(inputs, weight)
        return _multiply(inputs.flatten(0, -2), weight).view(*inputs.shape[:-1], len(weight))

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        inputs, weight = ctx.saved_tensors
        rows = gradient.flatten(0, -2)  # [M, O]
        of_inputs = _multiply(rows, weight.t()).view(inputs.shape) if ctx.needs_input_grad[0] else None
        of_weight = _multiply(rows.t(), inputs.flatten(0, -2).t()) if ctx.needs_input_grad[1] else None
        return of_inputs, of_weight


def _multiply(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """left [M, K] · right [N, K]ᵀ."""
    product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(left, right, None, "none", [], "")
    return product
