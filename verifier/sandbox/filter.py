"""The seccomp filter: `policy` as a classic BPF program, put together here and handed to the kernel by prctl(2).

The program looks at the machine, then at the number, then at one argument where a condition says so. Numbers follow in
the order of `policy.ALLOWED`; the kernel caches what is always allowed, so that the order costs nothing.
"""

import ctypes
import platform
import struct
from collections.abc import Iterable

from verifier.sandbox.kernel import PR_SET_SECCOMP, SECCOMP_MODE_FILTER, prctl
from verifier.sandbox.numbers import MACHINES, numbers
from verifier.sandbox.policy import CONDITIONS, ENOSYS, EPERM, UNKNOWN, Condition

_LOAD, _JUMP_EQUAL, _JUMP_BITS, _JUMP_GREATER_EQUAL, _RETURN = 0x20, 0x15, 0x45, 0x35, 0x06
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
    for name in allowed:
        if name not in table:
            continue
        body = _conditional(CONDITIONS[name]) if name in CONDITIONS else [_step(_RETURN, _ALLOW)]
        code += [_step(_JUMP_EQUAL, table[name], 0, len(body)), *body]
    for name in UNKNOWN:
        code += [_step(_JUMP_EQUAL, table[name], 0, 1), _step(_RETURN, _ERRNO | ENOSYS)]
    code.append(_step(_RETURN, _ERRNO | EPERM))
    return b"".join(code)


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


def install(filtering: bytes) -> None:
    """Put this process and all that it starts behind the filter, for good. Needs no_new_privs. Raises `OSError`."""
    steps = ctypes.create_string_buffer(filtering, len(filtering))
    header = struct.pack("HxxxxxxQ", len(filtering) // 8, ctypes.addressof(steps))
    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.create_string_buffer(header, len(header)))
