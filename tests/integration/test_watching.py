"""A short real run under a real Prometheus: what dashboards ask, it answers; and the pictures show it."""

import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from prometheus_server import Prometheus, free_port, installed

from deploy.grafana.files import DASHBOARDS
from deploy.grafana.model import process_names, run_names
from deploy.grafana.pictures import Painter, write
from deploy.grafana.series import fill, over_time
from deploy.prometheus import __main__ as command
from tests.verifier.tiny_reward_model import build

STEPS = 12
SCRAPES = 5  # after the last step that is waited for: a rate needs several
INTERVAL = "1s"
NUMBERS_SECONDS = 60.0
ROLES = {"broker", "learner", "actor", "verifier"}
TASK = (
    "task.reward='0.5*accuracy + 0.5*format + 0*reward_model'",
    "task.digits=1",
    "sampling.max_tokens=24",
    "stream.group_size=4",
    "stream.groups_per_step=8",
    "stream.max_staleness=2",
)
EVERYTHING = (  # that a short run can have
    "learner.steps=100000",
    "learner.tokens_per_micro_batch=2048",
    "optimizer.lr=1e-3",
    "loss.kl_coefficient=0.001",
    "checkpoint.every=3",
    f"sinks.tensorboard={find_spec('tensorboard') is not None}",
)


@pytest.fixture(scope="module")
def watched(
    start_cluster: Callable[[Path], Any], model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Any, Prometheus, float]]:
    """A run, the Prometheus that watches it, and when it began, in seconds since 1970."""
    installed("prometheus")
    directory = tmp_path_factory.mktemp("watched")
    with closing(start_cluster(directory)) as cluster:
        cluster.start_broker(model, "run.name=watched", *TASK)
        listen = f"127.0.0.1:{free_port()}"
        line = command.command(
            [str(directory), "--listen", listen, "--interval", INTERVAL, "--data", str(directory / "prometheus")]
        )
        began = time.time()
        with closing(Prometheus(line, listen, directory / "prometheus.log")) as prometheus:
            cluster.start_learner(model, "run.name=watched", *EVERYTHING)
            cluster.start_actor("actor-0", "engine.max_num_seqs=8")
            judge = build(directory / "judge")
            cluster.start_verifier("verifier-0", f"reward_model.path={judge}", "reward_model.device=cpu")
            cluster.until(lambda: len(cluster.rows()) >= STEPS, 120, f"{STEPS} steps are trained")
            time.sleep(SCRAPES)
            yield cluster, prometheus, began


def test_every_query_of_every_panel_finds_numbers(watched: Any) -> None:
    """Some come and go with the batches, as with tokens of staleness 0; so the run goes on while one is silent."""
    cluster, prometheus, began = watched
    silent = {
        (f"{dashboard.title} / {panel.title}", fill(query.expression, run="watched", interval="10s"))
        for dashboard in DASHBOARDS
        for panel in dashboard.panels()
        for query in panel.queries
    }
    assert len(silent) > 100
    end = time.monotonic() + NUMBERS_SECONDS
    while silent and time.monotonic() < end:
        cluster.until(lambda: True, 1, "no process has ended")
        silent = {each for each in silent if not finds_numbers(prometheus, each[1], began)}
        time.sleep(bool(silent))
    assert silent == set()


def finds_numbers(prometheus: Prometheus, expression: str, began: float) -> bool:
    """Whether any series of the expression was a number at any second of the run."""
    found = over_time(prometheus.url, expression, start=began, end=time.time(), step=1.0)
    return any(math.isfinite(each.last) for each in found)


def test_what_prometheus_does_not_understand_is_said_in_its_words(watched: Any) -> None:
    _, prometheus, began = watched
    with pytest.raises(ValueError, match="parse error"):
        over_time(prometheus.url, "sum(", start=began, end=time.time(), step=1.0)


def test_the_choices_of_run_and_process_are_there(watched: Any) -> None:
    _, prometheus, _ = watched
    for query, value in ((run_names(), "watched"), (process_names("actor"), "actor-0")):
        series, label = fill(query).removeprefix("label_values(").removesuffix(")").rsplit(", ", 1)
        assert {dict(labels)[label] for labels in prometheus.values(series)} == {value}


def test_every_metric_that_is_scraped_has_a_help(watched: Any) -> None:
    """As Prometheus itself heard it from the live processes, those of the libraries among them."""
    _, prometheus, _ = watched
    told = prometheus.ask("metadata")
    assert {name.partition("_")[0] for name in told} >= ROLES
    assert {name for name, texts in told.items() if any(not each["help"].strip() for each in texts)} == set()


def test_nothing_is_wrong_with_a_run_that_goes_well(watched: Any) -> None:
    _, prometheus, _ = watched
    rules = prometheus.ask("rules")["groups"]
    assert {
        rule["name"]: rule["lastError"] for group in rules for rule in group["rules"] if rule.get("lastError")
    } == {}
    assert [each["labels"] for each in prometheus.ask("alerts")["alerts"] if each["state"] == "firing"] == []


def test_tensorboard_has_every_step_that_the_record_has(watched: Any) -> None:
    cluster, _, _ = watched
    program = (
        "import sys; from tensorboard.backend.event_processing.event_accumulator import EventAccumulator as Events;"
        "events = Events(sys.argv[1]); events.Reload(); print([each.step for each in events.Scalars('reward_mean')])"
    )
    steps = [row["step"] for row in cluster.rows()]
    line = [sys.executable, "-c", program, str(cluster.directory / "tensorboard")]
    done = subprocess.run(line, capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(done.stdout)[: len(steps)] == steps


def test_a_picture_of_every_dashboard_is_drawn_and_no_panel_is_empty(watched: Any, tmp_path: Path) -> None:
    _, prometheus, began = watched
    now = time.time()
    painter = Painter(prometheus.url, run="watched", end=now, seconds=now - began, interval="10s")
    write(painter, tmp_path)
    assert painter.empty == []
    sizes = {path.stem: path.stat().st_size for path in tmp_path.iterdir()}
    assert sizes.keys() == {each.name for each in DASHBOARDS}
    assert min(sizes.values()) > 10_000
