"""CPU and memory limits of this process, read from its cgroup (v2)."""

from __future__ import annotations

import math
import os
from pathlib import Path

_CGROUP_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")
_CGROUP_MEMORY_MAX = Path("/sys/fs/cgroup/memory.max")


def available_cores(cpu_max: Path = _CGROUP_CPU_MAX) -> int:
    """Number of cores that this process may use, at least one.

    It is the smaller of its CPU set and its cgroup's quota (v2).

    ``os.cpu_count`` names the node's cores, also in a pod that may use half of one.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = cpu_max.read_text(encoding="ascii").split()
        if quota != "max":
            cores = min(cores, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):
        pass  # no cgroup v2 here: only the CPU set is known
    return max(cores, 1)


def memory_limit(memory_max: Path = _CGROUP_MEMORY_MAX) -> int | None:
    """The container's memory limit in bytes (cgroup v2); None without one."""
    try:
        return int(memory_max.read_text(encoding="ascii"))
    except (OSError, ValueError):  # no cgroup v2 here, or "max"
        return None
