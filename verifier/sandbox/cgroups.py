"""Control groups: how much memory and how many processes a whole check may have, in either layout (v1, v2).

One group a slot, made when the zygote starts and used again and again: a group that is removed lingers in the kernel
until its last page is gone. All groups of a zygote lie in one folder, which is locked while its keeper lives; whoever
finds one unlocked, in its own group or in one beside it (that of the job or container before), removes it.
"""

import errno
import fcntl
import os
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from verifier.sandbox.program import Limits
from verifier.sandbox.walls import said

PREFIX = "offbeat-"
CONTROLLERS = ("memory", "pids")
_REMOVE_SECONDS = 2.0  # for the kernel to forget the last process of a group


@dataclass(frozen=True, slots=True)
class Place:
    """Where groups with one controller can be made."""

    controller: str  # memory or pids
    version: int
    parent: Path


def places(cgroup: str, mountinfo: str) -> dict[str, list[Place]]:
    """Folders to try for each controller, best first. The arguments are the texts of the files in /proc/self."""
    own = {}  # controller ("" for v2) → path of this process's group
    for line in cgroup.splitlines():
        _, names, path = line.split(":", 2)
        own.update(dict.fromkeys(names.split(","), path))
    found: dict[str, list[Place]] = {controller: [] for controller in CONTROLLERS}
    for kind, root, point, options in _mounts(mountinfo):
        for controller, candidates in found.items():
            if kind == "cgroup" and controller in options.split(",") and controller in own:
                candidates.append(Place(controller, 1, _below(point, root, own[controller])))
            elif kind == "cgroup2" and "" in own:
                top = Path(point)
                group = _below(point, root, own[""])
                above = [group, *group.parents]
                candidates += [Place(controller, 2, path) for path in above if path == top or top in path.parents]
    return found


def _mounts(mountinfo: str) -> Iterator[tuple[str, str, str, str]]:
    """Kind, root, mount point and options of each mount (proc(5))."""
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        fields, (kind, _, options) = before.split(), after.split(maxsplit=2)
        yield kind, fields[3], fields[4], options


def _below(point: str, root: str, path: str) -> Path:
    """The folder of the group `path` in a mount that shows `root` at `point`."""
    relative = os.path.relpath(path, root)
    return Path(point) if relative.startswith("..") else Path(point, relative)


@dataclass(slots=True)
class Group:
    """The groups of one slot, by descriptors that stay valid when the host's files are out of sight."""

    enter_by: list[int] = field(default_factory=list)
    memory_limit: list[int] = field(default_factory=list)
    pids_limit: int = -1
    events: int = -1
    _limits: tuple[int, int] = (2**62, 0)  # at first there are none
    _kills: int = 0

    def limit(self, limits: Limits) -> None:
        """Set the bounds for the next check. Files count as memory."""
        wanted = (limits.memory_bytes + limits.disk_bytes, limits.processes)
        if wanted == self._limits:
            return
        order = reversed(self.memory_limit) if wanted[0] > self._limits[0] else iter(self.memory_limit)
        for descriptor in order:  # v1: the limit with swap is never below the one without
            os.write(descriptor, str(wanted[0]).encode())
        if self.pids_limit >= 0:
            os.write(self.pids_limit, str(wanted[1]).encode())
        self._limits = wanted

    def enter(self) -> None:
        """Move the calling process in."""
        for descriptor in self.enter_by:
            os.write(descriptor, b"0")

    def killed(self) -> bool:
        """Whether the kernel has ended a process for its memory since the last call."""
        if self.events < 0:
            return False
        text = os.pread(self.events, 4096, 0).decode()
        kills = next((int(line.split()[1]) for line in text.splitlines() if line.startswith("oom_kill ")), 0)
        before, self._kills = self._kills, kills
        return kills > before


