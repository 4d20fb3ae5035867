"""The server's window of memory, its lock, and the workers' models on their way to rank 0.

The parameter server is a window of memory, not a process. If all ranks share a node it is shared
memory, and `fetch` and `store` cost nothing; otherwise it lies on rank 0, and they are Get and Put.

The lock is one word of the window, taken by compare-and-swap; a rank that does not get it soon
sleeps for some microseconds. MPI's own exclusive lock spins while it waits, which takes the core
from the very rank that holds it. ``mpiexec -n 2 python -m sparsecore bench --parallel
fashion-mnist`` measures both.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from sparsecore.wasap import shm
from sparsecore.wasap.mpi import MPI, window
from sparsecore.wasap.place import DONE, LOCK, Layout, ParallelError, Place
from sparsecore.wasap.ranks import NAP, Ranks
from sparsecore.wasap.watch import LOOK

_SPARE = 2**20  # bytes of shared memory that MPI may want besides a window
_TAG_MODEL = 1  # a worker's model and record, sent to rank 0 at the end


class Window(Place):
    """State of the parameter server in an MPI window; to make and to free it is collective.

    Between machines an update fetches and stores parameters and velocity, 16 bytes a parameter,
    under the lock.
    """

    def __init__(self, ranks: Ranks, layout: Layout) -> None:
        self.layout, self.ranks = layout, ranks
        self.rank, self.workers, self.moved = ranks.rank, ranks.size, 0
        self.kind = "shared" if ranks.shared else "remote"
        free = ranks.gathered(shm.room())[0]  # a wait for a late rank can be abandoned here
        scarce = free < layout.nbytes + _SPARE
        if scarce and ranks.shared:
            what = shm.too_small("the parameter server's state", layout.nbytes + _SPARE, free)
            raise ParallelError(f"{what}, or use --window remote (shared=False)")
        with ranks.watch.over("opening the server's window"):
            self._win, memory = window(ranks.comm, layout.nbytes, ranks.shared, scarce)
        self._attach(memory)
        self._word, self._result = np.zeros(1, np.int64), np.zeros(1, np.int64)
        ranks.barrier()

    # --- memory ----------------------------------------------------------------------------------

    def fetch(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return ``region[start:stop]`` as it is now."""
        part = super().fetch(name, start, stop)
        if not self.ranks.shared:
            self._move(self._win.Get, "reading", name, start, part)
        return part

    def store(self, name: str, start: int = 0, stop: int | None = None) -> None:
        """Put back what was changed of ``region[start:stop]``."""
        super().store(name, start, stop)
        if not self.ranks.shared:
            self._move(self._win.Put, "writing", name, start, self._views[name][start:stop])

    def _move(self, call: Any, doing: str, name: str, start: int, part: np.ndarray) -> None:
        if part.nbytes:
            offset = self.layout.regions[name].offset + start * part.itemsize
            with self.ranks.watch.over(f"{doing} the server's state"):
                call([part, MPI.BYTE], 0, (offset, part.nbytes, MPI.BYTE))
                self._win.Flush(0)

    def check(self) -> None:
        """Raise `ParallelError` if a rank has ended the run."""
        self.ranks.check()

    # --- the lock --------------------------------------------------------------------------------

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the server's exclusive lock.

        A failure inside ends the run and keeps the lock: the state may be half written.
        """
        start = looked = time.monotonic()
        while holder := self._swap(LOCK, 0, self.rank + 1):
            now = time.monotonic()
            if now - start > self.ranks.spin:
                time.sleep(NAP)
            if now - looked > LOOK:
                looked = now
                self.check()
                why = self.ranks.lost(holder - 1)
                if why:
                    raise ParallelError(f"rank {holder - 1}, which holds the server's lock, {why}")
        self._win.Sync()
        try:
            yield
        except BaseException as error:
            self.ranks.stop(error)
            raise
        self._win.Sync()
        self._swap(LOCK, self.rank + 1, 0)

    def _swap(self, word: int, expected: int, value: int) -> int:
        """Set a control word to `value` if it is `expected`; return what it was."""
        self._word[0] = value
        compare = np.array([expected], np.int64)
        offset = self.layout.regions["control"].offset + 8 * word
        with self.ranks.watch.over("taking the server's lock"):
            self._win.Compare_and_swap(self._word, compare, self._result, 0, offset)
            self._win.Flush(0)
        return int(self._result[0])

    def advance(self, word: int, value: int) -> None:
        """Raise a control word to `value`, unless it is there or further already."""
        while (now := int(self.fetch("control")[word])) < value:
            if self._swap(word, now, value) == now:
                return

    # --- the end ---------------------------------------------------------------------------------

    def send_result(self, value: Any) -> Any:
        """Start to send a value to rank 0; keep what is returned until it is sent."""
        buffer = pickle.dumps(value)
        return self.ranks.comm.Isend([buffer, MPI.BYTE], 0, _TAG_MODEL), buffer

    def receive_results(self) -> tuple[dict[int, Any], dict[int, str]]:
        """Return the other ranks' values, and why the ranks that send none are lost."""
        missing = set(range(1, self.workers))
        coming: dict[int, tuple[Any, np.ndarray]] = {}
        arrived: dict[int, Any] = {}
        failed: dict[int, str] = {}
        status = MPI.Status()
        try:
            while missing:
                message = self.ranks.comm.Improbe(MPI.ANY_SOURCE, _TAG_MODEL, status)
                if message is not None:
                    buffer = np.empty(status.Get_count(MPI.BYTE), np.uint8)
                    coming[status.source] = message.Irecv([buffer, MPI.BYTE]), buffer
                for rank in sorted(missing):
                    left = self.ranks.left(rank)
                    if rank in coming and coming[rank][0].Test():
                        arrived[rank] = pickle.loads(coming.pop(rank)[1].data)
                    elif why := self.ranks.message(rank) if left else self.ranks.lost(rank):
                        failed[rank] = why
                missing -= arrived.keys() | failed.keys()
                time.sleep(1e-3)
                self.check()
        finally:
            for operation in coming.values():
                self.ranks.abandon(operation)
        return arrived, failed

    def finish(self) -> None:
        """Tell the others that the result is there (rank 0)."""
        self.write("control", 1, DONE)

    def wait_for_finish(self, pending: tuple[Any, np.ndarray] | None) -> None:
        """Wait, asleep, until rank 0 has the result."""
        while not self.fetch("control")[DONE]:
            time.sleep(5e-3)
            if pending is not None:
                pending[0].Test()
            self.check()

    def free(self) -> None:
        """Free the window. Collective."""
        self._views = {}
        with self.ranks.watch.over("freeing the server's window"):
            self._win.Unlock_all()
            self._win.Free()
