"""What a run says of itself, and that nothing is left of it."""

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from boxes import Box

from protocol.clock import Deadline
from verifier.sandbox.cgroups import PREFIX
from verifier.sandbox.program import Limits, Program
from verifier.sandbox.run import SandboxError
from verifier.sandbox.sandbox import Sandbox
from verifier.sandbox.walls import ESSENTIAL

ROOT = os.geteuid() == 0


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(slots=2) as sandbox:
        yield sandbox


def test_the_essential_walls_stand_here(sandboxed: Box) -> None:
    assert [wall for wall in ESSENTIAL if wall not in sandboxed.walls] == [], sandboxed.walls.described()


@pytest.mark.skipif(not ROOT, reason="only root can hand out user ids")
def test_roots_checks_have_a_user_of_their_own(sandbox: Sandbox) -> None:
    assert "unique_uid" in sandbox.walls, sandbox.walls.described()


@pytest.mark.parametrize(
    ("source", "ended", "code", "stdout"),
    [
        ("print('hello')", "exit", 0, b"hello\n"),
        ("print(input() * 2)", "exit", 0, b"abab\n"),
        ("import sys; sys.stdout.write(sys.stdin.read())", "exit", 0, b"ab\ncd\n"),
        ("exit()", "exit", 0, b""),
        ("raise SystemExit(7)", "exit", 7, b""),
        ("raise SystemExit('no')", "exit", 1, b""),
        ("1/0", "exit", 1, b""),
        ("syntax error", "exit", 1, b""),
        ("import os; print('lost?', end=''); os._exit(3)", "exit", 3, b""),
        ("if __name__ == '__main__': print(__name__)", "exit", 0, b"__main__\n"),
        ("import sys; print(sys.argv, len(sys.path))", "exit", 0, b"['program.py'] 4\n"),
        ("import atexit; atexit.register(print, 'bye')", "exit", 0, b"bye\n"),
        ("import threading; threading.Thread(target=print, args=['thread']).start()", "exit", 0, b"thread\n"),
        ("import asyncio; print(asyncio.run(asyncio.sleep(0, 'slept')))", "exit", 0, b"slept\n"),
        ("import random, secrets, uuid; print(random.random() < 1)", "exit", 0, b"True\n"),
        ("print('ü', '\\udcff'.isprintable())", "exit", 0, "ü False\n".encode()),
        ("def f(n): return n and f(n - 1)\nprint(f(980))", "exit", 0, b"0\n"),
        ("import sqlite3; print(sqlite3.connect(':memory:').execute('select 2').fetchone())", "exit", 0, b"(2,)\n"),
        ("from dataclasses import dataclass\n@dataclass\nclass A:\n    x: int\nprint(A(1))", "exit", 0, b"A(x=1)\n"),
        ("import pickle\nclass A: pass\nprint(type(pickle.loads(pickle.dumps(A()))).__name__)", "exit", 0, b"A\n"),
        ("open('f', 'w').write('x'); print(open('/box/f').read())", "exit", 0, b"x\n"),
        ("import tempfile; print(tempfile.TemporaryFile().write(b'abc'))", "exit", 0, b"3\n"),
        ("import multiprocessing as m\nq = m.Pipe()[0]\nprint(m.cpu_count() > 0)", "exit", 0, b"True\n"),
        (
            "import os\nif os.fork() == 0: os._exit(5)\nprint(os.waitstatus_to_exitcode(os.wait()[1]))",
            "exit",
            0,
            b"5\n",
        ),
    ],
)
def test_a_script_does_what_it_does_elsewhere(
    sandboxed: Box, source: str, ended: str, code: int, stdout: bytes
) -> None:
    outcome = sandboxed.run(source, stdin=b"ab\ncd\n")
    assert (outcome.ended, outcome.exit, outcome.stdout) == (ended, code, stdout), outcome


def test_a_traceback_names_the_script_and_nothing_of_ours(sandboxed: Box) -> None:
    outcome = sandboxed.run("def f():\n    return 1/0\nf()")
    lines = outcome.stderr.decode().splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[1] == '  File "program.py", line 3, in <module>'
    assert lines[-1] == "ZeroDivisionError: division by zero"
    assert b"verifier" not in outcome.stderr


