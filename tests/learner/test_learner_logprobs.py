"""Log-probabilities and entropies by tiles against the plain way on whole logits; float64 where not said otherwise."""

from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from learner.policy import logprobs
from learner.policy.logprobs import chunked_logprobs

TOKENS, HIDDEN, VOCABULARY = 13, 8, 29
Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor]


def plain(
    hidden: torch.Tensor, head: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    logits = hidden @ head.T + (0 if bias is None else bias)
    logprobs = (logits / temperature).log_softmax(-1)  # [N, V]
    return logprobs[range(len(targets)), targets], -(logprobs.exp() * logprobs).sum(-1)


def problem(
    with_bias: bool = False,
    dtype: torch.dtype = torch.float64,
    *,
    tokens: int = TOKENS,
    hidden: int = HIDDEN,
    vocabulary: int = VOCABULARY,
) -> Inputs:
    random = torch.Generator().manual_seed(1)
    states, head, bias = (
        torch.randn(*shape, generator=random, dtype=torch.float64).to(dtype).requires_grad_()
        for shape in ((tokens, hidden), (vocabulary, hidden), (vocabulary,))
    )
    targets = torch.randint(0, vocabulary, (tokens,), generator=random)
    return states, head, bias if with_bias else None, targets


def gradients(outputs: tuple[torch.Tensor, torch.Tensor], inputs: Inputs) -> list[torch.Tensor]:
    """Of a sum in which every token's logprob and entropy has a weight of its own."""
    logprob, entropy = outputs
    weights = torch.linspace(-1, 2, len(logprob))
    total = (logprob * weights).sum() + (entropy * weights.flip(0) ** 2).sum()
    return list(torch.autograd.grad(total, [leaf for leaf in inputs[:3] if leaf is not None and leaf.requires_grad]))


def in_float64(inputs: Inputs) -> Inputs:
    """The same numbers, as leaves of their own."""
    hidden, head, bias = (
        None if leaf is None else leaf.detach().double().requires_grad_(leaf.requires_grad) for leaf in inputs[:3]
    )
    assert hidden is not None
    assert head is not None
    return hidden, head, bias, inputs[3]


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logprobs, "BLOCK", 8)


@given(
    tokens=st.integers(0, 9),
    hidden=st.integers(1, 5),
    vocabulary=st.integers(1, 17),
    chunk=st.integers(1, 10),
    block=st.integers(1, 20),
    temperature=st.sampled_from([1.0, 0.6, 2.5]),
    with_bias=st.booleans(),
    fp32_head=st.booleans(),
)
def test_tiles_of_any_size_equal_the_plain_way_in_value_and_gradient(
    tokens: int,
    hidden: int,
    vocabulary: int,
    chunk: int,
    block: int,
    temperature: float,
    with_bias: bool,
    fp32_head: bool,
) -> None:
    inputs = problem(with_bias, tokens=tokens, hidden=hidden, vocabulary=vocabulary)
    with patch.object(logprobs, "BLOCK", block):
        found = chunked_logprobs(*inputs, temperature=temperature, chunk=chunk, fp32_head=fp32_head)
        found_gradients = gradients(found, inputs)
    truth = plain(*inputs, temperature)
    torch.testing.assert_close(found, truth)
    torch.testing.assert_close(found_gradients, gradients(truth, inputs))


@pytest.mark.parametrize("which", ["logprob", "entropy", "both"])
def test_gradients_are_what_finite_differences_say(which: str, small_tiles: None) -> None:
    hidden, head, bias, targets = problem(True)

    def function(*leaves: torch.Tensor) -> Any:
        outputs = chunked_logprobs(*leaves, targets, temperature=0.7, chunk=5)
        return {"logprob": outputs[0], "entropy": outputs[1], "both": outputs}[which]

    assert torch.autograd.gradcheck(function, (hidden, head, bias))


