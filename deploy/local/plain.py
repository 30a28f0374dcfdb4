"""One line a step, for logs and for output that is no terminal."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from deploy.local.progress import Progress, Row
from deploy.local.restarts import sentence


@dataclass(slots=True)
class PlainView:
    """Writes what is new since the last look with `write`."""

    progress: Progress
    write: Callable[[str], None] = print
    steps_shown: int = 0
    cold_start_shown: int = 0
    restarts_shown: int = 0
    wait_shown: str = ""

    def show(self) -> None:
        """Look, and write a line for every new step and restart, and for every new reason to wait before the first one.

        Steps that a restarted learner does again are written again.
        """
        self.progress.look()
        for row in self.progress.restarts.rows[self.restarts_shown :]:
            self.write(f"restart  {printable(sentence(row))}")
        self.restarts_shown = len(self.progress.restarts.rows)
        self.cold_start_shown = min(self.cold_start_shown, len(self.progress.cold_start.rows))
        for row in self.progress.cold_start.rows[self.cold_start_shown :]:
            self.write(cold_start_line(row))
        self.cold_start_shown = len(self.progress.cold_start.rows)
        wait = str(self.progress.status.get("waiting_for") or "")
        kind = re.sub(r"\d+", "", wait)  # its numbers change all the time
        if not self.progress.metrics.rows and wait and kind != self.wait_shown:
            self.write(f"waiting for {printable(wait)}")
            self.wait_shown = kind
        self.steps_shown = min(self.steps_shown, len(self.progress.metrics.rows))
        for row in self.progress.metrics.rows[self.steps_shown :]:
            self.write(step_line(row, self.progress.steps, self.progress.seconds_left(), waits(self.progress.status)))
        self.steps_shown = len(self.progress.metrics.rows)

    def close(self) -> None:
        """Write what came since the last look."""
        self.show()


def cold_start_line(row: Row) -> str:
    """A line of sft_metrics.jsonl in words: a training step, or the figures of its end."""
    if "step" in row:
        return f"cold start {row['step']}/{row.get('steps')}  loss {number(row.get('loss'), 4)}"
    shown = (f"{name} {number(row[name], 3)}" for name in ("accuracy", "format", "reward") if name in row)
    return f"cold start done  {'  '.join(shown)}"


def step_line(row: Row, steps: int, seconds_left: float | None, waiting: str) -> str:
    """A line of metrics.jsonl in words."""
    parts = "".join(f" {name} {number(value, 2)}" for name, value in sorted((row.get("parts") or {}).items()))
    pieces = [
        f"step {row.get('step')}{f'/{steps}' if steps else ''}",
        f"reward {number(row.get('reward_mean'), 3)}{f' ({parts.strip()})' if parts else ''}",
        f"length {number(row.get('length_mean'), 1)}",
        f"entropy {number(row.get('entropy'), 3)}",
        f"ess {number(row.get('ess'), 2)}",
        f"staleness {number(row.get('staleness_mean'), 2)} (most {row.get('staleness_max')})",
        f"tokens/s generated {number(row.get('generated_tokens_per_second'), 0)}"
        f" trained {number(row.get('trained_tokens_per_second'), 0)}",
        f"version {row.get('policy_version')}",
        f"left {duration(seconds_left)}",
    ]
    return "  ".join(pieces + ([f"waiting: {waiting}"] if waiting else []))


def waits(status: Row) -> str:
    """Who waits for what, of the roles that wait."""
    peers = [(str(peer.get("name")), str(peer.get("waiting_for") or "")) for peer in status.get("peers") or []]
    peers.append(("broker", str(status.get("waiting_for") or "")))
    return printable(", ".join(f"{name} for {what}" for name, what in peers if what))


def result(summary: Row) -> str:
    """What came of a run, in one line."""
    rewards = f"reward {number(summary['reward_start'], 3)} → {number(summary['reward_end'], 3)}"
    restarts = "".join(f", {name} restarted {times}×" for name, times in summary.get("restarts", {}).items())
    took = f"{summary['steps']} steps and {duration(summary['seconds'])}"
    return f"{rewards} in {took}: {summary['stopped_because']}{restarts}"


def number(value: object, digits: int) -> str:
    """A number as text, with `digits` after the point; `-` where there is none."""
    return f"{value:,.{digits}f}" if isinstance(value, int | float) else "-"


def duration(seconds: float | None) -> str:
    """Minutes and seconds, as `3:07`, or hours too, as `1:02:03`; `?` while unknown."""
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def printable(text: str) -> str:
    """`text` without control characters: names and reasons come from other processes."""
    return "".join(character if character.isprintable() else "�" for character in text)
