"""The memory that a network takes, array by array, before any of it is allocated.

The number of connections is its expectation, which is exact to four digits for hundreds of millions
of random connections.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import psutil

from sparsecore import topology
from sparsecore.compiled.engine import HUGE_PAGE
from sparsecore.config import integers
from sparsecore.extreme import tiles
from sparsecore.limits import free_memory

GIB = 2**30
_MOST_LANES = 64


class OverBudgetError(ValueError):
    """A network needs more memory than it may use."""


def lanes_for(batch_size: int) -> int:
    """Return how many activations each neuron keeps: a batch, rounded up to a register's lanes."""
    integers(1, _MOST_LANES).check("batch_size", batch_size)
    return max(4, 1 << (batch_size - 1).bit_length())


def densities(sizes: Sequence[int], epsilon: float) -> list[float]:
    """Return each layer's Erdős–Rényi density; refuse a layer that is too dense to evolve."""
    found = [topology.erdos_renyi_density(a, b, epsilon) for a, b in pairwise(sizes)]
    for layer, density in enumerate(found[:-1]):
        if density > tiles.DENSE:
            raise ValueError(
                f"layer {layer}, {sizes[layer]:,} to {sizes[layer + 1]:,} neurons: epsilon "
                f"{epsilon} makes it {100 * density:.0f} % dense, expected at most "
                f"{100 * tiles.DENSE:.0f} %; use `python -m sparsecore train` for such networks"
            )
    return found


def workspace(counts: Sequence[float], grids: Sequence[tiles.Grid], lanes: int) -> int:
    """Return the bytes that slots or evolution of the largest layer need; a layer may be empty."""
    needed = [tiles.CONNECTION * n for n in counts[:-1]]
    for n, g in zip(counts, grids, strict=True):
        block = n * min(1.0, max(g.side_out / max(1, g.n_out), g.side_in / g.n_in))
        # Six standard deviations: evolution makes no row of tiles larger than that.
        needed.append(4 * lanes * min(n, block + 6 * block**0.5 + 64))
    return int(max(needed)) + 64


@dataclass(frozen=True)
class Budget:
    """The memory plan of a network in training."""

    sizes: tuple[int, ...]
    n_bytes: list[int]  #: of each rank, beside the program's and a batch's if the network is split
    expected: list[float]  #: connections of each rank
    items: dict[str, int]  #: bytes by purpose; empty if it is split

    @property
    def connections(self) -> float:
        """Expected connections of the rank that has most."""
        return max(self.expected)

    @property
    def total(self) -> int:
        """Bytes in all, of the rank that needs most."""
        return max(self.n_bytes)

    def table(self) -> str:
        """Return the plan as text, one item per line."""
        neurons = f"{sum(self.sizes[1:-1]):,} hidden neurons"
        if not self.items:
            most = f"at most {self.total / GIB:.2f} GiB each, beside the program"
            return f"{neurons} on {len(self.n_bytes)} ranks: {most}"
        widths = (f"{n:,}".replace(",000,000", "M").replace(",000", "k") for n in self.sizes)
        lines = [f"{'-'.join(widths)}: {neurons}, {self.connections:,.0f} connections expected"]
        for name, n_bytes in {**self.items, "in all": self.total}.items():
            lines.append(f"  {name:42} {n_bytes / GIB:8.3f} GiB")
        return "\n".join(lines)

    def check(self, limit: int | None) -> None:
        """Refuse a plan above `limit` bytes, or above the memory that is free now if None."""
        name, needs = "--memory-limit", "for this network"
        advice = "raise it, or use fewer neurons or a lower --epsilon"
        if not self.items:  # ranks may share a machine's free memory: it is no limit
            needs, advice = "per rank", "raise it, or start more ranks"
        elif limit is None:
            # The process's own memory is no longer free, but the plan includes it.
            name, limit = "free memory", free_memory() + psutil.Process().memory_info().rss
            advice = "use fewer neurons, a lower --epsilon, or another machine"
        if limit is not None and self.total > limit:
            raise OverBudgetError(
                f"{name}: expected at least {self.total / GIB:.2f} GiB {needs}, got "
                f"{limit / GIB:.2f} GiB; {advice}"
            )


def plan(
    sizes: Sequence[int], epsilon: float, batch_size: int, threads: int, ranks: int | None = None
) -> Budget:
    """Plan a network's memory, the process's own included (import and compile first), or ranks'."""
    lanes = lanes_for(batch_size)
    grids = [tiles.grid(a, b, lanes) for a, b in pairwise(sizes)]
    shapes = zip(densities(sizes, epsilon), pairwise(sizes), strict=True)
    counts = [p * a * b for p, (a, b) in shapes]
    if ranks is not None:
        n_bytes, expected = [], []
        for parts in zip(*tiles.spread(grids, ranks), strict=True):
            here = [n * p.n_out / g.n_out for n, p, g in zip(counts, parts, grids, strict=True)]
            arrays = tiles.CONNECTION * sum(here) + sum(p.n_out for p in parts) * (8 + 4 * lanes)
            gathered = 4 * lanes * max(sizes[1:])
            n_bytes.append(int(arrays + workspace(here, parts, lanes) + gathered))
            expected.append(sum(here))
        return Budget(tuple(sizes), n_bytes, expected, {})
    items = {
        "program": psutil.Process().memory_info().rss,
        "weights, 4 bytes each": sum(_pages(4 * n) for n in counts),
        "velocities, 4 bytes each": sum(_pages(4 * n) for n in counts),
        "indices, 2 × 2 bytes each": sum(2 * _pages(2 * n) for n in counts),
        "tile pointers": 2 * sum(8 * (g.across * g.down + 1) for g in grids),
        "biases and velocities, 8 bytes each": sum(2 * _pages(4 * n) for n in sizes[1:]),
        f"activations, {4 * lanes} bytes per neuron": sum(_pages(4 * lanes * n) for n in sizes),
        "workspace: slots, or a layer that evolves": _pages(workspace(counts, grids, lanes)),
        "scratch of the threads": threads
        * max(4 * lanes * g.side_in + 4 * g.side_out for g in grids),
        "batches": 4 * 4 * sizes[0] * lanes,
    }
    return Budget(tuple(sizes), [sum(items.values())], [sum(counts)], items)


def _pages(n_bytes: float) -> int:
    """Return the bytes that an array takes: whole huge pages, if it is large."""
    if n_bytes < HUGE_PAGE // 2:
        return int(n_bytes)
    return int(-(-n_bytes // HUGE_PAGE) * HUGE_PAGE)


def parse_bytes(text: str) -> int:
    """Return the number of bytes that a text such as "22GiB", "500 MB" or "1e9" names."""
    number = r"(\d*\.?\d+(?:E\d+)?)"
    found = re.fullmatch(number + r"\s*(?:([KMGT])(I?B)?|B)?", text.strip().upper())
    value = 0.0
    if found:
        base = 1000 if found[3] == "B" else 1024
        value = float(found[1]) * base ** (" KMGT".index(found[2] or " "))
    if not 0 < value < 2**63:
        raise ValueError(f"--memory-limit: expected a size such as 22GiB or 500MB, got {text!r}")
    return int(value)
