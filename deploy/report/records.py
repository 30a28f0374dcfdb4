"""A run's files, read whole and checked, for the report. An error names file, line and field."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.local import restarts

Row = dict[str, Any]

Kinds = dict[str, tuple[type, ...]]

METRIC_FIELDS: Kinds = {
    "step": (int,),
    "time_s": (int, float),
    "reward_mean": (int, float),
    "staleness_tokens": (dict,),
}
RESTART_FIELDS: Kinds = {"time": (int, float), "process": (str,), "cause": (str,)}
SAMPLE_FIELDS: Kinds = {"step": (int,), "prompt": (str,), "completion": (str,), "reward": (int, float)}


@dataclass(frozen=True, slots=True)
class Records:
    """What a run left. `rows` has a line a step; `summary` is empty when the run did not come to its end."""

    directory: Path
    rows: list[Row]
    samples: list[Row]
    restarts: list[Row]
    summary: Row
    config: str

    @property
    def name(self) -> str:
        """The directory's name."""
        return self.directory.resolve().name

    def series(self, *path: str) -> list[float]:
        """The value at `path` in each step's line, NaN where it is null or missing."""
        return [_number(row, path) for row in self.rows]


def read(directory: Path) -> Records:
    """Everything that the report shows. Raises `ValueError` when there is nothing to report, or it is garbled."""
    if not directory.is_dir():
        raise ValueError(f"{directory}: no such run directory")
    metrics = directory / "metrics.jsonl"
    if not metrics.is_file():
        raise ValueError(f"{metrics} is missing: the run has not trained a step")
    rows = _lines(metrics, METRIC_FIELDS)
    if not rows:
        raise ValueError(f"{metrics} is empty: the run has not trained a step")
    samples = directory / "samples.jsonl"
    restarted = directory / restarts.FILE
    summary = directory / "summary.json"
    configs = [directory / "config" / f"run_{launcher}.yaml" for launcher in ("local", "slurm")]
    config = next((path for path in configs if path.is_file()), configs[0])
    return Records(
        directory=directory,
        rows=rows,
        samples=_lines(samples, SAMPLE_FIELDS) if samples.is_file() else [],
        restarts=_lines(restarted, RESTART_FIELDS) if restarted.is_file() else [],
        summary=_object(summary.read_bytes(), f"{summary}") if summary.is_file() else {},
        config=config.read_text(errors="replace") if config.is_file() else "",
    )


def _lines(path: Path, demanded: Kinds) -> list[Row]:
    rows = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        row = _object(line, f"{path}:{number}")
        for name, kinds in demanded.items():
            if name not in row:
                raise ValueError(f"{path}:{number}: field {name!r} is missing")
            if not isinstance(row[name], kinds):
                raise ValueError(f"{path}:{number}: field {name!r} must be {kinds[-1].__name__}, is {row[name]!r:.50}")
        rows.append(row)
    return rows


def _object(text: bytes, where: str) -> Row:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{where}: is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{where}: must be an object, is {type(content).__name__}")
    return content


def _number(row: Row, path: tuple[str, ...]) -> float:
    value: Any = row
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return float(value) if isinstance(value, int | float) else float("nan")
