"""Weights by one NCCL broadcast, from the learner's GPU to an actor's. No machine with two GPUs has run this yet."""

import multiprocessing
from typing import Any

import numpy as np
import pytest
import torch

from protocol.collective import PART_BYTES, Collective, Rendezvous, find

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")]
SECONDS = 60.0
SIZE = PART_BYTES + 12345  # two parts


def receive(address: str, answers: Any) -> None:
    """The actor's process."""
    torch.cuda.set_device(1)
    data = np.zeros(SIZE, dtype=np.uint8)
    group = Collective(find(address, SECONDS), 1, 1, 2, backend="nccl", host="127.0.0.1", seconds=SECONDS)
    for _ in range(2):
        group.broadcast(data)
        answers.put(data.copy())
    group.close()


def test_an_actor_on_another_gpu_receives_every_byte() -> None:
    processes = multiprocessing.get_context("spawn")
    rendezvous, answers = Rendezvous("127.0.0.1"), processes.Queue()
    actor = processes.Process(target=receive, args=(rendezvous.address, answers))
    actor.start()
    torch.cuda.set_device(0)
    group = Collective(rendezvous.store, 1, 0, 2, backend="nccl", host="127.0.0.1", seconds=SECONDS)
    for seed in range(2):
        data = np.random.default_rng(seed).integers(0, 256, SIZE, dtype=np.uint8)
        group.broadcast(data)
        np.testing.assert_array_equal(answers.get(timeout=SECONDS), data)
    group.close()
    actor.join(SECONDS)
    assert actor.exitcode == 0
