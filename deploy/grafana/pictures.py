"""`python -m deploy.grafana.pictures http://127.0.0.1:9090`: a picture of each dashboard, from a live Prometheus.

Grafana does not draw them: matplotlib does, from the same panels and queries, on the same grid. So they show what a
dashboard says, not exactly how it looks.
"""

import argparse
import io
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator
from PIL import Image

from deploy.grafana.files import DASHBOARDS
from deploy.grafana.model import COLUMNS, Dashboard, Panel, Row, places
from deploy.grafana.series import Series, ask, fill, name, over_time
from deploy.report.plots import COLOURS, STYLE

FOLDER = Path(__file__).parent / "pictures"
POINTS = 240  # of a line
COLUMN_INCHES, LINE_INCHES, HEAD_INCHES = 0.56, 0.27, 0.7
DPI = 80
SHOWN = 8  # series in a legend
LEGEND = {"frameon": True, "framealpha": 0.6, "edgecolor": "none", "borderpad": 0.2}
PALETTE = 64  # colours of a picture: few make it small
PAPER = "#f5f7fa"


def short(value: float, unit: str) -> str:
    """A value as people read it; units other than bytes, seconds and shares stand in the panel's title."""
    if not math.isfinite(value):
        return "–"
    if unit == "share":
        return f"{100 * value:.3g} %"
    if unit == "seconds":
        return f"{1000 * value:.3g} ms" if 0 < abs(value) < 1 else f"{value:.3g} s"
    in_bytes = unit.startswith("bytes")
    bound, letters = (1024.0, ("", "Ki", "Mi", "Gi", "Ti")) if in_bytes else (1000.0, ("", "k", "M", "G", "T"))
    index = 0
    while abs(value) >= bound and index < len(letters) - 1:
        value, index = value / bound, index + 1
    word = letters[index] + unit.replace("bytes", "B") * in_bytes
    return f"{value:.3g} {word}".rstrip()


