"""Layers that are split over ranks by output neurons: a network too wide for one machine.

Each rank holds some rows of every layer's tiles, with the activations of their output neurons. To
compute them, it gathers the activations of the whole layer below, one layer at a time. On the way
back it gathers them again, and the input gradients of all ranks are summed on the ranks that hold
these neurons. So a layer's activations travel three times in a step. The results are those of
`TiledMLP`, up to the order of that one sum.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from sparsecore.compiled.engine import aligned
from sparsecore.extreme import budget, tiles
from sparsecore.extreme.network import Draft, TiledMLP
from sparsecore.extreme.tiles import Grid


class SplitMLP(TiledMLP):
    """A `TiledMLP` whose layers are spread over the ranks of `comm`; this rank's part of them.

    All ranks give the same batch and get the same logits. `message_bytes` and `message_seconds` add
    up this rank's messages, both ways, and the time for them, waiting included.
    """

    def __init__(self, comm: Any, sizes: Sequence[int], **options: Any) -> None:
        self._comm = comm
        self._shares: list[list[Share]] = []
        super().__init__(sizes, **options)
        self._whole = aligned(self._width.lanes * max(sizes[1:]), np.float32)

    def evolve(self, zeta: float, epoch: int, progress: Any = None) -> int:
        """Refuse: each rank would choose the weakest among its own connections."""
        raise NotImplementedError("the topology of a split network does not evolve")

    def _parts(self, plans: list[Draft]) -> list[Draft]:
        most = max(d.grid.down for d in plans)
        if self._comm.size > most:
            raise ValueError(
                f"ranks: expected at most {most}, the rows of tiles that these layers have, got "
                f"{self._comm.size}; start fewer"
            )
        self._shares = [_shares(d.grid, self._comm.size) for d in plans]
        found = []
        for draft, shares in zip(plans, self._shares, strict=True):
            share, across = shares[self._comm.rank], draft.grid.across
            counts = draft.counts[share.top * across : share.bottom * across]
            found.append(draft._replace(grid=_rows(draft.grid, share), counts=counts))
        return found

    def _inputs(self, number: int) -> np.ndarray:
        """Return all inputs of a layer, in memory that the next call uses again."""
        return self._gathered(number) if number else self._z[0]  # all ranks have the same batch

    def _outputs(self) -> np.ndarray:
        return self._gathered(len(self.layers)).reshape(-1, self._width.lanes)

    def _pass_down(self, number: int, gradient: np.ndarray) -> None:
        start = time.perf_counter()
        self._comm.Reduce_scatter(gradient, self._z[number], self._counts(number))
        self._moved(number, gradient, start)

    def _gathered(self, number: int) -> np.ndarray:
        """Return all activations of a layer of neurons, the features being number 0."""
        whole = self._whole[: self.sizes[number] * self._width.lanes]
        start = time.perf_counter()
        self._comm.Allgatherv(self._z[number], [whole, self._counts(number)])
        self._moved(number, whole, start)
        return whole

    def _counts(self, number: int) -> list[int]:
        """Return how many activations of a layer of neurons each rank has."""
        return [share.n_out * self._width.lanes for share in self._shares[number - 1]]

    def _moved(self, number: int, whole: np.ndarray, start: float) -> None:
        self.message_bytes += whole.nbytes - self._z[number].nbytes
        self.message_seconds += time.perf_counter() - start


class Share(NamedTuple):
    """A rank's rows of a layer's tiles."""

    top: int  #: first row of tiles
    bottom: int  #: behind the last row
    n_out: int  #: output neurons in these rows


def _shares(grid: Grid, ranks: int) -> list[Share]:
    """Share the rows of tiles out."""
    ends = [grid.down * rank // ranks for rank in range(ranks + 1)]
    neurons = [min(end * grid.side_out, grid.n_out) for end in ends]
    return [
        Share(top, bottom, last - first)
        for (top, bottom), (first, last) in zip(pairwise(ends), pairwise(neurons), strict=True)
    ]


def _rows(grid: Grid, share: Share) -> Grid:
    """Return the grid of a rank's rows."""
    return grid._replace(n_out=share.n_out, down=share.bottom - share.top, first=share.top)


class Load(NamedTuple):
    """What a rank has to bear."""

    n_bytes: int  #: beside the program's, and a batch's
    connections: float  #: expected


def loads(sizes: Sequence[int], epsilon: float, batch_size: int, ranks: int) -> list[Load]:
    """Return the load of each rank; a layer is shared out in whole rows of tiles."""
    lanes = budget.lane_width(batch_size)
    counts = budget.expected(sizes, epsilon)
    grids = [tiles.grid(a, b, lanes) for a, b in pairwise(sizes)]
    shares = [_shares(grid, ranks) for grid in grids]
    found = []
    for rank in range(ranks):
        parts = [_rows(grid, of[rank]) for grid, of in zip(grids, shares, strict=True)]
        here = [n * p.n_out / g.n_out for n, p, g in zip(counts, parts, grids, strict=True)]
        arrays = tiles.CONNECTION * sum(here) + sum(p.n_out for p in parts) * (8 + 4 * lanes)
        slots = budget.workspace(here, parts, lanes)
        found.append(Load(int(arrays + slots + 4 * lanes * max(sizes[:-1])), sum(here)))
    return found


def step_bytes(sizes: Sequence[int], batch_size: int, ranks: int) -> float:
    """Return how much a rank sends and receives in a step: three times all hidden activations."""
    return 3 * 4 * budget.lane_width(batch_size) * sum(sizes[1:-1]) * (1 - 1 / ranks)


@dataclass(frozen=True)
class SplitBudget:
    """The memory plan of a split network, as `budget.Budget` is that of a whole one."""

    neurons: int
    loads: list[Load]

    @property
    def connections(self) -> float:
        """Expected connections of the rank that has most."""
        return max(load.connections for load in self.loads)

    @property
    def total(self) -> int:
        """Bytes of the rank that needs most."""
        return max(load.n_bytes for load in self.loads)

    def table(self) -> str:
        """Return the plan as one line."""
        return (
            f"{self.neurons:,} hidden neurons on {len(self.loads)} ranks: at most "
            f"{self.total / budget.GIB:.2f} GiB each, beside the program"
        )

    def check(self, limit: int | None) -> None:
        """Refuse a plan above `limit` bytes on a rank; ranks may share a machine's free memory."""
        if limit is not None and self.total > limit:
            raise budget.OverBudgetError(
                f"--memory-limit: expected at least {self.total / budget.GIB:.2f} GiB a rank, got "
                f"{limit / budget.GIB:.2f} GiB; start more ranks"
            )


def plan(sizes: Sequence[int], epsilon: float, batch_size: int, ranks: int) -> SplitBudget:
    """Plan the memory of a network on so many ranks."""
    return SplitBudget(sum(sizes[1:-1]), loads(sizes, epsilon, batch_size, ranks))
