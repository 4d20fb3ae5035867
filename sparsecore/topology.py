"""The sparse structure of one layer: make it, check it, change it.

A layer's structure is the CSR pair ``indptr`` (int64, shape (n_out + 1,)), ``indices`` (int32,
shape (nnz,)): row j lists, in ascending order and without repeats, the input neurons that feed
output neuron j. ``data`` and ``velocity`` are float32, shape (nnz,). Support and value are
different things: a weight that happens to be zero is still a connection. Time and memory grow with
the number of connections, never with ``n_in * n_out``. Source, unless another is named: SET is
Mocanu et al. 2018, algorithm 1; all else is "Truly Sparse Neural Networks at Scale".
"""

import numpy as np
import scipy.sparse as sp

from sparsecore.compiled.arrays import reads
from sparsecore.compiled.jit import jit
from sparsecore.compiled.kernels import mix
from sparsecore.config import HYPERPARAMETERS

_jit = jit()
Structure = tuple[np.ndarray, np.ndarray]  #: indptr, indices
_Layer = tuple[np.ndarray, np.ndarray, np.ndarray]  #: indptr, indices, data


def erdos_renyi_density(n_in: int, n_out: int, epsilon: float) -> float:
    """Return the probability of a connection, p = min(1, epsilon (n_in + n_out) / (n_in n_out))."""
    HYPERPARAMETERS["epsilon"].check(epsilon)
    return min(1.0, epsilon * (n_in + n_out) / (n_in * n_out))


def erdos_renyi(n_in: int, n_out: int, density: float, rng: np.random.Generator) -> Structure:
    """Draw (indptr, indices) of a layer; connections exist with probability `density` in (0, 1]."""
    # O(nnz + n_out): the gaps between a row's connections are geometric (Batagelj and Brandes,
    # 2005), drawn once to count and again to fill.
    HYPERPARAMETERS["density"].check(density)
    key = rng.integers(2**63, dtype=np.int64)
    log_miss = np.log1p(-density) if density < 1 else -np.inf
    indptr = np.zeros(n_out + 1, np.int64)
    _draw_rows(n_in, log_miss, key, indptr, None)
    np.cumsum(indptr, out=indptr)
    indices = np.empty(indptr[-1], np.int32)
    _draw_rows(n_in, log_miss, key, indptr, indices)
    return indptr, indices


@_jit
def _draw_rows(n_in, log_miss, key, indptr, indices):
    """Count each row's connections into ``indptr[row + 1]``, or fill `indices` if it is given."""
    for row in range(len(indptr) - 1):
        row_key = mix(key, row)
        column, n = -1, 0
        while True:
            uniform = (np.float64(mix(row_key, n) >> np.uint64(11)) + 1.0) * 2.0**-53
            gap = np.log(uniform) / log_miss
            if gap >= n_in - 1 - column:
                break
            column += np.int64(gap) + 1
            if indices is not None:
                indices[indptr[row] + n] = column
            n += 1
        if indices is None:
            indptr[row + 1] = n


def check(indptr: np.ndarray, indices: np.ndarray, n_in: int) -> None:
    """Raise ValueError unless a CSR structure is valid; kernels check nothing. O(nnz)."""
    indptr, indices = _integers("indptr", indptr), _integers("indices", indices)
    if len(indptr) == 0 or indptr[0] != 0 or indptr[-1] != len(indices):
        raise ValueError(f"indptr: expected to run from 0 to nnz = {len(indices)}")
    falls = indptr[1:] < indptr[:-1]  # compared, not subtracted: differences may wrap
    if falls.any():
        raise ValueError(f"indptr: decreases at row {int(np.argmax(falls))}")
    if len(indices) == 0:
        return
    if indices.min() < 0 or indices.max() >= n_in:
        bad = indices[(indices < 0) | (indices >= n_in)][0]
        raise ValueError(f"indices: {bad} is outside [0, {n_in})")
    rises, ends = indices[1:] > indices[:-1], indptr[1:-1]
    rises[ends[(ends > 0) & (ends < len(indices))] - 1] = True
    if not rises.all():
        place = int(np.argmin(rises))
        row = int(np.searchsorted(indptr, place, "right")) - 1
        raise ValueError(f"indices: row {row} is not strictly ascending (a repeated connection?)")


