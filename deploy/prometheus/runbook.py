"""`python -m deploy.prometheus.runbook deploy/README.md`: the table of alerts, written anew from alerts.yml.

It stands between two markers; the rest of the file is left alone. A test demands that it is current.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ALERTS = Path(__file__).parent / "alerts.yml"
BEGIN = "<!-- alerts: written by `python -m deploy.prometheus.runbook deploy/README.md` -->"
END = "<!-- end of alerts -->"


@dataclass(frozen=True, slots=True)
class Alert:
    """A rule of alerts.yml, as people read it."""

    name: str
    severity: str
    summary: str  # with Prometheus' own templates in it
    description: str
    runbook: str


def alerts() -> list[Alert]:
    """All of them, in their order. Raises `KeyError` for one that lacks a label or an annotation."""
    content: Any = yaml.safe_load(ALERTS.read_text())
    return [
        Alert(
            rule["alert"],
            rule["labels"]["severity"],
            *(rule["annotations"][name] for name in ("summary", "description", "runbook")),
        )
        for group in content["groups"]
        for rule in group["rules"]
    ]


def table() -> str:
    """What you see, and what to do."""
    rows = [f"| {each.description} | `{each.name}` | {each.severity} | {each.runbook} |" for each in alerts()]
    return "\n".join(["| what you see | alert | severity | what to do |", "|---|---|---|---|", *rows])


def insert(text: str) -> str:
    """`text` with the table between its markers. Raises `ValueError` when it has no markers."""
    before, found, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not found or not end:
        raise ValueError(f"no line {BEGIN!r} followed by {END!r}")
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"


def main() -> None:
    """Write the table into the file that is named."""
    if len(sys.argv) != 2:
        sys.exit(
            "runbook: give the file that holds the table, as in `python -m deploy.prometheus.runbook deploy/README.md`"
        )
    path = Path(sys.argv[1])
    try:
        path.write_text(insert(path.read_text()))
    except (OSError, ValueError) as error:
        sys.exit(f"runbook: {path}: {error}")


if __name__ == "__main__":
    main()
