"""How a layer is stored in tiles, how its random structure is drawn, and how it evolves.

A layer's matrix is cut into a grid of tiles, so small that the activations of a tile's input and
output neurons fit a core's cache. A tile is a list of connections, ascending and without repeats:
output and input neuron within the tile (16 bits each), weight and velocity, 12 bytes in all. Tiles
lie row by row of the grid; `sweeps` walk a layer along its rows or columns, without a transposed
copy. Everything takes O(nnz) time, and results do not depend on the threads: each tile draws from
its own stream of a counter-based hash.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from sparsecore.compiled.jit import inner, kernel
from sparsecore.compiled.kernels import mix
from sparsecore.compiled.team import Team, shares

# Neurons on the sides of a tile, for 4 activations per neuron. A visit to an input touches its
# gradient, too. Both sides fill about half of a second-level cache of 1 MiB.
_SIDE_OUT, _SIDE_IN, _LANES = 2**16, 2**15, 4
_LEAST_SIDE = 2**8
_BLOCKS = 16  # rows or columns of tiles that a layer should have, so that threads can share them
# Above this density, cells are chosen by walking through all of them, not by drawing and rejecting.
DENSE = 0.25
_BINS = 2**16


class Grid(NamedTuple):
    """The tiles of a layer, or of some rows of them."""

    n_in: int  #: input neurons
    n_out: int  #: output neurons
    side_in: int  #: input neurons of a tile
    side_out: int  #: output neurons of a tile
    across: int  #: tiles side by side
    down: int  #: rows of tiles
    first: int  #: number, in the whole layer, of the first row of tiles


class Tiles(NamedTuple):
    """Connections in the order of the tiles."""

    start: np.ndarray  #: int64, where each tile begins, row of tiles by row, and the end
    rows: np.ndarray  #: uint16, output neuron within the tile
    columns: np.ndarray  #: uint16, input neuron within the tile
    weights: np.ndarray  #: float32; NaN until `_weigh` sets it
    velocity: np.ndarray  #: float32


CONNECTION = 2 + 2 + 4 + 4  # bytes


def grid(n_in: int, n_out: int, lanes: int) -> Grid:
    """Cut a layer into tiles, for `lanes` activations per neuron."""
    side_in = _side(n_in, _SIDE_IN * _LANES // lanes)
    side_out = _side(n_out, _SIDE_OUT * _LANES // lanes)
    return Grid(n_in, n_out, side_in, side_out, -(-n_in // side_in), -(-n_out // side_out), 0)


def _side(n: int, most: int) -> int:
    return min(most, max(_LEAST_SIDE, 1 << (-(-n // _BLOCKS) - 1).bit_length()))


def cells(grid: Grid) -> np.ndarray:
    """Return the number of possible connections of each tile, int64."""
    heights = np.minimum(grid.side_out, grid.n_out - grid.side_out * np.arange(grid.down))
    widths = np.minimum(grid.side_in, grid.n_in - grid.side_in * np.arange(grid.across))
    return np.outer(heights, widths).ravel()


def spread(grids: Sequence[Grid], ranks: int) -> list[list[Grid]]:
    """Return each layer's rows of tiles, rank by rank, as separate grids."""
    most = max(grid.down for grid in grids)
    if ranks > most:
        expected = f"at most {most}, the rows of tiles that these layers have"
        raise ValueError(f"ranks: expected {expected}, got {ranks}; start fewer")
    return [[_part(grid, rank, ranks) for rank in range(ranks)] for grid in grids]


