"""Dashboards are what the code says, Grafana's schema knows every field, and no panel names what no role exports."""

import dataclasses
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from exported import Exported, exported
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard as GrafanasOwn

from deploy.grafana import files, pictures
from deploy.grafana.model import COLUMNS, UNITS, Dashboard, Panel, Query, places
from deploy.grafana.series import Series, fill, name
from deploy.prometheus.configuration import HERE

DASHBOARDS = {each.name: each for each in files.DASHBOARDS}
PROVISIONING = files.FOLDER.parent / "provisioning"
WORDS = {  # of a metric's name that say its unit, and the units of panels that may show it bare
    "seconds": {"seconds"},
    "bytes": {"bytes"},
    "flop": {"flop/s"},
    "tokens": {"tokens"},
    "nats": {"nats"},
    "ratio": {"share", "number"},
    "mean": {"number"},  # of rewards and words, which have no unit
    "std": {"number"},
    "loss": {"number"},
    "norm": {"number"},
    "rate": {"number"},
    "steps": {"steps"},
    "version": {"steps"},
}
WORDS |= {  # things that are counted
    noun: {"count"}
    for noun in (
        *("groups", "leases", "rollouts", "verdicts", "checks", "jobs", "tasks", "messages", "peers", "workers"),
        *(
            "updates",
            "shards",
            "versions",
            "waits",
            "duplicates",
            "sources",
            "mismatches",
            "connections",
            "handshakes",
            "runs",
            "wall",
        ),
    )
}
LIBRARY = {"process_cpu_seconds_total", "process_resident_memory_bytes", "process_start_time_seconds", "up", "ALERTS"}


@pytest.fixture(scope="session")
def metrics(tmp_path_factory: pytest.TempPathFactory) -> list[Exported]:
    """All that the roles export."""
    return list(exported(tmp_path_factory.mktemp("journal")))


def recorded() -> dict[str, str]:
    """Prometheus' own rules: names and expressions."""
    content: Any = yaml.safe_load((HERE / "recording.yml").read_text())
    return {rule["record"]: rule["expr"] for group in content["groups"] for rule in group["rules"]}


def names(expression: str) -> set[str]:
    """The metrics that an expression asks for: words outside braces, brackets and label lists that are no function."""
    bare = re.sub(r'"[^"]*"|\{[^}]*\}|\[[^\]]*\]|\b(by|on|without|group_left|group_right)\s*\([^)]*\)', "", expression)
    return {word for word in re.findall(r"[a-zA-Z_:][\w:]*(?!\w*\s*\()", bare)} - {"or", "and", "unless", "bool"}


def expressions() -> Iterator[tuple[str, str]]:
    """Every query of a panel, by whose it is."""
    for dashboard in files.DASHBOARDS:
        for panel in dashboard.panels():
            for query in panel.queries:
                yield f"{dashboard.title} / {panel.title}", query.expression


def test_names_are_found_in_an_expression() -> None:
    assert names('sum by (le) (rate(a_bucket{run=~"$run"}[1m])) / on (x) b:c:d or vector(0)') == {"a_bucket", "b:c:d"}


def test_the_committed_json_is_what_the_code_generates() -> None:
    found = {path.name: path.read_text() for path in files.FOLDER.iterdir()}
    assert found == files.texts(), "run `python -m deploy.grafana`"


