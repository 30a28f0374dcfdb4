"""What is read of the run's model directory before the engine starts."""

import json
from pathlib import Path

import pytest

from actors.checkpoint import Checkpoint
from actors.requests import EngineFailure


def write(directory: Path, config: dict[str, object], generation: dict[str, object] | None = None) -> Checkpoint:
    (directory / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (directory / "generation_config.json").write_text(json.dumps(generation))
    return Checkpoint(directory)


@pytest.mark.parametrize(
    ("config", "dtype"),
    [
        ({"dtype": "bfloat16"}, "bfloat16"),
        ({"torch_dtype": "torch.float16"}, "float16"),
        ({"text_config": {"dtype": "bfloat16"}}, "bfloat16"),
        ({}, "float32"),
    ],
)
def test_auto_is_the_dtype_that_the_model_is_stored_in(tmp_path: Path, config: dict[str, object], dtype: str) -> None:
    assert write(tmp_path, config).dtype == dtype


@pytest.mark.parametrize(
    ("generation", "stop_ids"), [(None, []), ({}, []), ({"eos_token_id": 7}, [7]), ({"eos_token_id": [7, 9]}, [7, 9])]
)
def test_every_eos_of_the_generation_config_ends_a_completion(
    tmp_path: Path, generation: dict[str, object] | None, stop_ids: list[int]
) -> None:
    assert write(tmp_path, {}, generation).stop_ids == stop_ids


def test_a_broken_config_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(EngineFailure, match=r"config\.json"):
        Checkpoint(tmp_path)


def test_a_quantised_checkpoint_is_refused_with_the_reason(tmp_path: Path) -> None:
    write(tmp_path, {"dtype": "bfloat16"}).demand_plain_weights()
    quantised = write(tmp_path, {"quantization_config": {"quant_method": "awq", "bits": 4}})
    with pytest.raises(EngineFailure, match=r"quantised \(awq\): the learner publishes plain weights"):
        quantised.demand_plain_weights()
