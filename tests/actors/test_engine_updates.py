"""A hundred updates over each way: the engine computes as one that loaded the last version alone, and has not grown."""

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
import pytest
import torch
from actor_truth import finish
from transformers import AutoModelForCausalLM

from actors.requests import Engine, Finished
from actors.weights.receiver import WeightReceiver
from learner.publish.server import WeightServer
from learner.publish.store import Store
from learner.publish.version import seal, step_between
from learner.tiny import build
from protocol.clock import Deadline
from tests.published import publish

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # of vLLM's and torch's own imports
]

UPDATES, SETTLED = 100, 30
PROMPT = "33+59="
GROWTH = 20 * 2**20  # bytes over all updates; one version has 25 MB


def resident() -> int:
    """Bytes of this process in memory, those shared with the weight server's segments aside."""
    gc.collect()
    pages = Path("/proc/self/statm").read_text().split()
    return (int(pages[1]) - int(pages[2])) * os.sysconf("SC_PAGE_SIZE")


def sampled(engine: Engine) -> list[Finished]:
    ids = engine.encode(PROMPT)
    for seed in range(8):
        engine.add(f"{seed}", ids, seed)
    done = finish(engine)
    return [done[f"{seed}"] for seed in range(8)]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.mark.parametrize(
    ("architecture", "tied", "shared_memory"),
    [("llama", True, True), ("qwen3", False, False)],
    ids=["shared", "deltas"],
)
def test_after_a_hundred_updates_all_is_as_after_one(
    start_engine: Callable[..., Engine],
    tmp_path: Path,
    stack: ExitStack,
    architecture: str,
    tied: bool,
    shared_memory: bool,
) -> None:
    build(tmp_path, architecture=architecture, hidden_size=512, layers=3, tied=tied)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)  # the masters
    store = Store(kept=2)
    server = stack.enter_context(WeightServer(store, "127.0.0.1", fanout=2, shared_memory=shared_memory))
    receiver = stack.enter_context(closing(WeightReceiver(seconds=30.0)))
    random, engine, sizes, ways = torch.Generator().manual_seed(0), start_engine(tmp_path, dtype="bfloat16"), [], []
    for version in range(UPDATES):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 1e-4 * torch.randn(parameter.shape, generator=random)
        drawn = publish(version, model.state_dict().items(), torch.bfloat16)
        segment = store.segment(len(drawn.segment.data))
        segment.data[:] = drawn.segment.data
        step = step_between(store.newest, version, segment.data, limit=0.9) if store.newest else None
        steps = store.steps_before(step) if step else ()
        store.add(seal(version, drawn.manifest.tensors, segment, server.address, steps), steps)
        assert store.newest is not None
        receiver.offer(store.newest.manifest)
        deadline = Deadline(30)
        while (fetched := receiver.receive()) is None and not deadline.passed:
            receiver.socket.poll(100)
        assert fetched is not None
        engine.load(version, fetched.manifest.fingerprint, fetched.tensors())
        ways.append((fetched.way, fetched.wire_bytes))
        del drawn, segment, step, steps, fetched
        if version % 10 == 9:
            sampled(engine)
            sizes.append(resident())
    assert {way for way, _ in ways} == ({"shared_memory"} if shared_memory else {"zmq"})
    if not shared_memory:
        assert max(nbytes for _, nbytes in ways[1:]) < 0.5 * ways[0][1]
    settled = sizes[SETTLED // 10 :]
    assert max(settled) - settled[0] < GROWTH, f"resident bytes after each ten updates: {sizes}"
    last = sampled(engine)
    engine.close()
    fresh = start_engine(tmp_path, dtype="bfloat16")
    version = UPDATES - 1
    newest = publish(version, model.state_dict().items(), torch.bfloat16)
    tensors = [(spec, newest.segment.data[spec.offset : spec.offset + spec.nbytes]) for spec in newest.manifest.tensors]
    fresh.load(version, newest.manifest.fingerprint, tensors)
    assert store.newest is not None
    assert newest.manifest.fingerprint == store.newest.manifest.fingerprint
    for found, truth in zip(last, sampled(fresh), strict=True):
        np.testing.assert_array_equal(found.token_ids, truth.token_ids)
        np.testing.assert_array_equal(found.behaviour_logprobs, truth.behaviour_logprobs)
        assert found.version_spans == truth.version_spans
    fresh.close()
