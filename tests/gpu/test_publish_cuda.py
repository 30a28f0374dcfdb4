"""Publishing from a GPU: what changed is found there, and arrives as if the whole had been copied."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from learner import distributed, tiny
from learner.distributed import Ranks
from learner.policy import model
from learner.policy.config import ModelConfig
from learner.policy.model import full_state
from learner.publish.config import WeightsConfig
from learner.publish.publisher import Publisher
from learner.publish.server import WeightServer
from learner.publish.store import Store
from tests.published import tensors_of

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.fixture
def ranks() -> Iterator[Ranks]:
    yield distributed.start("cuda", wait_seconds=60)
    distributed.stop()


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_versions_of_a_policy_on_a_gpu_are_bit_by_bit_what_it_holds(
    ranks: Ranks, tmp_path: Path, lora_rank: int
) -> None:
    tiny.build(tmp_path, architecture="qwen3", hidden_size=256, layers=4)
    policy = model.load(tmp_path, ranks, ModelConfig(lora_rank=lora_rank))
    store = Store(kept=2)
    with (
        WeightServer(store, "127.0.0.1", fanout=2, shared_memory=True) as server,
        Publisher(policy, ranks, WeightsConfig(), dtype=torch.bfloat16, server=server) as publisher,
    ):
        for version in range(6):
            expected = {name: tensor.bfloat16().cpu() for name, tensor in full_state(policy)}
            publisher.publish(version)
            with torch.no_grad():  # the next step, while the version is made ready
                for parameter in policy.parameters():
                    if parameter.requires_grad:
                        local = parameter.to_local()  # type: ignore[attr-defined]
                        local.add_(1e-5 * torch.randn_like(local))
            publisher.finish()
            store.asked()
            assert store.newest is not None
            found = tensors_of(store.newest)
            assert found.keys() == expected.keys()
            assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
        assert len(store.newest.manifest.deltas) == 5
