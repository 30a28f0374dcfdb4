"""Files of examples or tasks: a JSON value a line, or a row of a parquet table."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Line number, counted from 1, and content of each row; blank lines are skipped.

    Raises `ValueError` with file and line.
    """
    if path.suffix == ".parquet":
        try:
            table = pq.read_table(path)
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(f"{path}: cannot be read as parquet: {error}") from None
        yield from enumerate(table.to_pylist(), start=1)
        return
    if path.suffix not in (".jsonl", ".json"):
        raise ValueError(f"{path}: must end in .jsonl or .parquet")
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                yield number, json.loads(line, parse_constant=_refuse_constant)
            except ValueError as error:
                raise ValueError(f"{path}:{number}: is not JSON: {error}") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")
