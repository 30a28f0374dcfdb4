"""What is run, within which limits, and how it ended."""

import base64
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, TypeAlias

MOST_PROGRAM_BYTES = 64 * 2**20  # of source, files and the rest, packed

Ended: TypeAlias = Literal["exit", "signal", "cpu", "wall", "memory", "output", "aborted"]
ENDED: tuple[Ended, ...] = ("exit", "signal", "cpu", "wall", "memory", "output", "aborted")
"""Why a run ended: by itself, by a signal, at the limit of that name, or because whoever started it wanted so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What all processes of one run may use together. Of memory, with the files that they wrote; each process's address
    space has the same bound."""

    cpu_seconds: float = 5.0
    wall_seconds: float = 10.0
    memory_bytes: int = 512 * 2**20
    disk_bytes: int = 16 * 2**20
    processes: int = 16  # threads included
    open_files: int = 64
    output_bytes: int = 2**20  # of stdout and stderr, each; a run that writes more is ended

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not value > 0:
                raise ValueError(f"limits.{name}={value}: must be above 0")

    def within(self, most: "Limits") -> "Limits":
        """These limits, none of them wider than in `most`."""
        return Limits(**{name: min(value, getattr(most, name)) for name, value in asdict(self).items()})

    def shortened(self, seconds: float) -> "Limits":
        """These limits with no more than `seconds` of the clock."""
        return replace(self, wall_seconds=min(self.wall_seconds, max(seconds, 1e-3)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """Python `source`, or a program file by `argv`; one of the two. `files` lie in the folder that it starts in.

    `role` says what is done with `source`: it is run as a script (`script`), or as a module whose functions are then
    called over descriptor 3 (`functions`, see `calls`), or as tests that call such functions over descriptor 3 and
    whose results go to descriptor 4 (`tests`).
    """

    source: str = ""
    argv: tuple[str, ...] = ()
    stdin: bytes = b""
    files: Mapping[str, bytes] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    role: Literal["script", "functions", "tests"] = "script"
    parameters: Mapping[str, Any] = field(default_factory=dict)  # of the role, JSON

    def __post_init__(self) -> None:
        if bool(self.argv) == bool(self.source.strip()) and self.role == "script":
            raise ValueError("a program is either source or argv")
        for name in self.files:
            if name.startswith("/") or ".." in name.split("/"):
                raise ValueError(f"files: {name!r} leaves the folder; give a relative path")

    def packed(self) -> bytes:
        """Everything but stdin and limits, for the process that runs it. Raises `ValueError` when it is too much."""
        files = {name: base64.b64encode(content).decode() for name, content in self.files.items()}
        message = {
            "source": self.source,
            "argv": self.argv,
            "files": files,
            "role": self.role,
            "parameters": dict(self.parameters),
        }
        body = json.dumps(message).encode()
        if len(body) > MOST_PROGRAM_BYTES:
            raise ValueError(f"the program has {len(body)} bytes; {MOST_PROGRAM_BYTES} can be run")
        return body


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a run ended. All but the two outputs is the kernel's and the zygote's word, not the program's."""

    ended: Ended
    exit: int | None = None  # status, if it exited
    signal: int | None = None  # number, if one ended it
    stdout: bytes = b""
    stderr: bytes = b""
    cpu_seconds: float = 0.0
    wall_seconds: float = 0.0
    waited_seconds: float = 0.0  # ready but without a CPU, of runs that ended at `wall` with CPU time to spare

    @property
    def ok(self) -> bool:
        """Whether the program exited with status 0."""
        return self.ended == "exit" and self.exit == 0

    @property
    def starved(self) -> bool:
        """Whether it was the host that was too slow, not the program: most of its time it waited for a CPU."""
        return self.ended == "wall" and self.waited_seconds > self.wall_seconds / 2