def test_files_lie_in_the_folder_that_a_program_starts_in(sandboxed: Box) -> None:
    files = {"data/numbers.txt": b"1 2 3", "helper.py": b"def double(x): return 2 * x"}
    source = "import helper; print([helper.double(int(x)) for x in open('data/numbers.txt').read().split()])"
    assert sandboxed.run(source, files=files).stdout == b"[2, 4, 6]\n"


def test_a_program_file_runs_and_its_environment_is_empty(sandboxed: Box) -> None:
    python = os.path.realpath(sys.executable)
    program = Program(argv=(python, "-IS", "-c", "import os; print(sorted(os.environ), os.getuid())"))
    outcome = sandboxed.link.run(program)
    assert outcome.stdout.split()[-1] == b"1000", outcome
    assert b"SECRET" not in outcome.stdout
    missing = sandboxed.link.run(Program(argv=("/bin/nothing",)))
    assert (missing.exit, missing.stderr) == (127, b"/bin/nothing: No such file or directory\n")


def test_an_outcome_tells_times_and_signals(sandboxed: Box) -> None:
    busy = sandboxed.run("import time\nwhile time.process_time() < 0.2: pass")
    assert 0.2 <= busy.cpu_seconds < 0.5
    assert busy.wall_seconds >= 0.2
    slept = sandboxed.run("import time; time.sleep(5)", limits=Limits(wall_seconds=0.3))
    assert (slept.ended, slept.exit, slept.signal) == ("wall", None, None)
    assert 0.3 <= slept.wall_seconds < 1.5
    assert not slept.starved
    crashed = sandboxed.run("import ctypes; ctypes.string_at(0)")
    assert (crashed.ended, crashed.signal) == ("signal", signal.SIGSEGV)


def test_a_program_that_starves_itself_is_to_blame(sandboxed: Box) -> None:
    """Many processes of its own keep the first one from the CPU: their time counts, and is no fault of the host's."""
    source = "import os, time\nfor _ in range(6):\n    if os.fork() == 0:\n        while True: pass\ntime.sleep(60)"
    outcome = sandboxed.run(source, limits=Limits(cpu_seconds=0.4, wall_seconds=20.0))
    assert (outcome.ended, outcome.starved) == ("cpu", False)
    assert outcome.cpu_seconds >= 0.4


def test_output_is_cut_at_its_bound_and_told_apart(sandboxed: Box) -> None:
    within = sandboxed.run("print('x' * 999)", limits=Limits(output_bytes=1001))
    assert (within.ended, len(within.stdout)) == ("exit", 1000)
    beyond = sandboxed.run("while True: print('x' * 999)", limits=Limits(output_bytes=1000))
    assert (beyond.ended, beyond.exit, len(beyond.stdout)) == ("output", None, 1000)


@pytest.mark.parametrize("without", [[], ["memory_cgroup"]])
def test_memory_of_many_processes_is_bounded_together(without: list[str]) -> None:
    """By a control group where there is one, and by looking where there is none."""
    source = (
        "import os, time\nfor _ in range(8):\n    if os.fork() == 0:\n"
        "        kept = bytearray(b'x') * (100 * 2**20)\n        time.sleep(20)\n        os._exit(0)\ntime.sleep(4)"
    )
    with Sandbox(without=without) as sandbox:
        outcome = sandbox.run(Program(source=source, limits=Limits(memory_bytes=200 * 2**20, wall_seconds=5)))
        assert outcome.ended == "memory"
        assert sandbox.run(Program(source="print(1)")).stdout == b"1\n"


def test_memory_that_processes_share_counts_once() -> None:
    source = (
        "import os, time\nkept = bytearray(b'x') * (100 * 2**20)\nfor _ in range(5):\n    if os.fork() == 0:\n"
        "        time.sleep(0.4)\n        os._exit(0)\ntime.sleep(0.5)\nprint(len(kept))"
    )
    with Sandbox(without=["memory_cgroup"]) as sandbox:
        outcome = sandbox.run(Program(source=source, limits=Limits(memory_bytes=250 * 2**20, wall_seconds=5)))
        assert outcome.stdout == b"%d\n" % (100 * 2**20), outcome


