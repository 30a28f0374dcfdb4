"""Proof programs: where they may lie, and how a sandboxed process runs them.

They are installed on demand (`make proof`, or the system's packages). A check knows names, not whether there is a file:
the worker that judges sees none of them. So the driver, inside the sandbox, takes the first that is there, and a host
that lacks a program is told what to do about it.
"""

import base64
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from verifier.rewards.score import BadAnswer, BadTask
from verifier.sandbox.access import access
from verifier.sandbox.kept import SOURCE
from verifier.sandbox.program import Limits, Outcome, Program
from verifier.sandbox.run import SandboxError

UNPACKED = SOURCE / ".venv" / "debian" / "usr"  # where `make proof` puts Debian's packages
PLACES = (UNPACKED, Path(sys.prefix), Path("/usr"), Path("/usr/local"))
_MOST_OUTPUT_BYTES = 2**24
_PYTHON = f"{sys.base_prefix}/bin/python{sys.version_info.major}.{sys.version_info.minor}"
_CURES = {
    "coqc": "run `make proof`, or `apt-get install coq`, and start the verifier again",
    "coqchk": "run `make proof`, or `apt-get install coq`, and start the verifier again",
    "z3": "pip install 'offbeat[proof]', and start the verifier again",
}


def readable() -> list[str]:
    """What a sandbox must let programs read, of what this host has; empty without any proof program."""
    found = [place / "bin" / name for place in PLACES for name in _CURES if (place / "bin" / name).is_file()]
    libraries = [place / "lib" / "ocaml" for place in PLACES if (place / "bin" / "coqc").is_file()]
    own = [UNPACKED / "lib" / "x86_64-linux-gnu", UNPACKED / "lib" / "aarch64-linux-gnu"]
    return [str(path) for path in [*found, *libraries, *own] if path.exists()]


def has(name: str) -> bool:
    """Whether this process can see the program."""
    return any((place / "bin" / name).is_file() for place in PLACES)


@dataclass(frozen=True, slots=True)
class Step:
    """One program and its arguments. `{place}` in an argument is where it lies, such as `/usr`."""

    name: str
    arguments: Sequence[str]


@dataclass(frozen=True, slots=True)
class Ended:
    """How a step ended, by the driver's word; outputs in UTF-8, no more than a megabyte each."""

    exit: int
    stdout: str
    stderr: str


@dataclass(frozen=True, slots=True)
class Ran:
    """Steps up to the first that failed, and the files that were asked for, where they came to be."""

    steps: list[Ended]
    files: Mapping[str, bytes]

    @property
    def failure(self) -> str:
        """The last lines of the step that failed; empty if none did."""
        last = self.steps[-1]
        return "" if last.exit == 0 else (last.stderr or last.stdout or f"exit status {last.exit}").strip()[-300:]


def run(steps: Sequence[Step], files: Mapping[str, bytes], limits: Limits, wanted: Sequence[str] = ()) -> Ran:
    """Run `steps` one after the other in one sandbox, in a folder that holds `files`; give back `wanted` files.

    Raises `BadAnswer` when they use up their time, memory or output, `BadTask` for a missing program, and
    `SandboxError` for what is the host's fault, such as a program that does not run on it.
    """
    order = {
        "steps": [{"name": step.name, "arguments": list(step.arguments)} for step in steps],
        "places": [str(place) for place in PLACES],
        "wanted": list(wanted),
    }
    program = Program(
        argv=(_PYTHON, "-I", "-S", "-B", "driver.py"),
        stdin=json.dumps(order).encode(),
        files={**files, "driver.py": _driver()},
        limits=limits.shortened(access.seconds),
    )
    outcome = _blameless(access.link.run(program))
    if outcome.ended != "exit":
        raise BadAnswer(f"{steps[0].name}: {outcome.ended}")
    return _read(outcome)


def limits(metadata: Mapping[str, Any], seconds: float) -> Limits:
    """Of one check: `metadata` may say `seconds` (of CPU) and `memory_bytes`. Raises `BadTask`."""
    try:
        most = float(metadata.get("seconds", seconds))
        memory = int(metadata.get("memory_bytes", 2**30))
        return Limits(cpu_seconds=most, wall_seconds=2 * most + 2, memory_bytes=memory, output_bytes=_MOST_OUTPUT_BYTES)
    except (TypeError, ValueError) as error:
        raise BadTask(f"metadata: {error}") from None


def _blameless(outcome: Outcome) -> Outcome:
    """Proof programs wait for nothing but the CPU: one that got less than half of its time was not the slow one."""
    if outcome.ended == "wall" and outcome.cpu_seconds < outcome.wall_seconds / 2:
        raise SandboxError(f"starved: it got the CPU for {outcome.cpu_seconds:.1f} of {outcome.wall_seconds:.1f} s")
    return outcome


def _read(outcome: Outcome) -> Ran:
    if outcome.exit != 0:
        raise SandboxError(f"the driver failed: {outcome.stderr.decode(errors='replace').strip()[-300:]}")
    report = json.loads(outcome.stdout)
    if missing := report["missing"]:
        raise BadTask(f"this host lacks {missing}: {_CURES[missing]}")
    ran = Ran(
        [Ended(**step) for step in report["steps"]],
        {name: base64.b64decode(content) for name, content in report["files"].items()},
    )
    if ran.steps[-1].exit in (126, 127):
        raise SandboxError(f"a proof program does not run here: {ran.failure}")
    return ran


@lru_cache(maxsize=1)
def _driver() -> bytes:
    return Path(__file__).with_name("driver.py").read_bytes()