def _integers(name: str, values: np.ndarray) -> np.ndarray:
    """Return a vector of integers."""
    values = np.asarray(values)
    if values.ndim != 1 or values.dtype.kind not in "iu":
        found = f"{values.dtype} of shape {values.shape}"
        raise ValueError(f"{name}: expected a vector of integers, got {found}")
    return values


@_jit
def transpose(indptr, indices, out_indptr, out_indices, out_position):
    """Fill the transposed access by counting sort: each input's outputs, and CSR places."""
    out_indptr[:] = 0
    for k in range(len(indices)):
        out_indptr[indices[k]] += 1
    for column in range(1, len(out_indptr)):
        out_indptr[column] += out_indptr[column - 1]
    # A pointer is at the end of its column; filling backwards moves it to the beginning.
    for row in range(len(indptr) - 2, -1, -1):
        for k in range(indptr[row + 1] - 1, indptr[row] - 1, -1):
            out_indptr[indices[k]] -= 1
            place = out_indptr[indices[k]]
            out_indices[place] = row
            out_position[place] = k


def weakest(data: np.ndarray, zeta: float) -> np.ndarray:
    """Mark the fraction `zeta` of positive, and of negative, weights that are closest to zero."""
    drop = np.zeros(len(data), bool)
    negative = data < 0
    for sign in (~negative, negative):
        places = np.flatnonzero(sign)
        drop[places[_smallest(np.abs(data[places]), int(zeta * len(places)))]] = True
    return drop


def _smallest(values: np.ndarray, n: int) -> np.ndarray:
    """Mark the `n` smallest values, at most all; among equals, the first, on any CPU."""
    if n == 0:
        return np.zeros(len(values), bool)
    cut = np.partition(values, n - 1)[n - 1]
    found = values < cut
    found[np.flatnonzero(values == cut)[: n - np.count_nonzero(found)]] = True
    return found


