"""MPI's start and its memory; all other modules import MPI from here."""

import faulthandler
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from sparsecore.compiled.engine import aligned
from sparsecore.wasap import shm

# MPICH reads this when it starts: a rank that waits inside MPI then yields its core.
os.environ.setdefault("MPIR_CVAR_CH4_PROGRESS_THROTTLE", "1")
_START_SECONDS = 300
if "mpi4py.MPI" in sys.modules:  # the calling program has started MPI
    from mpi4py import MPI
else:
    shm.prepare()
    # MPI would wait forever for a rank that is stopped or has ended, and it holds Python's GIL.
    faulthandler.dump_traceback_later(_START_SECONDS, exit=True, file=2)
    try:
        from mpi4py import MPI  # the import starts MPI

        MPI.COMM_WORLD.Barrier()  # until all have opened the segments
    finally:
        faulthandler.cancel_dump_traceback_later()
    shm.unname()


class Memory:
    """A `window` of zeros on rank 0, and its `bytes`: shared, or this rank's copy. Collective."""

    def __init__(self, comm: Any, nbytes: int, shared: bool, private: bool = False) -> None:
        self.shared, size = shared, nbytes if comm.rank == 0 else 0
        if shared:
            self.window = MPI.Win.Allocate_shared(size, 1, comm=comm)
            self.bytes = np.asarray(self.window.Shared_query(0)[0])[:nbytes].view(np.uint8)
        else:
            self.bytes = aligned(nbytes, np.uint8)
            if private:  # otherwise MPI uses shared memory on one node
                self.window = MPI.Win.Create(aligned(size, np.uint8), 1, comm=comm)
            else:
                self.window = MPI.Win.Allocate(size, 1, comm=comm)
        if comm.rank == 0:
            np.asarray(self.window.tomemory()).view(np.uint8)[:] = 0
        self.window.Lock_all(MPI.MODE_NOCHECK)

    def move(self, call: Any, part: np.ndarray) -> None:
        """Fetch a part of the copy from rank 0 (`call` is ``window.Get``), or put it there."""
        if part.nbytes and not self.shared:
            call([part, MPI.BYTE], 0, self.where(part))
            self.window.Flush(0)

    def where(self, part: np.ndarray) -> tuple[int, int, Any]:
        """Return where a part of the copy lies in the window, for MPI."""
        return part.ctypes.data - self.bytes.ctypes.data, part.nbytes, MPI.BYTE

    def free(self) -> None:
        """Free the window. Collective."""
        self.window.Unlock_all()
        self.window.Free()


@contextmanager
def first_ranks(n: int) -> Iterator[Any]:
    """Yield a communicator of the first `n` ranks; only they may call this."""
    group = MPI.COMM_WORLD.Get_group().Incl(range(n))
    comm = MPI.COMM_WORLD.Create_group(group)
    group.Free()
    try:
        yield comm
    finally:
        comm.Free()
