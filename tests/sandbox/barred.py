"""`python barred.py COMMAND…`: runs a command on a host that gives no namespaces, as many containers do."""

import ctypes
import os
import struct
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from verifier.sandbox.kernel import PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER, prctl
from verifier.sandbox.numbers import numbers

REFUSE, ALLOW = 0x00050001, 0x7FFF0000


def main(command: list[str]) -> None:
    table = numbers()
    steps = [(0x20, 0, 0, 0)]
    for name in ("unshare", "setns", "mount"):
        steps += [(0x15, 0, 1, table[name]), (0x06, 0, 0, REFUSE)]
    steps += [(0x15, 0, 3, table["clone"]), (0x20, 0, 0, 16), (0x45, 0, 1, 0x7E020000), (0x06, 0, 0, REFUSE)]
    steps.append((0x06, 0, 0, ALLOW))
    code = b"".join(struct.pack("HBBI", *step) for step in steps)
    body = ctypes.create_string_buffer(code, len(code))
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(steps), ctypes.addressof(body)), 16)
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(header))
    os.execv(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
