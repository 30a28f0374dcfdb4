"""Runs Python source as a script, as `python program.py` would: same streams, same exit status."""

import atexit
import builtins
import os
import sys
import traceback
import types
from typing import Any, NoReturn

NAME = "program.py"
DEPTH = 1000  # Python's own limit of recursion, counted from the script's first line


def run(source: str) -> NoReturn:
    """Run `source` as `__main__`, and end this process."""
    end(execute(source, fresh("__main__")))


def fresh(name: str) -> types.ModuleType:
    """A new, empty module that imports find."""
    module = types.ModuleType(name)
    module.__dict__["__builtins__"] = builtins
    sys.modules[name] = module
    sys.setrecursionlimit(DEPTH + _depth())
    return module


def _depth() -> int:
    frame, depth = sys._getframe(), 0
    while frame := frame.f_back:  # type: ignore[assignment]
        depth += 1
    return depth


def execute(source: str, module: types.ModuleType) -> int:
    """Execute `source` in `module`: the exit status, after what is due on stderr."""
    try:
        code = compile(source, NAME, "exec", dont_inherit=True)
        exec(code, module.__dict__)  # model-written code, behind the walls
    except SystemExit as request:
        return _status(request.code)
    except BaseException as error:  # noqa: BLE001 as Python itself at the end of a script
        error.__traceback__ = error.__traceback__ and error.__traceback__.tb_next
        traceback.print_exception(error)
        return 1
    return 0


def _status(code: Any) -> int:
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF
    print(code, file=sys.stderr)
    return 1


def end(status: int) -> NoReturn:
    """What Python does at its end, less taking itself apart."""
    try:
        if threading := sys.modules.get("threading"):
            threading._shutdown()  # waits for threads
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:  # noqa: BLE001 a pipe that nobody reads, or whatever the script has put in their place
        os._exit(status or 120)
    os._exit(status)
