"""Which weights are the weakest: an exact cut in two passes over them, without sorting or copying.

Magnitudes of float32 are ordered like their bits. So a histogram of the upper 16 bits tells where
the cut is to 16 bits, and one of the lower 16 bits of the weights in that bin tells the rest.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sparsecore.compiled.jit import jit
from sparsecore.compiled.team import PARTS, Team, barrier, claim

_jit = jit(_nrt=False)
_BINS = 2**16


class Cut(NamedTuple):
    """Magnitudes below which weights are weak; entry 0 is for positive ones, 1 for negative."""

    magnitude: np.ndarray  #: uint32 (2,), the bits
    ties: np.ndarray  #: int64 (2,), how many of those exactly at the cut are weak as well

    dropped: int = 0  #: weak weights in all


def weakest(weights: np.ndarray, zeta: float, team: Team) -> Cut:
    """Find the fraction `zeta`, rounded down, of each sign's weights that is closest to zero.

    Parameters
    ----------
    weights : ndarray of float32
        Without NaN. Zeros count as positive, as in `topology.weakest`.
    zeta : float
        In [0, 1).
    team : Team

    Notes
    -----
    Two passes, O(nnz) time, 1 MiB a thread.
    """
    if not 0 <= zeta < 1:
        raise ValueError(f"zeta: expected a fraction in [0, 1), got {zeta!r}")
    counts = np.zeros((team.size, 2, _BINS), np.int64)
    bits = weights.view(np.uint32)
    nowhere = np.full(2, _BINS, np.uint32)
    team.run(_histogram, team.size, team.sync, bits, nowhere, counts)
    upper = counts.sum(axis=0)
    drop = np.array([int(zeta * int(n)) for n in upper.sum(axis=1)])
    high, left = _find(upper, drop)
    counts[:] = 0
    team.run(_histogram, team.size, team.sync, bits, high, counts)
    low, ties = _find(counts.sum(axis=0), left)
    return Cut(high << np.uint32(16) | low, ties, int(drop.sum()))


def _find(counts: np.ndarray, left: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the bin of weight number `left` of each sign, and how many are left within it."""
    ends = np.cumsum(counts, axis=1)
    found = [np.searchsorted(e, n, side="right") for e, n in zip(ends, left, strict=True)]
    bins = np.minimum(found, _BINS - 1)
    sides = np.arange(2)
    return bins.astype(np.uint32), left - ends[sides, bins] + counts[sides, bins]


@_jit
def split(bits):
    """Return the sign, 1 if negative, and the bits of the magnitude of a float32 given as bits."""
    magnitude = bits & np.uint32(0x7FFFFFFF)
    return (1 if bits > np.uint32(0x80000000) else 0), magnitude


@_jit
def _histogram(member, size, sync, bits, within, counts):
    """Count upper halves of magnitudes, or lower halves of those whose upper one is `within`."""
    n, parts = len(bits), size * PARTS
    part = claim(sync, size, member)
    while part >= 0:
        for k in range(n * part // parts, n * (part + 1) // parts):
            sign, magnitude = split(bits[k])
            high = magnitude >> np.uint32(16)
            if within[0] == _BINS:
                counts[member, sign, high] += 1
            elif high == within[sign]:
                counts[member, sign, magnitude & np.uint32(0xFFFF)] += 1
        part = claim(sync, size, member)
    barrier(sync, size)
