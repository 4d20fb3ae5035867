"""Files that are whole or absent, even if a process dies half-way; locks between processes."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Open a temporary file beside `path` that replaces it if the block ends without an error."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)  # mkstemp's files are private
        os.replace(name, target)
    except BaseException:
        os.unlink(name)
        raise


def write_json(path: str | os.PathLike[str], values: dict[str, Any]) -> None:
    """Write `values` as JSON, one entry a line, atomically; NaN and infinity are refused."""
    lines = (
        f"{json.dumps(name)}: {json.dumps(value, separators=(',', ':'), allow_nan=False)}"
        for name, value in values.items()
    )
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    with atomic_write(path) as file:
        file.write(text.encode())


@contextmanager
def lock(path: Path, wait: bool = True) -> Iterator[bool]:
    """Create a lock file and hold its lock; wait for a process that has it, or raise.

    A BlockingIOError says without `wait` that another process has it.

    Yields False, so that work may be done twice, where the file cannot be written or the system or
    its network file system has no locks.
    """
    with ExitStack() as stack:
        try:
            import fcntl

            path.parent.mkdir(parents=True, exist_ok=True)
            handle = stack.enter_context(path.open("a"))
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            locked = True
        except BlockingIOError:
            raise
        except (ImportError, OSError):
            locked = False
        yield locked  # closing the file, or the death of the process, frees the lock
