"""`python nobody.py SOCKET`: a sandbox owned by an ordinary user, for tests that run as root.

Becomes uid 65534, starts a sandbox, hands a line to it over the socket, and keeps it until the socket ends. In a mount
namespace of its own it first opens a way to the interpreter and this repository, should they lie in root's home.
"""

import json
import os
import socket
import stat
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from verifier.sandbox import kernel  # noqa: E402
from verifier.sandbox.kernel import MS_BIND, MS_PRIVATE, MS_REC  # noqa: E402

NOBODY = 65534


def closed(path: Path) -> Path | None:
    """The first folder on the way to `path` that not everybody may pass."""
    ways = [*reversed(path.parents), path]
    return next((way for way in ways if way.is_dir() and not way.stat().st_mode & stat.S_IXOTH), None)


def open_ways(paths: list[Path]) -> None:
    """Everything but `paths` in a closed folder disappears behind an open one."""
    kernel.unshare(kernel.CLONE_NEWNS)
    kernel.mount("", "/", flags=MS_REC | MS_PRIVATE)
    below: dict[Path, list[Path]] = {}
    for path in paths:
        if folder := closed(path):
            below.setdefault(folder, []).append(path)
    for folder, wanted in below.items():
        sources = [(path, os.open(path, os.O_PATH)) for path in wanted]
        kernel.mount("tmpfs", str(folder), "tmpfs", 0, "mode=755")
        for path, source in sources:
            path.mkdir(parents=True, exist_ok=True)
            kernel.mount(f"/proc/self/fd/{source}", str(path), flags=MS_BIND | MS_REC)
            os.close(source)


def main(descriptor: int) -> None:
    open_ways([ROOT, Path(sys.prefix).absolute(), Path(sys.base_prefix).resolve()])
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    os.chdir("/")
    from verifier.sandbox.sandbox import Sandbox

    with socket.socket(fileno=descriptor) as tests, Sandbox() as sandbox, sandbox.connect() as line:
        socket.send_fds(tests, [json.dumps(sandbox.walls.missing).encode()], [line.fileno()])
        line.close()
        tests.recv(1)


if __name__ == "__main__":
    main(int(sys.argv[1]))
