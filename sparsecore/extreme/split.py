"""Layers that are split over ranks by output neurons: a network too wide for one machine.

Each rank holds some rows of every layer's tiles, with the activations of their output neurons. To
compute them, it gathers the activations of the whole layer below, one layer at a time. On the way
back it gathers them again, and the input gradients of all ranks are summed on the ranks that hold
these neurons. So a layer's activations travel three times in a step. The results are those of
`TiledMLP`, up to the order of that one sum.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sparsecore.compiled.engine import aligned
from sparsecore.extreme import budget, tiles
from sparsecore.extreme.network import Part, TiledMLP
from sparsecore.extreme.tiles import Grid


class SplitMLP(TiledMLP):
    """A `TiledMLP` whose layers are spread over the ranks of `comm`; this rank's part of them.

    All ranks give the same batch and get the same logits. `message_bytes` and `message_seconds` add
    up this rank's messages, both ways, and the time for them, waiting included. It cannot `evolve`:
    each rank would choose the weakest among its own connections.
    """

    def __init__(self, comm: Any, sizes: Sequence[int], **options: Any) -> None:
        self._comm = comm
        super().__init__(sizes, **options)
        self._whole = aligned(self._width.lanes * max(sizes[1:]), np.float32)

    def _parts(self, grids: list[Grid], counts: list[np.ndarray]) -> list[Part]:
        most = max(grid.down for grid in grids)
        if self._comm.size > most:
            raise ValueError(
                f"ranks: expected at most {most}, the rows of tiles that these layers have, got "
                f"{self._comm.size}; start fewer"
            )
        self._spread = [tiles.spread(grid, self._comm.size) for grid in grids]
        own = [parts[self._comm.rank] for parts in self._spread]
        ends = [g.across * np.array([g.first, g.first + g.down]) for g in own]
        return [(g, n[a:b]) for g, n, (a, b) in zip(own, counts, ends, strict=True)]

    def _inputs(self, number: int) -> np.ndarray:
        """Return all inputs of a layer, in memory that the next call uses again."""
        return self._gathered(number) if number else self._z[0]  # all ranks have the same batch

    def _outputs(self) -> np.ndarray:
        return self._gathered(len(self.layers)).reshape(-1, self._width.lanes)

    def _pass_down(self, number: int, gradient: np.ndarray) -> None:
        self._exchange(number, gradient, lambda own, n: self._comm.Reduce_scatter(gradient, own, n))

    def _gathered(self, number: int) -> np.ndarray:
        """Return all activations of a layer of neurons, the features being number 0."""
        whole = self._whole[: self.sizes[number] * self._width.lanes]
        self._exchange(number, whole, lambda own, n: self._comm.Allgatherv(own, [whole, n]))
        return whole

    def _exchange(self, number: int, whole: np.ndarray, messages: Callable[..., Any]) -> None:
        """Call `messages` with this rank's part of a layer's values, and the sizes of all parts."""
        counts = [part.n_out * self._width.lanes for part in self._spread[number - 1]]
        start = time.perf_counter()
        messages(self._z[number], counts)
        self.message_bytes += whole.nbytes - self._z[number].nbytes
        self.message_seconds += time.perf_counter() - start


def step_bytes(sizes: Sequence[int], batch_size: int, ranks: int) -> float:
    """Return how much a rank sends and receives in a step: three times all hidden activations."""
    return 3 * 4 * budget.lane_width(batch_size) * sum(sizes[1:-1]) * (1 - 1 / ranks)
