"""The place where the parameter server's state lies: named regions and a lock.

A `Place` is memory laid out by a `Layout`. Here it is plain memory of one process, which is what a
replay works in; `window` has the same in an MPI window. `server` decides what is done to the state.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from sparsecore.compiled import engine

# Words of the region "control".
LOCK, DONE, TESTED = 0, 1, 2

# Words of the region "state".
TICKET, VERSION, NNZ = 0, 1, 2


class ParallelError(RuntimeError):
    """A parallel run that cannot go on; the message names the rank and the cause."""


@dataclass(frozen=True)
class Region:
    """Where an array lies in a place."""

    offset: int
    dtype: np.dtype
    size: int


class Layout:
    """Names, types and offsets of the arrays of a place.

    `nnz` is the largest number of connections: pruning makes it smaller, nothing larger; `updates`
    and `epochs` are phase 1's, and `epoch_fields` numbers are recorded for an epoch. 12 bytes a
    connection (weight, velocity, index), 16 a neuron, 10 an update.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        nnz: int,
        workers: int,
        updates: int,
        epochs: int,
        epoch_fields: int,
    ) -> None:
        self.sizes = tuple(sizes)  # neurons per layer
        n_params = nnz + sum(sizes[1:])
        arrays: list[tuple[str, type, int]] = [
            ("control", np.int64, 8),
            ("state", np.int64, 8),
            ("aside", np.float64, workers),  # seconds spent on tests and checkpoints
            ("weight_start", np.int64, len(sizes)),
            ("indptr", np.int64, sum(sizes[1:]) + len(sizes) - 1),
            ("indices", np.int32, nnz),
            ("params", np.float32, n_params),
            ("velocity", np.float32, n_params),
            ("worker", np.int16, updates),
            ("staleness", np.int32, updates),
            ("accepted", np.float32, updates),
            ("epochs", np.float64, epochs * epoch_fields),
        ]
        self.regions: dict[str, Region] = {}
        offset = 0
        for name, kind, size in arrays:
            dtype = np.dtype(kind)
            self.regions[name] = Region(offset, dtype, size)
            offset += -(-size * dtype.itemsize // 64) * 64
        self.nbytes = offset

    def view(self, memory: np.ndarray, name: str) -> np.ndarray:
        """Return a region as an array that shares `memory` (uint8)."""
        region = self.regions[name]
        stop = region.offset + region.size * region.dtype.itemsize
        return memory[region.offset : stop].view(region.dtype)


class Place:
    """State of the parameter server in this process's own memory.

    `fetch` gives a part of a region to read and change, `store` puts it back; where the memory is
    the server's own, both cost nothing. `moved` counts the bytes fetched and stored, wherever the
    memory lies.
    """

    kind = "local"
    rank = 0
    workers = 1

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.moved = 0
        self._attach(engine.aligned(layout.nbytes, np.uint8))

    def _attach(self, memory: np.ndarray) -> None:
        self._views = {name: self.layout.view(memory, name) for name in self.layout.regions}

    def fetch(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return ``region[start:stop]`` as it is now."""
        part = self._views[name][start:stop]
        self.moved += part.nbytes
        return part

    def store(self, name: str, start: int = 0, stop: int | None = None) -> None:
        """Put back what was changed of ``region[start:stop]`` in the array that `fetch` gave."""
        self.moved += self._views[name][start:stop].nbytes

    def write(self, name: str, values: np.ndarray | float, start: int = 0) -> None:
        """Set ``region[start:]`` to `values`, without fetching it."""
        values = np.atleast_1d(np.asarray(values))
        self._views[name][start : start + len(values)] = values
        self.store(name, start, start + len(values))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the server's exclusive lock."""
        yield

    def check(self) -> None:
        """Raise `ParallelError` if a worker has stopped the run."""
