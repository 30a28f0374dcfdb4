"""`python -m deploy.prometheus.runbook deploy/README.md`: the tables of alerts, written anew from alerts.yml.

A group of alerts is a symptom, and a table. They stand between two markers; the rest of the file is left alone. A test
demands that they are current.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ALERTS = Path(__file__).parent / "alerts.yml"
BEGIN = "<!-- alerts: written by `python -m deploy.prometheus.runbook deploy/README.md` -->"
HEAD = ("| what you see | alert | severity | what to do |", "|---|---|---|---|")
END = "<!-- end of alerts -->"


@dataclass(frozen=True, slots=True)
class Alert:
    """A rule of alerts.yml, as people read it."""

    symptom: str  # the name of its group
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
            group["name"],
            rule["alert"],
            rule["labels"]["severity"],
            *(rule["annotations"][name] for name in ("summary", "description", "runbook")),
        )
        for group in content["groups"]
        for rule in group["rules"]
    ]


def tables() -> str:
    """What you see, and what to do, a table for each symptom."""
    found: dict[str, list[str]] = {}
    for each in alerts():
        row = f"| {each.description} | `{each.name}` | {each.severity} | {each.runbook} |"
        found.setdefault(each.symptom, []).append(row)
    return "\n\n".join("\n".join([f"**{symptom}**", "", *HEAD, *rows]) for symptom, rows in found.items())


def insert(text: str) -> str:
    """`text` with the tables between its markers. Raises `ValueError` when it has no markers."""
    before, found, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not found or not end:
        raise ValueError(f"no line {BEGIN!r} followed by {END!r}")
    return f"{before}{BEGIN}\n\n{tables()}\n\n{END}{after}"


def main() -> None:
    """Write the tables into the file that is named."""
    if len(sys.argv) != 2:
        sys.exit(
            "runbook: give the file that holds the tables, as in `python -m deploy.prometheus.runbook deploy/README.md`"
        )
    path = Path(sys.argv[1])
    try:
        path.write_text(insert(path.read_text()))
    except (OSError, ValueError) as error:
        sys.exit(f"runbook: {path}: {error}")


if __name__ == "__main__":
    main()
