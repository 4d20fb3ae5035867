"""`TiledMLP`, on one machine or several ranks: layers of tiles, a training step, a checkpoint.

All arrays are allocated once, for a number of threads and a batch size.
"""

import hashlib
import json
import os
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from sparsecore import checkpoint, files, seeds
from sparsecore.checkpoint import FORMAT_VERSION, CheckpointError
from sparsecore.compiled.arrays import Closing
from sparsecore.compiled.engine import aligned
from sparsecore.compiled.lanes import Width
from sparsecore.compiled.team import Team
from sparsecore.config import HYPERPARAMETERS
from sparsecore.extreme import budget, sweeps, tiles
from sparsecore.extreme.sweeps import Rates, Strip
from sparsecore.extreme.tiles import Grid, Tiles
from sparsecore.functions import ACTIVATIONS, probabilities
from sparsecore.samples import as_labels
from sparsecore.seeds import Purpose

_ABOUT = "about.json"
_CHUNK = 2**24
#: Called with the amount of work done since; `int` is a callback that does nothing.
Progress = Callable[[int], Any]


class Layer:
    """One layer of tiles with its biases; in a split network, some of its rows or none."""

    def __init__(self, grid: Grid, counts: np.ndarray, slope: float) -> None:
        self.grid = grid
        self.slope = np.float32(slope)  # negative slope of the activation of its inputs
        start = tiles.pointers(counts)
        kinds = np.uint16, np.uint16, np.float32, np.float32
        self.tiles = Tiles(start, *(aligned(int(start[-1]), kind) for kind in kinds))
        self.biases = aligned(grid.n_out, np.float32)
        self.bias_velocity = aligned(grid.n_out, np.float32)

    @property
    def nnz(self) -> int:
        """Number of connections."""
        return len(self.tiles.weights)

    def cut(self, slots: int) -> None:
        """Cut the grid into strips of at most `slots` connections; again after each evolution."""
        down, across = self.grid.down, self.grid.across
        begin = self.tiles.start[:-1].reshape(down, across)
        size = np.diff(self.tiles.start).reshape(down, across)

        def strip(top: int, bottom: int, left: int, right: int) -> Strip:
            taken = np.zeros(down, np.int64)
            taken[top:bottom] = size[top:bottom, left:right].sum(axis=1)
            return Strip(top, bottom, left, right, np.cumsum(taken) - taken - begin[:, left])

        self.row_strips = [strip(a, b, 0, across) for a, b in _groups(size.sum(axis=1), slots)]
        self.column_strips = [strip(0, down, a, b) for a, b in _groups(size.sum(axis=0), slots)]


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
    return [*found, (first, len(sizes))]


