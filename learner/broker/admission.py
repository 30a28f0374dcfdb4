"""The two rules that bound staleness, as arithmetic. η = max_staleness, B = groups_per_step, v = learner's version.

Admission: a group is leased only while fewer than (η + v + 1)·B groups have been leased and not dropped since the
start. Order: the batch that version v consumes must contain every live group that was leased at version v − η or
before; while one of them is unfinished the batch waits.

Why no token is ever older than η. Let u be the version at which a group was leased. When the learner stood at u, at
most (η + u + 1)·B groups had been leased and not dropped, so when it reaches v = u + η, having consumed v·B of them, at
most (η + u + 1)·B − v·B = B of those leased at u or before are left: they fit into one batch, and the order rule puts
them there. So the group is consumed at version u + η at the latest. The actor samples it with weights of version u or
newer (`Lease.min_version`), so each of its tokens is at most η steps old. Drops only make room.

Why it never deadlocks. If no group is running, fewer than B are ready and none may be leased, then
(η + v + 1)·B ≤ v·B + ready < (v + 1)·B, which no η ≥ 0 satisfies.
"""


def admitted(leased: int, *, version: int, max_staleness: int, groups_per_step: int) -> bool:
    """Whether one more group may be leased, `leased` being all groups leased since the start and not dropped."""
    return leased < limit(version=version, max_staleness=max_staleness, groups_per_step=groups_per_step)


def limit(*, version: int, max_staleness: int, groups_per_step: int) -> int:
    """Groups that may have been leased (and not dropped) by the time the learner stands at `version`."""
    return (max_staleness + version + 1) * groups_per_step


def due(lease_version: int, *, version: int, max_staleness: int) -> bool:
    """Whether a group leased at `lease_version` must be in the batch that `version` consumes."""
    return lease_version + max_staleness <= version
