"""How much memory a whole run uses, for hosts where no control group bounds it: looked up in the host's /proc.

Looking is slower than using: between two looks a run can take some hundred MB more. Its processes' own limits, and
their number, bound the rest.
"""

import os

from verifier.sandbox.enclosure import read_text

_PAGE = os.sysconf("SC_PAGE_SIZE")


def exceeds(proc: int, pid: int, most_bytes: int) -> bool:
    """Whether process `pid` and all that it started use more. `proc` is a descriptor of a /proc that knows them.

    What they share is counted once, if the first and quicker look, which counts it in each, finds too much.
    """
    try:
        family = _family(proc, pid)
        if sum(_resident(proc, each) for each in family) <= most_bytes:
            return False
        return sum(_own_part(proc, each) for each in family) > most_bytes
    except (OSError, ValueError, IndexError):
        return False  # one has ended meanwhile: the next look counts again


def _family(proc: int, pid: int) -> list[int]:
    """Orphans belong to the first process of their pid namespace, so that none is missed."""
    found = [pid]
    for each in found:
        found += map(int, read_text(proc, f"{each}/task/{each}/children").split())
    return found


def _resident(proc: int, pid: int) -> int:
    return int(read_text(proc, f"{pid}/statm").split()[1]) * _PAGE


def _own_part(proc: int, pid: int) -> int:
    """Its proportional share of what it shares (proc(5), Pss)."""
    lines = read_text(proc, f"{pid}/smaps_rollup").splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)
