"""A sandbox of the tests' own user, and one of an ordinary user where the tests run as root."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from verifier.sandbox.link import Link
from verifier.sandbox.program import Limits, Outcome, Program
from verifier.sandbox.sandbox import Sandbox
from verifier.sandbox.walls import Walls

SECRET = "a-secret-of-the-host-5f0c1e"
OWNERS = ["root", "nobody"] if os.geteuid() == 0 else ["self"]
START_SECONDS = 30.0


@dataclass
class Box:
    """A sandbox, whoever owns it."""

    owner: str
    link: Link
    walls: Walls

    def run(self, source: str, **options: object) -> Outcome:
        """Run Python `source`."""
        return self.link.run(Program(source=source, **options))  # type: ignore[arg-type]

    def honest(self) -> None:
        """The next honest check is right."""
        outcome = self.run("print(sum(map(int, input().split())))", stdin=b"19 23\n")
        assert (outcome.ended, outcome.exit, outcome.stdout) == ("exit", 0, b"42\n"), outcome


@contextmanager
def box(owner: str) -> Iterator[Box]:
    """A sandbox owned by `owner`. Its owner's environment holds a secret."""
    os.environ["OFFBEAT_SECRET"] = SECRET
    with _nobodys() if owner == "nobody" else _own(owner) as found:
        yield found


@contextmanager
def _own(owner: str) -> Iterator[Box]:
    with Sandbox() as sandbox:
        yield Box(owner, sandbox.link(), sandbox.walls)


@contextmanager
def _nobodys() -> Iterator[Box]:
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-B", str(Path(__file__).with_name("nobody.py")), str(theirs.fileno())]
    with subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL) as process:
        theirs.close()
        ours.settimeout(START_SECONDS)
        try:
            missing, descriptors, _, _ = socket.recv_fds(ours, 65536, 1)
            assert descriptors, "the ordinary user's sandbox did not start"
            with Link(socket.socket(fileno=descriptors[0])) as link:
                yield Box("nobody", link, Walls(json.loads(missing)))
        finally:
            ours.close()
            assert process.wait(START_SECONDS) == 0


QUICK = Limits(cpu_seconds=1.0, wall_seconds=2.0, memory_bytes=128 * 2**20, output_bytes=2**16)
