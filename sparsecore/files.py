"""Files that are whole or absent, even if a process dies half-way; locks between processes."""

import errno
import fcntl
import glob
import os
import shutil
import stat
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

_STEM = 30  # letters of a file's name at the start of its temporary file's: longer names could fail


def check_writable(path: str | os.PathLike[str], n_bytes: int = 0) -> Path:
    """Return the file that `path` leads to; raise OSError if so much cannot be written there."""

    def check(good: bool, error: int, expected: str) -> None:
        if not good:
            raise OSError(error, f"expected {expected}", str(path))

    check(bool(os.fspath(path)), errno.ENOENT, "a file's name, got none")  # a variable not set
    target = Path(os.path.realpath(path))
    folder = next(parent for parent in (*target.parents, target) if os.path.lexists(parent))
    writable = folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)
    check(writable, errno.EACCES, f"a folder that can be written, got {folder}")
    enough = not n_bytes or shutil.disk_usage(folder).free >= n_bytes
    check(enough, errno.ENOSPC, f"a disk with {n_bytes:,} bytes free")
    with suppress(FileNotFoundError):
        mode = os.stat(path).st_mode  # not the target's: /dev/stdout may lead to no name
        what = "a folder" if stat.S_ISDIR(mode) else "a pipe, socket or device"
        check(stat.S_ISREG(mode), errno.EINVAL, f"a regular file, got {what}")
        writable = bool(mode & 0o222) and os.access(target, os.W_OK)  # root may write any file
        check(writable, errno.EACCES, "a file that is not read-only")
    return target


@contextmanager
def atomic_write(path: str | os.PathLike[str], keep: bool = False) -> Iterator[IO[bytes]]:
    """Open a temporary file that replaces `path` if the block ends without an error."""
    # Links are followed, and the file's mode is kept. With `keep` an existing file is kept as
    # `previous`. Temporary files of writers that were killed are removed.
    target = check_writable(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    stem = name = target.name
    if len(name) > _STEM:  # names that begin alike, as the workers', have different stems
        stem = f"{name[:_STEM]}{zlib.crc32(os.fsencode(name)):08x}"
    for left in target.parent.glob(f".{glob.escape(stem)}.{'[0-9a-f]' * 16}.tmp"):
        with suppress(OSError), left.open("r+b") as dead:  # a living writer holds its lock
            fcntl.flock(dead, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink()
    before = target.stat() if target.exists() else None
    mode = before.st_mode & 0o777 if before else 0o666
    made = [target.with_name(f".{stem}.{os.urandom(8).hex()}.tmp") for _ in range(2)]
    try:
        with _create(made[0], mode) as file:
            yield file
            file.flush()
            if before:
                os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
            if before and keep:
                with suppress(OSError):  # a file system without links keeps one file
                    os.link(target, made[1])
            os.replace(made[0], target)
            with suppress(OSError):  # last: at any moment two files are whole, or one and a link
                os.replace(made[1], previous(target))
    except OSError as error:
        if error.errno is not None and error.filename is None:  # "No space left on device"
            error.filename = str(path)
        raise
    finally:
        for left in made:
            left.unlink(missing_ok=True)


def previous(path: str | os.PathLike[str]) -> Path:
    """Return the path at which `atomic_write` keeps the file that it replaced."""
    target = Path(os.path.realpath(path))
    return target.with_name(f"{target.name}.previous")


def _create(path: Path, mode: int) -> IO[bytes]:
    """Create a file and hold its lock, which shows other writers that this one is alive."""
    while True:
        file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb")
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()  # another writer was faster, and took this file for a dead writer's


def named_folder(variable: str) -> Path | None:
    """Return the folder that an environment variable names; None if it is not set."""
    if not (own := os.environ.get(variable)):
        return None
    if not (folder := Path(own).expanduser()).is_absolute():
        told = "expected an absolute path, because each notebook runs in its own folder"
        raise ValueError(f"${variable}: {told}, got {own!r}")
    return folder


@contextmanager
def lock(path: Path, wait: bool = True) -> Iterator[bool]:
    """Hold a file's lock; if another process holds it, wait or raise BlockingIOError."""
    # Where the file system cannot be written or locked it yields False: work may be done twice.
    with ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = stack.enter_context(path.open("a"))
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            locked = True
        except BlockingIOError:
            raise
        except OSError:
            locked = False
        yield locked  # closing the file, or the death of the process, frees the lock