class Painter:
    """Draws dashboards from the `seconds` before `end` (since 1970). Lists the panels that found nothing."""

    def __init__(self, prometheus: str, *, run: str, end: float, seconds: float, interval: str) -> None:
        self.prometheus = prometheus
        self.run = run
        self.start, self.end = end - seconds, end
        self.interval = interval
        self.empty: list[str] = []

    def draw(self, dashboard: Dashboard) -> Figure:
        """The whole dashboard."""
        found = list(places(dashboard))
        lines = max(place.y + place.height for _, place in found)
        width, height = COLUMNS * COLUMN_INCHES, lines * LINE_INCHES + HEAD_INCHES
        figure = Figure(figsize=(width, height), dpi=DPI, facecolor=PAPER)
        figure.set_layout_engine("none")  # every axes has its place
        figure.text(0.01, 1 - 0.3 / height, f"Offbeat / {dashboard.title}", fontsize=15, weight="bold", va="center")
        said = f"{dashboard.says}  Run {self.run}, {self.minutes:.0f} minutes; drawn by matplotlib, not by Grafana."
        figure.text(0.99, 1 - 0.3 / height, said, fontsize=9, color="#52606d", va="center", ha="right")
        for item, place in found:
            top = 1 - (HEAD_INCHES - 0.2 + place.y * LINE_INCHES) / height
            if isinstance(item, Row):
                figure.text(0.01, top - 0.5 * LINE_INCHES / height, item.title, fontsize=11, weight="bold", va="center")
                continue
            left, right = place.x / COLUMNS, (place.x + place.width) / COLUMNS
            bottom = top - place.height * LINE_INCHES / height
            card = figure.add_axes(
                (left + 0.003, bottom + 0.03 / height, right - left - 0.006, top - bottom - 0.06 / height)
            )
            card.set(xticks=[], yticks=[])
            unit = f"  [{item.unit}]" if item.unit in ("tokens/s", "flop/s", "nats", "per second") else ""
            card.set_title(f" {item.title}{unit}", fontsize=9.5, y=1.0, pad=-12)
            room = (left + 0.045, bottom + 0.4 / height, right - left - 0.06, top - bottom - 0.72 / height)
            axes = figure.add_axes(room)
            getattr(self, item.kind)(axes, item, self.series(dashboard, item))
        return figure

    @property
    def minutes(self) -> float:
        """How long a time is shown."""
        return (self.end - self.start) / 60

    def series(self, dashboard: Dashboard, panel: Panel) -> list[tuple[str, Series]]:
        """What the panel's queries find, with the names of the legend."""
        step = (self.end - self.start) / POINTS
        found = []
        for query in panel.queries:
            expression = fill(query.expression, run=self.run, interval=self.interval)
            all_of_it = over_time(self.prometheus, expression, start=self.start, end=self.end, step=step)
            found += [(name(query, each.labels), each) for each in all_of_it]
        if not any(math.isfinite(each.last) for _, each in found):
            self.empty.append(f"{dashboard.title} / {panel.title}")
        return found

    def lines(self, axes: Axes, panel: Panel, found: list[tuple[str, Series]]) -> None:
        """A curve a series."""
        for label, each in found:
            axes.plot(*self.curve(each), linewidth=1.5, label=label)
        if panel.logarithmic and any(value > 0 for _, each in found for value in each.values):
            axes.set_yscale("log")
            low, high = axes.get_ylim()
            axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5) if high < 100 * low else ()))
            axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: short(value, panel.unit)))
            axes.tick_params(which="minor", labelsize=7, length=2)
        else:
            axes.set_ylim(*self.bounds(axes, panel))
        self.dress(axes, panel, found)

    def curve(self, series: Series) -> tuple[list[float], list[float]]:
        """Minutes and values, with a gap where there was no sample."""
        step = (self.end - self.start) / POINTS
        minutes, values, before = [], [], math.inf
        for moment, value in zip(series.times, series.values, strict=True):
            if moment - before > 1.5 * step:
                minutes.append(math.nan)
                values.append(math.nan)
            minutes.append((moment - self.start) / 60)
            values.append(value)
            before = moment
        return minutes, values

    def bounds(self, axes: Axes, panel: Panel) -> tuple[float, float]:
        """Lower and upper end of the axis, with room for the legend."""
        low, high = axes.get_ylim()
        low = low if panel.lowest is None else panel.lowest
        return low, high + 0.2 * (high - low) if panel.highest is None else panel.highest

    def stack(self, axes: Axes, panel: Panel, found: list[tuple[str, Series]]) -> None:
        """Areas on top of each other."""
        moments = sorted({moment for _, each in found for moment in each.times})
        rows = []
        for _, each in found:
            at = dict(zip(each.times, each.values, strict=True))
            rows.append([value if math.isfinite(value := at.get(moment, 0.0)) else 0.0 for moment in moments])
        minutes = [(moment - self.start) / 60 for moment in moments]
        if rows:
            axes.stackplot(minutes, rows, labels=[label for label, _ in found], alpha=0.75, colors=COLOURS)
        axes.set_ylim(*self.bounds(axes, panel))
        self.dress(axes, panel, found)

    def dress(self, axes: Axes, panel: Panel, found: list[tuple[str, Series]]) -> None:
        """Axes and legend of what runs over time."""
        axes.set_xlim(0, self.minutes)
        axes.set_xlabel("minutes", fontsize=7, labelpad=1)
        axes.tick_params(labelsize=7, length=2)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value, panel.unit)))
        axes.xaxis.set_major_locator(MaxNLocator(6))
        if not panel.logarithmic:
            axes.yaxis.set_major_locator(MaxNLocator(5))
        handles, labels = axes.get_legend_handles_labels()
        if labels:
            axes.legend(
                handles[:SHOWN], labels[:SHOWN], fontsize=6.5, loc="upper left", ncols=2, handlelength=1, **LEGEND
            )
        elif not found:
            axes.text(0.5, 0.5, "no data", transform=axes.transAxes, ha="center", color="#9aa5b1")

    def number(self, axes: Axes, panel: Panel, found: list[tuple[str, Series]]) -> None:
        """The present values, over their curves."""
        axes.set_axis_off()
        for index, (label, each) in enumerate(found):
            colour = COLOURS[index % len(COLOURS)]
            values = [value for value in each.values if math.isfinite(value)]
            if len(found) == 1 and values:
                axes.fill_between(range(len(values)), values, min(values), color=colour, alpha=0.15, linewidth=0)
            where = (index + 0.5) / len(found)
            axes.text(
                where,
                0.55,
                short(each.last, panel.unit),
                transform=axes.transAxes,
                fontsize=17 if len(found) == 1 else 12,
                weight="bold",
                color=colour,
                ha="center",
                va="center",
            )
            axes.text(where, -0.1, label, transform=axes.transAxes, fontsize=7, ha="center")

    def bars(self, axes: Axes, panel: Panel, found: list[tuple[str, Series]]) -> None:
        """The present value of each series."""
        shown = [(label or "–", each.last) for label, each in found if math.isfinite(each.last)]
        bars = axes.barh([label for label, _ in shown], [value for _, value in shown], color=COLOURS[0], height=0.6)
        axes.bar_label(bars, [short(value, panel.unit) for _, value in shown], padding=2, fontsize=7)
        axes.tick_params(labelsize=7, length=0)
        axes.set_xticks([])
        axes.margins(x=0.2)
        axes.grid(visible=False)


def save(figure: Figure, path: Path) -> None:
    """Write the picture with few colours, so that it is small."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", facecolor=figure.get_facecolor())
    with Image.open(drawn) as picture:
        picture.convert("RGB").quantize(PALETTE, dither=Image.Dither.NONE).save(path, optimize=True)


def write(painter: Painter, folder: Path, dashboards: Sequence[Dashboard] = DASHBOARDS) -> None:
    """A file a dashboard."""
    folder.mkdir(parents=True, exist_ok=True)
    with style.context(STYLE):
        for dashboard in dashboards:
            save(painter.draw(dashboard), folder / f"{dashboard.name}.png")


def main() -> None:
    """Draw what the Prometheus that is named has seen of a run."""
    parser = argparse.ArgumentParser(prog="python -m deploy.grafana.pictures", description=__doc__)
    parser.add_argument("prometheus", help="its address, such as http://127.0.0.1:9090")
    parser.add_argument("--run", default=".*", help="name of the run; a regular expression")
    parser.add_argument("--minutes", type=float, default=30.0, help="how long a time the pictures show")
    parser.add_argument("--interval", default="30s", help="over which rates are taken, at least four scrapes")
    parser.add_argument("--out", type=Path, default=FOLDER, help="directory of the pictures")
    chosen = parser.parse_args()
    painter = Painter(
        chosen.prometheus.rstrip("/"),
        run=chosen.run,
        end=time.time(),
        seconds=60 * chosen.minutes,
        interval=chosen.interval,
    )
    try:
        ask(painter.prometheus, "status/buildinfo")
        write(painter, chosen.out)
    except (OSError, ValueError) as error:
        sys.exit(f"pictures: {error}")
    print(f"{len(DASHBOARDS)} pictures in {chosen.out}; panels without data: {', '.join(painter.empty) or 'none'}")


if __name__ == "__main__":
    main()
