"""A published version: bit for bit the weights between two steps, and a fingerprint that nothing escapes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from learner import weights
from learner.distributed import Ranks
from learner.policy import model
from learner.policy.config import ModelConfig
from learner.policy.model import full_state
from learner.weights import PublishedVersion, WeightStore, seal, snapshot
from protocol.codec import decode, encode
from protocol.messages import Shard, ShardGone, WeightManifest

ENDPOINT = "tcp://127.0.0.1:1"


def state(seed: int = 0) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    return {
        "a": torch.randn(5, 7, generator=random),
        "b": torch.randn(3, generator=random).bfloat16(),
        "transposed": torch.randn(4, 6, generator=random).T,
        "count": torch.tensor(12),
        "flags": torch.tensor([True, False, True]),
    }


def published(version: int = 0, dtype: torch.dtype | None = None, seed: int = 0) -> PublishedVersion:
    return seal(snapshot(version, state(seed).items(), dtype), ENDPOINT)


def received(version: PublishedVersion) -> dict[str, torch.Tensor]:
    """The tensors as an actor reads them: shards joined, cut by the manifest."""
    data = torch.from_numpy(np.concatenate(version.shards))
    return {
        spec.name: data[spec.offset : spec.offset + spec.nbytes]
        .clone()
        .view(getattr(torch, spec.dtype))
        .reshape(spec.shape)
        for spec in version.manifest.tensors
    }


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shard_bytes", [7, 64, 2**20])
def test_shards_joined_give_the_tensors_back_bit_by_bit(
    dtype: torch.dtype | None, shard_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "SHARD_BYTES", shard_bytes)
    found = received(published(dtype=dtype))
    for name, tensor in state().items():
        truth = tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor
        assert found[name].dtype == truth.dtype
        assert torch.equal(found[name], truth), name


def test_a_manifest_passes_its_own_checks_on_the_wire() -> None:
    version = published(4)
    arrived = decode([bytes(frame) for frame in encode(version.manifest)])
    assert isinstance(arrived, WeightManifest)
    assert arrived == version.manifest
    assert (arrived.version, arrived.endpoint) == (4, ENDPOINT)


def test_a_snapshot_is_a_copy_of_a_single_tensor_too() -> None:
    single = torch.ones(4)
    taken = snapshot(0, [("w", single)], None)
    single.zero_()
    assert taken.data.view(np.float32).tolist() == [1, 1, 1, 1]


def test_later_training_does_not_change_a_snapshot(ranks: Ranks, model_directory: Callable[[str, bool], Path]) -> None:
    policy = model.load(model_directory("llama", True), ranks, ModelConfig(logprob_chunk=8))
    taken = snapshot(0, full_state(policy), None)
    before = taken.data.copy()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(1.0)
    assert np.array_equal(taken.data, before)
    assert "lm_head.weight" in {spec.name for spec in taken.tensors}


@given(place=st.integers(0, 5 * 7 * 4 - 1), bit=st.integers(0, 7))
def test_the_fingerprint_changes_with_any_bit(place: int, bit: int) -> None:
    taken = snapshot(0, state().items(), None)
    before = seal(taken, ENDPOINT).manifest.fingerprint
    taken.data[place] ^= 1 << bit
    assert seal(taken, ENDPOINT).manifest.fingerprint != before


def test_the_fingerprint_is_of_the_weights_alone() -> None:
    assert published(1).manifest.fingerprint == published(2).manifest.fingerprint
    assert published(1).manifest.fingerprint != published(1, seed=1).manifest.fingerprint
    tensor = torch.zeros(6)
    shaped = {
        seal(snapshot(0, [(name, value)], None), ENDPOINT).manifest.fingerprint
        for name, value in (("w", tensor), ("v", tensor), ("w", tensor.view(2, 3)), ("w", tensor.view(torch.int32)))
    }
    assert len(shaped) == 4  # name, shape and dtype count, not the bytes alone


def test_a_store_serves_the_newest_versions_and_forgets_the_rest() -> None:
    store = WeightStore(kept=2)
    versions = [published(version, seed=version) for version in range(4)]
    for version in versions:
        store.add(version)
    assert store.shard(0, 0) == ShardGone(version=0)
    assert store.shard(1, 0) == ShardGone(version=1)
    for version in versions[2:]:
        answer = store.shard(version.manifest.version, 0)
        assert isinstance(answer, Shard)
        assert np.array_equal(answer.data, version.shards[0])


def test_a_shard_that_does_not_exist_is_gone() -> None:
    store = WeightStore(kept=1)
    store.add(published(7))
    assert store.shard(7, 99) == ShardGone(version=7)
    assert store.shard(8, 0) == ShardGone(version=8)
