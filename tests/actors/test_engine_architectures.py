"""Updates reach every weight of other architectures: Qwen2 with tied embeddings, Llama untied, Qwen3."""

from collections.abc import Callable, Iterator

import pytest
from actor_truth import Versions, assert_spans_are_true, finish, steps

from actors.requests import Engine

pytestmark = pytest.mark.filterwarnings("ignore")  # of vLLM's and torch's own imports


@pytest.fixture(
    params=[("qwen2", True), ("llama", False), ("qwen3", False)], ids=lambda case: f"{case[0]}-tied={case[1]}"
)
def versions(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Versions:
    architecture, tied = request.param
    return Versions(tmp_path_factory.mktemp(architecture), architecture, tied=tied)


@pytest.fixture
def engine(versions: Versions, start_engine: Callable[..., Engine]) -> Iterator[Engine]:
    engine = start_engine(versions.model_directory)
    yield engine
    engine.close()


def test_every_span_has_its_versions_logprobs(engine: Engine, versions: Versions) -> None:
    versions.load_into(engine)
    prompt_ids = engine.encode("33+59=")
    for seed in range(6):
        engine.add(f"{seed}", prompt_ids, seed)
    done = steps(engine, 6)
    versions.load_into(engine)
    done |= finish(engine)
    assert any(len(finished.version_spans) == 2 for finished in done.values())
    for finished in done.values():
        assert_spans_are_true(finished, versions, prompt_ids)
