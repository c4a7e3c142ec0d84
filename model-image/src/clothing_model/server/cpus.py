"""CPUs of this process, by its affinity mask and its container's limit."""

from __future__ import annotations

import math
import os
from pathlib import Path


def schedulable_cpus() -> int:
    """Number of CPUs of the affinity mask.

    TensorFlow Serving counts these, as it knows no cgroup.
    """
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_cpus(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Number of CPUs of the affinity mask, or of the cgroup's limit if lower.

    The cgroup is version 2 or 1; the result is at least one.
    """
    count = schedulable_cpus()
    limit = _limit(cgroup)
    return max(1, min(count, math.ceil(limit))) if limit else count


def _limit(cgroup: Path) -> float | None:
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (cgroup / "cpu" / "cpu.cfs_quota_us").read_text().strip()
            period = (cgroup / "cpu" / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    if not quota.isdigit() or not period.isdigit() or int(period) == 0:  # "max", or -1: no limit
        return None
    return int(quota) / int(period)