def _part(grid: Grid, rank: int, ranks: int) -> Grid:
    first, end = (grid.down * n // ranks for n in (rank, rank + 1))
    n_out = min(end * grid.side_out, grid.n_out) - first * grid.side_out
    return grid._replace(n_out=max(0, n_out), down=end - first, first=first)


def pointers(counts: np.ndarray) -> np.ndarray:
    """Return where each tile begins, and the end, int64."""
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def draw(grid: Grid, tiles: Tiles, density: float, key: np.uint64, team: Team) -> None:
    """Draw a layer: in each tile a uniformly random set of connections, as many as `start` says."""
    size = np.diff(tiles.start)
    nothing = Tiles(np.zeros_like(tiles.start), *(a[:0] for a in tiles[1:]))
    weak = np.zeros(2, np.uint32), np.zeros((len(size), 2), np.int64)
    walked = density > DENSE
    _fill(team, grid, key, cells(grid), walked, lambda found: size - found, nothing, *weak, tiles)


def _fill(
    team: Team, grid: Grid, key: np.uint64, vacant: np.ndarray, walked: bool,
    missing: Callable[[np.ndarray], np.ndarray], old: Tiles, cut: np.ndarray, quota: np.ndarray,
    new: Tiles,
) -> None:  # fmt: skip
    """Keep strong connections; draw vacant cells until `missing` says that enough are found."""
    # Each member has room for the cells of one tile, 16 bytes per draw.
    draws, found = np.zeros_like(vacant), np.zeros_like(vacant)
    drawn = buckets = np.empty((team.size, 1), np.int64)
    while (more := missing(found)).any():
        draws += more
        most = int(draws.max())
        if most >= buckets.shape[1]:
            drawn = np.empty((team.size, most), np.int64)
            buckets = np.empty((team.size, most + 1), np.int64)
        team.walk(_count, grid, key, vacant, draws, walked, drawn, buckets, found)
    new.start[:] = pointers(cells(grid) - vacant + found)
    chosen = grid, key, vacant, draws, walked, drawn, buckets
    team.walk(_merge, *chosen, old, cut, quota, new)
    team.walk(_weigh, grid, key, new, np.empty((team.size, grid.side_out), np.int32))


def check(grid: Grid, tiles: Tiles, team: Team) -> None:
    """Raise a ValueError unless tiles from a file are valid, as `draw` makes them. O(nnz)."""
    start = tiles.start
    if start[0] != 0 or start[-1] != len(tiles.rows) or (start[1:] < start[:-1]).any():
        raise ValueError("start: expected to rise from 0 to the number of connections")
    good = np.zeros(len(start) - 1, bool)
    team.walk(_check, grid, tiles, good)
    if not good.all():
        wrong = "a connection is outside, not in ascending order, or not finite"
        raise ValueError(f"tile {int(np.argmin(good))}: {wrong}")


def evolve(
    grid: Grid, tiles: Tiles, spare: Tiles, zeta: float, key: np.uint64, rng: np.random.Generator,
    team: Team,
) -> int:  # fmt: skip
    """Replace a layer's weakest connections by as many at random vacant places; return how many."""
    # It is SET's evolution. `spare` is as large as `tiles`; `key` must be new in each call. Repeats
    # are drawn anew, so every subset of vacant places is equally likely.
    cut, ties, dropped = weakest(tiles.weights, zeta, team)
    below = np.zeros((len(tiles.start) - 1, 3), np.int64)
    team.walk(_count_weak, tiles, cut, below)
    # Of the weights exactly at the cut, the first ones are removed.
    before = np.cumsum(below[:, 1:], axis=0) - below[:, 1:]
    quota = np.clip(ties - before, 0, below[:, 1:])
    vacant = cells(grid) - np.diff(tiles.start) + below[:, 0] + quota.sum(axis=1)
    shares = vacant / max(1, vacant.sum())
    _fill(
        team, grid, key, vacant, False,
        lambda found: rng.multinomial(dropped - int(found.sum()), shares), tiles, cut, quota, spare,
    )  # fmt: skip
    for old, new in zip(tiles, spare, strict=True):
        np.copyto(old, new)
    return dropped


def weakest(weights: np.ndarray, zeta: float, team: Team) -> tuple[np.ndarray, np.ndarray, int]:
    """Find the fraction `zeta` of each sign's weights that is closest to 0, as SET removes it."""
    # Returns the magnitudes, as bits, below which positive and negative weights are weak; how many
    # weights exactly there are also weak; and the number of weak weights in all. Magnitudes are
    # ordered like their bits: a histogram of the upper halves, and one of the lower halves of the
    # weights in the bin found, need neither sorting nor a copy.
    counts = np.zeros((team.size, 2, _BINS), np.int64)
    bits = weights.view(np.uint32)
    team.walk(_histogram, bits, np.full(2, _BINS, np.uint32), counts)
    upper = counts.sum(axis=0)
    drop = np.array([int(zeta * int(n)) for n in upper.sum(axis=1)])
    high, left = _bin(upper, drop)
    counts[:] = 0
    team.walk(_histogram, bits, high, counts)
    low, ties = _bin(counts.sum(axis=0), left)
    return high << np.uint32(16) | low, ties, int(drop.sum())


def _bin(counts: np.ndarray, left: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the bin of weight number `left` of each sign, and how many are left within it."""
    ends = np.cumsum(counts, axis=1)
    found = [np.searchsorted(e, n, side="right") for e, n in zip(ends, left, strict=True)]
    bins = np.minimum(found, _BINS - 1)
    sides = np.arange(2)
    return bins.astype(np.uint32), left - ends[sides, bins] + counts[sides, bins]


@kernel
def _check(member, size, sync, grid, tiles, good):
    """Note for each tile whether its connections are inside it, in order, and finite."""
    for part in shares(sync, size, member, 0, len(good)):
        for tile in part:
            width = min(grid.side_in, grid.n_in - tile % grid.across * grid.side_in)
            height = min(grid.side_out, grid.n_out - tile // grid.across * grid.side_out)
            last, sound = np.int64(-1), True
            for k in range(tiles.start[tile], tiles.start[tile + 1]):
                row, column = np.int64(tiles.rows[k]), np.int64(tiles.columns[k])
                cell = row * width + column
                finite = np.isfinite(tiles.weights[k]) and np.isfinite(tiles.velocity[k])
                sound &= row < height and column < width and cell > last and finite
                last = cell
            good[tile] = sound


@inner
def _signed(bits):
    """Return the sign, 1 if negative, and the bits of the magnitude of a float32 given as bits."""
    magnitude = bits & np.uint32(0x7FFFFFFF)
    return (1 if bits > np.uint32(0x80000000) else 0), magnitude


@kernel
def _histogram(member, size, sync, bits, within, counts):
    """Count upper halves of magnitudes, or lower halves of those whose upper one is `within`."""
    for part in shares(sync, size, member, 0, len(bits)):
        for k in part:
            sign, magnitude = _signed(bits[k])
            high = magnitude >> np.uint32(16)
            if within[0] == _BINS:
                counts[member, sign, high] += 1
            elif high == within[sign]:
                counts[member, sign, magnitude & np.uint32(0xFFFF)] += 1


@inner
def _uniform(key, number):
    """Return a number in [0, 1), a multiple of 2**-53."""
    return np.float64(mix(key, number) >> np.uint64(11)) * 2.0**-53


@inner
def _distinct(key, n, draws, out, buckets):
    """Draw integers from [0, n) and write them in ascending order, each once; return how many."""
    for bucket in range(draws + 1):
        buckets[bucket] = 0
    for number in range(draws):
        buckets[np.int64(_uniform(key, number) * draws) + 1] += 1
    for bucket in range(draws):
        buckets[bucket + 1] += buckets[bucket]
    for number in range(draws):
        u = _uniform(key, number)
        bucket = np.int64(u * draws)
        out[buckets[bucket]] = np.int64(u * n)
        buckets[bucket] += 1
    kept = 0
    for place in range(draws):
        value = out[place]
        hole = kept
        while hole > 0 and out[hole - 1] > value:
            hole -= 1
        if hole > 0 and out[hole - 1] == value:
            continue
        for other in range(kept, hole, -1):
            out[other] = out[other - 1]
        out[hole] = value
        kept += 1
    return kept


@inner
def _chosen(key, n, size, out):
    """Choose `size` of the integers below n, each subset equally likely, in ascending order."""
    found = 0
    for value in range(n):
        if _uniform(key, value) * (n - value) < size - found:
            out[found] = value
            found += 1
    return found


@inner
def _ranks(key, grid, tile, vacant, draws, walked, out, buckets):
    """Write the new connections of a tile, as numbers of vacant cells; return how many."""
    own = mix(key, grid.first * grid.across + tile)
    if walked:
        return _chosen(own, vacant[tile], draws[tile], out)
    return _distinct(own, vacant[tile], draws[tile], out, buckets)


@kernel
def _count(member, size, sync, grid, key, vacant, draws, walked, drawn, buckets, found):
    """Count how many different cells the draws of each tile hit."""
    for part in shares(sync, size, member, 0, len(draws)):
        for tile in part:
            found[tile] = _ranks(
                key, grid, tile, vacant, draws, walked, drawn[member], buckets[member]
            )


@kernel
def _count_weak(member, size, sync, tiles, cut, below):
    """Count the weights of each tile below the cut, and the positive and negative ones at it."""
    bits = tiles.weights.view(np.uint32)
    for part in shares(sync, size, member, 0, len(tiles.start) - 1):
        for tile in part:
            for k in range(tiles.start[tile], tiles.start[tile + 1]):
                sign, magnitude = _signed(bits[k])
                below[tile, 0] += magnitude < cut[sign]
                below[tile, 1 + sign] += magnitude == cut[sign]


@kernel
def _merge(
    member, size, sync, grid, key, vacant, draws, walked, drawn, buckets, old, cut, quota, new
):
    """Write the connections that stay and the new ones, tile by tile, in ascending order."""
    bits = old.weights.view(np.uint32)
    ranks = drawn[member]
    for part in shares(sync, size, member, 0, len(draws)):
        for tile in part:
            n_new = _ranks(key, grid, tile, vacant, draws, walked, ranks, buckets[member])
            width = min(grid.side_in, grid.n_in - tile % grid.across * grid.side_in)
            place, kept, fresh = new.start[tile], 0, 0
            end = old.start[tile + 1]
            for k in range(old.start[tile], end + 1):
                cell = np.int64(2**62)  # past all connections
                if k < end:
                    sign, magnitude = _signed(bits[k])
                    if magnitude < cut[sign]:
                        continue
                    if magnitude == cut[sign] and quota[tile, sign] > 0:
                        quota[tile, sign] -= 1
                        continue
                    cell = np.int64(old.rows[k]) * width + old.columns[k]
                # `kept` cells before it are occupied, so vacant cell number r is cell r + kept.
                while fresh < n_new and ranks[fresh] + kept < cell:
                    row = (ranks[fresh] + kept) // width
                    new.rows[place], new.columns[place] = row, ranks[fresh] + kept - row * width
                    new.weights[place], new.velocity[place] = np.nan, 0  # `_weigh` sets the weight
                    place, fresh = place + 1, fresh + 1
                if k < end:
                    new.rows[place], new.columns[place] = old.rows[k], old.columns[k]
                    new.weights[place], new.velocity[place] = old.weights[k], old.velocity[k]
                    place, kept = place + 1, kept + 1


@kernel
def _weigh(member, size, sync, grid, key, tiles, fan_in):
    """Draw the missing weights from U(±√(6/k)), where k is the neuron's own fan-in."""
    # He et al. (2015) use the width of the layer below, but here fan-ins are small and vary.
    count = fan_in[member]
    for part in shares(sync, size, member, 0, grid.down):
        for block in part:
            count[:] = 0
            first = block * grid.across
            for k in range(tiles.start[first], tiles.start[first + grid.across]):
                count[tiles.rows[k]] += 1
            for tile in range(first, first + grid.across):
                own = mix(mix(key, grid.first * grid.across + tile), grid.n_in)
                begin = tiles.start[tile]
                for k in range(begin, tiles.start[tile + 1]):
                    if np.isnan(tiles.weights[k]):
                        limit = np.sqrt(6.0 / count[tiles.rows[k]])
                        u = _uniform(own, k - begin)
                        tiles.weights[k] = np.float32(limit * (2.0 * u - 1.0))
