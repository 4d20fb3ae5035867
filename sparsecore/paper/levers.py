"""What made the extreme network fast: one pass through one layer, lever by lever.

The first levers are those of anybody who follows connections one by one: indices in order, pages
that the TLB can hold, prefetches, cores. The last is to follow them tile by tile, as
`sparsecore.extreme` does. All do the same sums over connections that are as random.
"""

from __future__ import annotations

import mmap
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from numba import njit

from sparsecore.bench import bench
from sparsecore.engine import aligned
from sparsecore.extreme import tiles
from sparsecore.extreme.data import N_CLASSES, N_FEATURES
from sparsecore.extreme.network import Layer, TiledMLP
from sparsecore.lanes import Width, at, fma, lanes_of, load, prefetch, splat, store
from sparsecore.team import Team

Result = dict[str, Any]

_FAN_IN, _LANES, _AHEAD = 5, 4, 32
_jit = njit(nogil=True, error_model="numpy", _nrt=False)


@_jit
def _gather(member, size, width, fan_in, ahead, indices, weights, x, y):
    """Sum up a layer's inputs neuron by neuron, each fetched from where it is."""
    lanes = lanes_of(width)
    neurons = len(y) // lanes
    for neuron in range(neurons * member // size, neurons * (member + 1) // size):
        acc = splat(width, np.float32(0))
        for k in range(neuron * fan_in, (neuron + 1) * fan_in):
            if ahead > 0:
                prefetch(x, np.int64(at(indices, k + ahead)) * lanes)
            value = load(width, x, np.int64(at(indices, k)) * lanes)
            acc = fma(splat(width, at(weights, k)), value, acc)
        store(y, neuron * lanes, acc)


def forward(neurons: int, repeats: int, threads: int) -> Iterator[Result]:
    """Time a forward pass through a layer of as many inputs as outputs, batch 4.

    Parameters
    ----------
    neurons : int
        On either side; each output has five inputs.
    repeats : int
    threads : int
        At most; the machine's cores.

    Yields
    ------
    dict
        "lever", "kind" ("one by one" or "tiles"), "threads", and "ns" a connection, the median.
    """
    rng = np.random.default_rng(0)
    nnz = neurons * _FAN_IN
    width = Width(_LANES)
    # Behind the last index a few more, for the prefetches.
    indices = np.zeros(nnz + _AHEAD, np.int32)
    indices[:nnz] = rng.integers(neurons, size=nnz, dtype=np.int32)
    with Team(1) as one, Team(threads) as all_:

        def gather(lever: str, team: Team, arrays: Any, ahead: int) -> Result:
            head = team.size, width, _FAN_IN, ahead
            ns = _median(lambda: team.run(_gather, *head, *arrays), repeats) / nnz
            return {"lever": lever, "kind": "one by one", "threads": team.size, "ns": ns}

        small = _arrays(_small_pages, indices, nnz, neurons)
        yield gather("any order, pages of 4 KiB", one, small, 0)
        del small
        huge = _arrays(aligned, indices, nnz, neurons)
        yield gather("+ huge pages", one, huge, 0)
        huge[0][:nnz].reshape(neurons, _FAN_IN).sort(axis=1)
        yield gather("+ sorted indices", one, huge, 0)
        yield gather("+ prefetches", one, huge, _AHEAD)
        if threads > 1:
            yield gather(f"+ {threads} cores", all_, huge, _AHEAD)
        del huge, indices

        grid = tiles.grid(neurons, neurons, _LANES)
        density = _FAN_IN / neurons
        layer = Layer(grid, tiles.counts(grid, density, rng), 0.5)
        tiles.draw(grid, layer.tiles, density, np.uint64(0), all_)
        layer.cut(layer.nnz)
        x, y = aligned(_LANES * neurons, np.float32), aligned(_LANES * neurons, np.float32)
        slots = aligned(_LANES * layer.nnz, np.float32)
        for team in (one, all_)[:threads]:
            work = partial(layer.forward, team, width, x, slots, y)
            ns = _median(work, repeats) / layer.nnz
            lever = "tiles and slots" if team is one else f"+ {threads} cores"
            yield {"lever": lever, "kind": "tiles", "threads": team.size, "ns": ns}


def steps(neurons: int, repeats: int, threads: int) -> list[Result]:
    """Time whole training steps of one network, with the library's kernels and with tiles.

    Returns
    -------
    list of dict
        "kind" ("one by one" or "tiles"), "threads", and "ns" a connection, the median.
    """
    sizes = (N_FEATURES, neurons // 2, neurons // 2, N_CLASSES)
    found = []
    for n in sorted({1, threads}):
        ordinary = bench(
            sizes, epsilon=2.5, batch_size=_LANES, threads=n, steps=repeats, dropout=0.0
        )
        ns = ordinary["ms_per_step"]["median"] * 1e6 / ordinary["nnz"]
        found.append({"kind": "one by one", "threads": n, "ns": ns})
    for n in sorted({1, threads}):
        X, y = np.ones((_LANES, N_FEATURES), np.float32), np.arange(_LANES) % N_CLASSES
        with TiledMLP(sizes, epsilon=2.5, threads=n) as net:
            ns = _median(partial(net.step, X, y, 0.0), repeats) / net.nnz
        found.append({"kind": "tiles", "threads": n, "ns": ns})
    return found


def measure(neurons: int, repeats: int, threads: int) -> Result:
    """Measure all levers.

    Returns
    -------
    dict
        "neurons" of the layer, "forward" and "steps" as of the functions of these names, and
        "step_neurons", the hidden neurons of the latter.
    """
    whole = min(neurons, 2_000_000)
    return {
        "neurons": neurons,
        "forward": list(forward(neurons, repeats, threads)),
        "step_neurons": whole,
        "steps": steps(whole, repeats, threads),
    }


def _arrays(make: Callable[[int, Any], np.ndarray], indices: np.ndarray, nnz: int, n: int) -> Any:
    """Return indices, weights, inputs and outputs in memory that `make` makes."""
    own = make(len(indices), np.int32)
    own[:] = indices
    weights = make(nnz, np.float32)
    weights[:] = 0.5
    x, y = make(_LANES * n, np.float32), make(_LANES * n, np.float32)
    x[:] = 1
    y[:] = 0
    return own, weights, x, y


def _small_pages(size: int, dtype: Any) -> np.ndarray:
    """Return an array in pages of 4 KiB: NumPy's own are in huge ones on some systems."""
    memory = mmap.mmap(-1, size * np.dtype(dtype).itemsize)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(memory, dtype)


def _median(work: Callable[[], object], repeats: int) -> float:
    """Return nanoseconds."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter_ns()
        work()
        times.append(time.perf_counter_ns() - start)
    return float(np.median(times))