class TiledMLP(Closing):
    """A truly sparse perceptron for hundreds of millions of neurons and small batches."""

    # `seed` determines all, bit for bit, whatever the threads, on CPUs of the same lane width.
    # With `empty` a checkpoint will fill it. `progress` is called with the connections of each
    # layer that is drawn. There is no memory for a second copy: an interrupt can leave a step or an
    # evolution half done, and the network then refuses all work until a checkpoint fills it.
    #
    # With `comm` the layers are split over its ranks by output neurons: each rank holds some rows
    # of every layer's tiles, with the activations of their output neurons. To compute them, it
    # gathers all activations of the layer below; it does so again on the way back, where the input
    # gradients of all ranks are summed. So a layer's activations travel three times in a step. All
    # ranks give the same batch and get the same logits: those of one machine, up to the order of
    # that sum. It cannot `evolve`: each rank would choose the weakest of its own connections.

    message_bytes = message_seconds = 0.0  # received to gather and sent to sum up; waiting included

    def __init__(
        self, sizes: Sequence[int], *, epsilon: float, batch_size: int = 4,
        alpha: float = 0.05, seed: int = 0, threads: int = 1, empty: bool = False,
        progress: Progress = int, comm: Any = None,
    ) -> None:  # fmt: skip
        self.sizes, self.seed, self.batch_size = tuple(sizes), seed, batch_size
        self._comm, self._torn = comm, empty  # torn within a step, an evolution, a reading
        lanes, densities = budget.lanes_for(batch_size), budget.densities(sizes, epsilon)
        grids = [tiles.grid(a, b, lanes) for a, b in pairwise(sizes)]
        counts = [
            seeds.generator(seed, Purpose.TOPOLOGY, number).binomial(tiles.cells(grid), density)
            for number, (grid, density) in enumerate(zip(grids, densities, strict=True))
        ]
        self._mean_fan_in = [n.sum() / grid.n_out for grid, n in zip(grids, counts, strict=True)]
        rank, ranks = (0, 1) if comm is None else (comm.rank, comm.size)
        self._spread = tiles.spread(grids, ranks)
        grids = [parts[rank] for parts in self._spread]  # this rank's, and their connections
        ends = [grid.across * np.array([grid.first, grid.first + grid.down]) for grid in grids]
        counts = [n[a:b] for n, (a, b) in zip(counts, ends, strict=True)]
        self._width, self._team = Width(lanes), Team(threads)
        self.close = self._team.close
        n_bytes = budget.workspace([int(n.sum()) for n in counts], grids, lanes)
        self._workspace = aligned(n_bytes, np.uint8)
        self._slots = self._workspace[: n_bytes // 64 * 64].view(np.float32)
        self.layers: list[Layer] = []
        for number, (grid, n) in enumerate(zip(grids, counts, strict=True)):
            slope = ACTIVATIONS["all-relu"](number, alpha) if number else 1.0
            self.layers.append(layer := Layer(grid, n, slope))
            if not empty:
                key = seeds.key(seed, Purpose.WEIGHTS, number)
                tiles.draw(grid, layer.tiles, densities[number], key, self._team)
                self._cut(layer)
            progress(layer.nnz)
        self._z = [aligned(lanes * n, np.float32) for n in (sizes[0], *(g.n_out for g in grids))]
        sums = aligned(threads * lanes * max(g.side_in for g in grids), np.float32)
        self._sums = sums.reshape(threads, -1)
        self._whole = aligned(0 if comm is None else lanes * max(sizes[1:]), np.float32)

    @property
    def nnz(self) -> int:
        """Number of connections."""
        return sum(layer.nnz for layer in self.layers)

    @property
    def nbytes(self) -> int:
        """Bytes of all that a checkpoint keeps."""
        return sum(array.nbytes for _, array in self.arrays())

    def logits(self, X: np.ndarray, progress: Progress = int) -> np.ndarray:
        """Return finite logits of up to a batch of samples, float32, shape (n, n_classes)."""
        self._check_whole()
        if X.ndim != 2 or X.shape[1] != self.sizes[0] or not 1 <= len(X) <= self.batch_size:
            expected = f"(1 to {self.batch_size}, {self.sizes[0]})"
            raise ValueError(f"X: expected shape {expected}, got {X.shape}")
        block = self._z[0].reshape(-1, self._width.lanes)
        block[:, : len(X)] = X.T
        block[:, len(X) :] = 0
        for number, layer in enumerate(self.layers):
            z_in, z_out = self._gathered(number), self._z[number + 1]
            for strip in layer.row_strips:
                where = layer.grid, layer.tiles, strip
                self._sweep(sweeps.send_inputs, *where, z_in, layer.slope, self._slots)
                self._sweep(sweeps.receive_inputs, *where, self._slots, layer.biases, z_out)
            progress(layer.nnz)
        outputs = self._gathered(len(self.layers)).reshape(-1, self._width.lanes)
        logits = outputs[:, : len(X)].T.copy()
        if not np.isfinite(logits).all():
            raise FloatingPointError("the logits became infinite or NaN")
        return logits

    def step(
        self, X: np.ndarray, y: np.ndarray, learning_rate: float, momentum: float = 0.9,
        weight_decay: float = 0.0, progress: Progress = int, frozen: bool = False,
    ) -> np.ndarray:  # fmt: skip
        """Do a step of momentum SGD on a batch; return the logits."""
        # `learning_rate` is divided by a layer's mean fan-in, so a step moves the outputs equally
        # for all widths. `progress` is called with a layer's connections after each sweep over
        # them. With `frozen` only the output layer is trained.
        y = as_labels(y, len(X), self.sizes[-1])
        logits, n = self.logits(X, progress), len(y)
        self._torn = True
        gradient = probabilities(logits.astype(np.float64))  # of the mean cross-entropy
        gradient[np.arange(n), y] -= 1
        grid = self.layers[-1].grid  # a split network keeps its own rows of the gradient
        begin = grid.first * grid.side_out
        own = self._z[-1].reshape(-1, self._width.lanes)
        own[:] = 0  # the gradient of lanes without a sample
        own[:, :n] = gradient.T[begin : begin + grid.n_out] / n
        for number in range(len(self.layers) - 1, -1, -1):
            layer, z_in, delta = self.layers[number], self._gathered(number), self._z[number + 1]
            rate = learning_rate / max(1.0, self._mean_fan_in[number])
            update = Rates(np.float32(rate), np.float32(momentum), np.float32(1 - weight_decay))
            biases = layer.biases, layer.bias_velocity
            self._sweep(sweeps.update_biases, layer.grid, delta, *biases, update)
            for strip in layer.column_strips:
                where = layer.grid, layer.tiles, strip
                self._sweep(sweeps.send_deltas, *where, delta, self._slots)
                self._sweep(
                    sweeps.receive_deltas, Width(4), *where, self._slots, z_in, layer.slope,
                    self._sums, update, number > 0,
                )  # fmt: skip
            if frozen:
                break
            if number > 0 and self._comm is not None:
                self._exchange(number, z_in, partial(self._comm.Reduce_scatter, z_in))
            progress(layer.nnz)
        self._torn = False
        return logits

    def _check_whole(self) -> None:
        if self._torn:
            raise RuntimeError("the network is empty or half changed: restore its checkpoint")

    def _sweep(self, sweep: Any, *args: Any) -> None:
        self._team.walk(sweep, self._width, *args)

    def _gathered(self, number: int) -> np.ndarray:
        """Return all activations of layer `number`, in memory that the next call may use again."""
        if self._comm is None or number == 0:  # all ranks have the same features
            return self._z[number]
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

    def evolve(self, zeta: float, step: int, progress: Progress = int) -> int:
        """Replace the weakest connections of all layers but the output layer; return how many."""
        self._check_whole()
        HYPERPARAMETERS["zeta"].check(zeta)
        replaced, self._torn = 0, True
        for number, layer in enumerate(self.layers[:-1]):
            rng = seeds.generator(self.seed, Purpose.EVOLUTION, number, step)  # never the same
            key = rng.integers(2**63, dtype=np.uint64)
            spare = self._spare(layer)
            replaced += tiles.evolve(layer.grid, layer.tiles, spare, zeta, key, rng, self._team)
            self._cut(layer)
            progress(layer.nnz)
        self._torn = False
        return replaced

    def _cut(self, layer: Layer) -> None:
        layer.cut(len(self._slots) // self._width.lanes)

    def _spare(self, layer: Layer) -> Tiles:
        """Return the workspace as another set of arrays for a layer."""
        start, *arrays = layer.tiles
        ends = np.cumsum([array.nbytes for array in arrays])
        parts = np.split(self._workspace[: ends[-1]], ends[:-1])
        views = (part.view(array.dtype) for part, array in zip(parts, arrays, strict=True))
        return Tiles(np.empty_like(start), *views)

    def arrays(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yield name and array of everything that a checkpoint keeps."""
        for number, layer in enumerate(self.layers):
            biases = {"biases": layer.biases, "bias_velocity": layer.bias_velocity}
            for name, array in {**layer.tiles._asdict(), **biases}.items():
                yield f"{number}.{name}", array

    def save(
        self, path: str | os.PathLike[str], run: dict[str, Any], progress: Progress = int
    ) -> None:
        """Write all arrays one by one (no memory for copies), and the JSON state of the run."""
        self._check_whole()
        about = {"format_version": FORMAT_VERSION, "sizes": list(self.sizes), "run": run}
        with files.atomic_write(path, keep=True) as file, zipfile.ZipFile(file, "w") as archive:
            if shutil.disk_usage(file.fileno()).free < self.nbytes:
                files.previous(path).unlink(missing_ok=True)  # there is no space for three files
            archive.writestr(_ABOUT, json.dumps(about))
            for name, array in self.arrays():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)
                progress(array.nbytes)

    def restored(self) -> None:
        """Check arrays that have been filled from outside, and cut the layers again."""
        for number, layer in enumerate(self.layers):
            tiles.check(layer.grid, layer.tiles, self._team)
            if not (np.isfinite(layer.biases).all() and np.isfinite(layer.bias_velocity).all()):
                raise ValueError(f"layer {number}: a bias is not finite")
            self._cut(layer)
        self._torn = False

    def sha256(self, progress: Progress = int) -> str:
        """Return the SHA-256 of structure, parameters and velocities, as hexadecimal digits."""
        self._check_whole()
        digest = hashlib.sha256()
        for _, array in self.arrays():
            digest.update(array.view(np.uint8).data)
            progress(array.nbytes)
        return digest.hexdigest()


def read_checkpoint(
    path: str | os.PathLike[str], net: TiledMLP | None = None, progress: Progress = int
) -> dict[str, Any]:
    """Return the state of the run that wrote a checkpoint; fill `net`, if it is given."""

    def read(path: Any) -> dict[str, Any]:
        with checkpoint.opened(path, "checkpoint of an extreme run") as archive:
            about = json.loads(archive.read(_ABOUT))
            checkpoint.check_version(path, about["format_version"])
            if net is not None:
                if (sizes := about["sizes"]) != list(net.sizes):
                    raise CheckpointError(f"{path}: has layers of {sizes}, not {net.sizes}")
                net._torn = True  # until `restored` has checked all
                for name, array in net.arrays():
                    with archive.open(f"{name}.npy") as member:
                        _fill(array, member)
                    progress(array.nbytes)
                net.restored()
            return about["run"]

    return checkpoint.latest(path, read)


def _fill(array: np.ndarray, member: Any) -> None:
    """Read a saved array into an existing one."""
    shape, dtype = checkpoint.array_header(member)
    if shape != array.shape or dtype != array.dtype:
        raise ValueError(f"expected {array.dtype} {array.shape}, got {dtype} {shape}")
    content = array.view(np.uint8).data
    for first in range(0, len(content), _CHUNK):
        chunk = content[first : first + _CHUNK]
        if member.readinto(chunk) < len(chunk):
            raise EOFError("an array is cut short")
    member.read(1)  # reading to the end compares the checksum
