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
        words = _words(folder / "cpu.max") or [
            *_words(folder / "cpu.cfs_quota_us"), *_words(folder / "cpu.cfs_period_us")
        ]  # fmt: skip
        if len(words) == 2 and words[0] not in ("max", "-1"):
            count = min(count, math.ceil(int(words[0]) / int(words[1])))
    return max(1, count)


def free_memory() -> int:
    """Return the bytes that this process may still take, pages of files that can go included."""
    free = int(psutil.virtual_memory().available)
    for folder in _groups("memory"):
        limit = _words(folder / "memory.max") or _words(folder / "memory.limit_in_bytes")
        used = _words(folder / "memory.current") or _words(folder / "memory.usage_in_bytes")
        stat = _words(folder / "memory.stat")
        files = dict(zip(stat[::2], stat[1::2], strict=True))
        if limit and used and limit != ["max"]:
            can_go = files.get("total_inactive_file", files.get("inactive_file", 0))
            free = min(free, int(limit[0]) - int(used[0]) + int(can_go))
    return max(0, free)


def _groups(controller: str) -> Iterator[Path]:
    """Yield the folders of this process's groups, and of those around them, of both versions."""
    lines = OWN.read_text().splitlines() if OWN.exists() else []
    for line in lines:
        _, kinds, inner = line.split(":", 2)
        if not kinds or controller in kinds.split(","):
            top = GROUPS / controller if kinds else GROUPS
            # In a container the path may be the host's, and only `top` be there: it is the group.
            folder = top / inner.lstrip("/")
            yield from (path for path in (folder, *folder.parents) if path.is_relative_to(top))


def _words(path: Path) -> list[str]:
    """Return the words of a file, none if it cannot be read."""
    try:
        return path.read_text().split()
    except OSError:
        return []
