"""MPI, and only here: the server's window, its lock, signs of life, waiting without spinning.

The parameter server is a window of memory, not a process. If all ranks share a node it is shared
memory and `fetch` and `store` cost nothing; otherwise it lies on rank 0 and they are Get and Put.
What is written there is decided in `server`.

The lock is one word of the window, taken by compare-and-swap; who does not get it soon sleeps for
some microseconds. MPI's own exclusive lock spins while it waits, which takes the core from the very
rank that is awaited. ``mpiexec -n 2 python -m sparsecore bench --parallel fashion-mnist`` measures
both.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

# MPICH reads it when it is initialised: a rank that waits inside MPI then yields its core.
os.environ.setdefault("MPIR_CVAR_CH4_PROGRESS_THROTTLE", "1")
from mpi4py import MPI

from sparsecore import engine
from sparsecore.team import cpu_count
from sparsecore.wasap.place import (
    DONE,
    LOCK,
    MESSAGE_BYTES,
    STOP,
    Layout,
    ParallelError,
    Place,
)

NAP = 2e-5  # seconds; with the kernel's timer slack about 70 microseconds
# Whoever sleeps on a busy machine wakes up late, by the slice of another process; an update takes
# half of this. Where ranks outnumber cores nobody spins: it would be the holder's core.
_SPIN = 3e-4
_LOOK = 0.2  # seconds between looks at the others while waiting
_TAG_MODEL = 1  # a worker's model and record, sent to rank 0 at the end


def world() -> Any:
    """Return the communicator of all ranks."""
    return MPI.COMM_WORLD


@contextmanager
def first_ranks(n: int) -> Iterator[Any]:
    """Give a communicator of the first `n` ranks of all, to those alone."""
    group = MPI.COMM_WORLD.Get_group().Incl(range(n))
    comm = MPI.COMM_WORLD.Create_group(group)
    group.Free()
    try:
        yield comm
    finally:
        if comm != MPI.COMM_NULL:
            comm.Free()


class Ranks:
    """The ranks of a run, on a communicator of their own.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm
        Duplicated; all its ranks take part.
    """

    def __init__(self, comm: Any = None) -> None:
        self.comm = (MPI.COMM_WORLD if comm is None else comm).Dup()
        self.rank, self.size = self.comm.rank, self.comm.size
        node = self.comm.Split_type(MPI.COMM_TYPE_SHARED)
        self.on_one_node = node.size == self.size
        self.rank_on_node, self.size_on_node = node.rank, node.size
        node.Free()
        self.host = socket.gethostname()

    def agree(self, error: BaseException | None) -> None:
        """Raise on all ranks if there is an `error` on one: the run does not start."""
        text = None if error is None else f"{type(error).__name__}: {error}"
        texts = self._gathered(text)
        if error is not None:
            raise error
        for rank, other in enumerate(texts):
            if other is not None:
                raise ParallelError(f"rank {rank} could not start: {other}")

    def in_turns(self, function: Any) -> Any:
        """Call `function` on the first rank of each node, then on the others; raise on all or none.

        What the first one compiles, the others find in the cache instead of racing for it.
        """
        result, error = None, None
        for turn in (True, False):
            if (self.rank_on_node == 0) == turn:
                try:
                    result = function()
                except Exception as caught:
                    error = caught
            self.agree(error)
        return result

    def _gathered(self, value: Any) -> list[Any]:
        self.barrier()  # the others may be late by seconds, and gathering itself spins
        return self.comm.allgather(value)

    def facts(self) -> list[tuple[str, int]]:
        """Return host and process number of every rank."""
        return self._gathered((self.host, os.getpid()))

    def share(self, value: Any) -> Any:
        """Return rank 0's value on all ranks; for small things, before the run."""
        self.barrier()
        return self.comm.bcast(value)

    def barrier(self, limit: float | None = None) -> bool:
        """Wait until all ranks are here, asleep; False if that took more than `limit` seconds."""
        request, start = self.comm.Ibarrier(), time.monotonic()
        while not request.Test():
            if limit is not None and time.monotonic() - start > limit:
                return False
            time.sleep(1e-3)
        return True

    def close(self) -> None:
        """Free the communicator."""
        self.comm.Free()


