"""The ranks of a run: who is lost or has failed (see `watch`), and how they wait for each other."""

import atexit
import os
import pickle
import socket
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np

from sparsecore.limits import cpu_count
from sparsecore.provenance import check_alike
from sparsecore.wasap import watch
from sparsecore.wasap.mpi import MPI, Memory
from sparsecore.wasap.watch import NotStarted, ParallelError

NAP = 2e-5  # seconds; with the kernel's timer slack about 70 microseconds
_LONG_NAP = 1e-3
# A rank that sleeps on a busy machine wakes up late, by another process's time slice; an update
# takes half of this. Where ranks outnumber cores, none spins: the awaited rank may need the core.
_SPIN = 3e-4
_GONE = 3 * watch.LOOK  # silence after which a rank's process is checked
_GRACE = 2.0  # seconds for all ranks to arrive after the run has failed
_STEPS = 5  # a step may take this many times the longest before it

# A rank's row, and the size of its message behind all rows.
_ROW = np.dtype([(name, np.int64) for name in ("beats", "state", "arrivals", "alone")])
_MESSAGE_BYTES = 1024
# States; at first 0. If a rank has left, the others continue; if one has failed, the run ends.
_LEFT, _FAILED = 1, 2

# Operations that did not end, with their buffers: MPI may still write there after the run.
_abandoned: list[Any] = []


def _named(error: BaseException) -> str:
    """Return an error's type, and its text if it has one."""
    return ": ".join(filter(None, (type(error).__name__, str(error))))


