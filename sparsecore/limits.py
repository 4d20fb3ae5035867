"""What this process may use of its machine: CPUs and memory, within its control groups."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

import psutil

#: Where Linux shows the control groups, and which of them this process is in.
GROUPS, OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def cpu_count() -> int:
    """Return the number of CPUs that this process may run on, or has the time of."""
    affinity = hasattr(os, "sched_getaffinity")
    count = len(os.sched_getaffinity(0)) if affinity else os.cpu_count() or 1
    for folder in _groups("cpu"):
        quota = _numbers(folder, "cpu.max", "cpu.cfs_quota_us")
        period = quota[1:] or _numbers(folder, "cpu.cfs_period_us")
        if quota and period and 0 < quota[0] < math.inf:  # -1 and "max" are no limit
            count = min(count, math.ceil(quota[0] / period[0]))
    return max(1, count)


def free_memory() -> int:
    """Return the bytes that this process may still take, pages of files that can go included."""
    free = int(psutil.virtual_memory().available)
    for folder in _groups("memory"):
        limit = _numbers(folder, "memory.max", "memory.limit_in_bytes")
        used = _numbers(folder, "memory.current", "memory.usage_in_bytes")
        if limit and used and limit[0] < math.inf:
            free = min(free, int(limit[0] - used[0] + _files(folder)))
    return max(0, free)


def _groups(controller: str) -> Iterator[Path]:
    """Yield the folders of this process's groups, and of those around them, of both versions."""
    try:
        lines = OWN.read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, kinds, inner = line.split(":", 2)
        if kinds and controller not in kinds.split(","):
            continue
        top = GROUPS / controller if kinds else GROUPS
        # In a container the path may be the host's, and only `top` be there: it is the group.
        folder = top / inner.lstrip("/")
        yield from (path for path in (folder, *folder.parents) if path.is_relative_to(top))


def _numbers(folder: Path, *names: str) -> list[float]:
    """Return the numbers in the first of these files that is there; "max" is infinite."""
    for name in names:
        try:
            return [
                float(word.replace("max", "inf")) for word in (folder / name).read_text().split()
            ]
        except (OSError, ValueError):
            continue
    return []


def _files(folder: Path) -> int:
    """Return the bytes of files' pages in a group that the system frees when asked for memory."""
    try:
        lines = (folder / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    stat = dict(line.split(" ", 1) for line in lines)
    return int(stat.get("total_inactive_file", stat.get("inactive_file", 0)))
