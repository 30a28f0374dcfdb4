"""HF checkpoints, which transformers and vLLM load: written by the learner, or from one of its training checkpoints.

`python -m learner.export RUN_OR_CHECKPOINT OUT` takes a run's directory (its newest training checkpoint) or a training
checkpoint of any number of ranks, and needs one process and memory for the weights alone.
"""

import argparse
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, PretrainedConfig

from learner.checkpoint import files as checkpoint_files
from learner.checkpoint import tensors as checkpoint_tensors

COPIED = (
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "chat_template*",
)
DTYPES = ("float32", "bfloat16", "float16")


def write_hf(
    directory: Path, state: Iterable[tuple[str, torch.Tensor]], config: PretrainedConfig, source: Path
) -> None:
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
    describe_model(partial, config, source)
    if directory.exists():
        directory.rename(old)
    partial.rename(directory)
    shutil.rmtree(old, ignore_errors=True)


def describe_model(directory: Path, config: PretrainedConfig, source: Path) -> None:
    """Write what an HF checkpoint holds beside its weights: `config`, and the tokenizer files of `source`."""
    config.save_pretrained(directory)
    for pattern in COPIED:
        for file in source.glob(pattern):
            shutil.copy(file, directory / file.name)


def export(source: Path, out: Path, dtype: str) -> Path:
    """Write the policy of a training checkpoint to `out` as an HF checkpoint; returns the checkpoint that was taken.

    `source` is the checkpoint, or a run's directory, of which the newest is taken. `dtype` is that of the weights;
    empty: as they are stored. Raises `ValueError` when there is no whole checkpoint, or `out` holds something already.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out}: is there already; choose another place, or remove it")
    checkpoint = _chosen(source)
    checkpoint_files.verify(checkpoint)
    description = checkpoint / checkpoint_files.HF
    config = AutoConfig.from_pretrained(description, local_files_only=True)
    if dtype:
        config.dtype = dtype
    state = checkpoint_tensors.read_policy(checkpoint, getattr(torch, dtype) if dtype else None)
    write_hf(out, state.items(), config, description)
    return checkpoint


def _chosen(source: Path) -> Path:
    if not source.is_dir():
        raise ValueError(f"{source}: is no directory; give a run's directory, or one of its checkpoints/step_…")
    if (source / checkpoint_files.PROGRESS).is_file():
        return source
    if (source / "model.safetensors").is_file():
        raise ValueError(f"{source}: is an HF checkpoint already")
    whole = checkpoint_files.whole(source / checkpoint_files.FOLDER)
    if not whole:
        raise ValueError(
            f"{source}: holds no whole training checkpoint (no {checkpoint_files.PROGRESS} in it, nor in "
            f"{checkpoint_files.FOLDER}/step_… under it)"
        )
    return whole[-1]


def main() -> None:
    """Export what the command line names."""
    parser = argparse.ArgumentParser(prog="python -m learner.export", description="Training checkpoint → HF checkpoint")
    parser.add_argument("source", type=Path, metavar="RUN_OR_CHECKPOINT", help="a run's directory, or a checkpoint")
    parser.add_argument("out", type=Path, metavar="OUT", help="directory to write; must not exist, or be empty")
    parser.add_argument("--dtype", choices=DTYPES, default="", help="dtype of the weights; as stored if not given")
    asked = parser.parse_args()
    try:
        taken = export(asked.source, asked.out, asked.dtype)
    except (ValueError, OSError) as error:
        sys.exit(f"export: {error}")
    print(f"{taken} → {asked.out}")


if __name__ == "__main__":
    main()
