"""`TiledMLP`: layers of tiles, their activations, one workspace, and a training step.

All arrays are allocated once, for a number of threads and a batch size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from sparsecore import seeds
from sparsecore.compiled.engine import aligned
from sparsecore.compiled.lanes import Width
from sparsecore.compiled.team import Team
from sparsecore.extreme import budget, sweeps, tiles
from sparsecore.extreme.sweeps import Strip, Update
from sparsecore.extreme.tiles import Grid, Tiles
from sparsecore.functions import negative_slope, probabilities
from sparsecore.mlp import as_labels
from sparsecore.seeds import Purpose
from sparsecore.topology import check_fraction


class Draft(NamedTuple):
    """What a layer will be, before there is memory for it."""

    grid: Grid
    density: float
    counts: np.ndarray  #: int64, connections of each tile
    key: np.uint64  #: of its structure and weights
    slope: float  #: negative slope of the activation of its inputs; 1 for the features


class Layer:
    """One layer of tiles with its biases; of a split network, some rows of it or none."""

    def __init__(self, draft: Draft) -> None:
        self.grid, self.slope = draft.grid, np.float32(draft.slope)
        start = tiles.pointers(draft.counts)
        kinds = np.uint16, np.uint16, np.float32, np.float32
        self.tiles = Tiles(start, *(aligned(int(start[-1]), kind) for kind in kinds))
        self.biases = aligned(self.grid.n_out, np.float32)
        self.bias_velocity = aligned(self.grid.n_out, np.float32)

    @property
    def nnz(self) -> int:
        """Number of connections."""
        return len(self.tiles.weights)

    @property
    def counts(self) -> np.ndarray:
        """Number of connections of each tile, int64."""
        return np.diff(self.tiles.start)

    def cut(self, slots: int) -> None:
        """Cut the grid into strips of at most `slots` connections; again after each evolution."""
        g = self.grid
        self.rows: list[Strip] = []
        self.columns: list[Strip] = []
        if not g.down:
            return
        table = self.tiles.start[:-1].reshape(g.down, g.across)
        ends = self.tiles.start[g.across :: g.across]
        size = self.counts.reshape(g.down, g.across)
        for a, b in _groups(size.sum(axis=1), slots):
            self.rows.append(Strip(a, b, 0, g.across, np.full(g.down, -table[a, 0])))
        for a, b in _groups(size.sum(axis=0), slots):
            taken = (ends if b == g.across else table[:, b]) - table[:, a]
            first = np.cumsum(taken) - taken
            self.columns.append(Strip(0, g.down, a, b, first - table[:, a]))

    def forward(
        self, team: Team, width: Width, z_in: np.ndarray, slots: np.ndarray, z_out: np.ndarray
    ) -> None:
        """Fill `z_out` with the inputs of the outputs' activation function."""
        for strip in self.rows:
            head = team.size, team.sync, width, self.grid, self.tiles, strip
            team.run(sweeps.send_inputs, *head, z_in, self.slope, slots)
            team.run(sweeps.receive_inputs, *head, slots, self.biases, z_out)

    def backward(
        self, team: Team, width: Width, z_in: np.ndarray, delta: np.ndarray, slots: np.ndarray,
        sums: np.ndarray, update: Update, inner: bool,
    ) -> None:  # fmt: skip
        """Take a step down the gradient; with `inner`, replace `z_in` by its gradient."""
        if inner and not self.columns:
            z_in[:] = 0
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


