"""Model-written code as a job of the real `python -m verifier`; the test plays the broker."""

import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from forgeries import CALLS, PROGRAMS, RIGHT, RIGHT_PROGRAM, STDIO, TESTS
from verifier_doubles import ROOT, Verifier, gone

from protocol import reference as references
from protocol.messages import Verdict
from verifier.sandbox.walls import WALLS

QUICK = {"seconds": 0.2}
BARRED = str(Path(__file__).with_name("barred.py"))


@pytest.fixture(scope="module")
def verifier() -> Iterator[Verifier]:
    verifier = Verifier("verifier.workers=2", silence=300.0)
    yield verifier
    verifier.close()


def submit(verifier: Verifier, source: str, task: dict[str, Any], **options: Any) -> int:
    return verifier.submit(f"```python\n{source}\n```", references.dump(task), reward="code", **options)


def judge(verifier: Verifier, source: str, task: dict[str, Any], **options: Any) -> float | None:
    number = submit(verifier, source, task, **options)
    answered, verdict = verifier.done()
    assert answered == number
    print(verdict.reason)
    return verdict.reward


def metrics(verifier: Verifier) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{verifier.hello.metrics_port}/metrics", timeout=5) as page:
        return str(page.read().decode())


def test_code_is_judged(verifier: Verifier) -> None:
    assert judge(verifier, RIGHT, TESTS) == 1.0
    assert judge(verifier, RIGHT, CALLS) == 1.0
    assert judge(verifier, RIGHT_PROGRAM, STDIO) == 1.0
    assert judge(verifier, "def add(a, b): return a - b", TESTS) == 0.0
    assert judge(verifier, "def add(a, b): return 3", CALLS, cases="fraction") == 0.5
    assert judge(verifier, PROGRAMS["writes all answers"], STDIO) == 0.0


def test_many_at_once_are_all_judged_right(verifier: Verifier) -> None:
    wanted = {}
    for number in range(40):
        right = number % 3 != 0
        source = f"def add(a, b): return a + b + {0 if right else 1}  # {number}"
        wanted[submit(verifier, source, TESTS)] = float(right)
    got = {number: verdict.reward for number, verdict in (verifier.done() for _ in wanted)}
    assert got == wanted


def test_a_loop_ends_with_its_cases_and_not_with_the_worker(verifier: Verifier) -> None:
    workers = verifier.workers(2)
    assert judge(verifier, "while True: pass", STDIO, further=QUICK) == 0.0
    assert judge(verifier, "def add(a, b):\n    while True: pass", TESTS, further=QUICK) == 0.0
    assert judge(verifier, "import time; time.sleep(60)", STDIO, further=QUICK) == 0.0
    assert judge(verifier, RIGHT, TESTS) == 1.0
    assert verifier.workers(2) == workers


@pytest.mark.parametrize(
    ("reference", "metadata", "culprit"),
    [
        ("{", {}, "no JSON"),
        ("{}", {}, "kind stdio, calls or tests"),
        ('{"kind": "stdio", "cases": []}', {}, "at least one case"),
        ('{"kind": "stdio", "cases": [{"stdin": "1"}]}', {}, "stdout"),
        ('{"kind": "stdio", "cases": [{"stdin": 1, "stdout": "2"}]}', {}, "stdin=1"),
        ('{"kind": "calls", "entry": "a b", "cases": [{"arguments": [], "returns": 1}]}', {}, "must be a name"),
        ('{"kind": "tests", "entry": "f", "tests": ["x"], "code": "y"}', {}, "has the fields"),
        (references.dump(TESTS), {"cases": "most"}, "must be all or fraction"),
        (references.dump(TESTS), {"seconds": 0}, "must be above 0"),
        (references.dump(TESTS), {"seconds": "long"}, "metadata"),
    ],
)
def test_a_bad_task_is_void(verifier: Verifier, reference: str, metadata: dict[str, Any], culprit: str) -> None:
    verifier.submit("```\nx\n```", reference, reward="code", further=metadata)
    _, verdict = verifier.done()
    assert verdict.void
    assert culprit in verdict.reason


