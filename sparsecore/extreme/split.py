"""Layers that are split over ranks by output neurons: a network too wide for one machine.

Each rank holds some rows of every layer's tiles, with the activations of their output neurons. To
compute them it gathers the activations of the whole layer below, one layer at a time; on the way
back it gathers them once more, and the input gradients of all ranks are summed up where the inputs
belong. So three times a layer's activations travel in a step. The connections are the very ones
that `extreme.network.TiledMLP` draws, and so are the results, up to the order of that one sum. The
topology stays as it was drawn.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from sparsecore.compiled.engine import aligned
from sparsecore.compiled.lanes import Width
from sparsecore.compiled.team import Team
from sparsecore.extreme import budget, tiles
from sparsecore.extreme.data import Stream
from sparsecore.extreme.network import Draft, Layer, drafts, replace_by_gradient, rule
from sparsecore.extreme.run import ExtremeConfig, peak_bytes, trend
from sparsecore.extreme.tiles import Grid
from sparsecore.functions import cross_entropy
from sparsecore.provenance import provenance


class SplitMLP:
    """A `TiledMLP` whose layers are spread over the ranks of a communicator.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm
    sizes, epsilon, batch_size, activation, alpha, seed
        As of `TiledMLP`.
    threads : int
        Of each rank.

    Raises
    ------
    ValueError
        If there are more ranks than a layer has rows of tiles.

    Attributes
    ----------
    layers : list of Layer or None
        This rank's rows; None where the layer has too few for all ranks.
    message_bytes, message_seconds : float
        Received and sent by this rank so far, and how long that took, waiting included.
    """

    def __init__(
        self,
        comm: Any,
        sizes: Sequence[int],
        *,
        epsilon: float,
        batch_size: int = 4,
        activation: str = "all-relu",
        alpha: float = 0.05,
        seed: int = 0,
        threads: int = 1,
    ) -> None:
        self.sizes, self._comm = tuple(sizes), comm
        lanes = budget.lane_width(batch_size)
        self._width, self._team = Width(lanes), Team(threads)
        plans = drafts(sizes, epsilon, lanes, activation, alpha, seed)
        most = max(d.grid.down for d in plans)
        if comm.size > most:
            raise ValueError(
                f"ranks: expected at most {most}, the rows of tiles that these layers have, got "
                f"{comm.size}; start fewer"
            )
        self._fan_in = [d.counts.sum() / d.grid.n_out for d in plans]
        self._shares = [_shares(d.grid, comm.size) for d in plans]
        parts = [_part(d, s[comm.rank]) for d, s in zip(plans, self._shares, strict=True)]
        self.layers: list[Layer | None] = []
        for part in parts:
            layer = Layer(part.grid, part.counts, part.slope) if part.grid.down else None
            if layer is not None:
                tiles.draw(part.grid, layer.tiles, part.density, part.key, self._team)
            self.layers.append(layer)
        here = [layer for layer in self.layers if layer is not None]
        grids = [layer.grid for layer in here]
        slots = budget.workspace([layer.nnz for layer in here], grids, lanes)
        self._slots = aligned(slots // 64 * 16, np.float32)
        for layer in here:
            layer.cut(len(self._slots) // lanes)
        # Of the features there is no part: all ranks draw the same batch.
        self._own = [aligned(lanes * part.grid.n_out, np.float32) for part in parts]
        self._whole = aligned(lanes * max(sizes[:-1]), np.float32)
        self._sums = aligned(threads * lanes * max(g.side_in for g in grids), np.float32)
        self._sums = self._sums.reshape(threads, -1)
        self.message_bytes = self.message_seconds = 0.0

    def step(
        self,
        X: np.ndarray,
        y: np.ndarray,
        learning_rate: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
    ) -> np.ndarray:
        """Take a step as `TiledMLP.step` does; all ranks give the same batch and get the logits."""
        for number, layer in enumerate(self.layers):
            z_in = self._inputs(number, X)
            if layer is not None:
                layer.forward(self._team, self._width, z_in, self._slots, self._own[number])
        outputs = self._gathered(len(self.layers) - 1, np.empty(self._lanes(-1), np.float32))
        logits = replace_by_gradient(outputs.reshape(self.sizes[-1], -1), y)
        begin = self._begin(len(self.layers) - 1)
        self._own[-1][:] = outputs[begin : begin + len(self._own[-1])]
        for number in range(len(self.layers) - 1, -1, -1):
            # The network's own activations below are wanted whole, those of this layer are deltas.
            z_in, layer = self._inputs(number, X), self.layers[number]
            if layer is None:
                z_in[:] = 0
            else:
                layer.backward(
                    self._team, self._width, z_in, self._own[number], self._slots, self._sums,
                    rule(self._fan_in[number], learning_rate, momentum, weight_decay), number > 0,
                )  # fmt: skip
            if number > 0:
                self._summed(z_in, number - 1)
        return logits

    def _lanes(self, layer: int) -> int:
        """Return the number of activations of a layer, counted from the features."""
        return self.sizes[layer] * self._width.lanes

    def _inputs(self, number: int, X: np.ndarray) -> np.ndarray:
        """Return all inputs of a layer, in memory that the next call uses again."""
        whole = self._whole[: self._lanes(number)]
        if number:
            return self._gathered(number - 1, whole)
        block = whole.reshape(-1, self._width.lanes)
        block[:, : len(X)] = X.T
        block[:, len(X) :] = 0
        return whole

    def _counts(self, layer: int) -> list[int]:
        """Return how many outputs of a layer each rank has, times the lanes."""
        return [(last - first) * self._width.lanes for _, _, first, last in self._shares[layer]]

    def _begin(self, layer: int) -> int:
        return self._shares[layer][self._comm.rank][2] * self._width.lanes

    def _gathered(self, layer: int, whole: np.ndarray) -> np.ndarray:
        start = time.perf_counter()
        self._comm.Allgatherv(self._own[layer], [whole, self._counts(layer)])
        self._moved(whole.nbytes - self._own[layer].nbytes, start)
        return whole

    def _summed(self, whole: np.ndarray, layer: int) -> None:
        start = time.perf_counter()
        self._comm.Reduce_scatter(whole, self._own[layer], self._counts(layer))
        self._moved(whole.nbytes - self._own[layer].nbytes, start)

    def _moved(self, n_bytes: int, start: float) -> None:
        self.message_bytes += n_bytes
        self.message_seconds += time.perf_counter() - start

    def close(self) -> None:
        """End the threads."""
        self._team.close()

    def __enter__(self) -> SplitMLP:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


#: Rows of tiles, first and behind the last, and output neurons, first and behind the last.
Share = tuple[int, int, int, int]


def _shares(grid: Grid, ranks: int) -> list[Share]:
    """Share the rows of tiles out."""
    found = []
    for rank in range(ranks):
        a, b = grid.down * rank // ranks, grid.down * (rank + 1) // ranks
        first, last = (min(n * grid.side_out, grid.n_out) for n in (a, b))
        found.append((a, b, first, last))
    return found


def _part(draft: Draft, share: Share) -> Draft:
    """Return a rank's share of a layer."""
    top, bottom, first, last = share
    grid, across = draft.grid, draft.grid.across
    return draft._replace(
        grid=grid._replace(n_out=last - first, down=bottom - top, first=top),
        counts=draft.counts[top * across : bottom * across],
    )