@pytest.mark.parametrize("chunk", [1, 4, 13, 100])
@pytest.mark.parametrize("block", [8, 29])
@pytest.mark.parametrize("with_bias", [False, True])
def test_float32_is_right_to_its_own_rounding(
    chunk: int, block: int, with_bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logprobs, "BLOCK", block)
    inputs = problem(with_bias, torch.float32)
    exact = in_float64(inputs)
    found, truth = chunked_logprobs(*inputs, temperature=0.6, chunk=chunk), plain(*exact, 0.6)
    for ours, theirs in zip([*found, *gradients(found, inputs)], [*truth, *gradients(truth, exact)], strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("chunk", "block"), [(5, 8), (100, 100)])
def test_bfloat16_is_summed_in_float32_and_its_gradients_keep_its_dtype(
    chunk: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logprobs, "BLOCK", block)
    inputs = problem(True, torch.bfloat16)
    exact = in_float64(inputs)
    found, truth = chunked_logprobs(*inputs, temperature=1.0, chunk=chunk), plain(*exact, 1.0)
    for value, right in zip(found, truth, strict=True):
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), right, rtol=0, atol=0.04)  # of logits up to 10, rounded to 1 / 256
    for gradient, right in zip(gradients(found, inputs), gradients(truth, exact), strict=True):
        assert gradient.dtype == torch.bfloat16
        assert (gradient.double() - right).norm() < 0.02 * right.norm()