def killed_sandbox(verifier: Verifier, source: str) -> tuple[int, list[int], Verdict]:
    """The sandbox is killed while `source` runs in it: its process, the program's, and the verdict."""
    assert judge(verifier, RIGHT, TESTS) == 1.0
    submit(verifier, source, STDIO)
    zygote = verifier.programs_zygote
    while not (inmates := Path(f"/proc/{zygote}/task/{zygote}/children").read_text().split()):
        pass
    os.kill(zygote, signal.SIGKILL)
    return zygote, list(map(int, inmates)), verifier.done()[1]


def test_a_killed_sandbox_makes_its_check_void_and_is_replaced() -> None:
    verifier = Verifier("verifier.retries=0")
    try:
        zygote, inmates, verdict = killed_sandbox(verifier, "import time; time.sleep(60)")
        assert verdict.void
        assert "sandbox" in verdict.reason
        assert gone([zygote, *inmates])
        assert judge(verifier, RIGHT, TESTS) == 1.0
    finally:
        verifier.close()


def test_a_check_that_a_killed_sandbox_failed_is_tried_again_in_the_next_one() -> None:
    verifier = Verifier()
    try:
        _, _, verdict = killed_sandbox(verifier, f"import time; time.sleep(1)\n{RIGHT_PROGRAM}")
        assert verdict.reward == 1.0, verdict
        verifier.await_metrics('verifier_checks_retried_total{reason="sandbox"} 1.0')
    finally:
        verifier.close()


def test_walls_and_runs_are_told_to_prometheus(verifier: Verifier) -> None:
    judge(verifier, RIGHT_PROGRAM, STDIO)
    for _ in range(100):
        page = metrics(verifier)
        if 'verifier_sandbox_runs_total{ended="exit"}' in page:
            break
        judge(verifier, RIGHT_PROGRAM, STDIO)
    assert 'verifier_sandbox_runs_total{ended="exit"}' in page
    assert all(f'verifier_sandbox_wall{{wall="{wall}"}}' in page for wall in WALLS)
    assert 'verifier_sandbox_wall{wall="namespaces"} 1.0' in page
    assert 'verifier_sandbox_wall{wall="seccomp"} 1.0' in page


def test_a_host_without_namespaces_is_refused_in_a_sentence() -> None:
    command = [sys.executable, BARRED, sys.executable, "-m", "verifier", "broker=tcp://127.0.0.1:9"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert "verifier: this host cannot give namespaces" in ended.stderr
    assert "sandbox.require=best_effort" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_with_best_effort_such_a_host_serves_and_says_what_it_lacks() -> None:
    verifier = Verifier("sandbox.require=best_effort", "verifier.workers=1", prefix=[BARRED, sys.executable])
    try:
        assert judge(verifier, RIGHT, TESTS) == 1.0
        assert judge(verifier, "import os\ndef add(a, b): os.kill(-1, 9)", TESTS) == 0.0
        assert judge(verifier, "while True: pass", STDIO, further=QUICK) == 0.0
        assert judge(verifier, RIGHT_PROGRAM, STDIO) == 1.0
        page = metrics(verifier)
        assert 'verifier_sandbox_wall{wall="namespaces"} 0.0' in page
        assert 'verifier_sandbox_wall{wall="seccomp"} 1.0' in page
    finally:
        verifier.close()
    assert "not on this host: " in verifier.log
    assert "namespaces (clone: Operation not permitted)" in verifier.log


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("sandbox.require=perhaps", "sandbox.require=perhaps: must be one of strict, best_effort"),
        ("sandbox.memory_bytes=1000", "sandbox.memory_bytes=1000: a Python interpreter needs"),
        ("sandbox.processes=0", "sandbox.processes=0: must be above 0"),
        ("sandbox.readable=[relative]", "sandbox.readable: 'relative' must be the absolute path"),
        ("sandbox.readable=[/nowhere]", "sandbox.readable: '/nowhere' must be the absolute path"),
    ],
)
def test_what_cannot_work_is_refused_in_a_sentence(option: str, sentence: str) -> None:
    command = [sys.executable, "-m", "verifier", "broker=tcp://127.0.0.1:9", option]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert sentence in ended.stderr
    assert "Traceback" not in ended.stderr
