"""`TiledMLP`: the layers of tiles, their activations and one workspace, and a training step.

The arrays are made once, for a number of threads and a batch, and never grow. Memory is planned in
`budget`; data, schedule and files are the business of `run`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp

from sparsecore import seeds
from sparsecore.compiled.engine import aligned
from sparsecore.compiled.lanes import Width
from sparsecore.compiled.team import Team
from sparsecore.extreme import budget, sweeps, tiles
from sparsecore.extreme.sweeps import Strip, Update
from sparsecore.extreme.tiles import Grid, Tiles
from sparsecore.functions import negative_slope, probabilities
from sparsecore.mlp import SparseMLP
from sparsecore.seeds import Purpose


class Draft(NamedTuple):
    """What a layer is to be, before there is memory for it."""

    grid: Grid
    density: float
    counts: np.ndarray  #: int64, connections of each tile
    key: np.uint64  #: of its structure and weights
    slope: float  #: negative slope of the activation of its inputs; 1 for the features


def drafts(
    sizes: Sequence[int], epsilon: float, lanes: int, activation: str, alpha: float, seed: int
) -> list[Draft]:
    """Return what the layers of a network are to be; see `TiledMLP`."""
    found = []
    for layer, density in enumerate(budget.densities(sizes, epsilon)):
        grid = tiles.grid(sizes[layer], sizes[layer + 1], lanes)
        counts = tiles.counts(grid, density, seeds.generator(seed, Purpose.TOPOLOGY, layer))
        key = seeds.key(seed, Purpose.WEIGHTS, layer)
        slope = negative_slope(activation, layer, alpha) if layer else 1.0
        found.append(Draft(grid, density, counts, key, slope))
    return found


class Layer:
    """One layer of tiles.

    Parameters
    ----------
    grid : Grid
    counts : ndarray of int64
        Connections of each tile.
    slope : float
        Negative slope of the activation of the layer's inputs; 1 for the features.

    Attributes
    ----------
    tiles : Tiles
    biases, bias_velocity : ndarray of float32
    """

    def __init__(self, grid: Grid, counts: np.ndarray, slope: float) -> None:
        self.grid, self.slope = grid, np.float32(slope)
        start = tiles.pointers(counts)
        self.tiles = Tiles(start, *_connections(int(start[-1])))
        self.biases = aligned(grid.n_out, np.float32)
        self.bias_velocity = aligned(grid.n_out, np.float32)

    @property
    def nnz(self) -> int:
        """Number of connections."""
        return len(self.tiles.weights)

    def to_scipy(self, values: np.ndarray) -> sp.csr_array:
        """Return the layer with these values of its connections, shape (n_out, n_in)."""
        g, tile = self.grid, np.repeat(np.arange(len(self.tiles.start) - 1), self.counts)
        rows = tile // g.across * g.side_out + self.tiles.rows
        columns = tile % g.across * g.side_in + self.tiles.columns
        return sp.csr_array((values, (rows, columns)), shape=(g.n_out, g.n_in))

    @property
    def counts(self) -> np.ndarray:
        """Number of connections of each tile, int64."""
        return np.diff(self.tiles.start)

    def cut(self, slots: int) -> None:
        """Cut the grid into strips of at most `slots` connections; again after each evolution."""
        g, table = self.grid, self.tiles.start[:-1].reshape(self.grid.down, self.grid.across)
        ends = self.tiles.start[g.across :: g.across]
        size = self.counts.reshape(g.down, g.across)
        self.rows = [
            Strip(a, b, 0, g.across, np.full(g.down, -table[a, 0]))
            for a, b in _groups(size.sum(axis=1), slots)
        ]
        self.columns = []
        for a, b in _groups(size.sum(axis=0), slots):
            taken = (ends if b == g.across else table[:, b]) - table[:, a]
            first = np.cumsum(taken) - taken
            self.columns.append(Strip(0, g.down, a, b, first - table[:, a]))

    def forward(
        self, team: Team, width: Width, z_in: np.ndarray, slots: np.ndarray, z_out: np.ndarray
    ) -> None:
        """Fill `z_out` with what goes into the outputs' activation function."""
        for strip in self.rows:
            head = team.size, team.sync, width, self.grid, self.tiles, strip
            team.run(sweeps.send_inputs, *head, z_in, self.slope, slots)
            team.run(sweeps.receive_inputs, *head, slots, self.biases, z_out)

    def backward(
        self, team: Team, width: Width, z_in: np.ndarray, delta: np.ndarray, slots: np.ndarray,
        sums: np.ndarray, update: Update, inner: bool,
    ) -> None:  # fmt: skip
        """Take a step down the gradient; with `inner`, replace `z_in` by its gradient."""
        team.run(
            sweeps.update_biases, team.size, team.sync, width, self.grid, delta, self.biases,
            self.bias_velocity, update,
        )  # fmt: skip
        for strip in self.columns:
            head, rest = (team.size, team.sync, width), (self.grid, self.tiles, strip)
            team.run(sweeps.send_deltas, *head, *rest, delta, slots)
            team.run(
                sweeps.receive_deltas, *head, Width(4), *rest, slots, z_in, self.slope, sums,
                update, inner,
            )  # fmt: skip


