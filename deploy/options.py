"""`python -m deploy.options README.md`: the README's option tables, written anew from the schemas.

The tables stand between two markers; the rest of the file is left alone. A test demands that they are current.
"""

import sys
from collections.abc import Callable
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import MISSING as MANDATORY

from deploy.local.config import RENAMED, ROOTS, LocalRoot

BEGIN = "<!-- options: written by `make options` -->"
END = "<!-- end of options -->"


def tables() -> str:
    """Every option of every role, a table a section, in the names of the launcher's tree."""
    scalars, sections = [], []
    for each in fields(LocalRoot):
        default = _default(each)
        if is_dataclass(default):
            sections.append((each.name, default))
        else:
            scalars.append(each)
    parts = [table("", [(each, _default(each)) for each in scalars], "The launcher")]
    for name, section in sorted(sections):
        rows = [(each, getattr(section, each.name)) for each in fields(section)]
        parts.append(table(f"{name}.", rows, f"`{name}` ({', '.join(readers(name))})"))
    return "\n".join(parts)


def readers(section: str) -> list[str]:
    """The roles that read a section of the launcher's tree."""
    return [
        role
        for role, root in ROOTS.items()
        if any(RENAMED.get((role, each.name), each.name) == section for each in fields(root))
    ]


def _default(each: "Field[Any]") -> Any:
    if each.default_factory is not MISSING:
        return each.default_factory()
    return each.default


def table(prefix: str, rows: list[tuple["Field[Any]", Any]], title: str) -> str:
    """Rows of options, each with its default, under a title."""
    lines = [f"**{title}**", "", "| option | default | meaning |", "|---|---|---|"]
    lines += [
        f"| `{prefix}{each.name}` | {_shown(default)} | {_cell(each.metadata['doc'])} |" for each, default in rows
    ]
    return "\n".join(lines) + "\n"


def _shown(default: Any) -> str:
    if default == MANDATORY:
        return "required"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    return f"`{_cell(str(default))}`" if default != "" else "empty"


def _cell(text: str) -> str:
    """`text` for a cell of a table; outside backticks `<` would open a tag."""
    pieces = text.replace("|", "\\|").split("`")
    pieces[::2] = (piece.replace("<", "\\<") for piece in pieces[::2])
    return "`".join(pieces)


def insert(text: str, made: Callable[[], str] = tables) -> str:
    """`text` with the tables that are `made` between its markers. Raises `ValueError` when it has no markers."""
    before, found, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not found or not end:
        raise ValueError(f"no line {BEGIN!r} followed by {END!r}")
    return f"{before}{BEGIN}\n\n{made()}\n{END}{after}"


def main() -> None:
    """Write the tables into the file that is named."""
    if len(sys.argv) != 2:
        sys.exit("options: give the file that holds the tables, as in `python -m deploy.options README.md`")
    path = Path(sys.argv[1])
    try:
        path.write_text(insert(path.read_text()))
    except (OSError, ValueError) as error:
        sys.exit(f"options: {path}: {error}")


if __name__ == "__main__":
    main()
