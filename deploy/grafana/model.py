"""What a dashboard is made of, and its JSON for Grafana: rows of panels with their queries, on a grid of 24 columns.

A query is PromQL with Grafana's variables in it: `$run` and `$process` are chosen by whoever looks (as regular
expressions, so match them with `=~`), and `$__rate_interval` is at least four scrapes long.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

COLUMNS = 24  # of Grafana's grid
ROW_HEIGHT = 1
SOURCE = {"type": "prometheus", "uid": "${datasource}"}

UNITS = {  # as panels name them, and Grafana's name for each
    "seconds": "s",
    "bytes": "bytes",
    "bytes/s": "Bps",
    "share": "percentunit",
    "tokens": "short",
    "tokens/s": "suffix: tok/s",
    "flop/s": "suffix: FLOP/s",
    "nats": "suffix: nats",
    "steps": "short",
    "per second": "cps",
    "count": "short",
    "number": "none",
}


@dataclass(frozen=True, slots=True)
class Query:
    """One PromQL expression; `legend` names its series, with `{{label}}` for the value of a label."""

    expression: str
    legend: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """A picture of some queries. `lowest` and `highest` bound its axis, where they are given."""

    title: str
    says: str  # what one sees, and what is good or bad about it
    unit: str  # of `UNITS`
    queries: tuple[Query, ...]
    kind: Literal["lines", "stack", "bars", "number"] = "lines"  # bars: the present value of each series
    width: int = 8
    height: int = 8
    lowest: float | None = 0.0
    highest: float | None = None
    logarithmic: bool = False

    def __post_init__(self) -> None:
        assert self.unit in UNITS, f"{self.title}: {self.unit} is not in UNITS"
        assert self.queries, f"{self.title} asks for nothing"


@dataclass(frozen=True, slots=True)
class Row:
    """Panels under one heading, set from left to right; a new line begins where one does not fit."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dashboard:
    """Its `name` is that of its file. `process` is the job whose processes can be chosen; empty where none can."""

    name: str
    title: str
    says: str
    rows: tuple[Row, ...]
    process: str = ""

    def panels(self) -> Iterator[Panel]:
        """All of them, in order."""
        for row in self.rows:
            yield from row.panels


@dataclass(frozen=True, slots=True)
class Place:
    """Where a panel or a heading stands, in columns and lines of the grid."""

    x: int
    y: int
    width: int
    height: int


def places(dashboard: Dashboard) -> Iterator[tuple[Row | Panel, Place]]:
    """Every heading and panel with its place, from top to bottom."""
    y = 0
    for row in dashboard.rows:
        yield row, Place(0, y, COLUMNS, ROW_HEIGHT)
        y += ROW_HEIGHT
        x = line = 0
        for panel in row.panels:
            if x + panel.width > COLUMNS:
                x, y, line = 0, y + line, 0
            yield panel, Place(x, y, panel.width, panel.height)
            x, line = x + panel.width, max(line, panel.height)
        y += line


def as_json(dashboard: Dashboard, others: tuple[Dashboard, ...] = ()) -> dict[str, Any]:
    """The dashboard as Grafana reads it from a file, with links to the `others`."""
    return {
        "uid": f"offbeat-{dashboard.name}",
        "title": f"Offbeat / {dashboard.title}",
        "description": dashboard.says,
        "tags": ["offbeat"],
        "schemaVersion": 39,
        "editable": False,
        "graphTooltip": 1,  # one cursor for all panels
        "refresh": "5s",
        "time": {"from": "now-30m", "to": "now"},
        "timezone": "browser",
        "links": [_link(each) for each in others if each.name != dashboard.name],
        "annotations": {"list": [_alerts()]},
        "templating": {"list": _variables(dashboard)},
        "panels": [
            _heading(number, item, place) if isinstance(item, Row) else _panel(number, item, place)
            for number, (item, place) in enumerate(places(dashboard), start=1)
        ],
    }


def run_names() -> str:
    """The query that finds the runs; every broker answers it."""
    return "label_values(broker_policy_version, run)"


