"""The two rules that bound staleness, as arithmetic. η = max_staleness, B = groups_per_step, v = learner's version.

Admission: a group is leased only while fewer than (η + v + 1)·B groups have been leased and not dropped since the
start. A group that is leased at version u is due: it must be consumed by version u + η at the latest.

Order: the batch that v consumes takes the finished groups of the oldest leases, but never so that those which it leaves
behind could not be consumed in time: for every t ≥ v, at most (t − v)·B of the groups left are due by t. While that
does not hold, the batch waits for older groups to finish.

Why no token is ever older than η. The order rule keeps the invariant "at version v, for every t ≥ v, at most
(t − v + 1)·B live groups are due by t": after the batch, v + 1 stands where v stood. A new lease at version v is due at
t = v + η, and admission leaves at most (η + v + 1)·B − v·B = (t − v + 1)·B live groups altogether, so the invariant
holds for that t and, as nothing is due later, for every later one. At t = v the order rule says that nothing which is
due is left behind. So a group is consumed at version u + η at the latest, and since its actor samples with weights of
version u or newer (`Lease.min_version`), each of its tokens is at most η steps old. Drops only make room.

Why it never deadlocks. When all live groups are finished, taking the B oldest leases keeps the order rule, by the
invariant; and when fewer than B are live, (η + v + 1)·B > v·B + live, so that one more may be leased. Dropping groups
of equal rewards (`stream.zero_variance=resample`) could go on for ever; `stream.resample_limit` bounds it a batch.
"""

from collections.abc import Iterable


def limit(*, version: int, max_staleness: int, groups_per_step: int) -> int:
    """Groups that may have been leased (and not dropped) by the time the learner stands at `version`."""
    return (max_staleness + version + 1) * groups_per_step


def in_time(left: Iterable[int], *, version: int, max_staleness: int, groups_per_step: int) -> bool:
    """Whether groups with these lease versions, left behind by the batch of `version`, can all be consumed in time."""
    due = sorted(lease_version + max_staleness for lease_version in left)
    return all(count <= (moment - version) * groups_per_step for count, moment in enumerate(due, start=1))
