"""No capability is left: none in force, none inherited by a program, none to be had from a file (capabilities(7))."""

import ctypes
import errno
import struct

from verifier.sandbox.kernel import PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, PR_CAPBSET_DROP, call, prctl

_VERSION_3 = 0x20080522
_MOST = 64  # numbers of capabilities that version 3 can hold


def drop_all() -> None:
    """Drop the bounding set, the ambient set, and what this process holds. Raises `OSError`."""
    for number in range(_MOST):
        try:
            prctl(PR_CAPBSET_DROP, number)
        except OSError as error:
            if error.errno == errno.EINVAL:  # one past the last that this kernel knows
                break
            if error.errno == errno.EPERM:  # never was privileged: without them nothing can be gained (no_new_privs)
                break
            raise
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    header = struct.pack("Ii", _VERSION_3, 0)
    nothing = struct.pack("IIIIII", *[0] * 6)
    call("capset", ctypes.create_string_buffer(header, len(header)), ctypes.create_string_buffer(nothing, len(nothing)))


def hold_all_permitted() -> None:
    """Put in force what this process may have: a change of user id clears what is in force, not what is permitted."""
    header = ctypes.create_string_buffer(struct.pack("Ii", _VERSION_3, 0), 8)
    data = ctypes.create_string_buffer(24)
    call("capget", header, data)
    low = struct.unpack("IIIIII", data.raw)
    data.raw = struct.pack("IIIIII", low[1], low[1], 0, low[4], low[4], 0)
    call("capset", header, data)
