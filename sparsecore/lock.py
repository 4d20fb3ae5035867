"""A lock between processes, where the system has one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def lock(path: Path) -> Iterator[bool]:
    """Hold the lock of that file, which is made; wait for a process that has it.

    Yields
    ------
    bool
        False where there is none, and work may double: the file cannot be written, or the system
        or its network file system has no locks.
    """
    with contextlib.ExitStack() as stack:
        try:
            import fcntl

            path.parent.mkdir(parents=True, exist_ok=True)
            handle = stack.enter_context(path.open("a"))
            fcntl.flock(handle, fcntl.LOCK_EX)
            locked = True
        except (ImportError, OSError):
            locked = False
        yield locked  # closing the file, or the death of the process, frees the lock