def test_a_run_is_driven_from_a_loop_without_waiting(sandbox: Sandbox) -> None:
    """Two places, five programs: the others wait, their time does not run."""
    limits = Limits(wall_seconds=0.8)
    runs = [
        sandbox.start(Program(source=f"import time; time.sleep(0.3); print({number})", limits=limits))
        for number in range(5)
    ]
    limit = Deadline(10.0)
    outcomes = {}
    while len(outcomes) < len(runs):
        assert not limit.passed
        select.select([run for run in runs if run not in outcomes], [], [], 1.0)
        outcomes.update({run: outcome for run in runs if run not in outcomes and (outcome := run.poll())})
    assert [outcomes[run].stdout for run in runs] == [b"%d\n" % number for number in range(5)]


def test_a_run_that_nobody_waits_for_is_ended(sandbox: Sandbox) -> None:
    """Both places are taken by what would run for a minute; let go, they are free at once."""
    for _ in range(4):
        run = sandbox.start(Program(source="while True: pass", limits=Limits(cpu_seconds=60, wall_seconds=60)))
        limit = Deadline(5.0)
        while not run.began:
            assert not limit.passed
            select.select([run], [], [], 0.1)
            run.poll()
        run.close()
    begun = time.monotonic()
    assert sandbox.run(Program(source="print(1)")).stdout == b"1\n"
    assert time.monotonic() - begun < 2.0


def test_a_line_that_ends_takes_its_runs_along(sandbox: Sandbox) -> None:
    from verifier.sandbox.link import Link

    with Link(sandbox.connect()) as link:
        runs = [link.start(Program(source="while True: pass", limits=Limits(cpu_seconds=60))) for _ in range(3)]
    begun = time.monotonic()
    assert sandbox.run(Program(source="print(1)")).stdout == b"1\n"
    assert time.monotonic() - begun < 2.0
    for run in runs:
        run.close()


def test_limits_are_bounded_by_the_owner() -> None:
    with Sandbox(slots=1, most=Limits(wall_seconds=0.3)) as sandbox:
        outcome = sandbox.run(Program(source="import time; time.sleep(5)", limits=Limits(wall_seconds=60)))
        assert (outcome.ended, outcome.wall_seconds < 2) == ("wall", True)


