"""A locked-in process: takes its program, and becomes it. Nothing here is trusted once the program has begun."""

import fcntl
import gc
import os
import sys
from typing import NoReturn

from verifier.sandbox import functions, script, tests
from verifier.sandbox.program import Program, unpacked

_CLEAR_OF_ALL = 100  # descriptors below are given out anew


def arrange(run: int, descriptors: list[int]) -> list[int]:
    """Put stdin, stdout, stderr and what follows at 0, 1, 2, …; returns where the program lies now, and those places.

    `run` is left where it is, which is above them all.
    """
    program, *rest = (fcntl.fcntl(descriptor, fcntl.F_DUPFD, _CLEAR_OF_ALL) for descriptor in descriptors)
    for place, descriptor in enumerate(rest):
        os.dup2(descriptor, place)
    return [program, *range(len(rest))]


def read(descriptor: int) -> Program:
    """The program in a file that nobody else reads; its files are laid out in this folder."""
    os.lseek(descriptor, 0, os.SEEK_SET)
    with open(descriptor, "rb") as file:
        program = unpacked(file.read())
    for name, content in program.files.items():
        if folder := os.path.dirname(name):
            os.makedirs(folder, exist_ok=True)
        with open(name, "wb") as written:
            written.write(content)
    return program


def become(program: Program) -> NoReturn:
    """Run it, and end."""
    if program.argv:
        _execute(program.argv)
    _forget()
    gc.enable()
    match program.role:
        case "script":
            script.run(program.source)
        case "functions":
            functions.serve(program.source)
        case "tests":
            tests.run(program.source, program.parameters)


def _execute(argv: tuple[str, ...]) -> NoReturn:
    try:
        os.execve(argv[0], list(argv), {})
    except OSError as error:
        os.write(2, f"{argv[0]}: {error.strerror}\n".encode())
        os._exit(127)


def _forget() -> None:
    """Leave the program an interpreter that looks like a new one."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "verifier"]:
        del sys.modules[name]
    sys.path[:] = [path for path in sys.path if "site-packages" not in path and path.startswith(sys.base_prefix)]
    sys.argv = ["program.py"]
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        errors = "backslashreplace" if name == "stderr" else "surrogateescape"
        stream = open(descriptor, mode, encoding="utf-8", errors=errors, closefd=False)  # noqa: SIM115
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