class Ranks:
    """The ranks of a run, on a duplicate of the communicator `comm` (by default all ranks)."""

    # Collective. A rank without a sign of life for `patience` seconds counts as lost. The ranks'
    # rows lie in memory that is `shared`, by default on one node, or on rank 0.
    def __init__(
        self, comm: Any = None, *, shared: bool | None = None, patience: float = watch.PATIENCE
    ) -> None:
        comm = MPI.COMM_WORLD if comm is None else comm
        self.rank, self.size, self.patience = comm.rank, comm.size, patience
        self.host, self.spin = socket.gethostname(), 0.0
        self.failed = self._late = self._unfinished = False  # failed: this rank ended the run
        self.longest_step = 0.0
        self._step_began = self._step_known = 0.0  # the latter as seen by the watch; 0: no step
        self.lost: dict[int, str] = {}  #: why a rank is lost
        self._rows = np.zeros(self.size, _ROW)
        self._known, self._silence = self._rows["beats"], np.zeros(self.size)
        self.comm, request = comm.Idup()
        self.wait(request)
        #: Host and process of every rank.
        self.facts: list[tuple[str, int]] = self.gathered((self.host, os.getpid()))
        check_alike(self.gathered({"shared window": shared}))
        node = self.comm.Split_type(MPI.COMM_TYPE_SHARED)
        self.rank_on_node, size_on_node = node.rank, node.size
        # A launcher may bind each rank to CPUs of its own: different sets are added up.
        bound = frozenset(getattr(os, "sched_getaffinity", lambda _: ())(0))
        self.cpus = sum(dict(node.allgather((bound, cpu_count()))).values())  #: of this node
        node.Free()
        if shared and size_on_node != self.size:
            told = f"{size_on_node} of {self.size} on {self.host}: use --window auto or remote"
            raise ValueError(f"window: expected all ranks on one node to share memory, got {told}")
        self.shared = size_on_node == self.size if shared is None else shared
        self.spin = _SPIN if size_on_node <= self.cpus else 0.0
        n_rows = _ROW.itemsize * self.size
        self._memory = Memory(self.comm, n_rows + _MESSAGE_BYTES * self.size, self.shared)
        self._window = self._memory.window
        self._others = np.arange(self.size) != self.rank
        self._copy, self._exchange = np.zeros_like(self._rows), list[Any]()
        self._messages = self._memory.bytes[n_rows:].view(f"S{_MESSAGE_BYTES}")
        self.barrier()
        self._rows = self._memory.bytes[:n_rows].view(_ROW)
        self._looked = time.monotonic()
        self.watch = watch.Watch(self._look, patience)

    # --- the rows --------------------------------------------------------------------------------

    def _set(self, values: np.ndarray, value: int | bytes) -> None:
        """Publish this rank's entry in a column of the rows, or its message."""
        values[self.rank] = value
        with self.watch.over("informing the other ranks"):
            self._memory.move(self._window.Put, values[self.rank : self.rank + 1])

    def _swap(self) -> None:
        """Send this rank's count to rank 0 and fetch all rows, without waiting."""
        self.comm.Iprobe(MPI.ANY_SOURCE)  # see `arrive`
        if all(request.Test() for request in self._exchange):
            self._rows[self._others] = self._copy[self._others]
            beats = self._rows["beats"][self.rank : self.rank + 1]
            self._exchange = [
                self._window.Rput([beats.copy(), MPI.BYTE], 0, self._memory.where(beats)),
                self._window.Rget([self._copy, MPI.BYTE], 0, self._memory.where(self._rows)),
            ]

    # --- who lives -------------------------------------------------------------------------------

    def step(self) -> None:
        """Begin a step of the computation; it ends with the next one, or with `rest`."""
        watch.let_interrupt_through()
        self.rest()
        self._step_began = time.monotonic()

    def rest(self) -> None:
        """End a step."""
        if self._step_began:
            # No longer than a step may take: the whole job may have been suspended meanwhile.
            most = max(_STEPS * self.longest_step, self.patience)
            taken = min(time.monotonic() - self._step_began, most)
            self.longest_step = max(self.longest_step, taken)
            self._step_began = 0.0

    def absent(self, rank: int) -> str | None:
        """Return why a rank will have no result, or None."""
        return self.message(rank) if self._rows["state"][rank] == _LEFT else self.lost.get(rank)

    def _first_lost(self) -> str | None:
        return next((f"rank {rank} {why}" for rank, why in self.lost.items()), None)

    def _look(self) -> str | None:
        """Give a sign of life and look for the others'; return who is in trouble (the watch)."""
        now, began = time.monotonic(), self._step_began
        # This thread still runs if the computation hangs. It then stops giving signs of life, early
        # enough that the others' patience ends when the step has taken five times the longest.
        allowed = _STEPS * self.longest_step - self.patience
        if not began or began != self._step_known or now - began < allowed:
            self._rows["beats"][self.rank] += 1
        self._step_known = began
        if not self.shared:
            self._swap()
        # A rank that was suspended itself has not listened all the time.
        passed, self._looked = min(now - self._looked, _GONE), now
        beats = self._rows["beats"].copy()
        silent = (beats == self._known) & self._others
        self._known, self._silence = beats, np.where(silent, self._silence + passed, 0.0)
        self.lost = {r: why for r in range(self.size) if (why := self._why_lost(r))}
        if self.rank and 0 in self.lost and self._silence[0] > self.patience + _GRACE:
            self.watch.end_process(self._without_rank_0())  # the main thread is busy
        alone = np.flatnonzero(self._rows["alone"])
        return f"rank {alone[0]} has stopped waiting" if len(alone) else self._first_lost()

    def _why_lost(self, rank: int) -> str | None:
        """Return why a rank is lost, judged by its silence; None if it is not."""
        silence, (host, pid) = self._silence[rank], self.facts[rank]
        if silence <= _GONE:
            return None
        what = watch.trouble(pid) if host == self.host else None
        where = f"process {pid} on {host}"
        if what == "gone":
            return f"has ended ({where})"
        if silence <= self.patience:
            return None
        where += " is stopped" if what else ""
        return f"gave no sign of life for {silence:.1f} s ({where})"

    # --- who has failed --------------------------------------------------------------------------

    def check(self) -> None:
        """Raise `ParallelError` if a rank has ended the run, or rank 0 is lost."""
        watch.let_interrupt_through()
        if told := self.ended():
            raise ParallelError(told)
        if self.rank and 0 in self.lost:
            raise ParallelError(self._without_rank_0())

    def ended(self) -> str | None:
        """Return which rank has ended the run, and why; None if none has."""
        failed = np.flatnonzero(self._rows["state"] == _FAILED)
        return self.message(failed[0]) if len(failed) else None

    def _without_rank_0(self) -> str:
        return f"rank 0, which computes the result, {self.lost[0]}"

    def stop(self, error: BaseException) -> None:
        """End the run for all ranks, because of this rank's `error`."""
        self.failed = True
        text = f"rank {self.rank} ended the run: {_named(error)}"
        if isinstance(error, KeyboardInterrupt):
            text = f"rank {self.rank} was {str(error) or 'interrupted'}"
        self._say(str(error) if isinstance(error, ParallelError) else text, _FAILED)

    def leave(self, error: BaseException) -> None:
        """Leave the run to the others, because of this rank's `error`."""
        self._say(_named(error), _LEFT)

    def _say(self, text: str, state: int) -> None:
        self.rest()
        self._set(self._messages, text.encode())  # cut off if it is too long
        self._set(self._rows["state"], state)

    def message(self, rank: int) -> str:
        """Return why a rank left or ended the run."""
        with self.watch.over("reading the cause"):
            self._memory.move(self._window.Get, self._messages[rank : rank + 1])
        return self._messages[rank].decode(errors="replace")

    # --- waiting ---------------------------------------------------------------------------------

    def transfer(self, start: Callable[..., Any], *buffers: Any) -> None:
        """Wait until all ranks are here, call `start`, and wait for the operation it returns."""
        self.barrier()
        # MPI moves some KiB whenever a rank polls: ranks that slept between polls took 0.2 seconds
        # for the gradients of 1.6 million parameters.
        self.wait(start(*buffers), asleep=False)

    def wait(self, request: Any, *, asleep: bool = True) -> None:
        """Wait for an operation of all ranks; raise if one ends the run or is lost meanwhile."""
        start = looked = time.monotonic()
        while not request.Test():
            now = time.monotonic()
            if not asleep:
                os.sched_yield()
            elif now - start > self.spin:
                time.sleep(NAP if now - start < 100 * NAP + self.spin else _LONG_NAP)
            if now - looked > watch.LOOK:
                looked = now
                try:
                    self.check()
                    if lost := self._first_lost():
                        raise ParallelError(lost)
                except BaseException:
                    self.abandon(request)
                    raise

    def abandon(self, operation: Any) -> None:
        """Keep an operation that did not end, with its buffers."""
        self._unfinished = True
        _abandoned.append(operation)

    def barrier(self) -> None:
        """Wait until all ranks are here."""
        self.wait(self.comm.Ibarrier())

    def gathered(self, value: Any) -> list[Any]:
        """Return all ranks' values, of any kind."""
        raw = np.frombuffer(pickle.dumps(value), np.uint8)
        sizes = np.zeros(self.size, np.int64)
        self.wait(self.comm.Iallgather(np.array([len(raw)]), sizes))
        starts = np.concatenate([[0], np.cumsum(sizes)])
        every = np.empty(starts[-1], np.uint8)
        self.transfer(self.comm.Iallgatherv, raw, [every, sizes, starts[:-1], MPI.BYTE])
        return [pickle.loads(every[a:b].tobytes()) for a, b in pairwise(starts)]

    def together(self, function: Callable[[], Any]) -> Any:
        """Call a function on all ranks; raise on all if one raises: the run does not start."""
        result = error = None
        try:
            try:
                result = function()
            except Exception as caught:
                error = caught
            texts = self.gathered(error and _named(error))
        except BaseException as ended:  # the others would wait for this rank
            self.stop(ended)
            raise
        if error is not None:
            raise error
        for rank, other in enumerate(texts):
            if other is not None:
                raise NotStarted(f"rank {rank} could not start: {other}")
        return result

    def in_turns(self, function: Callable[[], None]) -> None:
        """Call a function as `together` does, on each node's first rank, then on the others."""
        # What the first one compiles, the others find in the cache instead of racing for it.
        for turn in (True, False):
            self.together(function if (self.rank_on_node == 0) == turn else lambda: None)

    # --- the end ---------------------------------------------------------------------------------

    def arrive(self) -> bool:
        """Wait until all ranks have arrived here; return False if they cannot act together."""
        if self._late:
            return False
        start, own = time.monotonic(), self._rows["arrivals"][self.rank] + 1
        self._set(self._rows["arrivals"], own)
        while len(missing := np.flatnonzero(self._rows["arrivals"] < own)):
            failed = _FAILED in self._rows["state"]
            self._late = failed and time.monotonic() - start > _GRACE
            if self._late or all(rank in self.lost for rank in missing):
                self._set(self._rows["alone"], 1)
                return False
            if not self.shared:  # over TCP, MPI serves this memory only when called
                self.comm.Iprobe(MPI.ANY_SOURCE)
            time.sleep(_LONG_NAP)
        return not self._rows["alone"].any()

    def close(self) -> None:
        """Free MPI's resources, if all ranks arrive here."""
        together = self.arrive()
        self.watch.close()
        if not together:  # MPI would wait for the others when this process ends
            atexit.register(lambda: MPI.Is_finalized() or MPI.COMM_WORLD.Abort(1))
        else:
            MPI.Request.Waitall(self._exchange)
            self._memory.free()
            if not self._unfinished:
                self.comm.Free()
