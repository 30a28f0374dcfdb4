"""What the views show, from a run directory and a broker's /status alone."""

import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from run_files import row, write_run

from deploy.local.live import BARS, NoView, RichView, picture, sparkline, view
from deploy.local.plain import PlainView, duration, step_line
from deploy.local.progress import Progress
from deploy.local.restarts import note

STATUS: dict[str, Any] = {
    "run": "synthetic",
    "policy_version": 3,
    "waiting_for": "rollouts of 4 leases",
    "peers": [
        {
            "name": "actor-0",
            "role": "actor",
            "host": "here\x1b[31m[bold]",
            "waiting_for": "",
            "policy_version": 3,
            "gauges": {"tokens_per_second": 5123.4},
        },
        {
            "name": "learner",
            "role": "learner",
            "host": "here",
            "waiting_for": "a batch",
            "policy_version": 3,
            "gauges": {},
        },
        {"name": "verifier-0", "role": "verifier", "host": "here", "waiting_for": "rollouts", "gauges": {}},
    ],
    "stream": {"groups_ready": 12, "leases_running": 4},
}


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Path]:
    """A finished run's directory whose broker still answers /status."""

    class Status(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(STATUS).encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    run = write_run(tmp_path / "run")
    with ThreadingHTTPServer(("127.0.0.1", 0), Status) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        (run / "broker.json").write_text(json.dumps({"http": f"http://127.0.0.1:{server.server_port}"}))
        yield run
        server.shutdown()
        thread.join()


def shown(progress: Progress) -> str:
    """The live picture as a terminal of 120 columns would show it."""
    progress.look()
    console = Console(file=io.StringIO(), width=120, force_terminal=True, color_system=None)
    console.print(picture(progress))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_line_that_is_still_being_written_waits_for_the_next_look(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    first, second = json.dumps(row(1)), json.dumps(row(2))
    metrics.write_text(f"{first}\n{second[:50]}")
    progress = Progress(tmp_path)
    progress.look()
    assert [each["step"] for each in progress.metrics.rows] == [1]
    metrics.write_text(f"{first}\n{second}\n")
    progress.look()
    assert [each["step"] for each in progress.metrics.rows] == [1, 2]


def test_lines_that_a_resumed_run_cut_off_are_forgotten(tmp_path: Path) -> None:
    metrics, shorter = tmp_path / "metrics.jsonl", tmp_path / "shorter"
    metrics.write_text("".join(json.dumps(row(step)) + "\n" for step in (1, 2, 3)))
    progress = Progress(tmp_path)
    progress.look()
    shorter.write_text(json.dumps(row(1)) + "\n")
    shorter.replace(metrics)
    progress.look()
    assert [each["step"] for each in progress.metrics.rows] == [1]
    with metrics.open("a") as file:
        file.write(json.dumps(row(2)) + "\n")
    progress.look()
    assert [each["step"] for each in progress.metrics.rows] == [1, 2]


def test_a_file_that_is_emptied_and_written_anew_is_read_anew(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("".join(json.dumps(row(step)) + "\n" for step in (1, 2, 3)))
    progress = Progress(tmp_path)
    progress.look()
    with metrics.open("w") as file:  # the same file
        file.write(json.dumps(row(7)) + "\n")
    progress.look()
    assert [each["step"] for each in progress.metrics.rows] == [7]


def test_restarts_are_shown_as_they_come_and_counted_by_process(broker: Path) -> None:
    lines: list[str] = []
    plain = PlainView(Progress(broker), lines.append)
    plain.show()
    assert "restarts" not in shown(Progress(broker))
    told = {"cause": "was killed by \x1b[31mSIGKILL", "pause_seconds": 2.0, "limit": 5}
    for process, counted in (("learner-0", 1), ("actor-0", 1), ("actor-0", None)):
        note(broker, process=process, counted=counted, **told)
    (broker / "shorter").write_text("".join(json.dumps(row(step)) + "\n" for step in (1, 2)))
    (broker / "shorter").replace(broker / "metrics.jsonl")  # as a restarted learner does
    before = len(lines)
    plain.show()
    assert lines[before:] == [
        "restart  learner-0 was killed by �[31mSIGKILL; it is started again in 2.0 s (restart 1 of 5)",
        "restart  actor-0 was killed by �[31mSIGKILL; it is started again in 2.0 s (restart 1 of 5)",
        "restart  actor-0 was killed by �[31mSIGKILL; it is started again when the broker listens "
        "(not counted against its restarts)",
    ]
    with (broker / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(row(3)) + "\n")
    plain.show()
    assert lines[before + 3].startswith("step 3/10"), "it is done again"
    text = shown(Progress(broker))
    assert "restarts actor-0 2  learner-0 1" in text
    assert "last: actor-0 was killed by �[31mSIGKILL; it is started again" in text


def test_a_garbled_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(f"{json.dumps(row(1))}\noops\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl:2: is not JSON"):
        Progress(tmp_path).look()


def test_a_directory_without_a_run_or_a_broker_shows_that_it_starts(tmp_path: Path) -> None:
    (tmp_path / "broker.json").write_text('{"http": "http://127.0.0.1:9"}')
    assert "starting" in shown(Progress(tmp_path))


def test_plain_output_has_one_line_a_step_and_repeats_none(broker: Path) -> None:
    lines: list[str] = []
    plain = PlainView(Progress(broker), lines.append)
    plain.show()
    plain.show()
    assert [line.split("  ")[0] for line in lines] == ["step 1/10", "step 2/10", "step 3/10"]
    with (broker / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(row(4)) + "\n")
    plain.close()
    assert lines[3:] == [
        "step 4/10  reward 0.400 (accuracy 0.20 format 0.50)  length 22.5  entropy 0.300  ess 0.90  "
        "staleness 0.50 (most 2)  tokens/s generated 5,000 trained 2,800  version 4  left 0:12  "
        "waiting: learner for a batch, verifier-0 for rollouts, broker for rollouts of 4 leases"
    ]


def test_plain_output_follows_the_cold_start(tmp_path: Path) -> None:
    (tmp_path / "cold_start").mkdir()
    rows = [
        {"step": 20, "steps": 500, "loss": 1.25, "seconds": 2.0},
        {"problems": 256, "accuracy": 0.31, "reward": 0.4},
    ]
    (tmp_path / "cold_start" / "sft_metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    lines: list[str] = []
    PlainView(Progress(tmp_path), lines.append).show()
    assert lines == ["cold start 20/500  loss 1.2500", "cold start done  accuracy 0.310  reward 0.400"]


def test_a_line_lacks_nothing_when_values_are_null() -> None:
    line = step_line(row(1, reward_mean=None, entropy=None, parts={}), 0, None, "")
    assert line.startswith("step 1  reward -  length 22.5  entropy -")
    assert "left ?" in line


def test_the_live_picture_shows_reward_roles_waits_and_time_left(broker: Path) -> None:
    text = shown(Progress(broker))
    for piece in (
        "synthetic",
        "0.300",
        "actor-0",
        "5,123 tokens/s",
        "a batch",
        "rollouts of 4 leases",
        "version 3",
        "3/10",
    ):
        assert piece in text
    assert "at most 0:14 left" in text
    assert max(map(len, text.splitlines())) <= 120


def test_the_live_picture_shows_a_peers_words_as_they_are(broker: Path) -> None:
    text = shown(Progress(broker))
    assert "here�[31m[bold]" in text
    assert "\x1b" not in text


def test_the_live_view_leaves_its_last_picture_on_the_terminal(broker: Path) -> None:
    console = Console(file=io.StringIO(), width=120, force_terminal=True)
    live = RichView(Progress(broker), console)
    live.show()
    live.close()
    assert isinstance(console.file, io.StringIO)
    assert "actor-0" in console.file.getvalue()


def test_plain_lines_are_chosen_where_there_is_no_terminal(tmp_path: Path) -> None:
    assert isinstance(view("auto", tmp_path), PlainView)
    assert isinstance(view("none", tmp_path), NoView)


def test_a_sparkline_keeps_to_its_width_and_bounds() -> None:
    assert sparkline([0.0, 0.5, 1.0, 7.0], 3) == BARS[4] + BARS[7] + BARS[7]


def test_durations_read_like_a_clock() -> None:
    assert [duration(seconds) for seconds in (None, 0, 59.6, 187, 3723)] == ["?", "0:00", "1:00", "3:07", "1:02:03"]
