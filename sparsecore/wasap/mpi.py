"""MPI's start and end; everything that needs MPI has it from here.

Ranks wait for each other in both, inside the library. mpi4py keeps Python's other threads from
running meanwhile; called directly, the library does not, so that a watch can name who hangs.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import mpi4py
import numpy as np

from sparsecore.compiled.engine import aligned
from sparsecore.wasap import shm
from sparsecore.wasap.watch import watched

# MPICH reads it when it is initialised: a rank that waits inside MPI then yields its core.
os.environ.setdefault("MPIR_CVAR_CH4_PROGRESS_THROTTLE", "1")
mpi4py.rc.initialize, mpi4py.rc.finalize = False, True
from mpi4py import MPI  # noqa: E402 (these settings come first)

_library = ctypes.CDLL(MPI.__file__)

if not MPI.Is_initialized():
    shm.prepare()
    with watched("MPI's start"):
        _library.MPI_Init_thread(None, None, MPI.THREAD_MULTIPLE, ctypes.byref(ctypes.c_int()))
        MPI.COMM_WORLD.Barrier()
        shm.unname()
    for _comm in (MPI.COMM_WORLD, MPI.COMM_SELF):
        _comm.Set_errhandler(MPI.ERRORS_RETURN)  # mpi4py makes exceptions of them


def finalize(look: Callable[[], str | None]) -> None:
    """End MPI, together with all other ranks; `look` returns which of them is in trouble."""
    with watched("MPI's end", look):
        _library.MPI_Finalize()


def window(comm: Any, nbytes: int, shared: bool, private: bool = False) -> tuple[Any, np.ndarray]:
    """Open a window of zeros on rank 0; return it, and its memory or this rank's copy of it.

    On one node MPI takes shared memory for a window, unless it is to be `private`.
    """
    size = nbytes if comm.rank == 0 else 0
    if shared:
        opened = MPI.Win.Allocate_shared(size, 1, comm=comm)
        memory = np.asarray(opened.Shared_query(0)[0])[:nbytes].view(np.uint8)
    elif private:
        own, memory = aligned(size, np.uint8), aligned(nbytes, np.uint8)
        opened = MPI.Win.Create(own, 1, comm=comm)
    else:
        opened, memory = MPI.Win.Allocate(size, 1, comm=comm), aligned(nbytes, np.uint8)
    if comm.rank == 0:
        np.asarray(opened.tomemory()).view(np.uint8)[:] = 0
    opened.Lock_all(MPI.MODE_NOCHECK)
    return opened, memory


@contextmanager
def first_ranks(n: int) -> Iterator[Any]:
    """Give a communicator of the first `n` ranks of all, to those alone."""
    group = MPI.COMM_WORLD.Get_group().Incl(range(n))
    with watched("setting up the workers' communicator"):
        comm = MPI.COMM_WORLD.Create_group(group)
    group.Free()
    try:
        yield comm
    finally:
        if comm != MPI.COMM_NULL:
            comm.Free()
