"""The faster linear layer is torch's own, in value and gradient."""

import pytest
import torch
from torch import nn

from learner.policy.linear import linear, product, speed_up

WAYS = (linear, nn.functional.linear)


def made(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    random = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=random).to(dtype).requires_grad_()


@pytest.mark.parametrize("shape", [(8,), (1, 8), (13, 8), (3, 5, 8), (0, 8)])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_it_equals_torchs_linear_in_value_and_gradient(
    shape: tuple[int, ...], with_bias: bool, dtype: torch.dtype
) -> None:
    leaves = [made(*shape, dtype=dtype), made(6, 8, dtype=dtype)] + ([made(6, dtype=dtype)] if with_bias else [])
    found, truth = linear(*leaves), nn.functional.linear(*leaves)
    torch.testing.assert_close(found, truth)
    weights = torch.linspace(-1, 1, truth.numel(), dtype=dtype).view(truth.shape)
    gradients = [torch.autograd.grad((value * weights).sum(), leaves) for value in (found, truth)]
    torch.testing.assert_close(gradients[0], gradients[1])


def test_inputs_that_are_not_contiguous_are_multiplied_right() -> None:
    inputs, weight = made(8, 5).T, made(8, 6).T
    torch.testing.assert_close(linear(inputs, weight), nn.functional.linear(inputs, weight))
    gradients = [torch.autograd.grad(way(inputs, weight).cos().sum(), [inputs, weight]) for way in WAYS]
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("rows", [0, 1, 13])
def test_a_product_is_summed_and_given_in_the_dtype_asked_for(dtype: torch.dtype, rows: int) -> None:
    left, right = made(8, rows, dtype=dtype).detach().t(), made(6, 8, dtype=dtype).detach()
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    found = product(left, right, wide)
    assert found.dtype == wide
    torch.testing.assert_close(found, (left.double() @ right.double().t()).to(wide))


def test_a_network_keeps_names_and_results_and_a_frozen_layer_stays_frozen() -> None:
    network = nn.Sequential(nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 4, bias=False))
    inputs = made(3, 8)
    names, before = list(network.state_dict()), network(inputs)
    network[0].requires_grad_(False)
    speed_up(network)
    assert list(network.state_dict()) == names
    torch.testing.assert_close(network(inputs), before)
    network(inputs).sum().backward()
    assert network[0].weight.grad is None
    assert network[2].weight.grad is not None
