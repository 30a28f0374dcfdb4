"""The rules of supervision, one by one, with processes that are only told of and a clock that is set by hand."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deploy.local import supervision
from deploy.local.config import LauncherConfig
from deploy.local.deaths import Death
from deploy.local.supervision import LEARNER, RunFailed, Supervisor, pause

AGAIN = {LEARNER: ("checkpoint.resume=true",)}
LONG, SHORT = 100.0, 1.0  # seconds that a process lived: longer or shorter than `restart_reset_seconds`


@dataclass
class Child:
    """A process that is told of."""

    name: str
    log: Path = Path("a.log")
    code: int | None = None
    lived: float = SHORT
    starts: int = 1
    began: float = 0.0
    asked: bool = False
    process: Any = None

    def __post_init__(self) -> None:
        self.process = SimpleNamespace(pid=1000, terminate=lambda: setattr(self, "asked", True))

    def death(self) -> Death:
        """As `deploy.local.deaths` would have it."""
        assert self.code is not None
        cause = "was killed by SIGKILL" if self.code < 0 else f"ended with exit code {self.code}"
        return Death(cause, self.log, violent=self.code < 0, seconds=self.lived)


@dataclass
class Cluster:
    """The processes of a run, its directory, and what the supervisor makes of them."""

    directory: Path
    clock: list[float]
    children: list[Child] = field(default_factory=list)
    left: list[int] = field(default_factory=list)
    restarted: list[tuple[float, str, tuple[str, ...]]] = field(default_factory=list)
    supervisor: Supervisor = field(init=False)

    def watch(self, **options: Any) -> "Cluster":
        """Begin with a broker that listens, a learner, two actors and a verifier."""
        self.children = [Child(name) for name in ("broker-0", LEARNER, "verifier-0", "actor-0", "actor-1")]
        config = LauncherConfig(restart_seconds=1.0, restart_reset_seconds=60.0, start_seconds=20.0)
        for name, value in options.items():
            setattr(config, name, value)
        self.supervisor = Supervisor(self, config, self.directory, AGAIN)  # type: ignore[arg-type]
        return self

    def __getitem__(self, name: str) -> Child:
        return next(child for child in self.children if child.name == name)

    def reap(self) -> None:
        """What `Processes` does; nothing is to be reaped here."""

    def left_behind(self) -> list[int]:
        """What a dead process had started."""
        return self.left

    def start_again(self, child: Child, *more: str) -> None:
        """Note who is started, and when."""
        child.code, child.starts, child.began = None, child.starts + 1, self.clock[0]
        child.process.pid = 1000 * child.starts
        self.restarted.append((round(self.clock[0], 1), child.name, more))

    def listen(self) -> None:
        """The broker that runs says where it listens."""
        here = {"broker": "tcp://127.0.0.1:1", "http": "http://127.0.0.1:2", "pid": self["broker-0"].process.pid}
        (self.directory / "broker.json").write_text(json.dumps(here))

    def end(self, name: str, code: int, lived: float = SHORT) -> None:
        """A process comes to an end."""
        self[name].code, self[name].lived = code, lived

    def run(self, seconds: float) -> list[str]:
        """Let time pass; returns who was started again meanwhile."""
        before = len(self.restarted)
        until = self.clock[0] + seconds
        while self.clock[0] < until - 1e-6:
            self.supervisor.look()
            self.clock[0] += 0.1
        return [name for _, name, _ in self.restarted[before:]]

    def fails(self, seconds: float = 2.0) -> str:
        """The sentence with which the run ends."""
        with pytest.raises(RunFailed) as failure:
            self.run(seconds)
        return str(failure.value)

    def counted(self) -> list[tuple[str, float, int | None]]:
        """Who, the pause, and which it is of those allowed, of each restart on record."""
        lines = (self.directory / "restarts.jsonl").read_text().splitlines()
        return [(row["process"], row["pause_seconds"], row["counted"]) for row in map(json.loads, lines)]


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """A cluster to be watched."""
    clock = [1000.0]
    monkeypatch.setattr(supervision, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    return Cluster(tmp_path, clock)


def test_pauses_double_up_to_half_a_minute() -> None:
    assert [pause(1.0, number) for number in range(7)] == [1, 2, 4, 8, 16, 30, 30]
    assert (pause(0.0, 10_000), pause(30.0, 10_000)) == (0.0, 30.0)


def test_pauses_begin_anew_after_work_but_the_limit_is_for_the_whole_run(cluster: Cluster) -> None:
    cluster.watch(restarts=4)
    for lived in (SHORT, SHORT, LONG, SHORT):
        cluster.end("actor-0", -9, lived)
        assert cluster.run(5.0) == ["actor-0"]
    assert [seconds for _, seconds, _ in cluster.counted()] == [1.0, 2.0, 1.0, 2.0]
    cluster.end("actor-0", -9, LONG)
    assert cluster.fails().startswith("actor-0 died 5 times and is started again 4 times at most (restarts=4): it was")


def test_the_limit_is_each_process_own(cluster: Cluster) -> None:
    cluster.watch(restarts=1)
    for name in ("actor-0", "actor-1", "verifier-0", LEARNER):
        cluster.end(name, -9)
    assert sorted(cluster.run(5.0)) == sorted(["actor-0", "actor-1", "verifier-0", LEARNER])
    assert dict((name, more) for _, name, more in cluster.restarted if more) == AGAIN


@pytest.mark.parametrize(("code", "lived", "wanted"), [(3, LONG, True), (3, SHORT, False), (0, LONG, False)])
def test_an_error_after_work_is_made_good_an_early_one_and_a_leaving_are_not(
    cluster: Cluster, code: int, lived: float, wanted: bool
) -> None:
    cluster.watch()
    cluster.end("actor-0", code, lived)
    if wanted:
        assert cluster.run(3.0) == ["actor-0"]
    else:
        assert cluster.fails() == f"actor-0 ended with exit code {code} (log: a.log); everything else was ended"


@pytest.mark.parametrize("code", [-9, 3, 0])
def test_without_restarts_any_end_is_the_runs_and_nothing_is_on_record(cluster: Cluster, code: int) -> None:
    cluster.watch(restarts=0)
    cluster.end("actor-0", code, LONG)
    assert cluster.fails().startswith("actor-0 ")
    assert not (cluster.directory / "restarts.jsonl").exists()


def test_nothing_is_started_before_all_is_gone_that_the_dead_had_started(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: list[int] = []
    monkeypatch.setattr(supervision.sweep, "send", lambda pids, number: killed.extend(pids))
    cluster.watch()
    cluster.left = [4711]
    cluster.end("verifier-0", -9)
    assert cluster.run(10.0) == []
    assert set(killed) == {4711}
    cluster.left = []
    assert cluster.run(0.3) == ["verifier-0"]


def test_what_does_not_die_of_sigkill_is_not_waited_for_without_end(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervision.sweep, "send", lambda pids, number: None)
    cluster.watch()
    cluster.left = [4711]
    cluster.end("verifier-0", -9)
    assert cluster.fails(40.0) == "processes [4711] that verifier-0 left behind do not end on SIGKILL"


@pytest.mark.parametrize("code", [-9, 1])
def test_what_cannot_go_on_is_not_started_again_also_when_it_left_for_want_of_the_broker(
    cluster: Cluster, code: int
) -> None:
    cluster.watch()
    cluster.supervisor.lost = lambda child: "it has no checkpoint" if child.name == LEARNER else ""  # type: ignore[assignment]
    cluster.end("broker-0", -9)
    cluster.end("actor-0", code)
    cluster.run(0.5)
    cluster.end(LEARNER, code)
    assert re.fullmatch(rf"{LEARNER} .* \(log: a.log\) and cannot go on: it has no checkpoint; .*", cluster.fails())


def test_nobody_else_is_blamed_or_started_while_the_broker_is_gone(cluster: Cluster) -> None:
    cluster.watch()
    cluster.listen()
    cluster.end("actor-0", 1)  # it was quicker to leave than the launcher to see why
    cluster.run(0.2)
    cluster.end("broker-0", -9)
    cluster.run(0.1)
    assert not (cluster.directory / "broker.json").exists()
    cluster.end("verifier-0", 0)
    cluster.end(LEARNER, -9)
    assert cluster.run(3.0) == ["broker-0"], "it does not listen yet"
    cluster.end("actor-1", 1, LONG)
    assert cluster.run(15.0) == []
    cluster.listen()
    assert sorted(cluster.run(0.3)) == ["actor-0", "actor-1", LEARNER, "verifier-0"]
    uncounted = {(name, 0.0, None) for name in ("actor-0", "actor-1", "verifier-0")}
    assert set(cluster.counted()) == uncounted | {("broker-0", 1.0, 1), (LEARNER, 1.0, 1)}


def test_an_error_when_the_broker_is_back_is_blamed_again(cluster: Cluster) -> None:
    cluster.watch()
    cluster.end("broker-0", -9)
    assert cluster.run(2.0) == ["broker-0"]
    cluster.listen()
    cluster.run(1.2)
    cluster.end("actor-0", 1)
    assert cluster.fails().startswith("actor-0 ended with exit code 1")


def test_the_address_of_the_killed_broker_is_not_taken_for_the_new_ones(cluster: Cluster) -> None:
    cluster.watch()
    cluster.listen()
    stale = (cluster.directory / "broker.json").read_text()
    cluster.end("broker-0", -9)
    cluster.run(2.0)
    (cluster.directory / "broker.json").write_text(stale)
    cluster.end("actor-0", -9)
    assert cluster.run(5.0) == []
    cluster.listen()
    assert cluster.run(0.3) == ["actor-0"]


def test_a_restarted_broker_that_does_not_listen_ends_the_run(cluster: Cluster) -> None:
    cluster.watch()
    cluster.end("broker-0", -9)
    sentence = "waited 20 s for the restarted broker to listen in vain (log: a.log)"
    assert cluster.fails(30.0) == sentence


def test_a_broker_that_fails_after_its_restart_is_blamed_and_not_those_who_left_meanwhile(cluster: Cluster) -> None:
    cluster.watch()
    cluster.end("broker-0", -9)
    cluster.run(1.5)
    cluster.end("actor-0", 1)
    cluster.end("broker-0", 1)
    assert cluster.fails().startswith("broker-0 ended with exit code 1")


def test_of_ends_that_come_together_the_one_that_took_the_others_along_is_named(cluster: Cluster) -> None:
    cluster.watch()
    cluster.end("actor-0", -9)  # this one is made good
    cluster.end("actor-1", 1)
    cluster.run(0.5)
    cluster.end("broker-0", 1)
    cluster.end(LEARNER, 1)
    assert cluster.fails().startswith(f"{LEARNER} ended with exit code 1")


def finish(cluster: Cluster, *, learner: int = 0) -> None:
    """The learner ends the run."""
    (cluster.directory / "summary.json").write_text("{}")
    cluster.end(LEARNER, learner)


def test_a_finished_run_has_a_summary_and_a_learner_that_left(cluster: Cluster) -> None:
    supervisor = cluster.watch().supervisor
    assert not supervisor.finished()
    (cluster.directory / "summary.json").write_text("{}")
    assert not supervisor.finished()
    cluster.end(LEARNER, 0)
    assert supervisor.finished()


@pytest.mark.parametrize(
    ("restarts", "broker", "wanted"), [(5, 0, True), (5, None, False), (5, 1, False), (0, 0, False)]
)
def test_a_learner_that_is_killed_at_the_end_has_finished_only_if_the_broker_knew(
    cluster: Cluster, restarts: int, broker: int | None, wanted: bool
) -> None:
    supervisor = cluster.watch(restarts=restarts).supervisor
    finish(cluster, learner=-9)
    cluster["broker-0"].code = broker
    assert supervisor.finished() is wanted


@pytest.mark.parametrize(
    ("name", "code", "starts", "harmless"),
    [("actor-0", -9, 1, True), ("actor-0", 1, 2, True), ("actor-0", 1, 1, False), ("broker-0", 1, 1, False)],
)
def test_at_the_end_only_an_error_of_one_who_met_the_broker_is_the_runs(
    cluster: Cluster, name: str, code: int, starts: int, harmless: bool
) -> None:
    cluster.watch()
    finish(cluster)
    cluster.supervisor.over = True
    for child in cluster.children:
        child.code = 0
    cluster[name].code, cluster[name].starts = code, starts
    assert cluster.supervisor.all_left() is harmless
    if harmless:
        assert cluster.run(3.0) == []
    else:
        assert cluster.fails().startswith(f"{name} ended with exit code 1")


def test_at_the_end_those_are_asked_to_leave_whom_the_broker_cannot_tell(cluster: Cluster) -> None:
    cluster.watch()
    finish(cluster)
    cluster.supervisor.over = True
    cluster["actor-0"].starts = 2
    cluster.run(1.0)
    assert not any(child.asked for child in cluster.children), "the broker has not left"
    cluster.end("broker-0", 0)
    cluster.run(0.1)
    assert [child.name for child in cluster.children if child.asked] == ["actor-0"]


def test_at_the_end_the_death_of_the_broker_sends_everyone_home(cluster: Cluster) -> None:
    cluster.watch()
    finish(cluster)
    cluster.supervisor.over = True
    cluster.end("broker-0", -9)
    cluster.end("actor-1", 1)
    cluster.run(3.0)
    assert [child.name for child in cluster.children if child.asked] == ["verifier-0", "actor-0"]
    for name in ("verifier-0", "actor-0"):
        cluster.end(name, 0)
    assert cluster.supervisor.all_left()
    assert cluster.restarted == []


@pytest.mark.parametrize(("code", "lived"), [(-9, SHORT), (3, LONG)])
def test_a_restart_that_was_planned_is_not_made_when_the_run_is_over(cluster: Cluster, code: int, lived: float) -> None:
    cluster.watch(restart_seconds=5.0)
    cluster.end("actor-0", code, lived)
    cluster.run(2.0)
    finish(cluster)
    cluster.supervisor.over = True
    assert cluster.run(10.0) == []
    for child in cluster.children:
        child.code = child.code or 0
    assert cluster.supervisor.all_left()
