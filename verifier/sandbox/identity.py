"""Who a check is: a user id of its own, which nothing else on the host has, where root can hand them out."""

import os
from dataclasses import dataclass
from pathlib import Path

_FIRST = 2**30  # far above ids of people, services and containers
_INSIDE = 1000  # what a check sees as its own id


@dataclass(frozen=True, slots=True)
class Identities:
    """Ids in the zygote's user namespace: 0 is whoever started it, `1..slots` are the checks', one more the zygote's.

    `first` is what 1 is outside; None: there are none to hand out, and all are the user who started it.
    """

    slots: int
    first: int | None

    @property
    def zygote(self) -> int:
        """The zygote's id once it needs no file of the host any more."""
        return 0 if self.first is None else self.slots + 1

    def of(self, slot: int) -> int:
        """The id of the check in `slot`."""
        return 0 if self.first is None else slot + 1

    def maps(self, own: int) -> str:
        """What the zygote's uid_map or gid_map says, if whoever starts it has the id `own`."""
        return f"0 {own} 1\n" + ("" if self.first is None else f"1 {self.first} {self.slots + 1}\n")


def identities(slots: int, pid: int, map_text: str | None = None) -> Identities:
    """Ids for the zygote that process `pid` starts. Root gets a range by its pid, so that no two zygotes share one."""
    if os.geteuid() != 0:
        return Identities(slots, None)
    wanted = slots + 1
    for line in (Path("/proc/self/uid_map").read_text() if map_text is None else map_text).splitlines():
        inside, _, length = map(int, line.split())
        low, high = max(inside, 1), inside + length
        first = min(max(_FIRST, low), high) + (pid % 2**20) * 128
        if first + wanted <= high:
            return Identities(slots, first)
        room = (high - low) // wanted
        if room >= 8:  # a container's small range: from its upper half, by pid
            return Identities(slots, high - wanted * (1 + pid % (room // 2)))
    return Identities(slots, None)


def write_maps(proc: int, process: str, uid_map: str, gid_map: str) -> None:
    """Write the maps of `process`'s new user namespace. `proc` is a descriptor of a /proc that knows it.

    Supplementary groups are ruled out first, without which an ordinary user may write no gid_map. Raises `OSError`.
    """
    for name, text in (("setgroups", "deny"), ("uid_map", uid_map), ("gid_map", gid_map)):
        descriptor = os.open(f"{process}/{name}", os.O_WRONLY | os.O_CLOEXEC, dir_fd=proc)
        try:
            os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)


def single(outside: int) -> str:
    """The map of a check's own namespace, in which it is alone."""
    return f"{_INSIDE} {outside} 1"
