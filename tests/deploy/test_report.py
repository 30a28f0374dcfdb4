"""The report: made of a run's files alone, one page that fetches nothing, hostile completions shown as text."""

import base64
import json
import re
import struct
from html.parser import HTMLParser
from pathlib import Path

import pytest
from run_files import HOSTILE, write_run

from deploy.report import __main__ as command
from deploy.report.page import write
from deploy.report.plots import PLOTS


class Seen(HTMLParser):
    """The tags, links and text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a tag."""
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        """Note what a reader sees."""
        self.text += data


def test_every_plot_is_written_and_stands_in_the_page(tmp_path: Path) -> None:
    page = write(write_run(tmp_path / "run"))
    images = re.findall(r'src="data:image/png;base64,([^"]+)"', page.read_text())
    files = [tmp_path / "run" / "plots" / f"{name}.png" for name in PLOTS]
    assert [base64.b64decode(image) for image in images] == [file.read_bytes() for file in files]
    for file in files:
        width, height = struct.unpack(">II", file.read_bytes()[16:24])
        assert width > 500, file.name
        assert height > 300, file.name


def test_the_page_fetches_nothing_and_runs_nothing(tmp_path: Path) -> None:
    seen = Seen(write(write_run(tmp_path / "run")).read_text())
    assert not {"script", "link", "iframe", "object", "a"} & set(seen.tags)
    assert seen.tags.count("img") == len(PLOTS)
    assert [value for name, value in seen.attributes if name == "src" and not value.startswith("data:")] == []
    assert [name for name, _ in seen.attributes if name.startswith("on") or name == "href"] == []


def test_hostile_text_is_shown_as_it_is(tmp_path: Path) -> None:
    seen = Seen(write(write_run(tmp_path / "run")).read_text())
    assert seen.text.count(HOSTILE) == 6  # completion and reason of the first and the last step, and the end's, twice
    assert "<b>synthetic</b>" in seen.text


def test_first_and_last_completions_are_shown_and_the_key_figures(tmp_path: Path) -> None:
    seen = Seen(write(write_run(tmp_path / "run", steps=4)).read_text())
    for text in (
        "before training (step 1)",
        "after training (step 4)",
        "0.100 → 0.300",
        "versions.torch",
        "0 (3), 1 (2)",
    ):
        assert text in seen.text
    assert "step 2)" not in seen.text


def test_restarts_are_counted_and_told_where_there_were_any(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    assert "Restarts" not in Seen(write(run).read_text()).text
    rows = [
        {"time": 1.0e9, "process": "actor-0", "cause": HOSTILE, "pause_seconds": 1.0, "counted": 1, "limit": 5},
        {"time": 1.0e9 + 1, "process": "actor-0", "cause": "left", "pause_seconds": 0.0, "counted": None, "limit": 5},
    ]
    (run / "restarts.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    seen = Seen(write(run).read_text())
    assert seen.text.count(HOSTILE) == 7
    for text in ("Restarts", "actor-02", "2001-09-09 01:46:40", "2restarts of a process", "(restart 1 of 5)"):
        assert text in seen.text


def test_a_run_that_goes_on_has_a_report_too(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", steps=1)
    for name in ("summary.json", "samples.jsonl"):
        (run / name).unlink()
    assert "It has not come to its end." in write(run).read_text()


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("metrics.jsonl", None, "metrics.jsonl is missing: the run has not trained a step"),
        ("metrics.jsonl", "", "metrics.jsonl is empty: the run has not trained a step"),
        ("metrics.jsonl", "{}\n", "metrics.jsonl:1: field 'step' is missing"),
        ("metrics.jsonl", "\n{half", "metrics.jsonl:2: is not JSON"),
        ("metrics.jsonl", '{"step": "1"}\n', "metrics.jsonl:1: field 'step' must be int, is '1'"),
        ("samples.jsonl", "[1]\n", "samples.jsonl:1: must be an object, is list"),
        ("samples.jsonl", '{"step": 1, "prompt": "x"}\n', "samples.jsonl:1: field 'completion' is missing"),
        ("summary.json", "\x00", "summary.json: is not JSON"),
        ("restarts.jsonl", '{"time": 1.0}\n', "restarts.jsonl:1: field 'process' is missing"),
    ],
)
def test_a_missing_or_garbled_file_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: str | None, sentence: str
) -> None:
    file = write_run(tmp_path / "run") / name
    if content is None:
        file.unlink()
    else:
        file.write_text(content)
    monkeypatch.setattr("sys.argv", ["report", str(tmp_path / "run")])
    with pytest.raises(SystemExit) as end:
        command.main()
    assert str(end.value).startswith("report: ")
    assert sentence in str(end.value)
