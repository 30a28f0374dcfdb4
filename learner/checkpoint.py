"""HF checkpoints: what transformers and vLLM load."""

import shutil
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import PretrainedConfig

COPIED = (
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "chat_template*",
)


def save(directory: Path, state: Iterable[tuple[str, torch.Tensor]], config: PretrainedConfig, source: Path) -> None:
    """Write `state` (HF names, whole tensors), `config`, and the tokenizer files of `source` to `directory`.

    The directory appears whole or not at all; one that was there is replaced, and until then stays whole (between two
    renames it is called `.old`).
    """
    partial, old = (directory.with_name(directory.name + suffix) for suffix in (".partial", ".old"))
    for leftover in (partial, old):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir(parents=True)
    tied = config.tie_word_embeddings
    kept = {name: tensor.cpu().contiguous() for name, tensor in state if not (tied and name == "lm_head.weight")}
    save_file(kept, partial / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(partial)
    for pattern in COPIED:
        for file in source.glob(pattern):
            shutil.copy(file, partial / file.name)
    if directory.exists():
        directory.rename(old)
    partial.rename(directory)
    shutil.rmtree(old, ignore_errors=True)
