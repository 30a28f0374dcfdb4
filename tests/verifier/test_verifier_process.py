"""`python -m verifier` as a process of its own; the test plays the broker."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgpack
import pytest
from verifier_doubles import ROOT, STOP_SECONDS, StartVerifier, Verifier, gone

from protocol.messages import Goodbye, Refusal, VerifyRequest

RIGHT = "<think>3+9+0=12;3+5+1=9</think><answer>92</answer>"
TOWER = "<think>big</think><answer>" + "|x" * 200 + "</answer>"  # takes for ever to parse


@pytest.mark.parametrize(
    ("text", "reference", "metadata", "parts"),
    [
        (RIGHT, "92", {"accuracy": "numeric"}, {"accuracy": 1.0, "format": 1.0}),
        (RIGHT, "93", {"accuracy": "numeric"}, {"accuracy": 0.0, "format": 1.0}),
        ("<answer>92</answer>", "92", {"accuracy": "exact"}, {"accuracy": 1.0, "format": 0.0}),
        ("<think>a</think><answer>\\frac{184}{2}</answer>", "92", {}, {"accuracy": 1.0, "format": 1.0}),
        ("it is 92", "92", {}, {"accuracy": 0.0, "format": 0.0}),
        ("", "92", {}, {"accuracy": 0.0, "format": 0.0}),
        ("\0\ud7ff\U0001f600" * 300_000, "92", {}, {"accuracy": 0.0, "format": 0.0}),
    ],
)
def test_a_verdict_says_reward_parts_and_reason(
    verifier: Verifier, text: str, reference: str, metadata: dict[str, str], parts: dict[str, float]
) -> None:
    verdict = verifier.judge(text, reference, **metadata)
    assert verdict.parts == parts
    assert verdict.reward == sum(parts.values()) / 2
    assert "accuracy: " in verdict.reason
    assert "format: " in verdict.reason


def test_a_puzzle_is_followed_move_by_move(verifier: Verifier) -> None:
    reference = '{"puzzle": "hanoi", "places": [0, 0], "goal": 2, "shortest": 3}'
    reward = "puzzle + 0*puzzle_legal"
    right = verifier.judge("<answer>[[1, 0, 1], [2, 0, 2], [1, 1, 2]]</answer>", reference, reward=reward)
    assert (right.reward, right.parts) == (1.0, {"puzzle": 1.0, "puzzle_legal": 1.0})
    wrong = verifier.judge("<answer>[[1, 0, 1], [2, 0, 1], [1, 1, 2]]</answer>", reference, reward=reward)
    assert (wrong.reward, wrong.parts) == (0.0, {"puzzle": 0.0, "puzzle_legal": 1 / 3})
    assert "move 2 of 3: disk 2 would lie on the smaller disk 1" in wrong.reason


@pytest.mark.parametrize(
    ("reward", "reference", "metadata", "culprit"),
    [
        ("beauty", "1", {}, "there is no reward 'beauty'"),
        ("accuracy", "", {}, "the reference is empty"),
        ("accuracy", "many", {"accuracy": "numeric"}, "'many' is not a number"),
        ("accuracy", "1", {"accuracy": "fuzzy"}, "metadata.accuracy='fuzzy'"),
        ("reasoning_gym", "{}", {"family": "chain_sum"}, "no entry of reasoning-gym"),
        ("reasoning_gym", "{}", {}, "metadata.family"),
    ],
)
def test_what_the_text_cannot_be_blamed_for_is_void(
    verifier: Verifier, reward: str, reference: str, metadata: dict[str, str], culprit: str
) -> None:
    verdict = verifier.judge(RIGHT, reference, reward=reward, **metadata)
    assert verdict.void
    assert culprit in verdict.reason


@pytest.mark.parametrize(
    "answer",
    [
        "9^{9^9}",
        "((9!)!)!",
        "(x+1)^{5000}",
        "(" * 490 + "1" + ")" * 490,
        "\\frac{1}{" * 90 + "2" + "}" * 90,
        "\\int_0^1 \\sin(x^x)^{x^x} dx",
        "10^{10^{10}} \\mod 7",
        "\\sum_{n=1}^{10^{10}} n!",
        "\\sqrt{" * 120 + "2" + "}" * 120,
    ],
)
def test_a_pathological_answer_is_bounded_and_the_next_check_is_right(verifier: Verifier, answer: str) -> None:
    verifier.judge(RIGHT, "92", reward="accuracy")  # math-verify is loaded
    begun = time.monotonic()
    verdict = verifier.judge(f"<answer>{answer}</answer>", "92", reward="accuracy", seconds=0.5)
    assert time.monotonic() - begun < 2.5
    assert verdict.reward == 0.0, verdict
    assert verifier.judge(RIGHT, "92", seconds=10.0).reward == 1.0


def test_a_timeout_costs_its_part_alone_and_has_its_own_reason(verifier: Verifier) -> None:
    verdict = verifier.judge(TOWER, "92", seconds=0.5)
    assert verdict.parts == {"accuracy": 0.0, "format": 1.0}
    assert verdict.reward == 0.5
    assert "accuracy: timeout after 0.5 s" in verdict.reason


def test_a_hostile_text_does_not_hold_up_the_other_worker(start_verifier: StartVerifier) -> None:
    verifier = start_verifier("verifier.workers=2", "verifier.backlog=3")
    assert verifier.capacity == 6
    verifier.judge(RIGHT, "92")
    slow = verifier.submit(TOWER, "92", seconds=2.0)
    quick = [verifier.submit(RIGHT, "92") for _ in range(5)]
    verdicts = [verifier.done() for _ in range(6)]
    assert [number for number, _ in verdicts] == [*quick, slow]
    assert [verdict.reward for _, verdict in verdicts] == [1.0] * 5 + [0.5]


def test_a_killed_worker_makes_its_check_void_and_is_replaced(start_verifier: StartVerifier) -> None:
    verifier = start_verifier("verifier.retries=0")
    verifier.judge(RIGHT, "92")
    verifier.submit(TOWER, "92")
    worker = verifier.busy_worker()
    os.kill(worker, signal.SIGKILL)
    _, verdict = verifier.done()
    assert verdict.void
    assert "the worker was lost" in verdict.reason
    assert verifier.judge(RIGHT, "92").reward == 1.0
    assert verifier.workers() != [worker]


def test_a_check_that_does_not_get_the_cpu_is_void_and_not_wrong(start_verifier: StartVerifier) -> None:
    verifier = start_verifier("verifier.retries=0")
    verifier.judge(RIGHT, "92")
    (worker,) = verifier.workers()
    os.kill(worker, signal.SIGSTOP)
    verdict = verifier.judge(RIGHT, "92", seconds=0.5)
    assert verdict.void
    assert "starved" in verdict.reason
    assert verifier.judge(RIGHT, "92").reward == 1.0
    assert gone([worker])


def test_a_check_whose_worker_or_cpu_was_taken_is_tried_again_and_counted(start_verifier: StartVerifier) -> None:
    verifier = start_verifier()
    verifier.judge(RIGHT, "92")
    (worker,) = verifier.workers()
    os.kill(worker, signal.SIGSTOP)
    assert verifier.judge(RIGHT, "92", seconds=0.5).reward == 1.0
    verifier.submit(TOWER, "92", seconds=1.0)
    os.kill(verifier.busy_worker(), signal.SIGKILL)
    number, verdict = verifier.done()
    assert (number, verdict.reward) == (3, 0.5)
    assert "accuracy: timeout after 1 s" in verdict.reason, "judged at the second attempt, and not tried a third time"
    verifier.await_metrics(
        'verifier_checks_retried_total{reason="starved"} 1.0',
        'verifier_checks_retried_total{reason="lost"} 1.0',
        'verifier_checks_total{outcome="failed",reward="accuracy"} 2.0',
        'verifier_verdicts_total{outcome="void"} 0.0',
    )


def test_a_killed_zygote_is_replaced(start_verifier: StartVerifier) -> None:
    verifier = start_verifier("verifier.retries=0")
    verifier.judge(RIGHT, "92")
    verifier.submit(TOWER, "92")
    zygote, worker = verifier.zygote, verifier.busy_worker()
    os.kill(zygote, signal.SIGKILL)
    assert verifier.done()[1].void
    assert verifier.judge(RIGHT, "92").reward == 1.0
    assert gone([zygote, worker])


def test_a_memory_bomb_stays_within_its_bound_and_the_next_check_is_right(start_verifier: StartVerifier) -> None:
    verifier = start_verifier(f"verifier.memory_bytes={256 * 2**20}")
    verifier.judge(RIGHT, "92")
    (worker,) = verifier.workers()
    verdict = verifier.judge("<answer>93</answer>", "2^{2^{35}}", reward="accuracy", seconds=30.0)
    assert (verdict.reward, verdict.reason) == (0.0, "accuracy: memory")
    assert verifier.judge(RIGHT, "92").reward == 1.0
    assert verifier.workers() != [worker]


def test_a_worker_is_renewed_after_its_share_of_jobs(start_verifier: StartVerifier) -> None:
    verifier = start_verifier("verifier.checks_per_worker=2")
    seen = set()
    for _ in range(3):
        assert verifier.judge(RIGHT, "92", accuracy="exact").reward == 1.0
        seen.update(verifier.workers())
    assert len(seen) == 2


def test_a_worker_has_no_environment_no_files_and_its_own_session(verifier: Verifier) -> None:
    assert verifier.judge(RIGHT, "92").reward == 1.0
    (worker,) = verifier.workers()
    files = [os.readlink(link) for link in Path(f"/proc/{worker}/fd").iterdir()]
    assert sorted(file for file in files if not file.startswith("socket:")) == ["/dev/null"] * 3
    assert len(files) == 5, "besides the channel and the line to the sandbox"
    assert os.getsid(worker) == worker
    environment = Path(f"/proc/{worker}/environ").read_text()
    assert all(entry.startswith(("OMP", "OPENBLAS", "PYTHON")) for entry in environment.split("\0") if entry)
    limits = Path(f"/proc/{worker}/limits").read_text().splitlines()
    assert any(line.split()[:5] == ["Max", "address", "space", str(2 * 2**30), str(2 * 2**30)] for line in limits)
    assert any(line.split()[:6] == ["Max", "core", "file", "size", "0", "0"] for line in limits)


@pytest.mark.parametrize(
    "frames",
    [
        [b""],
        [b"\xc1"],
        [msgpack.packb({"offbeat": 99, "kind": "verify_job", "body": {}})],
        [msgpack.packb({"offbeat": 1, "kind": "verify_job", "body": {"job_id": -1}})],
        [msgpack.packb({"offbeat": 1, "kind": "heartbeat", "body": []}), b"array"],
        [b"x"] * 50,
    ],
)
def test_a_malformed_message_stops_nothing(verifier: Verifier, frames: list[bytes]) -> None:
    verifier.router.socket.send_multipart([verifier.peer, *frames])
    verifier.send(Refusal(field="verdict", problem="not this one", fatal=False))
    assert verifier.judge(RIGHT, "92").reward == 1.0


def test_metrics_count_checks_workers_and_rejections(start_verifier: StartVerifier) -> None:
    verifier = start_verifier()
    verifier.router.socket.send_multipart([verifier.peer, b"?"])
    verifier.judge(RIGHT, "92")
    verifier.judge(TOWER, "92", seconds=0.5)
    expected = (
        'verifier_checks_total{outcome="scored",reward="accuracy"} 1.0',
        'verifier_checks_total{outcome="timeout",reward="accuracy"} 1.0',
        'verifier_check_seconds_count{reward="format"} 2.0',
        'verifier_workers_killed_total{reason="timeout"} 1.0',
        'verifier_verdicts_total{outcome="reward"} 2.0',
        "verifier_messages_rejected_total 1.0",
        "verifier_jobs_queued 0.0",  # a gauge, set once a turn: the verdict may be here before it
    )
    verifier.await_metrics(*expected)


@pytest.mark.parametrize("numbers", [[signal.SIGINT], [signal.SIGTERM, signal.SIGTERM]])
def test_an_interrupt_and_a_second_sigterm_end_it_fast_even_while_a_check_runs(
    start_verifier: StartVerifier, numbers: list[signal.Signals]
) -> None:
    verifier = start_verifier("verifier.workers=2")
    verifier.judge(RIGHT, "92")
    verifier.submit(TOWER, "92")
    family = [verifier.zygote, *verifier.workers(2)]
    begun = time.monotonic()
    for number in numbers:
        verifier.process.send_signal(number)
        time.sleep(0.2)
    code, log = verifier.ended()
    assert time.monotonic() - begun < STOP_SECONDS
    assert code == 0, log
    assert gone(family)
    assert numbers[0].name in verifier.goodbye().reason


def test_sigterm_ends_an_idle_verifier_at_once(start_verifier: StartVerifier) -> None:
    verifier = start_verifier()
    begun = time.monotonic()
    verifier.process.send_signal(signal.SIGTERM)
    code, log = verifier.ended()
    assert (code, time.monotonic() - begun < STOP_SECONDS) == (0, True), log
    assert verifier.goodbye().reason == "got SIGTERM"


def test_on_sigterm_it_finishes_what_it_has_takes_nothing_new_and_says_goodbye(start_verifier: StartVerifier) -> None:
    verifier = start_verifier()
    verifier.judge(RIGHT, "92")
    slow = verifier.submit(TOWER, "92", seconds=1.0)
    quick = verifier.submit(RIGHT, "92")
    verifier.busy_worker()
    verifier.process.send_signal(signal.SIGTERM)
    request = verifier.next()
    assert isinstance(request, VerifyRequest)
    assert request.capacity == 0
    verifier.submit(RIGHT, "92")  # it was on its way
    assert [verifier.done()[0] for _ in range(2)] == [slow, quick]
    assert verifier.goodbye().reason == "got SIGTERM"
    assert verifier.ended()[0] == 0


def test_a_drain_has_an_end_even_if_a_check_has_none(start_verifier: StartVerifier) -> None:
    verifier = start_verifier("verifier.drain_seconds=0.5")
    verifier.judge(RIGHT, "92")
    verifier.submit(TOWER, "92", seconds=60.0)
    verifier.busy_worker()
    begun = time.monotonic()
    verifier.process.send_signal(signal.SIGTERM)
    code, log = verifier.ended()
    assert (code, time.monotonic() - begun < STOP_SECONDS) == (0, True), log
    assert "1 jobs were not finished after 0.5 s" in verifier.goodbye().reason


def test_nothing_outlives_a_service_that_is_killed(start_verifier: StartVerifier) -> None:
    verifier = start_verifier("verifier.workers=2")
    verifier.judge(RIGHT, "92")
    verifier.submit(TOWER, "92")
    family = [verifier.zygote, *verifier.workers(2)]
    verifier.process.kill()
    verifier.ended()
    assert gone(family)


def test_the_end_of_the_run_is_its_end(start_verifier: StartVerifier) -> None:
    verifier = start_verifier()
    verifier.send(Goodbye(reason="all steps done", finished=True))
    code, log = verifier.ended()
    assert code == 0, log
    assert "all steps done" in log


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        (Goodbye(reason="the learner died", finished=False), "the broker ended the run: the learner died"),
        (Refusal(field="verdicts", problem="none came", fatal=True), "refused this verifier: verdicts: none came"),
    ],
)
def test_an_early_end_is_an_error_that_says_why(
    start_verifier: StartVerifier, message: Goodbye | Refusal, sentence: str
) -> None:
    verifier = start_verifier()
    verifier.send(message)
    code, log = verifier.ended()
    assert code == 1
    assert sentence in log
    assert "Traceback" not in log


def test_a_silent_broker_ends_it_with_an_error(start_verifier: StartVerifier) -> None:
    verifier = start_verifier(silence=0.5)
    family = [verifier.zygote, *verifier.workers()]
    code, log = verifier.ended()
    assert code == 1
    assert "was silent for 1 s" in log
    assert gone(family)


def test_it_speaks_at_least_once_a_heartbeat(start_verifier: StartVerifier) -> None:
    verifier = start_verifier(heartbeat=0.2)
    verifier.submit(TOWER, "92", seconds=1.5)
    verifier.done()
    assert len(verifier.heartbeats) >= 5
    busy = [heartbeat for heartbeat in verifier.heartbeats if heartbeat.gauges["jobs_running"] == 1.0]
    assert busy
    assert all(heartbeat.waiting_for == "" for heartbeat in busy)


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("verifier.workers=-1", "verifier.workers=-1: must be 0 (one a core) or more"),
        ("verifier.memory_bytes=1000", "verifier.memory_bytes=1000: "),
        ("verifier.welcome_seconds=0.2", "no broker answered at tcp://127.0.0.1:9 within 0.2 s"),
        ("broker=nonsense", "nonsense: give the address as tcp://host:port"),
    ],
)
def test_what_cannot_work_is_refused_in_a_sentence(option: str, sentence: str) -> None:
    command = [sys.executable, "-m", "verifier", "broker=tcp://127.0.0.1:9", option]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == 1
    assert sentence in ended.stderr
    assert "Traceback" not in ended.stderr


def test_the_service_imports_no_checker() -> None:
    heavy = {"sympy", "math_verify", "reasoning_gym"}
    program = f"import sys, verifier.__main__, verifier.zygote; sys.exit(str({heavy} & set(sys.modules) or ''))"
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.stderr.strip() == ""
