"""Training checkpoints as directories: what makes one whole, which of them are kept.

A checkpoint is called `step_00000012` after its policy version. It is written as `step_00000012.partial` and renamed
when everything is on the disk, its `progress.json` last, which lists every other file with its size. So a directory of
the first name is whole, however the writer ended, unless somebody changed it later, which `verify` finds out.
"""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from learner.checkpoint.progress import Progress, as_json, from_json

FOLDER = "checkpoints"  # in the run's directory
PROGRESS = "progress.json"
HF = "hf"  # HF config and tokenizer, in a checkpoint
PARTIAL = ".partial"
FORMAT = 2  # of progress.json
NAME = re.compile(r"step_\d{8,}")


def path_of(directory: Path, policy_version: int) -> Path:
    """The checkpoint of `policy_version` in `directory`."""
    return directory / f"step_{policy_version:08d}"


def whole(directory: Path) -> list[Path]:
    """The checkpoints in `directory` that were written to their end, oldest first."""
    found = [path.parent for path in directory.glob(f"step_*/{PROGRESS}")]
    return sorted((path for path in found if NAME.fullmatch(path.name)), key=version_of)


def version_of(path: Path) -> int:
    """The policy version of a checkpoint, from its name."""
    return int(path.name.removeprefix("step_"))


def sweep(directory: Path) -> None:
    """Remove what was not written, or not removed, to its end."""
    for path in directory.glob(f"step_*{PARTIAL}"):
        shutil.rmtree(path)


def seal(partial: Path, path: Path, progress: Progress) -> None:
    """Write progress.json as the last file of `partial` and call it `path`."""
    files = {str(file.relative_to(partial)): file.stat().st_size for file in _files(partial)}
    content = {"format": FORMAT, **as_json(progress), "files": files}
    with (partial / PROGRESS).open("w") as file:
        json.dump(content, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    _sync_directory(partial)
    partial.rename(path)
    _sync_directory(path.parent)


def prune(directory: Path, keep: int) -> None:
    """Remove all but the `keep` newest checkpoints."""
    for path in whole(directory)[:-keep]:
        doomed = path.with_name(path.name + PARTIAL)  # so that a half removed one is never taken for a whole one
        path.rename(doomed)
        shutil.rmtree(doomed)


def verify(path: Path) -> Progress:
    """What the checkpoint says of the run. Raises `ValueError` with the file when it is not as it was written."""
    content = _read(path / PROGRESS)
    if content.get("format") != FORMAT:
        raise ValueError(f"{path / PROGRESS}: format {content.get('format')!r}, this version reads {FORMAT}")
    files = content.get("files")
    if not isinstance(files, dict) or not files:
        raise ValueError(f"{path / PROGRESS}: field 'files' must list the checkpoint's files")
    for name, size in files.items():
        file = path / name
        found = file.stat().st_size if file.is_file() else None
        if found != size:
            state = "is missing" if found is None else f"has {found} bytes, {size} were written"
            raise ValueError(f"{file}: {state}; remove {path} to go on from the checkpoint before it")
    try:
        return from_json(content)
    except ValueError as error:
        raise ValueError(f"{path / PROGRESS}: {error}") from None


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ValueError(f"{path.parent}: is no training checkpoint, it has no {path.name}") from None
    except ValueError as error:
        raise ValueError(f"{path}: is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: must be an object, is {type(content).__name__}")
    return content


def _files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())


def _sync_directory(path: Path) -> None:
    """The names in a directory reach the disk by themselves at some time; this is that time."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
