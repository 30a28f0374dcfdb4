"""System calls that Python 3.11 does not have, each as a function that raises `OSError` with the call's name."""

import ctypes
import os
import platform
import signal
import struct

from verifier.sandbox.numbers import MACHINES, numbers

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
CLONE_PIDFD = 0x00001000

MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 8, 4096, 16384, 1 << 18
MNT_DETACH = 2
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV = 1, 2, 4
AT_RECURSIVE, AT_EMPTY_PATH, AT_FDCWD = 0x8000, 0x1000, -100

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_KEEPCAPS, PR_SET_SECCOMP = 1, 4, 8, 22
PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = 24, 38, 47
PR_CAP_AMBIENT_CLEAR_ALL = 4
SECCOMP_MODE_FILTER = 2

_libc = ctypes.PyDLL(None, use_errno=True)  # PyDLL keeps the GIL: a fork in between would leave it locked
_NUMBERS = numbers() if platform.machine() in MACHINES else {}
_prctl = _libc.prctl
_prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]


def call(name: str, *arguments: int | bytes | ctypes.Array[ctypes.c_char] | None) -> int:
    """The system call `name`; texts are zero-terminated bytes. Raises `OSError`."""
    if name not in _NUMBERS:
        raise OSError(f"{name}: the number of this system call is not known on {platform.machine()}")
    widened = [ctypes.c_long(argument) if isinstance(argument, int) else argument for argument in arguments]
    result = int(_libc.syscall(ctypes.c_long(_NUMBERS[name]), *widened))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{name}: {os.strerror(error)}")
    return result


def clone(flags: int) -> tuple[int, int]:
    """Like `os.fork`, in new namespaces: pid of the child (0 in the child) and a pidfd of it (-1 in the child)."""
    pidfd = ctypes.create_string_buffer(4)
    ctypes.pythonapi.PyOS_BeforeFork()
    try:
        child = call("clone", flags | CLONE_PIDFD | signal.SIGCHLD, 0, pidfd, 0, 0)
    except OSError:
        ctypes.pythonapi.PyOS_AfterFork_Parent()
        raise
    if child == 0:
        ctypes.pythonapi.PyOS_AfterFork_Child()
        return 0, -1
    ctypes.pythonapi.PyOS_AfterFork_Parent()
    return child, int(struct.unpack("i", pidfd.raw)[0])


def unshare(flags: int) -> None:
    """Leave namespaces for new ones of this process's own."""
    call("unshare", flags)


def mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    """mount(2)."""
    call("mount", source.encode(), target.encode(), kind.encode(), flags, options.encode())


def lock_mounts(target: str, attributes: int) -> None:
    """Set `MOUNT_ATTR_…` on `target` and on all that is mounted below it (Linux 5.12)."""
    size = struct.pack("QQQQ", attributes, 0, 0, 0)
    call("mount_setattr", AT_FDCWD, target.encode(), AT_RECURSIVE, ctypes.create_string_buffer(size, len(size)), 32)


def make_root(folder: str) -> None:
    """`folder`, a mount, becomes the root of this mount namespace, and all that was there before is gone from it."""
    os.chdir(folder)
    call("pivot_root", b".", b".")
    call("umount2", b".", MNT_DETACH)
    os.chdir("/")


def prctl(option: int, argument: int = 0, address: int = 0) -> None:
    """prctl(2). Raises `OSError`."""
    if _prctl(option, argument, address, 0, 0) < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"prctl {option}: {os.strerror(error)}")


def close_from(first: int, last: int = 0x7FFFFFFF) -> None:
    """Close every descriptor in `first..last`, open or not."""
    if first <= last:
        call("close_range", first, last, 0)


def close_all_but(kept: set[int]) -> None:
    """Close every descriptor but `kept`."""
    start = 0
    for descriptor in sorted(kept):
        close_from(start, descriptor - 1)
        start = descriptor + 1
    close_from(start)