class Load(NamedTuple):
    """What a rank has to bear."""

    n_bytes: int  #: beside the program's
    connections: float  #: expected


def loads(sizes: Sequence[int], epsilon: float, batch_size: int, ranks: int) -> list[Load]:
    """Return the load of each rank; a layer is shared out in whole rows of tiles.

    Parameters
    ----------
    sizes : sequence of int
    epsilon : float
    batch_size : int
    ranks : int
    """
    lanes = budget.lane_width(batch_size)
    counts = budget.expected(sizes, epsilon)
    grids = [tiles.grid(a, b, lanes) for a, b in pairwise(sizes)]
    shares = [_shares(grid, ranks) for grid in grids]
    found = []
    for rank in range(ranks):
        here, parts, own = [], [], 0
        for count, grid, share in zip(counts, grids, shares, strict=True):
            top, bottom, first, last = share[rank]
            own += last - first
            if bottom > top:
                here.append(count * (last - first) / grid.n_out)
                parts.append(grid._replace(n_out=last - first, down=bottom - top))
        slots = budget.workspace(here, parts, lanes) if here else 0
        arrays = tiles.CONNECTION * sum(here) + own * (8 + 4 * lanes)
        found.append(Load(int(arrays + slots + 4 * lanes * max(sizes[:-1])), sum(here)))
    return found


def step_bytes(sizes: Sequence[int], batch_size: int, ranks: int) -> float:
    """Return how much a rank sends and receives in a step: three times all hidden activations.

    Parameters
    ----------
    sizes : sequence of int
    batch_size : int
    ranks : int
    """
    return 3 * 4 * budget.lane_width(batch_size) * sum(sizes[1:-1]) * (1 - 1 / ranks)


def run(comm: Any, config: ExtremeConfig, *, seed: int, threads: int) -> dict[str, Any] | None:
    """Train over all ranks.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm
    config : ExtremeConfig
        With zeta 0.
    seed : int
    threads : int
        Of each rank.

    Returns
    -------
    dict or None
        On rank 0: "config", "seed", "ranks", "neurons", "nnz", "losses", "trend", "step_seconds",
        "message_bytes" and "message_seconds" per step, "planned_bytes" and "peak_bytes" of each
        rank, and "provenance".

    Raises
    ------
    ValueError
        If the topology is to evolve.
    """
    if config.zeta:
        raise ValueError(
            f"zeta: expected 0 for layers split over ranks, got {config.zeta}; their topology does "
            "not evolve"
        )
    planned = loads(config.sizes, config.epsilon, config.batch_size, comm.size)
    stream, losses, seconds = Stream(seed, config.separation), [], []
    with SplitMLP(
        comm, config.sizes, epsilon=config.epsilon, batch_size=config.batch_size,
        alpha=config.alpha, seed=seed, threads=threads,
    ) as net:  # fmt: skip
        for number in range(config.steps):
            X, y = stream.batch(number, config.batch_size)
            start = time.perf_counter()
            logits = net.step(X, y, config.learning_rate, config.momentum, config.weight_decay)
            seconds.append(time.perf_counter() - start)
            losses.append(cross_entropy(logits, y))
        nnz = sum(layer.nnz for layer in net.layers if layer is not None)
        whole = comm.gather((nnz, peak_bytes()))
        if comm.rank:
            return None
        return {
            "config": {n: getattr(config, n) for n in config.__dataclass_fields__},
            "seed": seed,
            "ranks": comm.size,
            "neurons": config.neurons,
            "nnz": sum(n for n, _ in whole),
            "losses": losses,
            "trend": trend(losses),
            "step_seconds": seconds,
            "message_bytes": net.message_bytes / config.steps,
            "message_seconds": net.message_seconds / config.steps,
            "planned_bytes": [load.n_bytes for load in planned],
            "peak_bytes": [peak for _, peak in whole],
            "provenance": provenance(threads, None, comm.size),
        }
