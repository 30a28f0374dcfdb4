"""The seccomp filter: `policy` as a classic BPF program, put together here and handed to the kernel by prctl(2).

The program looks at the machine, then at the number, then at one argument where a condition says so. The kernel caches
what is always allowed, so that the order costs nothing.
"""

import ctypes
import platform
import struct
from collections.abc import Iterable

from verifier.sandbox.kernel import PR_SET_SECCOMP, SECCOMP_MODE_FILTER, prctl
from verifier.sandbox.numbers import MACHINES, numbers
from verifier.sandbox.policy import CONDITIONS, ENOSYS, EPERM, UNKNOWN, Condition

_LOAD, _RETURN = 0x20, 0x06
_JUMP_EQUAL, _JUMP_GREATER, _JUMP_GREATER_EQUAL, _JUMP_BITS = 0x15, 0x25, 0x35, 0x45
_KILL, _ALLOW, _ERRNO = 0x80000000, 0x7FFF0000, 0x00050000
_NUMBER_AT, _MACHINE_AT, _ARGUMENTS_AT = 0, 4, 16  # in struct seccomp_data
_X32 = 0x40000000  # another set of numbers on x86_64, past any list


def program(allowed: Iterable[str], machine: str = platform.machine()) -> bytes:
    """The filter as an array of `struct sock_filter`. Raises `KeyError` for a machine without a table."""
    table = numbers(machine)
    code = [
        _step(_LOAD, _MACHINE_AT),
        _step(_JUMP_EQUAL, MACHINES[machine], 1, 0),
        _step(_RETURN, _KILL),
        _step(_LOAD, _NUMBER_AT),
        _step(_JUMP_GREATER_EQUAL, _X32, 0, 1),
        _step(_RETURN, _KILL),
    ]
    names = [name for name in allowed if name in table]
    for low, high in _ranges(table[name] for name in names if name not in CONDITIONS):
        code += [_step(_JUMP_GREATER_EQUAL, low, 0, 2), _step(_JUMP_GREATER, high, 1, 0), _step(_RETURN, _ALLOW)]
    for name in names:
        if name in CONDITIONS:
            body = _conditional(CONDITIONS[name])
            code += [_step(_JUMP_EQUAL, table[name], 0, len(body)), *body]
    for name in UNKNOWN:
        code += [_step(_JUMP_EQUAL, table[name], 0, 1), _step(_RETURN, _ERRNO | ENOSYS)]
    code.append(_step(_RETURN, _ERRNO | EPERM))
    return b"".join(code)


def _ranges(found: Iterable[int]) -> list[tuple[int, int]]:
    """Numbers as runs `(first, last)` of neighbours: the shorter the program, the sooner it is translated."""
    runs: list[tuple[int, int]] = []
    for number in sorted(found):
        if runs and runs[-1][1] == number - 1:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    return runs


def _conditional(condition: Condition) -> list[bytes]:
    """Allow or refuse by the lower half of the argument: of all these calls the kernel reads no more than that."""
    code = [_step(_LOAD, _ARGUMENTS_AT + 8 * condition.argument)]
    if condition.mask:
        code += [_step(_JUMP_BITS, condition.mask, 1, 0), _step(_RETURN, _ALLOW)]
    for value in condition.values:
        code += [_step(_JUMP_EQUAL, value, 0, 1), _step(_RETURN, _ALLOW)]
    return [*code, _step(_RETURN, _ERRNO | EPERM)]


def _step(code: int, value: int, then: int = 0, otherwise: int = 0) -> bytes:
    return struct.pack("HBBI", code, then, otherwise, value)


class Filter:
    """A filter, ready to be installed in many processes."""

    def __init__(self, allowed: Iterable[str]) -> None:
        code = program(allowed)
        self._steps = ctypes.create_string_buffer(code, len(code))
        header = struct.pack("HxxxxxxQ", len(code) // 8, ctypes.addressof(self._steps))
        self._header = ctypes.create_string_buffer(header, len(header))
        self._address = ctypes.addressof(self._header)

    def install(self) -> None:
        """Put this process and all that it starts behind it, for good. Needs no_new_privs. Raises `OSError`."""
        prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, self._address)