def test_files_of_dashboards_that_are_gone_are_removed(tmp_path: Path) -> None:
    (tmp_path / "gone.json").write_text("{}")
    files.write(tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == files.texts()


def test_the_six_dashboards_of_a_run_are_there() -> None:
    assert list(DASHBOARDS) == ["overview", "rollouts", "learner", "verifier", "broker", "r1"]


@pytest.mark.parametrize("name", DASHBOARDS)
def test_grafanas_schema_knows_every_field(name: str) -> None:
    """Its own models read the file, and write all of it again: what they do not know would be lost on the way."""
    written = json.loads((files.FOLDER / f"{name}.json").read_text())
    for annotation in written["annotations"]["list"]:
        del annotation["titleFormat"], annotation["textFormat"]  # of Prometheus' annotations, which have no model
    again = json.loads(JSONEncoder().encode(GrafanasOwn.from_json(written)))
    assert lost(written, again) == []


def lost(before: Any, after: Any, path: str = "") -> list[str]:
    """Where `after` lacks or changes what `before` has."""
    if isinstance(before, dict) and isinstance(after, dict):
        return [each for key in before for each in lost(before[key], after.get(key, "absent"), f"{path}/{key}")]
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        pairs = enumerate(zip(before, after, strict=True))
        return [each for index, (one, two) in pairs for each in lost(one, two, f"{path}/{index}")]
    return [] if before == after else [f"{path}: {before!r} became {after!r}"]


@pytest.mark.parametrize("dashboard", files.DASHBOARDS, ids=lambda each: each.name)
def test_panels_lie_on_the_grid_and_on_no_other(dashboard: Dashboard) -> None:
    taken: set[tuple[int, int]] = set()
    for item, place in places(dashboard):
        cells = {(x, y) for x in range(place.x, place.x + place.width) for y in range(place.y, place.y + place.height)}
        assert all(x < COLUMNS for x, _ in cells), item.title
        assert not cells & taken, item.title
        taken |= cells


@pytest.mark.parametrize("dashboard", files.DASHBOARDS, ids=lambda each: each.name)
def test_every_panel_says_what_it_shows_and_asks_for_the_chosen_runs_only(dashboard: Dashboard) -> None:
    titles = [panel.title for panel in dashboard.panels()]
    assert len(set(titles)) == len(titles)
    for panel in dashboard.panels():
        assert panel.says.endswith("."), panel.title
        for query in panel.queries:
            assert query.legend, panel.title
            selectors = re.findall(r"\{([^}]*)\}", query.expression)
            assert selectors, panel.title
            assert all('run=~"$run"' in each for each in selectors), panel.title
            assert ("$process" in query.expression) <= bool(dashboard.process), panel.title


def test_a_variable_that_nobody_sets_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\$node in up\{node=\"\$node\"\}: known are run, process"):
        fill('up{node="$node"}')


def test_no_panel_and_no_rule_names_a_metric_that_nobody_exports(metrics: list[Exported]) -> None:
    known = {name for each in metrics for name in each.series()} | recorded().keys() | LIBRARY
    alerts: Any = yaml.safe_load((HERE / "alerts.yml").read_text())
    rules = {rule["alert"]: rule["expr"] for group in alerts["groups"] for rule in group["rules"]}
    asked = [*expressions(), *recorded().items(), *rules.items()]
    assert {where: unknown for where, text in asked if (unknown := names(text) - known)} == {}


def test_every_metric_of_a_role_is_on_a_dashboard(metrics: list[Exported]) -> None:
    """Itself, or in a rule that is."""
    rules = recorded()
    shown = {name for _, text in expressions() for name in names(text)}
    shown |= {name for rule in shown & rules.keys() for name in names(rules[rule])}
    left_out = sorted(each.name for each in metrics if not each.series() & shown)
    assert left_out == [], "add them to a panel in deploy/grafana, then `python -m deploy.grafana`"


def test_every_exported_metric_has_a_help_and_its_role_and_unit_in_its_name(metrics: list[Exported]) -> None:
    assert {each.role for each in metrics} == {"broker", "learner", "actor", "verifier"}
    assert len(metrics) > 90
    for each in metrics:
        assert len(each.help.split()) >= 2, f"{each.name} has no help"
        assert unit_words(each.name), f"{each.name} names no unit"


def unit_words(name: str) -> list[str]:
    """The words of a metric's name that say its unit."""
    return [word for word in name.split("_")[1:] if word in WORDS]


def bare(panel: Panel, name: str) -> bool:
    """Whether a panel shows a metric as it is, in the metric's own unit."""
    return any(re.fullmatch(rf"{name}\{{[^}}]*\}}", query.expression) for query in panel.queries)


def test_a_panel_shows_a_metric_in_the_metrics_own_unit(metrics: list[Exported]) -> None:
    for dashboard in files.DASHBOARDS:
        for panel in dashboard.panels():
            assert panel.unit in UNITS
            for each in metrics:
                if each.kind == "gauge" and bare(panel, each.name):
                    allowed = set.union(*(WORDS[word] for word in unit_words(each.name)))
                    assert panel.unit in allowed, f"{panel.title} shows {each.name} in {panel.unit}"


def test_provisioning_points_at_the_dashboards_and_knows_the_interval_of_scrapes() -> None:
    (source,) = yaml.safe_load((PROVISIONING / "datasources" / "offbeat.yml").read_text())["datasources"]
    prometheus = yaml.safe_load((HERE / "prometheus.yml").read_text())
    assert source["jsonData"]["timeInterval"] == prometheus["global"]["scrape_interval"]
    assert (source["type"], source["isDefault"]) == ("prometheus", True)
    (provider,) = yaml.safe_load((PROVISIONING / "dashboards" / "offbeat.yml").read_text())["providers"]
    assert provider["type"] == "file"


def test_every_dashboard_has_a_small_picture_that_the_readme_shows() -> None:
    readme = (HERE.parent / "README.md").read_text()
    assert all(f"grafana/pictures/{name}.png" in readme for name in DASHBOARDS)
    found = {path.stem: path.stat().st_size for path in pictures.FOLDER.glob("*.png")}
    assert found.keys() == DASHBOARDS.keys(), "draw them: python -m deploy.grafana.pictures"
    assert max(found.values()) < 300_000


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.256, "share", "25.6 %"),
        (0.0123, "seconds", "12.3 ms"),
        (12.0, "seconds", "12 s"),
        (1536.0, "bytes", "1.5 KiB"),
        (25_000.0, "tokens/s", "25 k"),
        (2e12, "flop/s", "2 T"),
        (1.5 * 2**20, "bytes/s", "1.5 MiB/s"),
        (float("nan"), "count", "–"),
        (0.0, "seconds", "0 s"),
    ],
)
def test_values_are_written_short(value: float, unit: str, text: str) -> None:
    assert pictures.short(value, unit) == text


def test_a_panel_of_an_unknown_unit_is_refused() -> None:
    (panel, *_) = DASHBOARDS["r1"].panels()
    with pytest.raises(AssertionError, match="is not in UNITS"):
        dataclasses.replace(panel, unit="furlongs")


def test_pictures_without_a_prometheus_end_in_a_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.argv", ["pictures", "http://127.0.0.1:9", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"pictures: .*refused"):
        pictures.main()
    assert list(tmp_path.iterdir()) == []


def test_a_curve_has_a_gap_where_there_was_no_sample() -> None:
    painter = pictures.Painter("", run="r", end=240.0, seconds=240.0, interval="1m")  # a point a second
    minutes, values = painter.curve(Series({}, (0.0, 1.0, 60.0), (1.0, 2.0, 3.0)))
    assert minutes == pytest.approx([0, 1 / 60, math.nan, 1], nan_ok=True)
    assert values == pytest.approx([1, 2, math.nan, 3], nan_ok=True)


def test_a_series_is_named_by_its_legend() -> None:
    assert name(Query("x", "{{role}} of {{run}}{{nothing}}"), {"role": "actor", "run": "r"}) == "actor of r"
