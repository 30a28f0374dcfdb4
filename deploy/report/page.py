"""report.html: one page with everything in it, images as data, no script, nothing fetched.

Completions are text of an untrained model and hostile input: every value passes `html.escape`, and the page forbids
itself scripts and any connection, should one slip through.
"""

import base64
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from deploy.local.restarts import counts, sentence
from deploy.report.plots import PLOTS, draw
from deploy.report.records import Records, Row, read

SHOWN = 6  # completions of the first step and of the last
LONGEST = 2000  # characters of a completion on the page

PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title><style>
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2933; background: #f5f7fa; margin: 0; }
main { max-width: 1180px; margin: 0 auto; padding: 32px 24px 64px; }
h1 { margin: 0; font-size: 30px; } h2 { margin: 40px 0 12px; font-size: 20px; }
.lead { color: #52606d; margin: 4px 0 24px; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); gap: 12px; }
.card, figure, table, details { background: #fff; border: 1px solid #e4e7eb; border-radius: 8px; }
.card { padding: 12px 16px; } .card b { display: block; font-size: 22px; }
.card span { color: #52606d; font-size: 13px; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(440px, 1fr)); gap: 16px; }
figure { margin: 0; padding: 8px; } img { width: 100%; display: block; }
table { border-collapse: collapse; width: 100%; } td, th { padding: 6px 12px; text-align: left; vertical-align: top; }
tr + tr td { border-top: 1px solid #e4e7eb; } th { color: #52606d; font-size: 13px; }
pre { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; font: 13px/1.45 ui-monospace, monospace; }
details { padding: 12px 16px; } .good { color: #2b8a3e; } .bad { color: #c92a2a; }
</style></head><body><main>
<h1>$title</h1><p class="lead">$lead</p>
<div class="cards">$cards</div>
<h2>Curves</h2><div class="plots">$plots</div>
$samples
$restarts
<h2>Summary</h2>$summary
<h2>Configuration</h2><details><summary>the whole tree, resolved</summary><pre>$config</pre></details>
</main></body></html>
""")


def write(directory: Path) -> Path:
    """Write plots/*.png and report.html of the run; returns the page's path. Raises `ValueError` on garbled files."""
    records = read(directory)
    plots = directory / "plots"
    plots.mkdir(exist_ok=True)
    for name in PLOTS:
        draw(name, records).savefig(plots / f"{name}.png")
    page = directory / "report.html"
    page.write_text(render(records, {name: (plots / f"{name}.png").read_bytes() for name in PLOTS}))
    return page


def render(records: Records, images: dict[str, bytes]) -> str:
    """The page."""
    return PAGE.substitute(
        title=escape(f"Offbeat: {records.name}"),
        lead=escape(_lead(records)),
        cards="".join(_card(label, value) for label, value in _key_figures(records)),
        plots="".join(_image(name, content) for name, content in images.items()),
        samples=_samples(records.samples),
        restarts=_restarts(records.restarts),
        summary=_table(_flat(records.summary)) if records.summary else "<p>The run did not come to its end.</p>",
        config=escape(records.config) or "none was kept",
    )


def _lead(records: Records) -> str:
    stopped = records.summary.get("stopped_because")
    return f"{len(records.rows)} steps. {f'It ended because {stopped}.' if stopped else 'It has not come to its end.'}"


def _key_figures(records: Records) -> list[tuple[str, str]]:
    rows, last = records.rows, records.rows[-1]
    start, end = records.summary.get("reward_start"), records.summary.get("reward_end")
    start = rows[0]["reward_mean"] if start is None else start
    end = last["reward_mean"] if end is None else end
    oldest = max(int(lag) for row in rows for lag in row["staleness_tokens"] or {"0": 0})
    figures: list[tuple[str, Any]] = [
        ("reward, start → end", f"{_text(start)} → {_text(end)}"),
        ("steps", len(rows)),
        ("seconds", records.summary.get("seconds", last["time_s"])),
        ("tokens generated", last.get("generated_tokens")),
        ("tokens trained", last.get("trained_tokens")),
        ("greatest staleness", oldest),
        ("rollouts of several versions", sum(row.get("mixed_version_rollouts") or 0 for row in rows)),
        ("groups trained", last.get("groups_trained")),
        ("groups dropped", sum((last.get("groups_dropped") or {}).values())),
        ("restarts of a process", len(records.restarts)),
    ]
    return [(label, _text(value)) for label, value in figures]


def _text(value: Any) -> str:
    """A value for people: thousands apart, three digits after the point, `-` for none."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:,.3f}" if abs(value) < 100 else f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _card(label: str, value: str) -> str:
    return f'<div class="card"><b>{escape(value)}</b><span>{escape(label)}</span></div>'


def _image(name: str, content: bytes) -> str:
    data = base64.b64encode(content).decode()
    return f'<figure><img alt="{escape(name)}" src="data:image/png;base64,{data}"></figure>'


def _samples(samples: list[Row]) -> str:
    """Completions of the first step, then of the last."""
    if not samples:
        return "<h2>Completions</h2><p>None were kept.</p>"
    first, last = samples[0]["step"], samples[-1]["step"]
    shown = [(f"Completions before training (step {_text(first)})", first)]
    shown += [(f"Completions after training (step {_text(last)})", last)] if last != first else []
    return "".join(
        f"<h2>{escape(title)}</h2>{_sample_table([row for row in samples if row['step'] == step][:SHOWN])}"
        for title, step in shown
    )


def _sample_table(samples: list[Row]) -> str:
    head = "<tr><th>prompt</th><th>completion</th><th>reward</th><th>parts</th><th>versions (tokens)</th></tr>"
    return f"<table>{head}{''.join(map(_sample, samples))}</table>"


def _sample(row: Row) -> str:
    completion = str(row["completion"])
    cut = " … (cut)" if len(completion) > LONGEST else ""
    reward = row["reward"]
    good = isinstance(reward, int | float) and reward > 0.999
    parts = row.get("parts")
    named = [f"{name} {_text(value)}" for name, value in parts.items()] if isinstance(parts, dict) else []
    reason = [str(row["reason"])] if row.get("reason") else []
    versions = ", ".join(f"{version} ({tokens})" for version, tokens in row.get("versions") or [])
    cells = [
        f"<pre>{escape(str(row['prompt'])[:LONGEST])}</pre>",
        f"<pre>{escape(completion[:LONGEST])}{cut}</pre>",
        f'<b class="{"good" if good else "bad"}">{escape(_text(reward))}</b>',
        escape("; ".join(named + reason)),
        escape(versions),
    ]
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _restarts(rows: list[Row]) -> str:
    """Who was started again how often, then each of them with its cause; nothing when nobody was."""
    if not rows:
        return ""
    head = "<tr><th>when (UTC)</th><th>restart</th></tr>"
    lines = "".join(f"<tr><td>{_moment(row['time'])}</td><td>{escape(sentence(row))}</td></tr>" for row in rows)
    numbers = _table([(name, _text(count)) for name, count in counts(rows).items()])
    return f"<h2>Restarts</h2>{numbers}<table>{head}{lines}</table>"


def _moment(seconds: float) -> str:
    """Seconds since 1970 as a date and a time of day."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _flat(content: Row, prefix: str = "") -> list[tuple[str, str]]:
    pairs = []
    for name, value in content.items():
        if isinstance(value, dict):
            pairs += _flat(value, f"{prefix}{name}.") or [(f"{prefix}{name}", "none")]
        else:
            pairs.append((f"{prefix}{name}", _text(value)))
    return pairs


def _table(pairs: list[tuple[str, str]]) -> str:
    rows = (f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in pairs)
    return f"<table>{''.join(rows)}</table>"
