"""`python -m learner.broker.tasks.gym_entries '{"family": …}'`: makes entries of one reasoning-gym family.

A process of its own, started by `GymTasks`, for three reasons: some families walk through sets, so that only a fixed
PYTHONHASHSEED makes the same entry from the same seed; the library takes seconds to import; and an entry may take a
second, which the broker's loop must not. It reads the number of an entry a line and writes the entry a line, and ends
with its input.
"""

import ast
import difflib
import json
import os
import sys
from collections.abc import Callable
from typing import Any

from reasoning_gym.factory import DATASETS, create_dataset

from protocol import reference


def main() -> None:
    """Say `{"params": …}` or `{"error": …}`, then serve."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # libraries print as they please
    try:
        params, entry = open_family(**json.loads(sys.argv[1]))
    except ValueError as error:
        print(json.dumps({"error": str(error)}), file=answers, flush=True)
        return
    print(json.dumps({"params": reference.dump(params)}), file=answers, flush=True)
    for line in sys.stdin:
        print(reference.dump(entry(int(line))), file=answers, flush=True)


def open_family(
    family: str, size: int, seed: int, params: dict[str, str]
) -> tuple[dict[str, Any], Callable[[int], dict[str, Any]]]:
    """The parameters as Python values, and what makes the entry at an index. Raises `ValueError`."""
    if family not in families():
        close = ", ".join(difflib.get_close_matches(family, families(), n=3))
        hint = f"did you mean {close}? task.name=reasoning_gym/? names all" if close else ", ".join(families())
        raise ValueError(f"task.name=reasoning_gym/{family}: no such family; {hint}")
    values = {name: _literal(text) for name, text in params.items()}
    try:
        dataset = create_dataset(family, size=size, seed=seed, **values)
    except (TypeError, ValueError, AssertionError) as error:
        raise ValueError(f"task.params: {family} does not take {values}: {error}") from None
    return values, dataset.__getitem__


def families() -> list[str]:
    """Names of all families that stand alone."""
    return sorted(set(DATASETS) - {"composite"})


def _literal(text: str) -> Any:
    """A parameter's value as Python writes it: a number, a truth, a list; anything else is a text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


if __name__ == "__main__":
    main()
