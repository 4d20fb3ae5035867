"""The place where the parameter server's state lies: named regions and a lock.

A `Place` is memory laid out by a `Layout`. Here it is plain memory of one process, which is what a
replay works in; `window` has the same in an MPI window. `server` decides what is done to the state.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from sparsecore.compiled import engine

# Words of the region "control".
LOCK, DONE, TESTED = 0, 1, 2

# Words of the region "state".
TICKET, VERSION, NNZ = 0, 1, 2


class ParallelError(RuntimeError):
    """A parallel run that cannot go on; the message names the rank and the cause."""


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
        arrays: dict[str, tuple[type, tuple[int, ...]]] = {
            "control": (np.int64, (8,)),  # first, where `Window` looks for its words
            "state": (np.int64, (8,)),
            "aside": (np.float64, (workers,)),  # seconds spent on tests and checkpoints
            "weight_start": (np.int64, (len(sizes),)),
            "indptr": (np.int64, (sum(sizes[1:]) + len(sizes) - 1,)),
            "indices": (np.int32, (nnz,)),
            "params": (np.float32, (n_params,)),
            "velocity": (np.float32, (n_params,)),
            "worker": (np.int16, (updates,)),
            "staleness": (np.int32, (updates,)),
            "accepted": (np.float32, (updates,)),
            "epochs": (np.float64, (epochs, epoch_fields)),
        }
        self._regions, self.nbytes = {}, 0
        for name, (dtype, shape) in arrays.items():
            self._regions[name] = shape, dtype, self.nbytes
            self.nbytes += -(-math.prod(shape) * np.dtype(dtype).itemsize // 64) * 64

    def views(self, memory: np.ndarray) -> dict[str, np.ndarray]:
        """Return the arrays, which share `memory` (uint8)."""
        return {
            name: np.ndarray(shape, dtype, memory, offset)
            for name, (shape, dtype, offset) in self._regions.items()
        }


class Place:
    """State of the parameter server in this process's own memory.

    `fetch` gives a part of a region to read and change, `store` puts it back; where the memory is
    the server's own, both cost nothing. `moved` counts the bytes fetched and stored, wherever the
    memory lies.
    """

    kind = "local"

    def __init__(self, layout: Layout) -> None:
        self.sizes, self.moved = layout.sizes, 0
        self._views = layout.views(engine.aligned(layout.nbytes, np.uint8))

    def fetch(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return ``region[start:stop]`` as it is now."""
        part = self._views[name][start:stop]
        self.moved += part.nbytes
        return part

    def store(self, name: str, start: int = 0, stop: int | None = None) -> None:
        """Put back what was changed of ``region[start:stop]`` in the array that `fetch` gave."""
        self.moved += self._views[name][start:stop].nbytes

    def write(self, name: str, values: Any, start: int = 0) -> None:
        """Set ``region[start:]`` to `values`, without fetching it."""
        values = np.atleast_1d(values)
        self._views[name][start : start + len(values)] = values
        self.store(name, start, start + len(values))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the server's exclusive lock."""
        yield

    def check(self) -> None:
        """Raise `ParallelError` if a worker has stopped the run."""
