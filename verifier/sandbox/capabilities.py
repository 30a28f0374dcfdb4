"""No capability is left: none in force, none inherited by a program, none to be had from a file (capabilities(7))."""

import ctypes
import struct

from verifier.sandbox.kernel import PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, PR_CAPBSET_DROP, call, prctl

_VERSION_3 = 0x20080522
_HEADER = ctypes.create_string_buffer(struct.pack("Ii", _VERSION_3, 0), 8)
_NOTHING = ctypes.create_string_buffer(24)
_READ = 23  # PR_CAPBSET_READ


def known() -> int:
    """How many capabilities this kernel has."""
    number = 0
    try:
        while True:
            prctl(_READ, number)
            number += 1
    except OSError:
        return number


def drop_bounding(count: int) -> None:
    """Drop the bounding set, `count` capabilities: no program file can give what is not in it. Raises `OSError`."""
    for number in range(count):
        prctl(PR_CAPBSET_DROP, number)


def drop_all(count: int) -> None:
    """Drop the bounding set of `count` capabilities, the ambient set, and what this process holds. Raises `OSError`."""
    drop_bounding(count)
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    call("capset", _HEADER, _NOTHING)


def hold_all_permitted() -> None:
    """Put in force what this process may have: a change of user id clears what is in force, not what is permitted."""
    data = ctypes.create_string_buffer(24)
    call("capget", _HEADER, data)
    low = struct.unpack("IIIIII", data.raw)
    data.raw = struct.pack("IIIIII", low[1], low[1], 0, low[4], low[4], 0)
    call("capset", _HEADER, data)