@pytest.mark.parametrize(("chunk", "block"), [(5, 8), (100, 100)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_a_float32_head_takes_the_rounding_out_of_bfloat16_logits(
    chunk: int, block: int, with_bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logprobs, "BLOCK", block)
    inputs = problem(with_bias, torch.bfloat16, hidden=64)
    exact = in_float64(inputs)
    truth = plain(*exact, 0.8)
    found = chunked_logprobs(*inputs, temperature=0.8, chunk=chunk, fp32_head=True)
    rounded = chunked_logprobs(*inputs, temperature=0.8, chunk=chunk)
    torch.testing.assert_close([value.double() for value in found], list(truth), rtol=1e-5, atol=2e-5)
    assert (found[0] - truth[0]).abs().max() < 1e-3 * (rounded[0] - truth[0]).abs().max()
    for gradient, right in zip(gradients(found, inputs), gradients(truth, exact), strict=True):
        torch.testing.assert_close(gradient, right.bfloat16())


@pytest.mark.parametrize("frozen", [{"hidden"}, {"head"}, {"head", "bias"}, {"hidden", "head"}])
def test_what_is_frozen_gets_no_gradient_and_the_rest_gets_its_own(frozen: set[str], small_tiles: None) -> None:
    inputs = problem(True)
    for name, leaf in zip(("hidden", "head", "bias"), inputs[:3], strict=True):
        assert leaf is not None
        leaf.requires_grad_(name not in frozen)
    found = chunked_logprobs(*inputs, temperature=0.7, chunk=5)
    torch.testing.assert_close(gradients(found, inputs), gradients(plain(*inputs, 0.7), inputs))


def test_a_second_backward_pass_over_the_same_graph_finds_the_same(small_tiles: None) -> None:
    hidden, head, *rest = problem()
    logprob, entropy = chunked_logprobs(hidden, head, *rest, temperature=0.7, chunk=5)
    total = (logprob * entropy).sum()
    first = torch.autograd.grad(total, [hidden, head], retain_graph=True)
    assert all(map(torch.equal, first, torch.autograd.grad(total, [hidden, head])))


def test_without_gradients_nothing_is_kept(small_tiles: None) -> None:
    inputs = problem()
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        with torch.no_grad():
            found = chunked_logprobs(*inputs, temperature=0.7, chunk=5)
        assert not kept
        chunked_logprobs(*inputs, temperature=0.7, chunk=5)
    assert kept, "the hooks see what a graph keeps"
    assert not any(value.requires_grad for value in found)
    torch.testing.assert_close(found, tuple(value.detach() for value in plain(*inputs, 0.7)))


def test_no_tokens_give_no_logprobs_and_a_zero_gradient(small_tiles: None) -> None:
    hidden, head, _, targets = problem()
    for chunk in (4, 100):
        logprob, entropy = chunked_logprobs(hidden[:0], head, None, targets[:0], temperature=1.0, chunk=chunk)
        assert logprob.shape == entropy.shape == (0,)
        (of_head,) = torch.autograd.grad(logprob.sum() + entropy.sum(), [head])
        assert (of_head == 0).all()


@pytest.mark.parametrize("target", [-100, -1, VOCABULARY])
def test_a_target_outside_the_vocabulary_is_not_passed_over(target: int, small_tiles: None) -> None:
    *inputs, targets = problem()
    targets[3] = target
    logprob, _ = chunked_logprobs(*inputs, targets, temperature=1.0, chunk=5)
    assert logprob.isnan().nonzero().tolist() == [[3]]


@pytest.mark.parametrize("scale", [1e4, 1e-4])
def test_logits_far_apart_or_all_alike_give_finite_results(scale: float, small_tiles: None) -> None:
    inputs = problem(False, torch.float32)
    with torch.no_grad():
        inputs[1].mul_(scale)
    exact = in_float64(inputs)
    found, truth = chunked_logprobs(*inputs, temperature=1.0, chunk=5), plain(*exact, 1.0)
    for ours, theirs in zip([*found, *gradients(found, inputs)], [*truth, *gradients(truth, exact)], strict=True):
        torch.testing.assert_close(ours.double(), theirs.nan_to_num(), rtol=1e-4, atol=1e-3)


class Watch(TorchDispatchMode):
    """Which new storages were alive together, by their sizes in numbers; `known` ones are not new."""

    def __init__(self, *known: torch.Tensor) -> None:
        super().__init__()
        self.known = {StorageWeakRef(tensor.untyped_storage()) for tensor in known}
        self.alive: dict[StorageWeakRef, int] = {}
        self.moments: list[list[int]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if not isinstance(tensor, torch.Tensor):
                continue
            storage = StorageWeakRef(tensor.untyped_storage())
            if storage not in self.known:
                self.alive[storage] = tensor.untyped_storage().nbytes() // tensor.element_size()
        self.alive = {storage: size for storage, size in self.alive.items() if not storage.expired()}
        self.moments.append(list(self.alive.values()))
        return result

    def most(self, size: int) -> int:
        """Storages of that many numbers that were alive at once."""
        return max(sizes.count(size) for sizes in self.moments)

    @property
    def sizes(self) -> set[int]:
        return {size for sizes in self.moments for size in sizes}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("fp32_head", [False, True])
@pytest.mark.parametrize("with_entropy", [False, True])
def test_at_most_two_tiles_of_logits_and_one_gradient_of_the_head_are_alive_at_once(
    dtype: torch.dtype, fp32_head: bool, with_entropy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logprobs, "BLOCK", 64)
    hidden, head, _, targets = problem(dtype=dtype, tokens=320, hidden=2, vocabulary=960)
    tile, of_head = 32 * 64, 960 * 2
    with Watch(hidden, head, targets) as watch:
        outputs = chunked_logprobs(hidden, head, None, targets, temperature=0.7, chunk=32, fp32_head=fp32_head)
    assert watch.most(tile) == 2
    assert max(watch.sizes) == tile
    total = sum(outputs).sum() if with_entropy else outputs[0].sum()
    with Watch(hidden, head, targets) as watch:
        torch.autograd.grad(total, [hidden, head])
    assert watch.most(tile) == (2 if with_entropy or (dtype == torch.bfloat16 and not fp32_head) else 1)
    assert watch.most(of_head) == 1
    assert max(watch.sizes) == tile
