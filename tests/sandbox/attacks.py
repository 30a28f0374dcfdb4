"""What hostile code tries. Each attack is a function that is sent into a sandbox by its source, docstring and all.

It returns what it got hold of, nothing if it got nothing, or raises what stopped it. `@attack(...)` says what must be
seen from outside: the way the run ends, and a pattern for what the attack says of its failure.
"""

import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from boxes import QUICK

from verifier.sandbox.numbers import numbers
from verifier.sandbox.program import Limits

PRELUDE = f"""
import ctypes, errno, os, signal, socket, sys, time
NUMBERS = {numbers()!r}
def system_call(name, *arguments):
    libc = ctypes.CDLL(None, use_errno=True)
    words = [ctypes.c_long(word) if isinstance(word, int) else word for word in arguments]
    result = libc.syscall(ctypes.c_long(NUMBERS[name]), *words)
    if result < 0:
        raise OSError(ctypes.get_errno(), name)
    return result
"""
EPILOGUE = """
try:
    got = attempt()
    print("ESCAPED " + repr(got)[:500] if got else "REFUSED: got nothing")
except BaseException as error:
    code = errno.errorcode.get(getattr(error, "errno", None), "")
    print("REFUSED:", type(error).__name__, code, error)
"""


@dataclass(frozen=True)
class Attack:
    """One attempt, and how it must fail."""

    name: str
    source: str
    said: str  # pattern of what it says
    ended: tuple[str, ...]
    limits: Limits


ATTACKS: list[Attack] = []


def attack(
    said: str = "EPERM", ended: tuple[str, ...] | str = "exit", **limits: Any
) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    """Register an attack."""

    def register(attempt: Callable[[], Any]) -> Callable[[], Any]:
        body = inspect.getsource(attempt).partition("\ndef ")[2]
        source = PRELUDE + "def " + textwrap.dedent(body) + EPILOGUE.replace("attempt()", f"{attempt.__name__}()")
        assert attempt.__doc__, attempt.__name__
        found = (ended,) if isinstance(ended, str) else ended
        wide = {name: getattr(QUICK, name) for name in QUICK.__slots__}
        ATTACKS.append(Attack(attempt.__name__, source, said, found, Limits(**{**wide, **limits})))
        return attempt

    return register
