"""Timing the server's lock and the messages of MPI; all ranks call these functions together."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from sparsecore.bench import timed
from sparsecore.wasap.mpi import MPI, first_ranks
from sparsecore.wasap.ranks import Ranks
from sparsecore.wasap.window import Window


def locks(updates: int = 300, compute_seconds: float = 0.002) -> dict[str, Any] | None:
    """Time the server's lock and MPI's own around the same work; only rank 0 gets the times."""
    ranks = Ranks()
    window = Window(ranks, (1, 130_000), 0, ranks.size, 0, 0)
    plain = MPI.Win.Allocate(64 if ranks.rank == 0 else 0, 1, comm=ranks.comm)
    params = window.fetch("params")

    @contextmanager
    def mpi_lock() -> Iterator[None]:
        plain.Lock(0, MPI.LOCK_EXCLUSIVE)
        yield
        plain.Unlock(0)

    found = {}
    for name, lock in (("compare-and-swap, napping", window.locked), ("MPI_Win_lock", mpi_lock)):
        ranks.barrier()
        start, waits = time.perf_counter(), []
        for _ in range(updates):
            end = time.perf_counter() + compute_seconds
            while time.perf_counter() < end:
                pass
            asked = time.perf_counter()
            with lock():
                waits.append(1e6 * (time.perf_counter() - asked))
                params[:] += 1
        ranks.barrier()
        found[name] = {
            "updates_per_second": updates * ranks.size / (time.perf_counter() - start),
            "wait_us": {"median": float(np.median(waits)), "p90": float(np.percentile(waits, 90))},
        }
    plain.Free()
    window.free()
    ranks.close()
    return None if ranks.rank else found


def messages(n_bytes: int, repeats: int = 200) -> dict[str, float]:
    """Time small messages and large ones, of `n_bytes`, that the first two ranks swap; medians."""
    medians = []
    with first_ranks(2) as comm:
        for size in (8, n_bytes):
            out, into, times = np.zeros(size, np.uint8), np.empty(size, np.uint8), []
            swap = partial(comm.Sendrecv, out, 1 - comm.rank, recvbuf=into)
            for _ in range(repeats):
                comm.Barrier()
                times += [*timed(swap)]
            medians.append(float(np.median(times)))
    small, large = medians
    return {"seconds": small, "bytes_per_second": n_bytes / max(large - small, 1e-9)}
