"""The real vLLM with `kv_on_update=keep`: requests in flight keep their KV, new ones never see a stale prefix."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from actor_truth import LONG, SAMPLING, TOLERANCE, Versions, finish, steps, token_versions

from actors.requests import Engine

pytestmark = pytest.mark.filterwarnings("ignore")  # of vLLM's and torch's own imports


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> Versions:
    return Versions(tmp_path_factory.mktemp("llama"), "llama", tied=True)


@pytest.fixture(scope="module")
def shared_engine(versions: Versions, start_engine: Callable[..., Engine]) -> Iterator[Engine]:
    engine = start_engine(versions.model_directory, kv_on_update="keep", max_num_seqs=4)
    yield engine
    engine.close()


@pytest.fixture
def engine(shared_engine: Engine, versions: Versions) -> Iterator[Engine]:
    """Idle, with a fresh version."""
    versions.load_into(shared_engine)
    yield shared_engine
    finish(shared_engine)


def test_spans_are_exact_and_sampling_goes_on(engine: Engine, versions: Versions) -> None:
    first = engine.version
    assert first is not None
    prompt_ids = engine.encode(LONG)
    for seed in range(4):
        engine.add(f"{seed}", prompt_ids, seed)
    done = steps(engine, 6)
    versions.load_into(engine)
    done |= finish(engine)
    assert len(done) == 4
    mixed = [finished for finished in done.values() if len(finished.version_spans) == 2]
    assert mixed, "one of four completions must live through the update"
    for finished in done.values():
        assert token_versions(finished) == ([first] * 6 + [first + 1] * SAMPLING.max_tokens)[: len(finished.token_ids)]
        old = versions.logprobs(first, prompt_ids, finished.token_ids.tolist())
        np.testing.assert_allclose(finished.behaviour_logprobs[:6], old[:6], atol=TOLERANCE)
    new = versions.logprobs(first + 1, prompt_ids, mixed[0].token_ids.tolist())
    gap = np.abs(mixed[0].behaviour_logprobs[6:] - new[6:]).max()
    assert gap > TOLERANCE, "KV of the older version was kept, so these are not the new version's exact logprobs"


def test_requests_that_begin_after_the_update_see_no_stale_prefix(engine: Engine, versions: Versions) -> None:
    """The same long prompt is cached under the old version and still held by running requests."""
    prompt_ids = engine.encode(LONG)
    for index in range(12):  # four places: the others wait, and have no KV to keep
        engine.add(f"old-{index}", prompt_ids, seed=index)
    steps(engine, 3)
    assert engine.waiting
    version = versions.load_into(engine)
    engine.add("new", prompt_ids, seed=99)
    done = finish(engine)
    whole = [finished for finished in done.values() if finished.version_spans[0].version == version]
    assert {finished.request_id for finished in whole} >= {"new", "old-11"}
    for finished in whole:
        truth = versions.logprobs(version, prompt_ids, finished.token_ids.tolist())
        np.testing.assert_allclose(finished.behaviour_logprobs, truth, atol=TOLERANCE)


def test_the_prefix_cache_serves_its_own_version(engine: Engine, versions: Versions) -> None:
    prompt_ids = engine.encode(LONG)
    version = engine.version
    assert version is not None
    for name in ("cold", "warm"):
        engine.add(name, prompt_ids, seed=1)
        finished = finish(engine)[name]
        truth = versions.logprobs(version, prompt_ids, finished.token_ids.tolist())
        np.testing.assert_allclose(finished.behaviour_logprobs, truth, atol=TOLERANCE)
