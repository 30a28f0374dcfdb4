"""A locked-in process: takes its program, and becomes it. Nothing here is trusted once the program has begun."""

import base64
import fcntl
import gc
import importlib
import json
import os
import site
import sys
from types import ModuleType
from typing import IO, Any, NoReturn

from verifier.sandbox import functions, script, trial

_CLEAR_OF_ALL = 100  # descriptors below are given out anew
_WARM = ("bisect", "collections", "decimal", "fractions", "functools", "heapq", "itertools", "json", "math", "operator")
_STREAMS: dict[str, IO[str]] = {}
_KEPT: dict[str, ModuleType] = {}  # our own: out of sight, but not taken apart in every check


def lift(descriptors: list[int]) -> list[int]:
    """Copies far above the places that `place` fills, where descriptors that the walls still need may lie."""
    return [fcntl.fcntl(descriptor, fcntl.F_DUPFD, _CLEAR_OF_ALL) for descriptor in descriptors]


def place(descriptors: list[int]) -> None:
    """Put stdin, stdout, stderr and what follows at 0, 1, 2, …"""
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)


def read(descriptor: int) -> dict[str, Any]:
    """The program in a file that nobody else reads, as `Program.packed` wrote it; its files are laid out here."""
    size = os.lseek(descriptor, 0, os.SEEK_END)
    program: dict[str, Any] = json.loads(os.pread(descriptor, size, 0))
    os.close(descriptor)
    for name, content in program["files"].items():
        if folder := os.path.dirname(name):
            os.makedirs(folder, exist_ok=True)
        with open(name, "wb") as written:
            written.write(base64.b64decode(content))
    return program


def become(program: dict[str, Any]) -> NoReturn:
    """Run it, and end."""
    if program["argv"]:
        _execute(program["argv"])
    _forget()
    if (folder := os.getcwd()) != "/":
        sys.path.insert(0, folder)
    gc.enable()
    match program["role"]:
        case "functions":
            functions.serve(program["source"])
        case "tests":
            trial.run(program["source"], program["parameters"])
        case _:
            script.run(program["source"])


def _execute(argv: list[str]) -> NoReturn:
    try:
        os.execve(argv[0], argv, {})
    except OSError as error:
        os.write(2, f"{argv[0]}: {error.strerror}\n".encode())
        os._exit(127)


def prepare() -> None:
    """In the zygote, for all that it will fork: streams, a path, and the modules that programs import most.

    Left out are modules that do something at every fork, such as `random` and `threading`.
    """
    for name in _WARM:
        importlib.import_module(name)
    sys.path[:] = [path for path in sys.path if path.startswith(sys.base_prefix) and "site-packages" not in path]
    sys.argv = ["program.py"]
    site.setquit()
    _KEPT.update({name: module for name, module in sys.modules.items() if name.startswith("verifier")})
    unread, unwritten = os.pipe()  # they stand for the pipes to come: a stream remembers what it was opened on
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        kept = os.dup(descriptor)
        os.dup2(unread if mode == "r" else unwritten, descriptor)
        errors = "backslashreplace" if name == "stderr" else "surrogateescape"
        stream = open(descriptor, mode, encoding="utf-8", errors=errors, closefd=False)  # noqa: SIM115
        os.dup2(kept, descriptor)
        os.close(kept)
        _STREAMS[name] = stream
    os.close(unread)
    os.close(unwritten)


def _forget() -> None:
    """Leave the program an interpreter that looks like a new one."""
    for name, stream in _STREAMS.items():
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    for name in _KEPT:
        del sys.modules[name]
