"""The publisher on one rank: what is announced is the policy between two steps, whatever training does meanwhile."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from learner.distributed import Ranks
from learner.policy import model
from learner.policy.config import ModelConfig
from learner.policy.model import Policy, full_state
from learner.publish import changes
from learner.publish.config import WeightsConfig
from learner.publish.publisher import Publisher
from learner.publish.server import WeightServer
from learner.publish.store import Store
from protocol.messages import WeightManifest
from tests.published import tensors_of


class Published:
    """A publisher with its server, and what it announced."""

    def __init__(self, policy: Policy, ranks: Ranks, config: WeightsConfig, dtype: torch.dtype | None) -> None:
        self.store = Store(kept=2)
        self.server = WeightServer(self.store, "127.0.0.1", fanout=2, shared_memory=True)
        self.announced: list[WeightManifest] = []
        self.publisher = Publisher(
            policy, ranks, config, dtype=dtype, server=self.server, announce=self.announced.append
        )

    def __enter__(self) -> "Published":
        self.server.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.publisher.__exit__(None, None, None)
        self.server.__exit__(None, None, None)

    def publish(self, version: int) -> dict[str, torch.Tensor]:
        """Publish to the end; the tensors as actors read them."""
        self.publisher.publish(version)
        self.publisher.finish()
        assert self.store.newest is not None
        assert self.store.newest.manifest.version == version
        return tensors_of(self.store.newest)


def train(policy: Policy, amount: float = 1e-3) -> None:
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                local = parameter.to_local()  # type: ignore[attr-defined]
                local.add_(amount * torch.randn(local.shape, generator=random))


def truth(policy: Policy, dtype: torch.dtype | None) -> dict[str, torch.Tensor]:
    return {
        name: (tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor).clone()
        for name, tensor in full_state(policy)
    }


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


@pytest.fixture(params=[("llama", True, 0), ("qwen2", False, 0), ("qwen3", True, 4)], ids=str)
def policy(request: pytest.FixtureRequest, ranks: Ranks, model_directory: Callable[[str, bool], Path]) -> Policy:
    architecture, tied, lora_rank = request.param
    config = ModelConfig(logprob_chunk=8, lora_rank=lora_rank)
    return model.load(model_directory(architecture, tied), ranks, config)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_every_version_is_the_policy_bit_by_bit(policy: Policy, ranks: Ranks, dtype: torch.dtype | None) -> None:
    with Published(policy, ranks, WeightsConfig(), dtype) as published:
        for version in range(5):
            assert_equal(published.publish(version), truth(policy, dtype))
            train(policy)
        assert [manifest.version for manifest in published.announced] == list(range(5))
        assert len({manifest.fingerprint for manifest in published.announced}) == 5


def test_training_goes_on_while_a_version_is_made_ready(policy: Policy, ranks: Ranks) -> None:
    with Published(policy, ranks, WeightsConfig(), torch.bfloat16) as published:
        expected = truth(policy, torch.bfloat16)
        published.publisher.publish(0)
        train(policy, 1.0)
        published.publisher.finish()
        assert published.store.newest is not None
        assert_equal(tensors_of(published.store.newest), expected)


def test_tied_tensors_share_their_bytes(policy: Policy, ranks: Ranks) -> None:
    with Published(policy, ranks, WeightsConfig(), None) as published:
        published.publish(0)
        specs = {spec.name: spec for spec in published.announced[0].tensors}
        head, embedding = specs["lm_head.weight"], specs["model.embed_tokens.weight"]
        assert (head.offset == embedding.offset) == policy.network.config.tie_word_embeddings
        places = {(spec.offset, spec.nbytes) for spec in specs.values()}
        assert sum(nbytes for _, nbytes in places) <= sum(shard.nbytes for shard in published.announced[0].shards)
        assert all(spec.offset % 64 == 0 for spec in specs.values())


def test_deltas_are_offered_once_an_actor_asks_over_the_wire_and_lead_to_the_version(
    ranks: Ranks, model_directory: Callable[[str, bool], Path]
) -> None:
    policy = model.load(model_directory("llama", True), ranks, ModelConfig(logprob_chunk=8))
    with Published(policy, ranks, WeightsConfig(), torch.bfloat16) as published:
        published.publish(0)
        train(policy, 1e-6)
        published.publish(1)
        assert published.announced[1].deltas == ()
        published.store.asked()
        for version in (2, 3, 4):
            train(policy, 1e-6)
            published.publish(version)
        assert [step.version for step in published.announced[4].deltas] == [2, 3, 4]
        row = published.publisher.row()
        assert row is not None
        assert row["version"] == 3, "the newest one whose figures are complete in any case"
        assert 0 < row["changed_fraction"] < 0.2
        assert row["delta_bytes"] < row["bytes"] / 5


@pytest.mark.parametrize(
    "config", [WeightsConfig(delta=False), WeightsConfig(delta_limit=1e-6), WeightsConfig(full_every=1)]
)
def test_a_delta_can_be_unwanted_too_large_or_not_due(
    ranks: Ranks, model_directory: Callable[[str, bool], Path], config: WeightsConfig
) -> None:
    policy = model.load(model_directory("llama", True), ranks, ModelConfig(logprob_chunk=8))
    with Published(policy, ranks, config, torch.bfloat16) as published:
        published.publish(0)
        published.store.asked()
        train(policy, 1e-4)
        published.publish(1)
        assert published.announced[1].deltas == ()


def test_what_fails_in_the_thread_is_raised_by_the_next_call(
    ranks: Ranks, model_directory: Callable[[str, bool], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = model.load(model_directory("llama", True), ranks, ModelConfig(logprob_chunk=8))
    with Published(policy, ranks, WeightsConfig(), None) as published:

        def fail(*arguments: object) -> None:
            raise MemoryError("no room")

        with monkeypatch.context() as patched:
            patched.setattr(published.store, "add", fail)
            published.publisher.publish(0)
            with pytest.raises(MemoryError, match="no room"):
                published.publisher.publish(1)
        assert published.announced == []


def test_without_memory_for_a_version_training_ends_with_the_cure(
    ranks: Ranks, model_directory: Callable[[str, bool], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = model.load(model_directory("llama", True), ranks, ModelConfig(logprob_chunk=8))

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    with Published(policy, ranks, WeightsConfig(), None) as published, monkeypatch.context() as patched:
        patched.setattr(os, "posix_fallocate", full)
        with pytest.raises(OSError, match=r"learner\.versions_kept"):
            published.publisher.publish(0)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.uint8])
def test_changes_lead_from_the_old_part_to_the_new(share: float, dtype: torch.dtype) -> None:
    random = np.random.default_rng(0)
    old = torch.from_numpy(random.integers(0, 100, 1001)).to(dtype)
    new = torch.where(torch.from_numpy(random.random(1001) < share), old + 1, old)
    found = changes.find(old, new)
    if dtype is not torch.int64:  # of which three words of four never change
        assert (found.places is None) == (share == 0.9 or dtype is torch.uint8)
    part = torch.zeros(new.nbytes, dtype=torch.uint8)
    changes.put(found, part, old.view(torch.uint8))
    assert torch.equal(part, new.view(torch.uint8))
    dense = changes.find(None, new)
    assert dense.places is None
    changes.put(dense, part, part)
    assert torch.equal(part, new.view(torch.uint8))


PROGRAM = Path(__file__).with_name("publish_program.py")


@pytest.mark.parametrize("world", [3])
def test_many_ranks_publish_what_one_process_would(
    world: int, model_directory: Callable[[str, bool], Path], tmp_path: Path
) -> None:
    """Rows divide unevenly over three ranks; LoRA and tensor parallelism are gathered whole."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"]
    done = subprocess.run(
        [sys.executable, *torchrun, str(PROGRAM), str(model_directory("llama", True)), str(tmp_path)],
        env={
            **os.environ,
            "PYTHONPATH": f"{PROGRAM.parents[3]}:{os.environ.get('PYTHONPATH', '')}",
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["case"] for row in rows] == ["plain", "lora"]
    assert all(row["equal"] == [True] * 4 for row in rows)
    assert all(row["deltas"] == [0, 1, 2, 3] for row in rows)
