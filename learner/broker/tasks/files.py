"""Tasks from JSONL and parquet files: `prompt`, `reward`, `reference`, and free metadata in all other columns."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from learner.broker.tasks.question import with_question
from learner.lines import rows
from learner.template import Wrap
from protocol.codec import decode, encode
from protocol.errors import MalformedMessage
from protocol.messages import Lease, Task

FIELDS = ("prompt", "reward", "reference")


def read_files(paths: Sequence[str], default_reward: str, wrap: Wrap) -> list[Task]:
    """All tasks of all files, in order. Raises `ValueError` that names file, line and field of the first bad one."""
    tasks = []
    for name in paths:
        path = Path(name)
        if not path.is_file():
            raise ValueError(f"task.files: {path} is not a file")
        for place, row in rows(path):
            tasks.append(_task(f"{path}:{place}", row, default_reward, wrap))
    if not tasks:
        raise ValueError(f"task.files: no tasks in {', '.join(paths)}")
    return tasks


def _task(where: str, row: Any, default_reward: str, wrap: Wrap) -> Task:
    if not isinstance(row, dict):
        raise ValueError(f"{where}: must be an object with {', '.join(FIELDS)}, got {type(row).__name__}")
    values = {"reward": default_reward, **{name: row[name] for name in FIELDS if row.get(name) is not None}}
    for name in FIELDS:
        if name not in values:
            raise ValueError(f"{where}: field {name!r} is missing")
        if not isinstance(values[name], str):
            raise ValueError(f"{where}: field {name!r} must be a text, got {type(values[name]).__name__}")
        if name != "reference" and not values[name].strip():
            raise ValueError(f"{where}: field {name!r} is empty" + ("; or set task.reward" if name == "reward" else ""))
    task = Task(
        task_id=where[-256:],
        prompt=wrap(values["prompt"]),
        reward=values["reward"],
        reference=values["reference"],
        metadata=with_question(_metadata(where, row), values["reward"], values["prompt"]),
    )
    _check_wire(where, task)
    return task


def _metadata(where: str, row: dict[str, Any]) -> dict[str, Any]:
    """All other fields, and those of a field `metadata`, which must be an object."""
    metadata = {name: value for name, value in row.items() if name not in (*FIELDS, "metadata")}
    more = row.get("metadata") or {}
    if not isinstance(more, dict):
        raise ValueError(f"{where}: field 'metadata' must be an object, got {type(more).__name__}")
    if twice := sorted(metadata.keys() & more.keys()):
        raise ValueError(f"{where}: field {twice[0]!r} stands in the line and in its 'metadata'")
    return metadata | more


def _check_wire(where: str, task: Task) -> None:
    """Refuse now what no peer would take later: texts too long, metadata that is not JSON."""
    lease = Lease(lease_id=0, group_id=0, task=task, sample_indexes=(), seeds=(), min_version=0, deadline_seconds=0.0)
    try:
        decode(encode(lease))
    except MalformedMessage as error:
        raise ValueError(f"{where}: field {error.field.removeprefix('task.')!r} {error.problem}") from None
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{where}: field 'metadata' must hold plain JSON values: {error}") from None
