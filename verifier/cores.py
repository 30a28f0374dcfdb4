"""How many cores this process may use."""

import math
import os
from pathlib import Path

GROUPS = Path("/sys/fs/cgroup")


def cores(groups: Path = GROUPS) -> int:
    """Those that it is bound to, or fewer where its container has a share of them (`cpu.max`, `cpu.cfs_quota_us`)."""
    return max(1, min(len(os.sched_getaffinity(0)), _share(groups)))


def _share(groups: Path) -> int:
    """Whole cores' worth of CPU time that the control group of a container has, v2 or v1; many where it has all."""
    quota, period = _text(groups / "cpu.max").split() or ["max", "1"]
    if quota == "max":
        quota = _text(groups / "cpu" / "cpu.cfs_quota_us") or "-1"
        period = _text(groups / "cpu" / "cpu.cfs_period_us") or "1"
    return math.ceil(int(quota) / int(period)) if int(quota) > 0 else 2**16


def _text(path: Path) -> str:
    """Nothing, where there is no such file."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
