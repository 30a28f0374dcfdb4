"""A published version: bit for bit the weights, a fingerprint that nothing escapes, a delta that leads to it."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from learner.publish.version import Address, PublishedVersion, seal, step_between
from protocol import delta, weights
from protocol.codec import decode, encode
from protocol.messages import WeightManifest
from protocol.segments import Segment
from tests.published import NOWHERE, publish, shards_of, tensors_of


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
    return publish(version, state(seed).items(), dtype)


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "LEAST_SHARD", 64)


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shard_bytes", [7, 64, 2**20])
def test_shards_joined_give_the_tensors_back_bit_by_bit(
    dtype: torch.dtype | None, shard_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "LEAST_SHARD", shard_bytes)
    version = published(dtype=dtype)
    assert np.array_equal(np.concatenate(shards_of(version)), version.segment.data)
    assert [len(shard) for shard in shards_of(version)] == [spec.nbytes for spec in version.manifest.shards]
    found = tensors_of(version)
    for name, tensor in state().items():
        truth = tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor
        assert found[name].dtype == truth.dtype
        assert torch.equal(found[name], truth), name


def test_a_manifest_passes_its_own_checks_on_the_wire() -> None:
    version = published(4)
    arrived = decode([bytes(frame) for frame in encode(version.manifest)])
    assert isinstance(arrived, WeightManifest)
    assert arrived == version.manifest
    assert (arrived.version, arrived.endpoint) == (4, NOWHERE)


@given(place=st.integers(0, 5 * 7 * 4 - 1), bit=st.integers(0, 7))
def test_the_fingerprint_changes_with_any_bit(place: int, bit: int) -> None:
    version = published()
    version.segment.data[place] ^= 1 << bit
    again = seal(0, version.manifest.tensors, version.segment, Address(NOWHERE))
    assert again.manifest.fingerprint != version.manifest.fingerprint


def test_the_fingerprint_is_of_the_weights_alone() -> None:
    assert published(1).manifest.fingerprint == published(2).manifest.fingerprint
    assert published(1).manifest.fingerprint != published(1, seed=1).manifest.fingerprint
    tensor = torch.zeros(6)
    shaped = {
        publish(0, [(name, value)]).manifest.fingerprint
        for name, value in (("w", tensor), ("v", tensor), ("w", tensor.view(2, 3)), ("w", tensor.view(torch.int32)))
    }
    assert len(shaped) == 4  # name, shape and dtype count, not the bytes alone


@pytest.mark.usefixtures("small_shards")
def test_the_delta_of_every_shard_leads_from_the_old_to_the_new() -> None:
    base, goal = publish(3, [("w", torch.arange(500).float())]), torch.arange(500).float()
    goal[[3, 250, 498]] += 1
    new = publish(4, [("w", goal)])
    step = step_between(base, 4, new.segment.data, limit=1.0)
    assert step is not None
    assert (step.spec.base, step.spec.version) == (3, 4)
    assert step.changed == 3  # 16-bit words: the other half of each stays
    assert sum(nbytes > 0 for nbytes in step.spec.nbytes) == 3
    for old, coded, truth in zip(shards_of(base), step.coded, shards_of(new), strict=True):
        found = old.copy()
        if len(coded):
            delta.apply(found, coded)
        np.testing.assert_array_equal(found, truth)


@pytest.mark.usefixtures("small_shards")
def test_a_delta_that_is_not_worth_it_is_none() -> None:
    random = torch.Generator().manual_seed(0)
    base, new = (publish(version, [("w", torch.randn(2000, generator=random))]) for version in (0, 1))
    assert step_between(base, 1, new.segment.data, limit=0.5) is None
    assert step_between(base, 1, Segment(64).data, limit=0.5) is None  # another model
    same = step_between(base, 1, base.segment.data, limit=0.5)
    assert same is not None
    assert same.nbytes == 0


def test_shards_grow_with_the_version_and_stay_fast() -> None:
    assert weights.shard_bytes(1) == weights.LEAST_SHARD
    assert weights.shard_bytes(8 * 10**9) <= weights.GREATEST_SHARD
    assert 8 * 10**9 / weights.shard_bytes(8 * 10**9) <= weights.SHARDS
    assert weights.shard_bytes(10**12) == weights.GREATEST_SHARD
