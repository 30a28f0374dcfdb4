"""What all processes of a run use together, looked up in the host's /proc: no process may hide behind its children.

Looking is slower than using. Where no control group bounds memory, a run can take some hundred MB more between two
looks; its processes' own limits, and their number, bound the rest. CPU time of processes that have come and gone
between two looks is not seen unless their parent waited for them; the deadline of the clock holds for all.
"""

import os

from verifier.sandbox.enclosure import read_text

_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICKS = os.sysconf("SC_CLK_TCK")


def members(proc: int, pid: int) -> list[int]:
    """Process `pid` and all that it has started. `proc` is a descriptor of a /proc that knows them.

    Orphans belong to the first process of their pid namespace, so that none is missed.
    """
    found = [pid]
    for each in found:
        found += map(int, _text(proc, f"{each}/task/{each}/children").split())
    return found


def cpu_seconds(proc: int, family: list[int]) -> float:
    """CPU time of all of them, and of the children that they have waited for."""
    ticks = 0
    for pid in family:
        fields = _text(proc, f"{pid}/stat").rpartition(")")[2].split()
        ticks += sum(map(int, fields[11:15]))
    return ticks / _TICKS


def waited_seconds(proc: int, pid: int) -> float:
    """How long a process was ready and had no CPU; 0 where the kernel does not count that."""
    fields = _text(proc, f"{pid}/schedstat").split()
    return int(fields[1]) / 1e9 if fields else 0.0


def exceeds(proc: int, family: list[int], most_bytes: int) -> bool:
    """Whether they use more memory.

    What they share is counted once, if the first and quicker look, which counts it in each, finds too much.
    """
    if sum(_resident(proc, each) for each in family) <= most_bytes:
        return False
    return sum(_own_part(proc, each) for each in family) > most_bytes


def _resident(proc: int, pid: int) -> int:
    fields = _text(proc, f"{pid}/statm").split()
    return int(fields[1]) * _PAGE if fields else 0


def _own_part(proc: int, pid: int) -> int:
    """Its proportional share of what it shares (proc(5), Pss)."""
    lines = _text(proc, f"{pid}/smaps_rollup").splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


def _text(proc: int, path: str) -> str:
    """Nothing, if the process has ended meanwhile."""
    try:
        return read_text(proc, path)
    except OSError:
        return ""
