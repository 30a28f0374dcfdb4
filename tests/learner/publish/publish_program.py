"""Run by torchrun in the publisher's test: publishes from several ranks, rank 0 holds it against the gathered state.

usage: publish_program.py MODEL OUT
"""

import json
import sys
from pathlib import Path

import torch

from learner import distributed
from learner.distributed import Ranks
from learner.policy import model
from learner.policy.config import ModelConfig
from learner.policy.model import full_state
from learner.publish.config import WeightsConfig
from learner.publish.publisher import Publisher
from learner.publish.server import WeightServer
from learner.publish.store import Store
from protocol.messages import WeightManifest
from tests.published import tensors_of

CASES = {"plain": ModelConfig(logprob_chunk=8), "lora": ModelConfig(logprob_chunk=8, lora_rank=4)}


def publish(ranks: Ranks, directory: Path, case: str) -> dict[str, object]:
    """Publish four versions, each after a small change, and compare."""
    policy = model.load(directory, ranks, CASES[case])
    store = Store(kept=2)
    server = WeightServer(store, "127.0.0.1", fanout=0, shared_memory=False) if ranks.first else None
    announced: list[WeightManifest] = []
    publisher = Publisher(
        policy,
        ranks,
        WeightsConfig(delta_limit=1.0),
        dtype=torch.bfloat16,
        server=server,
        announce=announced.append,
    )
    equal = []
    for version in range(4):
        expected = {name: tensor.bfloat16().clone() for name, tensor in full_state(policy)}
        publisher.publish(version)
        publisher.finish()
        store.asked()
        with torch.no_grad():
            for parameter in policy.parameters():
                if parameter.requires_grad:
                    local = parameter.to_local()
                    local.add_(1e-5 * torch.randn(local.shape))
        if ranks.first:
            assert store.newest is not None
            found = tensors_of(store.newest)
            equal.append(found.keys() == expected.keys() and all(torch.equal(found[n], expected[n]) for n in found))
    publisher.__exit__(None, None, None)
    return {"case": case, "equal": equal, "deltas": [len(manifest.deltas) for manifest in announced]}


def main(directory: str, out: str) -> None:
    torch.set_num_threads(1)
    ranks = distributed.start("cpu", wait_seconds=60)
    torch.manual_seed(ranks.rank)
    rows = [publish(ranks, Path(directory), case) for case in CASES]
    if ranks.first:
        (Path(out) / "rows.json").write_text(json.dumps(rows))
    distributed.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
