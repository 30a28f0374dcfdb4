"""An engine of two processes reads a version where it lies; none of it goes through vLLM's pipes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from actor_truth import Versions, finish

from actors.requests import Engine

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # of vLLM's and torch's own imports
]


def test_every_worker_loads_its_part_of_each_version(start_engine: Callable[..., Engine], tmp_path: Path) -> None:
    versions = Versions(tmp_path, "qwen3", tied=False)
    engine = start_engine(versions.model_directory, tensor_parallel_size=2)
    calls: list[str] = []
    rpc = engine._llm.collective_rpc  # type: ignore[attr-defined]

    def noted(name: str, *arguments: object, **options: object) -> object:
        calls.append(name)
        return rpc(name, *arguments, **options)

    engine._llm.collective_rpc = noted  # type: ignore[attr-defined]
    for version in range(2):
        versions.load_into(engine)
        ids = engine.encode("33+59=")
        for seed in range(4):
            engine.add(f"{seed}", ids, seed)
        for finished in finish(engine).values():
            truth = versions.logprobs(version, ids, finished.token_ids.tolist())
            np.testing.assert_allclose(finished.behaviour_logprobs, truth, atol=1e-3)
    assert [call for call in calls if call.startswith("load")] == ["load_places"] * 2
    engine.close()
