"""Fixtures of the actor's tests: the real engine, and the process as it needs it."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from actor_truth import SAMPLING

from actors.config import EngineConfig
from actors.environment import prepare
from actors.requests import Engine


@pytest.fixture(scope="module")
def vllm_environment() -> Iterator[None]:
    """The process as vLLM wants it, and as it was afterwards."""
    before, threads, set_num_threads = dict(os.environ), torch.get_num_threads(), torch.set_num_threads
    torch.set_num_threads(1)  # torch is imported already: the environment would come too late
    prepare(EngineConfig())
    yield
    torch.set_num_threads = set_num_threads  # vLLM replaces it
    torch.set_num_threads(threads)
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def start_engine(vllm_environment: None) -> Callable[..., Engine]:
    """Starts the real engine on a model directory; the caller closes it."""

    def start(
        model: Path,
        *,
        kv_on_update: str = "recompute",
        max_num_seqs: int = 32,
        dtype: str = "auto",
        fp32_head: bool = False,
        tensor_parallel_size: int = 1,
    ) -> Engine:
        from actors.engine import VllmEngine

        config = EngineConfig(
            dtype=dtype,
            fp32_head=fp32_head,
            kv_cache_bytes=32 * 2**20,
            max_num_seqs=max_num_seqs,
            tensor_parallel_size=tensor_parallel_size,
        )
        return VllmEngine(str(model), config, SAMPLING, kv_on_update=kv_on_update)

    return start
