"""The live view of a run on a terminal: the launcher's own, and that of `python -m deploy.local --attach RUN`.

All that it shows comes from the run's directory and the broker's /status, whose address stands there.
"""

import sys
from pathlib import Path
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from deploy.local.plain import PlainView, duration, number, printable
from deploy.local.progress import Progress, Row
from deploy.local.restarts import counts, sentence

BARS = "▁▂▃▄▅▆▇█"
LOOK_SECONDS = 0.5
CURVE_WIDTH = 60
ORDER = {"learner": 0, "actor": 1, "verifier": 2}
RATES = {  # role → (its gauge, the unit shown)
    "learner": ("trained_tokens_per_second", "tokens/s"),
    "actor": ("tokens_per_second", "tokens/s"),
    "verifier": ("verdicts_per_second", "verdicts/s"),
}


class View(Protocol):
    """What the launcher tells of a run while it waits."""

    def show(self) -> None:
        """Look, and show what is new; called every `LOOK_SECONDS`."""

    def close(self) -> None:
        """Show the last state, and give the terminal back."""


class RichView:
    """The run as one panel that is drawn anew."""

    def __init__(self, progress: Progress, console: Console) -> None:
        self.progress = progress
        self._live = Live(console=console, auto_refresh=False, transient=False)
        self._live.start()

    def show(self) -> None:
        """Look, and draw."""
        self.progress.look()
        self._live.update(picture(self.progress), refresh=True)

    def close(self) -> None:
        """Draw the last state, which stays on the screen."""
        self.show()
        self._live.stop()


class NoView:
    """Shows nothing."""

    def show(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def view(kind: str, directory: Path) -> View:
    """The view named by the option `view`."""
    if kind == "none":
        return NoView()
    if kind == "rich" or (kind == "auto" and sys.stdout.isatty()):
        return RichView(Progress(directory), Console())
    return PlainView(Progress(directory), lambda line: print(line, flush=True))


def picture(progress: Progress) -> RenderableType:
    """The whole panel."""
    middle: list[RenderableType]
    if progress.metrics.rows:
        middle = [_curve(progress.rewards()), Text(), _figures(progress.last, progress.status)]
    else:
        middle = [_before_training(progress)]
    restarted = [_restarts(progress.restarts.rows)] if progress.restarts.rows else []
    body = Group(*middle, Text(), _roles(progress.status), Text(), *restarted, _bar(progress))
    title = Text.assemble(("offbeat ", "bold"), (printable(progress.name), "bold cyan"))
    version = progress.last.get("policy_version", progress.status.get("policy_version"))
    right = Text(f"version {version}" if version is not None else "starting", style="dim")
    return Panel(body, title=title, subtitle=right, border_style="cyan", padding=(1, 2), width=100)


def sparkline(values: list[float], width: int, low: float = 0.0, high: float = 1.0) -> str:
    """The last `width` values as bars between `low` and `high`."""
    span = high - low
    heights = (min(max((value - low) / span, 0.0), 1.0) for value in values[-width:])
    return "".join(BARS[min(int(height * len(BARS)), len(BARS) - 1)] for height in heights)


def _curve(rewards: list[float]) -> Text:
    return Text.assemble(
        ("reward  ", "bold"),
        (f"{rewards[-1]:.3f}  ", "bold green"),
        (sparkline(rewards, CURVE_WIDTH, high=max(1.0, *rewards)), "green"),
    )


def _figures(row: Row, status: Row) -> Table:
    """The newest step in numbers, four pairs a line."""
    stream = status.get("stream") or {}
    parts = row.get("parts") or {}
    pairs = [(name, number(value, 2)) for name, value in sorted(parts.items())]
    pairs += [
        ("length", number(row.get("length_mean"), 1)),
        ("entropy", number(row.get("entropy"), 3)),
        ("ess", number(row.get("ess"), 3)),
        ("staleness", f"{number(row.get('staleness_mean'), 2)} (most {row.get('staleness_max')})"),
        ("generated/s", number(row.get("generated_tokens_per_second"), 0)),
        ("trained/s", number(row.get("trained_tokens_per_second"), 0)),
        ("groups ready", number(stream.get("groups_ready"), 0)),
        ("in flight", number(stream.get("leases_running"), 0)),
        ("dropped", number(sum((row.get("groups_dropped") or {}).values()), 0)),
        ("kl", number(row.get("kl_k3"), 5)),
    ]
    table = Table.grid(padding=(0, 2))
    for start in range(0, len(pairs), 4):
        cells = pairs[start : start + 4]
        table.add_row(*(Text.assemble((f"{printable(name)} ", "dim"), value) for name, value in cells))
    return table


def _before_training(progress: Progress) -> Text:
    waiting = progress.status.get("waiting_for")
    if waiting:
        return Text(f"waiting for {printable(str(waiting))}")
    losses = [float(row["loss"]) for row in progress.cold_start.rows if row.get("loss") is not None]
    if not losses:
        return Text("starting")
    curve = sparkline(losses, CURVE_WIDTH, high=max(losses))
    return Text.assemble(("cold start  ", "bold"), (f"loss {losses[-1]:.3f}  ", "bold magenta"), (curve, "magenta"))


def _roles(status: Row) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("role", "host", "version", "speed", "waiting for"):
        table.add_column(name, justify="right" if name in ("version", "speed") else "left", no_wrap=True)
    if status:
        table.add_row("broker", "", "", "", Text(printable(str(status.get("waiting_for") or "")), style="yellow"))
    peers = status.get("peers") or []
    for peer in sorted(peers, key=lambda peer: (ORDER.get(peer["role"], 9), peer["name"])):
        gauge, unit = RATES.get(peer["role"], ("", ""))
        speed = (peer.get("gauges") or {}).get(gauge)
        version = peer.get("policy_version")
        table.add_row(
            Text(printable(peer["name"])),
            Text(printable(peer["host"]), style="dim"),
            "" if version is None or peer["role"] == "verifier" else str(version),
            f"{number(speed, 0)} {unit}" if speed is not None else "",
            Text(printable(str(peer.get("waiting_for") or "")), style="yellow"),
        )
    return table


def _restarts(rows: list[Row]) -> Text:
    """How often each process was started again, and what the last one died of."""
    numbers = "  ".join(f"{name} {number}" for name, number in counts(rows).items())
    last = f"last: {sentence(rows[-1])}"
    return Text.assemble(("restarts ", "dim"), f"{printable(numbers)}\n", (f"{printable(last)}\n", "yellow"))


def _bar(progress: Progress) -> Table:
    training = [row for row in progress.cold_start.rows if "step" in row]
    if progress.metrics.rows or not training:
        what, done, total = "training", int(progress.last.get("step", 0)), progress.steps
    else:
        what, done, total = "cold start", int(training[-1]["step"]), int(training[-1]["steps"])
    row = Table.grid(padding=(0, 2), expand=True)
    row.add_column(no_wrap=True)
    row.add_column(ratio=1)
    row.add_column(no_wrap=True, justify="right")
    left = progress.seconds_left()
    most = "at most " if progress.target_reward and what == "training" else ""
    row.add_row(
        what,
        ProgressBar(total=total or None, completed=done, width=None),
        f"{done}/{total or '?'}  {f'{most}{duration(left)} left' if left is not None else ''}",
    )
    return row
