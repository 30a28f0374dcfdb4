"""Landlock: a second wall round the file system, TCP, abstract sockets and signals, in case the first has a hole.

Source: Linux's `Documentation/userspace-api/landlock.rst`.
"""

import ctypes
import os
import struct

from verifier.sandbox.kernel import call

_VERSION = 1  # flag that asks for the version
_PATH_BENEATH = 1
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_FILE_RIGHTS_BY_VERSION = {1: 13, 2: 14, 3: 15, 5: 16}  # how many rights of files a version knows
_IOCTL_DEVICE = 1 << 15
_TCP = 3  # bind and connect, from version 4
_SCOPES = 3  # abstract sockets and signals, from version 6
_READ = _EXECUTE | _READ_FILE | _READ_DIR


def version() -> int:
    """The version that this kernel speaks. Raises `OSError` where it has none."""
    return call("landlock_create_ruleset", None, 0, _VERSION)


def restrict(writable: list[str], spoken: int) -> None:
    """From now on: read everywhere, write below `writable` and to /dev/null, no TCP. Needs no_new_privs.

    `spoken` is what `version` returned. Raises `OSError`.
    """
    files = (1 << _FILE_RIGHTS_BY_VERSION[max(known for known in _FILE_RIGHTS_BY_VERSION if known <= spoken)]) - 1
    attributes = struct.pack("QQQ", files, _TCP if spoken >= 4 else 0, _SCOPES if spoken >= 6 else 0)
    size = 24 if spoken >= 6 else 16 if spoken >= 4 else 8
    ruleset = call("landlock_create_ruleset", ctypes.create_string_buffer(attributes, 24), size, 0)
    _allow(ruleset, "/", _READ)
    for path in writable:
        _allow(ruleset, path, files & ~_IOCTL_DEVICE)
    if os.path.exists("/dev/null"):
        _allow(ruleset, "/dev/null", _READ_FILE | _WRITE_FILE)
    call("landlock_restrict_self", ruleset, 0)
    os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    rule = struct.pack("=Qi", rights, place)
    call("landlock_add_rule", ruleset, _PATH_BENEATH, ctypes.create_string_buffer(rule, len(rule)), 0)
    os.close(place)