def children(parent: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def groups_of(sandbox: Sandbox) -> list[Path]:
    """The folders of control groups that its keeper holds locked."""
    bounded = {"memory_cgroup", "pids_cgroup"} - set(sandbox.walls.missing)
    held = [Path(os.readlink(entry)) for entry in Path(f"/proc/{sandbox._kept.pid}/fd").iterdir()]
    groups = [path for path in held if path.name.startswith(PREFIX)]
    assert bool(groups) == bool(bounded)
    return groups


def test_a_killed_zygote_costs_its_runs_and_another_takes_over() -> None:
    with Sandbox() as sandbox:
        assert sandbox.run(Program(source="print(1)")).ok
        (zygote,) = children(sandbox._kept.pid)
        run = sandbox.start(Program(source="import time; time.sleep(30)"))
        os.kill(zygote, signal.SIGKILL)
        with pytest.raises(SandboxError, match="gone"):
            run.wait()
        sandbox.turn()
        assert sandbox.run(Program(source="print(2)")).stdout == b"2\n"


def test_a_killed_keeper_takes_all_along_and_another_cleans_up() -> None:
    with Sandbox() as sandbox:
        sandbox.walls  # noqa: B018 it stands
        keeper = sandbox._kept.pid
        (zygote,) = children(keeper)
        groups = groups_of(sandbox)
        os.kill(keeper, signal.SIGKILL)
        limit = Deadline(5.0)
        while Path(f"/proc/{zygote}").exists():
            assert not limit.passed, "the zygote lives on"
            time.sleep(0.02)
        sandbox.turn()
        assert sandbox.run(Program(source="print(2)")).stdout == b"2\n"
        groups += groups_of(sandbox)
    assert [path for path in groups if path.exists()] == []


def test_nothing_outlives_an_owner_that_is_killed() -> None:
    program = (
        "import time; from verifier.sandbox.sandbox import Sandbox; from verifier.sandbox.program import Program\n"
        "sandbox = Sandbox()\nrun = sandbox.start(Program(source='import time; time.sleep(60)'))\n"
        "while not run.began: run.poll()\nprint(sandbox._kept.pid, flush=True)\ntime.sleep(60)\n"
    )
    owner = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
    assert owner.stdout
    keeper = int(owner.stdout.readline())
    family = [keeper, *children(keeper)]
    owner.kill()
    owner.wait()
    owner.stdout.close()
    limit = Deadline(5.0)
    while any(Path(f"/proc/{pid}").exists() for pid in family):
        assert not limit.passed, "the keeper lives on"
        time.sleep(0.02)


def test_nothing_is_left_of_a_sandbox() -> None:
    """No process, descriptor, mount, control group or file, after all kinds of ends."""

    def found() -> dict[str, object]:
        return {
            "descriptors": sorted(os.listdir("/proc/self/fd")),
            "mounts": [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if " /tmp " in line],
            "children": children(os.getpid()),
            "folders": sorted(path.name for path in Path("/tmp").glob("offbeat*")),
            "groups": [path for path in groups if path.exists()],
        }

    with Sandbox(slots=1):
        pass  # what is imported at first use is not a leak
    groups: list[Path] = []
    before = found()
    for _ in range(3):
        with Sandbox(slots=2) as sandbox:
            groups += groups_of(sandbox)
            for source in ("print(1)", "1/0", "import os; os.abort()", "while True: pass"):
                sandbox.run(Program(source=source, limits=Limits(cpu_seconds=0.1, wall_seconds=0.5)))
            sandbox.start(Program(source="while True: pass")).close()
    assert found() == before


@pytest.mark.parametrize("wall", ["seccomp", "namespaces"])
def test_without_an_essential_wall_there_is_no_sandbox_unless_asked_for(wall: str) -> None:
    with Sandbox(without=[wall]) as sandbox, pytest.raises(SandboxError, match=f"cannot give {wall}"):
        _ = sandbox.walls


@pytest.mark.parametrize("wall", [["namespaces"], ["seccomp"], ["landlock"], ["namespaces", "seccomp", "landlock"]])
def test_with_best_effort_the_other_walls_hold(wall: list[str]) -> None:
    with Sandbox(without=wall, strict=False) as sandbox:
        assert set(wall) <= sandbox.walls.missing.keys()
        assert sandbox.run(Program(source="print(input())", stdin=b"x\n")).stdout == b"x\n"
        flood = sandbox.run(Program(source="while True: pass", limits=Limits(cpu_seconds=0.2)))
        assert flood.ended == "cpu"
        if "seccomp" not in wall:
            refused = sandbox.run(Program(source="import socket; socket.socket()"))
            assert b"PermissionError" in refused.stderr
        if "landlock" not in wall:
            refused = sandbox.run(Program(source="open('/dev/shm/offbeat-left', 'w')"))
            assert refused.exit == 1
        left = sandbox.run(Program(source="import os\nif os.fork() == 0:\n    while True: pass"))
        assert left.ended == "exit"
        assert sandbox.run(Program(source="print(1)")).ok


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({}, "either source or argv"),
        ({"source": "1", "argv": ("x",)}, "either source or argv"),
        ({"source": "1", "files": {"../x": b""}}, "leaves the folder"),
        ({"source": "1", "files": {"/x": b""}}, "leaves the folder"),
    ],
)
def test_a_program_that_makes_no_sense_is_refused(options: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Program(**options)  # type: ignore[arg-type]


def test_limits_must_be_above_zero() -> None:
    with pytest.raises(ValueError, match=r"limits\.processes=0: must be above 0"):
        Limits(processes=0)
