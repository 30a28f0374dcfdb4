"""What the engine must know of the run's HF directory before vLLM reads it. No weights are read here."""

import json
from pathlib import Path
from typing import Any

from actors.requests import EngineFailure


class Checkpoint:
    """An HF directory: config.json, the tokenizer, perhaps generation_config.json. Raises `EngineFailure`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.config = _read(directory / "config.json")

    @property
    def architectures(self) -> list[str]:
        """Names of the model classes that can run it."""
        return list(self.config.get("architectures") or ())

    @property
    def dtype(self) -> str:
        """The dtype in which the model is stored; vLLM's own `auto` would make bfloat16 of float32."""
        for config in (self.config, self.config.get("text_config") or {}):
            if name := config.get("dtype") or config.get("torch_dtype"):
                return str(name).removeprefix("torch.")
        return "float32"

    def demand_plain_weights(self) -> None:
        """Refuse a quantised checkpoint: published weights are plain, its engine could not take them as they are."""
        method = (self.config.get("quantization_config") or {}).get("quant_method")
        if method is not None:
            raise EngineFailure(
                f"{self.directory} is quantised ({method}): the learner publishes plain weights, which this engine "
                "would have to quantise anew at every update; use the checkpoint without quantization_config"
            )

    @property
    def stop_ids(self) -> list[int]:
        """Tokens that end a completion beside the tokenizer's EOS."""
        path = self.directory / "generation_config.json"
        stop = _read(path).get("eos_token_id") if path.exists() else None
        return [stop] if isinstance(stop, int) else list(stop or ())


def _read(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise EngineFailure(
            f"cannot read {path}: {error}; the broker's model= must name an HF directory that this actor can read"
        ) from error
    return content