@dataclass(slots=True)
class Groups:
    """All groups of one zygote."""

    slots: list[Group]
    missing: dict[str, str] = field(default_factory=dict)  # controller → why
    _folders: list[Path] = field(default_factory=list)
    _locks: list[int] = field(default_factory=list)

    def remove(self) -> None:
        """Remove them, once their processes are gone. Raises `OSError` if one is still in use."""
        for folder in self._folders:
            _remove(folder)
        for lock in self._locks:
            os.close(lock)


def make(slots: int, controllers: Collection[str] = CONTROLLERS) -> Groups:
    """Groups for `slots` checks, with those of `controllers` that can be had here."""
    found = places(Path("/proc/self/cgroup").read_text(), Path("/proc/self/mountinfo").read_text())
    name = PREFIX + os.urandom(6).hex()
    groups = Groups([Group() for _ in range(slots)])
    made: dict[Path, Path] = {}
    for controller in controllers:
        candidates = found[controller]
        groups.missing[controller] = "no cgroup of this process has it"
        for place in candidates:
            try:
                if place.parent not in made:
                    made[place.parent] = _folder(place.parent, name, groups)
                _equip(made[place.parent], place, groups.slots)
            except OSError as error:
                groups.missing[controller] = said(error)
                continue
            del groups.missing[controller]
            break
    return groups


def _folder(parent: Path, name: str, groups: Groups) -> Path:
    for left in parent.parent.glob(f"*/{PREFIX}*"):
        _sweep(left)
    folder = parent / name
    lock = _locked(folder)
    while lock is None:  # another keeper took it for one that was left, in the moment before it was locked
        lock = _locked(folder)
    groups._folders.append(folder)
    groups._locks.append(lock)
    return folder


def _locked(folder: Path) -> int | None:
    """Make `folder` and lock it; None if it is gone again by then."""
    folder.mkdir(exist_ok=True)
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        if folder.stat().st_ino == os.fstat(lock).st_ino:
            return lock
    except FileNotFoundError:
        pass
    os.close(lock)
    return None


def _equip(folder: Path, place: Place, slots: list[Group]) -> None:
    """Make a group a slot and open what will be written."""
    if place.version == 2:
        if place.controller not in (folder / "cgroup.controllers").read_text().split():
            raise OSError(errno.ENOTSUP, f"{place.parent} hands the {place.controller} controller to no group below it")
        (folder / "cgroup.subtree_control").write_text(f"+{place.controller}")
    for number, group in enumerate(slots):
        below = folder / str(number)
        below.mkdir(exist_ok=True)
        enter = os.open(below / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
        if place.controller == "memory":
            limits = (
                ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"]
                if place.version == 1
                else ["memory.max", "memory.swap.max"]
            )
            events = "memory.oom_control" if place.version == 1 else "memory.events"
            group.memory_limit.append(os.open(below / limits[0], os.O_WRONLY | os.O_CLOEXEC))
            if (below / limits[1]).exists():
                if place.version == 1:
                    group.memory_limit.append(os.open(below / limits[1], os.O_WRONLY | os.O_CLOEXEC))
                else:
                    (below / limits[1]).write_text("0")
            group.events = os.open(below / events, os.O_RDONLY | os.O_CLOEXEC)
        else:
            group.pids_limit = os.open(below / "pids.max", os.O_WRONLY | os.O_CLOEXEC)
        if place.version == 1 or not group.enter_by:
            group.enter_by.append(enter)
        else:
            os.close(enter)  # one hierarchy: in already


def _sweep(folder: Path) -> None:
    """Remove what a keeper that was killed has left."""
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return  # gone meanwhile, or another user's
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _remove(folder)
    except OSError:
        return  # its keeper lives, or another user's
    finally:
        os.close(lock)


def _remove(folder: Path) -> None:
    end = time.monotonic() + _REMOVE_SECONDS
    for path in (*folder.glob("*/"), folder):
        while path.exists():
            try:
                path.rmdir()
            except OSError as error:
                if error.errno != errno.EBUSY or time.monotonic() > end:
                    raise
                time.sleep(0.01)
