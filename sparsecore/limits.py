"""CPUs and memory that this process may use, within control groups (version 2)."""

import math
import os
from collections.abc import Iterator
from pathlib import Path

import psutil

#: Where Linux shows the control groups, and which one this process is in.
GROUPS, OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def cpu_count() -> int:
    """Return the number of CPUs that this process may use: by affinity and CPU-time quota."""
    affinity = hasattr(os, "sched_getaffinity")
    count = len(os.sched_getaffinity(0)) if affinity else os.cpu_count() or 1
    for folder in _groups():
        words = _words(folder / "cpu.max")
        if len(words) == 2 and words[0] != "max":
            count = min(count, math.ceil(int(words[0]) / int(words[1])))
    return max(1, count)


def free_memory() -> int:
    """Return the bytes that this process may still allocate, reclaimable file cache included."""
    free = int(psutil.virtual_memory().available)
    for folder in _groups():
        limit, used = _words(folder / "memory.max"), _words(folder / "memory.current")
        stat = _words(folder / "memory.stat")
        files = dict(zip(stat[::2], stat[1::2], strict=True))
        if limit and used and limit != ["max"]:
            free = min(free, int(limit[0]) - int(used[0]) + int(files.get("inactive_file", 0)))
    return max(0, free)


def _groups() -> Iterator[Path]:
    """Yield the folders of this process's group and of the groups that contain it."""
    for line in OWN.read_text().splitlines() if OWN.exists() else []:
        if line.startswith("0::/"):
            # In a container the path may be the host's; then only the top exists, and is the group.
            folder = GROUPS / line.removeprefix("0::/")
            yield from (path for path in (folder, *folder.parents) if path.is_relative_to(GROUPS))


def _words(path: Path) -> list[str]:
    """Return the words of a file, none if it cannot be read."""
    try:
        return path.read_text().split()
    except OSError:
        return []