def distinct(n: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Draw `size` of the integers below `n`, each subset equally likely, in ascending order."""
    if 2 * size > n:
        return np.sort(rng.permutation(n)[:size])
    drawn = np.zeros(0, np.int64)
    while len(drawn) < size:
        more = rng.integers(n, size=size - len(drawn))
        # Not np.unique: it hashes first, which takes a hundred times as long as sorting.
        drawn = np.sort(np.concatenate([drawn, more]))
        drawn = drawn[np.diff(drawn, prepend=-1) > 0]
    return drawn


def replace(
    drop: np.ndarray, indptr: np.ndarray, indices: np.ndarray, data: np.ndarray,
    velocity: np.ndarray | None, n_in: int, fresh: np.ndarray, rng: np.random.Generator,
) -> None:  # fmt: skip
    """Remove the connections that `drop` marks, and add as many, with weights `fresh`, in place."""
    # All vacant places are equally likely, those of removed connections included. Their numbers are
    # drawn, and one merge rewrites the layer: O(nnz) whatever the density.
    n_out = len(indptr) - 1
    keep = np.flatnonzero(~drop)
    vacant = n_in * n_out - len(keep)
    ranks = distinct(vacant, len(fresh), rng)
    moved = np.zeros(len(data), np.float32) if velocity is None else velocity
    rows = np.repeat(np.arange(n_out, dtype=np.int32), np.diff(indptr))[keep]
    kept = rows, indices[keep], data[keep], moved[keep]
    _merge(*kept, ranks, fresh, n_in, indptr, indices, data, moved)


@_jit
def _merge(rows, columns, kept, kept_velocity, ranks, fresh, n_in, indptr, indices, data, velocity):
    """Write kept and new connections in ascending order; `ranks` count vacant places."""
    n_kept, n_new = len(rows), len(ranks)
    indptr[:] = 0
    i = 0
    for place in range(n_kept + n_new):
        j = place - i
        # With i connections kept so far, vacant place number r is at r + i, unless the next kept
        # connection lies at or before it.
        if i < n_kept and (j == n_new or np.int64(rows[i]) * n_in + columns[i] - i <= ranks[j]):
            row = rows[i]
            indices[place] = columns[i]
            data[place] = kept[i]
            velocity[place] = kept_velocity[i]
            i += 1
        else:
            position = ranks[j] + i
            row = position // n_in
            indices[place] = position - row * n_in
            data[place] = fresh[j]
            velocity[place] = 0
        indptr[row + 1] += 1
    for row in range(1, len(indptr)):
        indptr[row] += indptr[row - 1]


def importance(indptr: np.ndarray, data: np.ndarray) -> np.ndarray:
    """Return the neuron importance I_j = sum_i |w_ji|, float64, exactly 0 without connections."""
    rows = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
    return np.bincount(rows, np.abs(data), len(indptr) - 1)


def unimportant(
    indptr: np.ndarray, data: np.ndarray, percentile: float, counts_empty: bool = False
) -> np.ndarray:
    """Mark inputs of neurons up to this percentile of importance; percentile 0 marks none."""
    fan_in = np.diff(indptr)
    strength = importance(indptr, data)
    if percentile == 0 or not fan_in.any():
        return np.zeros(len(data), bool)
    weak = strength <= np.percentile(strength[(fan_in > 0) | counts_empty], percentile)
    return np.repeat(weak, fan_in)


def keep_only(keep: np.ndarray, indptr: np.ndarray, indices: np.ndarray) -> Structure:
    """Return the structure without the connections where `keep` is False. O(nnz)."""
    running = np.concatenate([[0], np.cumsum(keep)])
    return running[indptr], indices[keep]


def retain_valid(
    indptr: np.ndarray, indices: np.ndarray, values: np.ndarray, new_indptr: np.ndarray,
    new_indices: np.ndarray, out: np.ndarray,
) -> int:  # fmt: skip
    """Copy to `out` the values of connections that both topologies have, else 0; count them."""
    # RetainValidUpdates: a merge of the rows, O(nnz + new nnz).
    old = reads(indptr, np.int64), reads(indices, np.int32), reads(values, np.float32)
    return _retain(*old, reads(new_indptr, np.int64), reads(new_indices, np.int32), out)


@_jit
def _retain(indptr, indices, values, new_indptr, new_indices, out):
    kept = 0
    for row in range(len(indptr) - 1):
        k, stop = indptr[row], indptr[row + 1]
        for place in range(new_indptr[row], new_indptr[row + 1]):
            column = new_indices[place]
            while k < stop and indices[k] < column:
                k += 1
            if k < stop and indices[k] == column:
                out[place] = values[k]
                kept += 1
            else:
                out[place] = 0
    return kept


def union_average(layers: list[_Layer]) -> _Layer:
    """Average layers of one shape over the union of their connections (WASAP-SGD, phase 2)."""
    # A missing connection counts as 0. Sums are float64, in order: equal layers average to
    # themselves.
    shape = len(layers[0][0]) - 1, 1 + max(int(found.max(initial=0)) for _, found, _ in layers)
    # Patterns hold truth values: numbers may cancel, and SciPy drops a sum that is 0.
    patterns = (sp.csr_array((np.ones(len(i), bool), i, p), shape) for p, i, _ in layers)
    union = sum(patterns)
    indptr, indices = union.indptr.astype(np.int64), union.indices.astype(np.int32)
    total, values = np.zeros(len(indices)), np.empty(len(indices), np.float32)
    for layer in layers:
        retain_valid(*layer, indptr, indices, values)
        total += values
    return indptr, indices, (total / len(layers)).astype(np.float32)


def strongest(data: np.ndarray, n: int) -> np.ndarray:
    """Mark the `n` values of largest magnitude; among equals, the first."""
    return _smallest(-np.abs(data), min(n, len(data)))