class Window(Place):
    """State of the parameter server in an MPI window.

    Parameters
    ----------
    ranks : Ranks
    layout : Layout
    shared : bool or None
        Use shared memory; None: if all ranks are on one node.
    patience : float
        Seconds without a sign of life after which a rank counts as lost.

    Attributes
    ----------
    exchange : mpi4py.MPI.Comm
        For the synchronous schedule.

    Notes
    -----
    Collective; so is `close`. Between machines an update fetches and stores parameters and
    velocity, 16 bytes a parameter, under the same lock.
    """

    def __init__(
        self, ranks: Ranks, layout: Layout, shared: bool | None = None, patience: float = 8.0
    ) -> None:
        self.layout, self.ranks, self.patience = layout, ranks, patience
        self.rank, self.workers, self.moved = ranks.rank, ranks.size, 0
        if shared and not ranks.on_one_node:
            raise ValueError("window: expected ranks on one node for shared memory, got several")
        self._shared = ranks.on_one_node if shared is None else shared
        self.kind = "shared" if self._shared else "remote"
        size = layout.nbytes if self.rank == 0 else 0
        if self._shared:
            self._win = MPI.Win.Allocate_shared(size, 1, comm=ranks.comm)
            memory = np.asarray(self._win.Shared_query(0)[0])[: layout.nbytes].view(np.uint8)
        else:
            self._win = MPI.Win.Allocate(size, 1, comm=ranks.comm)
            memory = engine.aligned(layout.nbytes, np.uint8)
        if self.rank == 0:
            np.asarray(self._win.tomemory()).view(np.uint8)[:] = 0
        self._attach(memory)
        self._word, self._result = np.zeros(1, np.int64), np.zeros(1, np.int64)
        self._facts = ranks.facts()
        self._last_beat = self._last_check = time.monotonic()
        self._seen: dict[int, tuple[int, float]] = {}
        self._beats, self._pause = 0, 0.0
        self._spin = _SPIN if ranks.size_on_node <= cpu_count() else 0.0
        # Exchanges that an error cuts short must not be taken for a later barrier.
        self.exchange = ranks.comm.Dup()
        self._win.Lock_all(MPI.MODE_NOCHECK)
        self.write("pids", os.getpid(), self.rank)
        ranks.barrier()

    # --- memory ----------------------------------------------------------------------------------

    def fetch(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return ``region[start:stop]`` as it is now."""
        part = super().fetch(name, start, stop)
        if not self._shared and part.nbytes:
            self._win.Get([part, MPI.BYTE], 0, self._target(name, start, part))
            self._win.Flush(0)
        return part

    def store(self, name: str, start: int = 0, stop: int | None = None) -> None:
        """Put back what was changed of ``region[start:stop]``."""
        super().store(name, start, stop)
        part = self._views[name][start:stop]
        if not self._shared and part.nbytes:
            self._win.Put([part, MPI.BYTE], 0, self._target(name, start, part))
            self._win.Flush(0)

    def _target(self, name: str, start: int, part: np.ndarray) -> tuple[int, int, Any]:
        region = self.layout.regions[name]
        return region.offset + start * region.dtype.itemsize, part.nbytes, MPI.BYTE

    # --- the lock --------------------------------------------------------------------------------

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the server's exclusive lock; a failure inside stops the run, for it left a half."""
        start = looked = time.monotonic()
        while holder := self._swap(LOCK, 0, self.rank + 1):
            now = time.monotonic()
            if now - start > self._spin:
                time.sleep(NAP)
            if now - looked > _LOOK:
                looked = now
                self.check()
                reason = self.lost(holder - 1)
                if reason:
                    raise ParallelError(
                        f"rank {holder - 1} holds the server's lock and {reason}; after "
                        f"{now - start:.1f} s of waiting the run ends on rank {self.rank}"
                    )
        self._win.Sync()
        try:
            yield
        except BaseException as error:
            self.stop(error)
            raise
        finally:
            self._win.Sync()
            self._swap(LOCK, self.rank + 1, 0)

    def _swap(self, word: int, expected: int, value: int) -> int:
        """Set a control word to `value` if it is `expected`; return what it was."""
        self._word[0] = value
        compare = np.array([expected], np.int64)
        offset = self.layout.regions["control"].offset + 8 * word
        self._win.Compare_and_swap(self._word, compare, self._result, 0, offset)
        self._win.Flush(0)
        return int(self._result[0])

    # --- the others ------------------------------------------------------------------------------

    def beat(self) -> None:
        """Give a sign of life, some times a second at most."""
        now = time.monotonic()
        if now - self._last_beat < _LOOK:
            return
        self._pause = max(self._pause, now - self._last_beat)
        self._last_beat = now
        self._beats += 1
        self.write("beats", self._beats, self.rank)
        self.write("pauses", self._pause, self.rank)

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Mark a call that may take long without a sign of life."""
        self.write("busy", 1, self.rank)
        try:
            yield
        finally:
            self.write("busy", 0, self.rank)
            self._last_beat = time.monotonic()

    def check(self) -> None:
        """Raise `ParallelError` if a worker has stopped the run."""
        now = time.monotonic()
        if not self._shared and now - self._last_check < _LOOK:
            return
        self._last_check = now
        stopper = int(self.fetch("control")[STOP])
        if stopper:
            raise ParallelError(f"rank {stopper - 1} ended the run: {self.message(stopper - 1)}")

    def stop(self, error: BaseException) -> None:
        """End the run for all ranks, because of this rank's `error`; the first one counts."""
        if not isinstance(error, ParallelError):
            self._leave_message(error)
        self._swap(STOP, 0, self.rank + 1)

    def leave(self, error: BaseException) -> None:
        """Leave the run to the others, because of this rank's `error`."""
        self._leave_message(error)
        self.write("gone", 1, self.rank)

    def _leave_message(self, error: BaseException) -> None:
        text = f"{type(error).__name__}: {error}".encode()[: MESSAGE_BYTES - 1] + b"\0"
        self.write("messages", np.frombuffer(text, np.uint8), self.rank * MESSAGE_BYTES)

    def message(self, rank: int) -> str:
        """Return why a rank left or ended the run."""
        raw = self.fetch("messages", rank * MESSAGE_BYTES, (rank + 1) * MESSAGE_BYTES)
        return raw.tobytes().split(b"\0")[0].decode(errors="replace")

    def left(self, rank: int) -> bool:
        """Tell whether a rank has said that it leaves the run."""
        return bool(self.fetch("gone", rank, rank + 1)[0])

    def lost(self, rank: int) -> str | None:
        """Return why a rank will not be heard of again, or None."""
        host, pid = self._facts[rank]
        if host == self.ranks.host and not _alive(pid):
            return f"its process {pid} is gone"
        beats = int(self.fetch("beats", rank, rank + 1)[0])
        busy = bool(self.fetch("busy", rank, rank + 1)[0])
        now = time.monotonic()
        known, since = self._seen.get(rank, (-1, now))
        if beats != known or busy:
            self._seen[rank] = (beats, now)
            return None
        limit = max(self.patience, 5 * float(self.fetch("pauses", rank, rank + 1)[0]))
        if now - since > limit:
            return f"gave no sign of life for {now - since:.1f} s (process {pid} on {host})"
        return None

    # --- waiting ---------------------------------------------------------------------------------

    def wait(self, request: Any) -> None:
        """Wait for a non-blocking operation in which all ranks take part.

        Raises
        ------
        ParallelError
            If a rank ends the run or is lost meanwhile.
        """
        start = looked = time.monotonic()
        while not request.Test():
            now = time.monotonic()
            if now - start > self._spin:
                time.sleep(NAP)
            if now - looked > _LOOK:
                looked = now
                self.beat()
                self.check()
                for rank in range(self.workers):
                    reason = self.lost(rank) if rank != self.rank else None
                    if reason:
                        raise ParallelError(f"rank {rank} is lost: {reason}")

    def send_result(self, parts: list[np.ndarray]) -> Any:
        """Start to send arrays to rank 0 as one message; keep what is returned until then."""
        buffer = np.concatenate([np.ascontiguousarray(p).view(np.uint8).ravel() for p in parts])
        return self.ranks.comm.Isend([buffer, MPI.BYTE], 0, _TAG_MODEL), buffer

    def receive_results(self) -> tuple[dict[int, np.ndarray], dict[int, str]]:
        """Wait for the other ranks' messages; return them, and why others will not come."""
        missing, arrived, failed = set(range(1, self.workers)), {}, {}
        looked = time.monotonic()
        while missing:
            status = MPI.Status()
            message = self.ranks.comm.Improbe(MPI.ANY_SOURCE, _TAG_MODEL, status)
            if message is not None:
                buffer = np.empty(status.Get_count(MPI.BYTE), np.uint8)
                self.wait_alone(message.Irecv([buffer, MPI.BYTE]))
                arrived[status.source] = buffer
                missing.discard(status.source)
                continue
            time.sleep(1e-3)
            if time.monotonic() - looked > _LOOK:
                looked = time.monotonic()
                self.beat()
                self.check()
                for rank in sorted(missing):
                    reason = self.message(rank) if self.left(rank) else self.lost(rank)
                    if reason:
                        failed[rank] = reason
                        missing.discard(rank)
        return arrived, failed

    def wait_alone(self, request: Any) -> None:
        """Wait for an operation whose other side has done its part."""
        while not request.Test():
            time.sleep(NAP)

    def finish(self, all_alive: bool) -> None:
        """Tell the others that the result is there (rank 0), and whether all ranks are."""
        self.write("control", 1 if all_alive else 2, DONE)

    def wait_for_finish(self, pending: tuple[Any, np.ndarray] | None) -> bool:
        """Wait, asleep, until rank 0 has the result; return whether all ranks are alive."""
        while not (done := int(self.fetch("control")[DONE])):
            time.sleep(5e-3)
            if pending is not None:
                pending[0].Test()
            self.beat()
            self.check()
            reason = self.lost(0)
            if reason:
                raise ParallelError(f"rank 0, which makes the result, is lost: {reason}")
        return done == 1

    def close(self, failed: bool = False) -> None:
        """Free the window. Collective."""
        self._win.Unlock_all()
        self._views = {}
        self._win.Free()
        if not failed:  # else a rank's exchange may still wait for one that never came
            self.exchange.Free()


def _alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return not os.path.isdir("/proc/self")
    except OSError:
        return True


def end_job(status: int) -> None:
    """End the process although ranks are lost, which would never arrive at MPI's own end."""
    MPI.COMM_WORLD.Abort(status)
