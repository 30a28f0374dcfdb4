"""Two pictures of a sweep over staleness: what rewards it ends with, and how they come about."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import matplotlib as mpl

mpl.use("Agg")  # no display is needed; before anything opens one

from matplotlib import color_sequences, colormaps, style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from deploy.report.plots import STYLE

Cells: TypeAlias = Mapping[str, Mapping[int, Sequence[Any]]]
"""Line of the table → staleness → results (`staleness_run.train`), one a seed."""

ENDS = {"held_out_reward": "Last weights, held-out problems", "final_reward": "Last ten batches"}
DASHES = ("-", "--", ":")
COLUMNS = 4  # of small multiples
SMOOTHED = 5  # steps over which a curve is averaged


def plot_rewards(cells: Cells) -> Figure:
    """Rewards at the end over staleness, a line each; a cross where a run collapsed."""
    with style.context(STYLE):
        figure = Figure(figsize=(11, 4.6))
        panels: Sequence[Axes] = figure.subplots(1, len(ENDS), sharey=True)
        columns = sorted({staleness for line in cells.values() for staleness in line})
        places = {staleness: place for place, staleness in enumerate(columns)}
        colours = color_sequences["tab10"]
        for axes, (name, title) in zip(panels, ENDS.items(), strict=True):
            for index, (line, found) in enumerate(cells.items()):
                colour = colours[index % len(colours)]
                ordered = sorted(found)
                means = [statistics.fmean(result[name] for result in found[staleness]) for staleness in ordered]
                axes.plot(
                    [places[staleness] for staleness in ordered],
                    means,
                    color=colour,
                    label=line,
                    linestyle=DASHES[index // len(colours) % len(DASHES)],
                    linewidth=1.6,
                    marker="o",
                    markersize=3,
                )
                fallen = [(places[k], result[name]) for k in ordered for result in found[k] if result["collapsed"]]
                if fallen:
                    axes.plot(*zip(*fallen, strict=True), color=colour, linestyle="", marker="x", markersize=9)
            axes.set_title(title)
            axes.set_xlabel("staleness of every token, learner steps")
            axes.set_xticks(list(places.values()), [str(staleness) for staleness in columns])
            axes.set_ylim(0, 1.02)
        panels[0].set_ylabel("reward")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper")
        return figure


def plot_curves(cells: Cells) -> Figure:
    """Reward of each step's batch: a panel for each line of the table, a curve for each staleness, mean over seeds."""
    with style.context(STYLE):
        rows = math.ceil(len(cells) / COLUMNS)
        figure = Figure(figsize=(2.9 * min(COLUMNS, len(cells)) + 1.2, 2.2 * rows + 0.6))
        panels = figure.subplots(rows, min(COLUMNS, len(cells)), sharex=True, sharey=True, squeeze=False).flatten()
        columns = sorted({staleness for line in cells.values() for staleness in line})
        colours = colormaps["viridis_r"]
        for axes, (line, found) in zip(panels, cells.items(), strict=False):
            for staleness in sorted(found):
                shade = colours(0.1 + 0.9 * columns.index(staleness) / max(len(columns) - 1, 1))
                curves = [result["series"]["reward"] for result in found[staleness]]
                mean = [statistics.fmean(step) for step in zip(*curves, strict=True)]
                axes.plot(range(1, len(mean) + 1), smooth(mean), color=shade, label=str(staleness), linewidth=1.3)
            axes.set_title(line)
            axes.set_ylim(0, 1.02)
        for empty in panels[len(cells) :]:
            empty.remove()
        for lowest in panels[max(0, len(cells) - COLUMNS) : len(cells)]:
            lowest.tick_params(labelbottom=True)
        figure.supxlabel("step")
        figure.supylabel("reward of the batch")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", title="staleness")
        return figure


def smooth(values: Sequence[float]) -> list[float]:
    """Each value averaged with the ones before it, `SMOOTHED` in all."""
    return [statistics.fmean(values[max(0, end - SMOOTHED) : end]) for end in range(1, len(values) + 1)]
