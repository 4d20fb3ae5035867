"""The server's window of memory, its lock, and the workers' models on their way to rank 0.

The parameter server is a window of memory, not a process. If all ranks share a node it is shared
memory, and `fetch` and `store` cost nothing; otherwise it lies on rank 0, and they are Get and Put.

The lock is one word of the window, taken by compare-and-swap; a rank that does not get it soon
sleeps for some microseconds. MPI's own exclusive lock spins while it waits, which takes the core
from the very rank that holds it.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from sparsecore.wasap import shm
from sparsecore.wasap.mpi import MPI, Memory
from sparsecore.wasap.ranks import NAP, Ranks
from sparsecore.wasap.server import DONE, LOCK, Place
from sparsecore.wasap.watch import LOOK, ParallelError

_SPARE = 2**20  # bytes of shared memory that MPI may want besides a window
_SERVED_EVERY = 1e-3  # seconds; ten times as often costs a tenth of a core
_TAG_MODEL = 1  # a worker's model and report, sent to rank 0 at the end


class Window(Place):
    """State of the parameter server in an MPI window; making and freeing it is collective."""

    def __init__(self, ranks: Ranks, *layout: Any) -> None:
        self.ranks, self.moved = ranks, 0
        self._word, self._result = np.zeros(1, np.int64), np.zeros(1, np.int64)
        super().__init__(*layout)

    def _allocate(self, n_bytes: int) -> np.ndarray:
        ranks, needed = self.ranks, n_bytes + _SPARE
        free = ranks.gathered(shm.room())[0]  # here a wait for a late rank can still be abandoned
        if ranks.shared:
            otherwise = ", or use --window remote (shared=False)"
            shm.check("the parameter server's state", needed, free, otherwise)
        with ranks.watch.over("opening the server's window"):
            self._memory = Memory(ranks.comm, n_bytes, ranks.shared, free < needed)
        self._window = self._memory.window
        return self._memory.bytes

    def fetch(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return ``region[start:stop]``; between machines it is moved, mostly under the lock."""
        return self._move("reading", self._window.Get, self._views[name][start:stop])

    def store(self, name: str, start: int = 0, stop: int | None = None) -> None:
        """Write back the changes to ``region[start:stop]``."""
        self._move("writing", self._window.Put, self._views[name][start:stop])

    def _move(self, doing: str, call: Any, part: np.ndarray) -> np.ndarray:
        self.moved += part.nbytes  # in shared memory, too
        if not self.ranks.shared:
            with self.ranks.watch.over(f"{doing} the server's state"):
                self._memory.move(call, part)
        return part

    @contextmanager
    def served(self) -> Iterator[None]:
        """Let MPI serve rank 0's memory to the others: over TCP it does so only when called."""
        ended = threading.Event()

        def serve() -> None:
            holder = np.asarray(self._window.tomemory()).view(np.int64)[LOCK:]
            while not ended.is_set():
                self.ranks.comm.Iprobe(MPI.ANY_SOURCE)
                time.sleep(_SERVED_EVERY / (10 if holder[0] > 1 else 1))  # the holder waits for it

        thread = threading.Thread(target=serve, name="server", daemon=True)
        hosts = {host for host, _ in self.ranks.facts}
        safe = MPI.Query_thread() == MPI.THREAD_MULTIPLE
        if self.ranks.rank == 0 and len(hosts) > 1 and safe:
            thread.start()
        try:
            yield
        finally:
            ended.set()
            if thread.ident:
                thread.join()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the server's exclusive lock; a failure inside ends the run and keeps the lock."""
        start = looked = time.monotonic()
        while holder := self._swap(0, self.ranks.rank + 1):
            now = time.monotonic()
            if now - start > self.ranks.spin:
                time.sleep(NAP)
            if now - looked > LOOK:
                looked = now
                self.ranks.check()
                if why := self.ranks.lost.get(holder - 1):
                    raise ParallelError(f"rank {holder - 1}, which holds the server's lock, {why}")
        self._window.Sync()
        try:
            self.ranks.check()
            yield
        except BaseException as error:
            self.ranks.stop(error)  # the state may be half written
            raise
        self._window.Sync()
        self._swap(self.ranks.rank + 1, 0)

    def _swap(self, expected: int, value: int) -> int:
        """Set the lock's word to `value` if it is `expected`; return what it was."""
        self._word[0] = value
        compare = np.array([expected], np.int64)
        with self.ranks.watch.over("taking the server's lock"):
            self._window.Compare_and_swap(self._word, compare, self._result, 0, 8 * LOCK)
            self._window.Flush(0)
        return int(self._result[0])

    def receive_results(self) -> tuple[dict[int, Any], dict[int, str]]:
        """Return the other ranks' values, and why ranks without a value are lost."""
        others, coming = range(1, self.ranks.size), dict[int, Any]()
        arrived, failed = dict[int, Any](), dict[int, str]()
        try:
            while missing := [r for r in others if r not in arrived and r not in failed]:
                for rank in missing:
                    if rank not in coming:
                        if message := self.ranks.comm.improbe(rank, _TAG_MODEL):
                            coming[rank] = message.irecv()
                    done, value = coming[rank].test() if rank in coming else (False, None)
                    if done:
                        arrived[rank] = value
                        del coming[rank]
                    elif why := self.ranks.absent(rank):
                        failed[rank] = why
                time.sleep(1e-3)
                self.ranks.check()
        finally:
            for operation in coming.values():
                self.ranks.abandon(operation)
        return arrived, failed

    def send_result(self, value: Any) -> None:
        """Send a value, if there is one, to rank 0; sleep until rank 0 has the result."""
        pending = None if value is None else self.ranks.comm.isend(value, 0, _TAG_MODEL)
        try:
            while not self.fetch("control")[DONE]:
                time.sleep(5e-3)
                if pending is not None:
                    pending.Test()
                self.ranks.check()
        finally:
            if pending is not None and not pending.Test():
                self.ranks.abandon(pending)

    def free(self) -> None:
        """Free the window. Collective."""
        self._views = {}
        with self.ranks.watch.over("freeing the server's window"):
            self._memory.free()