def rule(fan_in: float, learning_rate: float, momentum: float, weight_decay: float) -> Update:
    """Return how a layer moves whose neurons have `fan_in` inputs on average."""
    rate = learning_rate / max(1.0, fan_in)
    return Update(np.float32(rate), np.float32(momentum), np.float32(1 - weight_decay))


def replace_by_gradient(outputs: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Replace the outputs by the gradient of the mean cross-entropy.

    Parameters
    ----------
    outputs : ndarray of float32, shape (n_classes, lanes)
        Lanes without a sample get gradient 0.
    y : ndarray of int64, shape (n,)

    Returns
    -------
    ndarray of float32, shape (n, n_classes)
        The logits that were there.

    Raises
    ------
    FloatingPointError
        If they are not finite; nothing is changed then.
    """
    n = len(y)
    logits = outputs[:, :n].T.copy()
    if not np.isfinite(logits).all():
        raise FloatingPointError("the logits became infinite or NaN")
    gradient = probabilities(logits.astype(np.float64))
    gradient[np.arange(n), y] -= 1
    outputs[:] = 0
    outputs[:, :n] = gradient.T / n
    return logits


def _connections(nnz: int) -> tuple[np.ndarray, ...]:
    """Return arrays of rows, columns, weights and velocities."""
    kinds = np.uint16, np.uint16, np.float32, np.float32
    return tuple(aligned(nnz, kind) for kind in kinds)


def _groups(sizes: np.ndarray, most: int) -> list[tuple[int, int]]:
    """Cut a sequence into runs that add up to at most `most` each."""
    found, first, total = [], 0, 0
    for place, size in enumerate(sizes.tolist()):
        if size > most:
            raise RuntimeError(f"a row of tiles has {size:,} connections, slots are for {most:,}")
        if total + size > most:
            found.append((first, place))
            first, total = place, 0
        total += size
    found.append((first, len(sizes)))
    return found


class TiledMLP:
    """A truly sparse perceptron for hundreds of millions of neurons and small batches.

    Parameters
    ----------
    sizes : sequence of int
        Neurons per layer: features, hidden layers, classes.
    epsilon : float
        Erdős–Rényi sparsity.
    batch_size : int
        Largest number of samples in a step, up to 64.
    activation : {"all-relu", "relu", "leaky-relu"}
    alpha : float
    seed : int
        Determines everything, bit for bit, whatever the threads.
    threads : int
    empty : bool
        Leave the drawing of the structure to `restore`.
    progress : callable, optional
        Called with the connections of each layer when it is drawn.

    Attributes
    ----------
    layers : list of Layer
    sizes : tuple of int

    Notes
    -----
    Memory: see `budget.plan`. A step takes 7 to 9 ns a connection on two cores.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        epsilon: float,
        batch_size: int = 4,
        activation: str = "all-relu",
        alpha: float = 0.05,
        seed: int = 0,
        threads: int = 1,
        empty: bool = False,
        progress: Any = None,
    ) -> None:
        self.sizes, self.seed, self.batch_size = tuple(sizes), seed, batch_size
        self._activation, self._alpha = activation, alpha
        lanes = budget.lane_width(batch_size)
        self._width, self._team = Width(lanes), Team(threads)
        plans = drafts(sizes, epsilon, lanes, activation, alpha, seed)
        grids, totals = [d.grid for d in plans], [int(d.counts.sum()) for d in plans]
        self._workspace = aligned(budget.workspace(totals, grids, lanes), np.uint8)
        self.layers: list[Layer] = []
        for draft in plans:
            layer = Layer(draft.grid, draft.counts, draft.slope)
            self.layers.append(layer)
            if not empty:
                tiles.draw(draft.grid, layer.tiles, draft.density, draft.key, self._team)
                self._cut(layer)
            if progress is not None:
                progress(layer.nnz)
        self._z = [aligned(lanes * n, np.float32) for n in sizes]
        self._sums = aligned(threads * lanes * max(g.side_in for g in grids), np.float32)
        self._sums = self._sums.reshape(threads, -1)

    @property
    def nnz(self) -> int:
        """Number of connections."""
        return sum(layer.nnz for layer in self.layers)

    def __repr__(self) -> str:
        """Return sizes and connections in one line."""
        return f"<TiledMLP {'-'.join(map(str, self.sizes))}, nnz {self.nnz:,}>"

    # --- running ---------------------------------------------------------------------------------

    def logits(self, X: np.ndarray) -> np.ndarray:
        """Return the logits of up to a batch of samples, float32, shape (n, n_classes).

        Parameters
        ----------
        X : ndarray of float32, shape (n, n_features)
        """
        self._forward(X)
        return self._z[-1].reshape(-1, self._width.lanes)[:, : len(X)].T.copy()

    def step(
        self,
        X: np.ndarray,
        y: np.ndarray,
        learning_rate: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        follow: Any = None,
    ) -> np.ndarray:
        """Take a step of momentum SGD on a batch.

        Parameters
        ----------
        X : ndarray of float32, shape (n, n_features)
        y : ndarray of int64, shape (n,)
        learning_rate : float
            Divided by a layer's mean fan-in, so that a step moves the outputs as much whatever
            the width, and the narrow layers no more than the wide ones.
        momentum, weight_decay : float
        follow : callable, optional
            Called with the connections of a layer when a sweep over them is done, forward or back.

        Returns
        -------
        ndarray of float32, shape (n, n_classes)
            The logits before the step.

        Raises
        ------
        FloatingPointError
            If they are not finite; nothing is changed then.
        """
        self._forward(X, follow)
        logits = replace_by_gradient(self._z[-1].reshape(-1, self._width.lanes), y)
        for number in range(len(self.layers) - 1, -1, -1):
            layer = self.layers[number]
            fan_in = layer.nnz / layer.grid.n_out
            update = rule(fan_in, learning_rate, momentum, weight_decay)
            layer.backward(
                self._team, self._width, self._z[number], self._z[number + 1], self._slots(),
                self._sums, update, number > 0,
            )  # fmt: skip
            if follow is not None:
                follow(layer.nnz)
        return logits

    def _forward(self, X: np.ndarray, follow: Any = None) -> None:
        if X.ndim != 2 or X.shape[1] != self.sizes[0] or not 1 <= len(X) <= self.batch_size:
            raise ValueError(
                f"X: expected shape (1 to {self.batch_size}, {self.sizes[0]}), got {X.shape}"
            )
        block = self._z[0].reshape(-1, self._width.lanes)
        block[:, : len(X)] = X.T
        block[:, len(X) :] = 0
        for number, layer in enumerate(self.layers):
            z_in, z_out = self._z[number], self._z[number + 1]
            layer.forward(self._team, self._width, z_in, self._slots(), z_out)
            if follow is not None:
                follow(layer.nnz)

    def evolve(self, zeta: float, epoch: int, progress: Any = None) -> int:
        """Replace the weakest connections of all layers but the output layer; see `tiles.evolve`.

        Parameters
        ----------
        zeta : float
        epoch : int
            Another one at each call, from 1 on.
        progress : callable, optional
            Called with the connections of each layer when it is done.

        Returns
        -------
        int
            Connections replaced.
        """
        replaced = 0
        for number, layer in enumerate(self.layers[:-1]):
            rng = seeds.generator(self.seed, Purpose.EVOLUTION, number, epoch)
            key = rng.integers(2**63, dtype=np.uint64)
            spare = self._spare(layer)
            replaced += tiles.evolve(layer.grid, layer.tiles, spare, zeta, key, rng, self._team)
            self._cut(layer)
            if progress is not None:
                progress(layer.nnz)
        return replaced

    def _cut(self, layer: Layer) -> None:
        layer.cut(len(self._slots()) // self._width.lanes)

    def _slots(self) -> np.ndarray:
        """Return the workspace as room for activations."""
        whole = len(self._workspace) // 64 * 64
        return self._workspace[:whole].view(np.float32)

    def _spare(self, layer: Layer) -> Tiles:
        """Return the workspace as another set of arrays for a layer."""
        found, place = [], 0
        for array in sorted(layer.tiles[1:], key=lambda a: -a.itemsize):
            found.append(self._workspace[place : place + array.nbytes].view(array.dtype))
            place += array.nbytes
        weights, velocity, rows, columns = found
        return Tiles(np.empty_like(layer.tiles.start), rows, columns, weights, velocity)

    def to_mlp(self) -> SparseMLP:
        """Return the same network in the library's own form; a small one is better off with it."""
        weights = [layer.to_scipy(layer.tiles.weights) for layer in self.layers]
        biases = [layer.biases for layer in self.layers]
        model = SparseMLP.from_scipy(
            weights, biases, activation=self._activation, alpha=self._alpha
        )
        parts = [layer.to_scipy(layer.tiles.velocity).data for layer in self.layers]
        parts += [layer.bias_velocity for layer in self.layers]
        model.start_momentum()[:] = np.concatenate(parts)
        return model

    # --- state -----------------------------------------------------------------------------------

    def arrays(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yield all that a run has to keep, under names, the arrays themselves."""
        for number, layer in enumerate(self.layers):
            for name, array in layer.tiles._asdict().items():
                yield f"{number}.{name}", array
            yield f"{number}.biases", layer.biases
            yield f"{number}.bias_velocity", layer.bias_velocity

    def restored(self) -> None:
        """Take note that the arrays have been filled from elsewhere."""
        for layer in self.layers:
            self._cut(layer)

    def sha256(self, progress: Any = None) -> str:
        """Return the SHA-256 of structure, parameters and velocities, as hexadecimal digits.

        Parameters
        ----------
        progress : callable, optional
            Called with the bytes of each array that is done.
        """
        digest = hashlib.sha256()
        for _, array in self.arrays():
            digest.update(array.view(np.uint8).data)
            if progress is not None:
                progress(array.nbytes)
        return digest.hexdigest()

    def close(self) -> None:
        """End the threads."""
        self._team.close()

    def __enter__(self) -> TiledMLP:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
