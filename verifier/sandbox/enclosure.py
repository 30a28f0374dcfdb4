"""The walls round one check: what a forked process does to itself before it touches anything hostile.

The order matters. While it still has the zygote's rights it takes namespaces and a folder of its own and enters its
control group; then it becomes its own user, in a user namespace of its own, and lets go of every capability; then
come what nobody can take back: limits, no_new_privs, Landlock, and last the filter, which would refuse most of this.
"""

import gc
import math
import os
import resource
import signal
from dataclasses import dataclass, field

from verifier.sandbox import capabilities, landlock
from verifier.sandbox.cgroups import Group
from verifier.sandbox.filter import Filter
from verifier.sandbox.identity import Identities, single, write_maps
from verifier.sandbox.kernel import (
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUSER,
    MS_NODEV,
    MS_NOSUID,
    PR_SET_DUMPABLE,
    PR_SET_NO_NEW_PRIVS,
    PR_SET_PDEATHSIG,
    clone,
    close_all_but,
    mount,
    prctl,
    unshare,
)
from verifier.sandbox.policy import ALLOWED, EXECUTE, SIGNALS, WORKER
from verifier.sandbox.program import Limits
from verifier.sandbox.root import FOLDER
from verifier.sandbox.walls import WallError, Walls, said

_FILES_PER_MEGABYTE = 64


@dataclass(slots=True)
class Enclosure:
    """What the zygote has prepared, for each process that it forks to lock itself in."""

    walls: Walls
    identities: Identities
    groups: list[Group]  # one a slot
    proc: int  # descriptor of the host's /proc, to write maps with; no check keeps it
    landlock: int = 0  # version
    capabilities: int = 0  # how many there are
    filters: dict[str, Filter] = field(default_factory=dict)  # by kind

    def prepare(self) -> None:
        """Find out what this kernel has, and put the filters together."""
        self.capabilities = capabilities.known()
        try:
            self.landlock = landlock.version()
        except OSError as error:
            self.walls.missing["landlock"] = said(error)
        kept = [name for name in ALLOWED if "namespaces" in self.walls or name not in SIGNALS]
        kinds = {"source": kept, "argv": [*kept, *EXECUTE], "worker": [*kept, *WORKER]}
        try:
            self.filters = {kind: Filter(names) for kind, names in kinds.items()}
        except KeyError as error:
            self.walls.missing["seccomp"] = str(error)

    def fork(self) -> tuple[int, int]:
        """A child, in its own pid namespace if there are any: pid and pidfd, (0, -1) in the child."""
        return clone(CLONE_NEWPID if "namespaces" in self.walls else 0)

    def host_pid(self, pidfd: int) -> int:
        """The number by which the host knows a child."""
        facts = read_text(self.proc, f"self/fdinfo/{pidfd}")
        return next(int(line.split()[1]) for line in facts.splitlines() if line.startswith("Pid:"))

    def own_host_pid(self) -> int:
        """The number by which the host knows the calling process."""
        return int(os.readlink("self", dir_fd=self.proc))

    def end_group(self, pid: int) -> None:
        """Kill what a child has started. A pid namespace does that by itself; without one, no process could leave its
        group (`policy`)."""
        if "namespaces" in self.walls:
            return
        try:
            os.killpg(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            return

    def confine(self, slot: int, limits: Limits, kind: str, kept: set[int]) -> None:
        """Lock the calling process, a child of `fork`, in; `kept` descriptors stay open. Raises `WallError`."""
        wall = "memory_cgroup" if "memory_cgroup" in self.walls else "pids_cgroup"
        try:
            self.groups[slot].enter()
            wall = "namespaces"
            identity = self.identities.of(slot)
            if "namespaces" in self.walls:
                self._own_namespaces(identity, limits)
                capabilities.drop_all(self.capabilities)
            else:
                os.chdir("/")
            if "namespaces" not in self.walls and self.identities.first is not None:
                outside = self.identities.first + slot
                os.setgroups([])
                capabilities.drop_bounding(self.capabilities)
                os.setresgid(outside, outside, outside)
                os.setresuid(outside, outside, outside)  # from 0, and so without capabilities
            close_all_but(kept)
            _limit(limits)
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            prctl(PR_SET_NO_NEW_PRIVS, 1)
            wall = "landlock"
            if wall in self.walls:
                landlock.restrict([FOLDER] if "namespaces" in self.walls else [], self.landlock)
            wall = "seccomp"
            if wall in self.walls:
                self.filters[kind].install()
        except OSError as error:
            raise WallError(wall, error) from None

    def _own_namespaces(self, identity: int, limits: Limits) -> None:
        unshare(CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWNET)
        files = max(16, limits.disk_bytes * _FILES_PER_MEGABYTE // 2**20)
        options = f"size={limits.disk_bytes},nr_inodes={files},mode=700,uid={identity},gid={identity}"
        mount("tmpfs", FOLDER, "tmpfs", MS_NOSUID | MS_NODEV, options)
        if identity:
            os.setresgid(identity, identity, identity)
            os.setresuid(identity, identity, identity)
        prctl(PR_SET_DUMPABLE, 1)  # else /proc/self is root's: no maps could be written, no memory looked up (`memory`)
        unshare(CLONE_NEWUSER)
        write_maps(self.proc, "self", single(identity), single(identity))
        os.chdir(FOLDER)


def ready_to_fork() -> None:
    """Before the first fork, and after whatever was loaded since: children need not copy what no collection touches."""
    gc.collect()
    gc.freeze()


def read_text(folder: int, path: str) -> str:
    """A small file below a folder's descriptor."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder)
    try:
        return os.read(descriptor, 4096).decode()
    finally:
        os.close(descriptor)


def _limit(limits: Limits) -> None:
    """The kernel's limits of a process, hard and soft alike: they cannot be raised again."""
    bounds = {
        resource.RLIMIT_AS: limits.memory_bytes,
        resource.RLIMIT_CPU: math.ceil(limits.cpu_seconds) + 1,  # the backstop; the zygote looks more finely
        resource.RLIMIT_FSIZE: limits.disk_bytes,
        resource.RLIMIT_NOFILE: limits.open_files,
        resource.RLIMIT_NPROC: limits.processes,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_NICE: 0,
        resource.RLIMIT_RTPRIO: 0,
        resource.RLIMIT_SIGPENDING: 64,
    }
    for number, bound in bounds.items():
        try:
            resource.setrlimit(number, (bound, bound))
        except ValueError:  # the host's own is lower
            hard = resource.getrlimit(number)[1]
            resource.setrlimit(number, (hard, hard))