def replace_by_gradient(outputs: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Replace outputs (n_classes, lanes) by the mean cross-entropy's gradient; return the logits.

    Lanes without a sample get gradient 0. If the logits are not finite, nothing is changed.
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

    `seed` determines everything, bit for bit, whatever the threads, on CPUs of one lane width. With
    `empty` no structure is drawn: a checkpoint will fill it in. `progress` is called with each
    layer's connections when it is drawn. Memory: see `budget.plan`; a step takes 7 to 9 ns per
    connection on two cores.

    There is no memory for a second copy, so an interrupt can leave a step or an evolution half
    done; the network then refuses to go on until a checkpoint fills it in.
    """

    _torn = False  # within a step or an evolution
    message_bytes = message_seconds = 0.0  # what a split network has exchanged

    def __init__(
        self, sizes: Sequence[int], *, epsilon: float, batch_size: int = 4,
        activation: str = "all-relu", alpha: float = 0.05, seed: int = 0, threads: int = 1,
        empty: bool = False, progress: Any = None,
    ) -> None:  # fmt: skip
        self.sizes, self.seed, self.batch_size = tuple(sizes), seed, batch_size
        lanes = budget.lane_width(batch_size)
        plans = []
        for layer, density in enumerate(budget.densities(sizes, epsilon)):
            grid = tiles.grid(sizes[layer], sizes[layer + 1], lanes)
            counts = tiles.counts(grid, density, seeds.generator(seed, Purpose.TOPOLOGY, layer))
            key = seeds.key(seed, Purpose.WEIGHTS, layer)
            slope = negative_slope(activation, layer, alpha) if layer else 1.0
            plans.append(Draft(grid, density, counts, key, slope))
        self._fan_in = [d.counts.sum() / d.grid.n_out for d in plans]
        plans = self._parts(plans)
        grids, totals = [d.grid for d in plans], [int(d.counts.sum()) for d in plans]
        self._width, self._team = Width(lanes), Team(threads)
        self._workspace = aligned(budget.workspace(totals, grids, lanes), np.uint8)
        self.layers: list[Layer] = []
        for draft in plans:
            self.layers.append(drawn := Layer(draft))
            if not empty:
                tiles.draw(draft.grid, drawn.tiles, draft.density, draft.key, self._team)
                self._cut(drawn)
            if progress is not None:
                progress(drawn.nnz)
        self._z = [aligned(lanes * n, np.float32) for n in (sizes[0], *(g.n_out for g in grids))]
        sums = aligned(threads * lanes * max(g.side_in for g in grids), np.float32)
        self._sums = sums.reshape(threads, -1)

    @property
    def nnz(self) -> int:
        """Number of connections."""
        return sum(layer.nnz for layer in self.layers)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {'-'.join(map(str, self.sizes))}, nnz {self.nnz:,}>"

    def logits(self, X: np.ndarray) -> np.ndarray:
        """Return the logits of up to a batch of samples, float32, shape (n, n_classes)."""
        self._forward(X)
        return self._outputs()[:, : len(X)].T.copy()

    def step(
        self, X: np.ndarray, y: np.ndarray, learning_rate: float, momentum: float = 0.9,
        weight_decay: float = 0.0, follow: Any = None, frozen: bool = False,
    ) -> np.ndarray:  # fmt: skip
        """Take a step of momentum SGD on a batch; return the logits before it.

        `learning_rate` is divided by a layer's mean fan-in: so a step moves the outputs equally for
        all widths. `follow` is called with the connections of a layer after each sweep over them.
        With `frozen` only the output layer is trained. If the logits are not finite, nothing is
        changed, and FloatingPointError is raised.
        """
        y = as_labels(y, len(X), self.sizes[-1])
        self._forward(X, follow)
        outputs = self._outputs()
        logits = replace_by_gradient(outputs, y)
        self._torn = True
        grid = self.layers[-1].grid  # a split network keeps its own rows of the gradient
        begin = grid.first * grid.side_out
        self._z[-1].reshape(-1, self._width.lanes)[:] = outputs[begin : begin + grid.n_out]
        for number in range(len(self.layers) - 1, -1, -1):
            layer, z_in = self.layers[number], self._inputs(number)
            rate = learning_rate / max(1.0, self._fan_in[number])
            update = Update(np.float32(rate), np.float32(momentum), np.float32(1 - weight_decay))
            layer.backward(
                self._team, self._width, z_in, self._z[number + 1], self._slots(), self._sums,
                update, number > 0,
            )  # fmt: skip
            if frozen:
                break
            if number > 0:
                self._pass_down(number, z_in)
            if follow is not None:
                follow(layer.nnz)
        self._torn = False
        return logits

    def _check_whole(self) -> None:
        if self._torn:
            raise RuntimeError("an interrupt left the network half changed: restore its checkpoint")

    def _forward(self, X: np.ndarray, follow: Any = None) -> None:
        self._check_whole()
        if X.ndim != 2 or X.shape[1] != self.sizes[0] or not 1 <= len(X) <= self.batch_size:
            raise ValueError(
                f"X: expected shape (1 to {self.batch_size}, {self.sizes[0]}), got {X.shape}"
            )
        block = self._z[0].reshape(-1, self._width.lanes)
        block[:, : len(X)] = X.T
        block[:, len(X) :] = 0
        for number, layer in enumerate(self.layers):
            z_in, z_out = self._inputs(number), self._z[number + 1]
            layer.forward(self._team, self._width, z_in, self._slots(), z_out)
            if follow is not None:
                follow(layer.nnz)

    # What a split network does in another way.

    def _parts(self, plans: list[Draft]) -> list[Draft]:
        """Return the parts of the layers that are here."""
        return plans

    def _inputs(self, number: int) -> np.ndarray:
        """Return all inputs of a layer."""
        return self._z[number]

    def _outputs(self) -> np.ndarray:
        """Return all outputs of the network, shape (n_classes, lanes)."""
        return self._z[-1].reshape(-1, self._width.lanes)

    def _pass_down(self, number: int, gradient: np.ndarray) -> None:
        """Bring the gradient of a layer's inputs to the layer below; here it is in place."""

    def evolve(self, zeta: float, epoch: int, progress: Any = None) -> int:
        """Replace the weakest connections of all layers but the output layer; return how many.

        `epoch` must differ between calls, from 1 on.
        """
        self._check_whole()
        check_fraction(zeta)
        replaced, self._torn = 0, True
        for number, layer in enumerate(self.layers[:-1]):
            rng = seeds.generator(self.seed, Purpose.EVOLUTION, number, epoch)
            key = rng.integers(2**63, dtype=np.uint64)
            spare = self._spare(layer)
            replaced += tiles.evolve(layer.grid, layer.tiles, spare, zeta, key, rng, self._team)
            self._cut(layer)
            if progress is not None:
                progress(layer.nnz)
        self._torn = False
        return replaced

    def _cut(self, layer: Layer) -> None:
        layer.cut(len(self._slots()) // self._width.lanes)

    def _slots(self) -> np.ndarray:
        """Return the workspace as slots for activations."""
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

    def arrays(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yield name and array of everything that a checkpoint keeps, or fills in if torn."""
        for number, layer in enumerate(self.layers):
            for name, array in layer.tiles._asdict().items():
                yield f"{number}.{name}", array
            yield f"{number}.biases", layer.biases
            yield f"{number}.bias_velocity", layer.bias_velocity

    def restored(self) -> None:
        """Check arrays that have been filled from outside, and adapt to them."""
        for number, layer in enumerate(self.layers):
            tiles.check(layer.grid, layer.tiles, self._team)
            if not (np.isfinite(layer.biases).all() and np.isfinite(layer.bias_velocity).all()):
                raise ValueError(f"layer {number}: a bias is not finite")
            self._cut(layer)
        self._torn = False

    def sha256(self, progress: Any = None) -> str:
        """Return the SHA-256 of structure, parameters and velocities, as hexadecimal digits."""
        self._check_whole()
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
