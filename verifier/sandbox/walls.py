"""The walls of a sandbox by name: which must stand, which stand where the host has them."""

from dataclasses import dataclass, field

ESSENTIAL = {
    "namespaces": "own user, pid, mount, ipc and net namespaces, and a root that holds the interpreter and libraries",
    "seccomp": "a filter that lets through the system calls of `policy` and no other",
}
"""Without one of these, what model-written code can do is in no way bounded."""

FURTHER = {
    "unique_uid": "a user id that no other check and nothing on the host has",
    "memory_cgroup": "a bound on the memory of all processes of a check together",
    "pids_cgroup": "a bound on their number that does not go by user",
    "landlock": "a second wall round files, TCP, abstract sockets and signals",
}
"""Each closes what an essential one has closed already, or bounds a nuisance more tightly."""

WALLS = (*ESSENTIAL, *FURTHER)


def said(error: OSError) -> str:
    """What an error says, without its number."""
    where = f": {error.filename}" if error.filename else ""
    return f"{error.strerror}{where}" if error.strerror else str(error)


class WallError(Exception):
    """A wall could not be put up here. `wall` names it, `why` says why."""

    def __init__(self, wall: str, why: object) -> None:
        self.wall = wall
        self.why = said(why) if isinstance(why, OSError) else str(why)
        super().__init__(f"{wall}: {self.why}")


@dataclass(slots=True)
class Walls:
    """What stands on this host, and why the rest does not."""

    missing: dict[str, str] = field(default_factory=dict)  # wall → why

    def __contains__(self, wall: str) -> bool:
        return wall not in self.missing

    def gap(self) -> str:
        """The essential walls that are missing, each with its reason; empty if none."""
        return "; ".join(f"{wall} ({self.missing[wall]})" for wall in ESSENTIAL if wall in self.missing)

    def described(self) -> str:
        """One line for a log."""
        standing = ", ".join(wall for wall in WALLS if wall in self)
        lacking = "; ".join(f"{wall} ({why})" for wall, why in self.missing.items())
        return f"walls: {standing or 'none'}" + (f"; not on this host: {lacking}" if lacking else "")
