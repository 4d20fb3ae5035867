"""MPICH's segments of shared memory: check for room, and leave none after a killed job."""

import os
import re
import shutil
from contextlib import suppress
from pathlib import Path

from sparsecore.wasap.watch import ParallelError

_FOLDER = Path("/dev/shm")
# Those of MPICH, and of UCX, on which it is built; the latter have a name only briefly.
_NAME = re.compile(r"mpich_(?:shm|vci)_[0-9a-f]+_\d+|mpich_shar_tmp\w{6}|ucx_shm_posix_[0-9a-f]+")

# Measured with MPICH 5.0.2: bytes per rank of a node, and what UCX also needs while it starts.
_PER_RANK, _UCX_PER_RANK, _UCX = 1_200_000, 5_500_000, 12_000_000


def room() -> int:
    """Return how many bytes of shared memory are free; a huge number if unknown."""
    try:
        return shutil.disk_usage(_FOLDER).free
    except OSError:
        return 2**62


def prepare() -> None:
    """Make sure that MPI can start here: without room it crashes."""
    ranks, free = int(os.environ.get("MPI_LOCALNRANKS", 1)), room()
    if free < _UCX_PER_RANK * ranks + _UCX:
        os.environ.setdefault("UCX_TLS", "^posix")  # then UCX takes none
    check(f"MPI with {ranks} rank(s) here", _PER_RANK * (ranks + 1), free)


def check(who: str, needed: int, free: int, otherwise: str = "") -> None:
    """Raise ParallelError unless `needed` bytes are free."""
    if free < needed:
        raise ParallelError(
            f"{who} needs {needed / 2**20:.1f} MiB of shared memory, and {_FOLDER} has "
            f"{free / 2**20:.1f} MiB free: make it larger (in a container: docker run "
            f"--shm-size=1g), or delete files left there{otherwise}"
        )


def unname() -> None:
    """Remove the names of this process's segments: the last process then frees the memory."""
    with suppress(OSError):  # not every system has /proc
        maps = Path("/proc/self/maps").read_text(errors="replace")
        for name in set(_NAME.findall(maps)):
            (_FOLDER / name).unlink(missing_ok=True)
