"""Run by torchrun in the test of the policy's options: three steps on some ranks, once for each set of options.

usage: scale_program.py MODEL OUT OPTIONS…, where OPTIONS are options of the policy as in lora_rank=4,reshard=false.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor

from learner import batch, distributed, optimizer
from learner.batch import TrainingSequence
from learner.config import LossConfig, OptimizerConfig
from learner.distributed import Ranks
from learner.policy import model
from learner.policy.config import ModelConfig
from learner.policy.model import Policy, full_state
from learner.step import train_step


def model_config(options: str) -> ModelConfig:
    chosen = OmegaConf.from_dotlist(["logprob_chunk=16", *filter(None, options.split(","))])
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(ModelConfig), chosen))
    assert isinstance(config, ModelConfig)
    return config


def sequences(step: int) -> list[TrainingSequence]:
    random = np.random.default_rng(step)
    lengths = [9, 4, 7, 3, 6]
    return [
        TrainingSequence(
            prompt_ids=random.integers(0, 21, 3).astype(np.int32),
            token_ids=random.integers(0, 21, length).astype(np.int32),
            behaviour_logprobs=-random.exponential(2.0, length).astype(np.float32),
            staleness=np.zeros(length, dtype=np.int32),
            advantage=float(random.normal()),
            token_weight=1.0 / sum(lengths),
            index=index,
            group=index // 2,
        )
        for index, length in enumerate(lengths)
    ]


def train(ranks: Ranks, directory: Path, out: Path, config: ModelConfig) -> None:
    """Three steps; the first rank writes what it saw and the weights to `out`."""
    policy = model.load(directory, ranks, config)
    steps = optimizer.build(policy, OptimizerConfig(lr=1e-3, warmup_steps=0, eps=1e-5))
    loss = LossConfig(corrections=[], proximal="behaviour")
    rows = []
    for step in range(3):
        share = batch.share(
            sequences(step), budget=30, cost=policy.cost, rank=ranks.rank, world=ranks.world, device=ranks.device
        )
        rows.append(train_step(policy, steps, [share], loss, temperature=1.0).row())
    check_copies(policy, ranks)
    state = dict(full_state(policy))
    if ranks.first:
        out.mkdir(parents=True)
        (out / "rows.json").write_text(json.dumps(rows))
        save_file({name: tensor.clone() for name, tensor in state.items()}, out / "weights.safetensors")


def check_copies(policy: Policy, ranks: Ranks) -> None:
    """What every process of a place holds whole must stay the same in all of them."""
    if ranks.tensor_mesh is None:
        return
    whole = [each for each in policy.parameters() if isinstance(each, DTensor) and each.device_mesh == ranks.mesh]
    assert whole
    for parameter in whole:
        own = parameter.to_local().detach()
        copies = [torch.empty_like(own) for _ in range(ranks.tensor_mesh.size())]
        torch.distributed.all_gather(copies, own, group=ranks.tensor_mesh.get_group())
        assert all(torch.equal(copy, own) for copy in copies)


def main(directory: str, out: str, *cases: str) -> None:
    torch.set_num_threads(1)
    device = distributed.start("cpu", wait_seconds=60).device
    for options in cases:
        config = model_config(options)
        train(distributed.arrange(device, config.tensor_parallel), Path(directory), Path(out) / options, config)
    distributed.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