def process_names(job: str) -> str:
    """The query that finds the processes of a role in the chosen runs."""
    return f'label_values(up{{job="{job}",run=~"$run"}}, process)'


def _link(other: Dashboard) -> dict[str, Any]:
    return {
        "title": other.title,
        "type": "link",
        "url": f"/d/offbeat-{other.name}",
        "includeVars": True,
        "keepTime": True,
        "asDropdown": False,
        "icon": "dashboard",
        "tags": [],
        "targetBlank": False,
        "tooltip": other.says,
    }


def _alerts() -> dict[str, Any]:
    """Marks on the time axis where an alert fires."""
    return {
        "name": "alerts",
        "enable": True,
        "hide": False,
        "iconColor": "red",
        "datasource": SOURCE,
        "expr": 'ALERTS{alertstate="firing",run=~"$run"}',
        "titleFormat": "{{alertname}}",
        "textFormat": "{{process}}",
    }


def _variables(dashboard: Dashboard) -> list[dict[str, Any]]:
    variables = [
        {"name": "datasource", "type": "datasource", "label": "Prometheus", "query": "prometheus"},
        _choice("run", "run", run_names()),
    ]
    if dashboard.process:
        variables.append(_choice("process", dashboard.process, process_names(dashboard.process)))
    return variables


def _choice(name: str, label: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "type": "query",
        "label": label,
        "datasource": SOURCE,
        "query": query,
        "refresh": 2,  # whenever the time range changes
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all", "selected": True},
        "sort": 1,
    }


def _grid(place: Place) -> dict[str, int]:
    return {"x": place.x, "y": place.y, "w": place.width, "h": place.height}


def _heading(number: int, row: Row, place: Place) -> dict[str, Any]:
    return {
        "id": number,
        "type": "row",
        "title": row.title,
        "collapsed": False,
        "gridPos": _grid(place),
        "panels": [],
    }


def _panel(number: int, panel: Panel, place: Place) -> dict[str, Any]:
    types = {"lines": "timeseries", "stack": "timeseries", "bars": "bargauge", "number": "stat"}
    at_once = panel.kind in ("bars", "number")
    return {
        "id": number,
        "type": types[panel.kind],
        "title": panel.title,
        "description": panel.says,
        "datasource": SOURCE,
        "gridPos": _grid(place),
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": SOURCE,
                "expr": query.expression,
                "legendFormat": query.legend,
                "instant": panel.kind == "bars",
                "range": panel.kind != "bars",
            }
            for index, query in enumerate(panel.queries)
        ],
        "fieldConfig": {"defaults": _defaults(panel), "overrides": []},
        "options": _at_once(panel) if at_once else _over_time(),
    }


def _defaults(panel: Panel) -> dict[str, Any]:
    bounds = {name: bound for name, bound in (("min", panel.lowest), ("max", panel.highest)) if bound is not None}
    if panel.kind in ("bars", "number"):
        return {"unit": UNITS[panel.unit], **bounds}
    stacked = panel.kind == "stack"
    return {
        "unit": UNITS[panel.unit],
        **({} if panel.logarithmic else bounds),
        "custom": {
            "drawStyle": "line",
            "lineWidth": 1 if stacked else 2,
            "fillOpacity": 60 if stacked else 0,
            "stacking": {"mode": "normal" if stacked else "none", "group": "A"},
            "scaleDistribution": {"type": "log", "log": 10} if panel.logarithmic else {"type": "linear"},
            "showPoints": "never",
            "spanNulls": False,
        },
    }


def _at_once(panel: Panel) -> dict[str, Any]:
    last = {"calcs": ["lastNotNull"], "fields": "", "values": False}
    if panel.kind == "bars":
        return {"displayMode": "basic", "orientation": "horizontal", "reduceOptions": last, "showUnfilled": True}
    return {"colorMode": "value", "graphMode": "area", "justifyMode": "auto", "reduceOptions": last}


def _over_time() -> dict[str, Any]:
    return {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
