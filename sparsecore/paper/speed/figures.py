"""The pictures and tables of the page on speed: measurements in, pictures out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

from sparsecore.paper.page import Column, Picture, Table
from sparsecore.paper.speed.contest import PEERS
from sparsecore.paper.speed.measure import SHAPES
from sparsecore.paper.store import Result, Versions
from sparsecore.paper.style import COLOURS, GREY, dot, line, picture, source, tag, with_spread

Speed = dict[str, Versions[Result]]

# One colour for each kind of peer; sparsecore has that of its method.
_KINDS = {
    "sparsecore": (COLOURS["set-all-relu"], ("sparsecore",)),
    "yardstick": ("#333333", ("c-loop",)),
    "sparse": (COLOURS["set-all-relu-pruned"], ("torch-csr", "sparselab", "sparseprop")),
    "dense": (COLOURS["set-relu"], [key for key in PEERS if key.endswith(("-dense", "-masked"))]),
}
_COLOUR = {key: colour for colour, keys in _KINDS.values() for key in keys}
_TITLES = {"fashion-mnist": "Fashion-MNIST's network", "cifar10": "CIFAR-10's network"}
_SHAPE_COLOUR = {"fashion-mnist": COLOURS["set-all-relu"], "cifar10": COLOURS["set-relu"]}
_LEVEL_STYLE = {"L1": "-", "L2": (0, (5, 1)), "L3": (0, (3, 1, 1, 1)), "DRAM": (0, (1, 1))}
_LEVEL_MARKER = {"L1": "s", "L2": "o", "L3": "D", "DRAM": "v"}


def peers(speed: Speed) -> Picture:
    """Draw milliseconds per training step of all peers, a row per network."""
    found = speed["peers"]
    timed = {key for _, result in found for c in result["contests"] for key in c["peers"]}
    keys = [key for key in PEERS if key in timed]

    def draw(place: Axes, title: str, result: Result) -> str:
        grid = place.get_subplotspec().subgridspec(len(SHAPES), 1)
        place.remove()
        for ax, shape in zip(grid.subplots(), SHAPES, strict=True):
            _contest(ax, [c for c in result["contests"] if c["shape"] == shape], keys)
            ax.set_title(f"{_TITLES[shape]}, {title}")
            ax.tick_params(labelleft=title == next(iter(found))[0])
        ax.set_xlabel("milliseconds per training step")
        return _threads(result)

    legend = [dot(colour, label) for label, (colour, _) in _KINDS.items()]
    legend += [dot(GREY, "one thread"), dot(GREY, "at most two threads", fill="white")]
    show = picture(
        "F-speed-peers", height=0.9 + 0.62 * len(keys), legend=legend,
        caption="**A training step, and the peers.** Time of a full step on the networks of the "
        "study's images (ε = 20, batches of 128): medians of interleaved rounds, with bars from "
        "the fastest to the slowest, and in brackets the time over sparsecore's. What to see: how "
        "far the other peers lie to the right of sparsecore.",
        alt="Dot plot of milliseconds per training step for each peer, on two networks.",
    )  # fmt: skip
    return show(draw)(found)


def _threads(result: Result) -> str:
    """Say how far from each other the cores of several threads were, and how busy."""
    shared = [c for c in result["contests"] if c["problem"]["threads"] > 1]
    if not shared:
        return ""
    seen = [microseconds for contest in shared for microseconds in contest["meeting_us"]]
    cores = [contest["peers"]["sparsecore"]["cores"] for contest in shared]
    return (
        f"A signal between the two threads took {min(seen):.2f} to {max(seen):.2f} µs; sparsecore, "
        "which leaves the second idle where it does not help, kept "
        f"{min(cores):.1f} to {max(cores):.1f} cores busy."
    )


def _contest(ax: Axes, contests: Sequence[Result], keys: Sequence[str]) -> None:
    for contest in contests:
        threads = contest["problem"]["threads"]
        for key, found in contest["peers"].items():
            place = keys.index(key) + (0.18 if threads > 1 else -0.18 * (len(contests) > 1))
            ax.plot([found["low"], found["high"]], [place] * 2, color=_COLOUR[key], linewidth=1.2)
            fill = _COLOUR[key] if threads == 1 else "white"
            ax.plot(found["ms"], place, "o", color=_COLOUR[key], markerfacecolor=fill, markersize=6)
            text = f"{found['ms']:.3g}"
            if key != "sparsecore":
                text += f" (×{found['ratio']['median']:.2g})"
            tag(ax, text, (found["high"], place), (6, 0), va="center")
    ax.set_yticks(range(len(keys)), [PEERS[key].label for key in keys])
    ax.set_ylim(len(keys) - 0.4, -0.6)
    ax.set_xscale("log")
    low, high = ax.get_xlim()
    ax.set_xlim(low, high * (high / low) ** 0.3)  # room for the numbers
    _plain_ticks(ax.xaxis)


# The columns of T-peers' CSV file that are those of a peer's measurement.
_TIMED = {
    "ms_per_step": "ms", "low": "low", "high": "high", "ratio": "ratio", "cores_busy": "cores",
    "cpu_ms_per_step": "cpu_ms", "others_cpus": "others", "peak_rss_mb": "peak_rss_mb",
    "version": "version",
}  # fmt: skip


def what_peers_do(speed: Speed) -> Table:
    """Make the table of the peers: what each does, and where it was timed."""
    found = speed["peers"]
    shown: list[dict[str, str]] = []
    plain: list[Result] = []
    for key, peer in PEERS.items():
        shown.append({"peer": peer.label, "what a step of it is": peer.note})
        for title, result in found:
            contests = result["contests"]
            absent = contests[0]["absent"].get(key, {}).get("reason", "not there")
            versions = [c["peers"][key]["version"] for c in contests if key in c["peers"]]
            shown[-1][title] = [*versions, absent][0]
            plain += [_timed(key, title, contest) for contest in contests]
    caption = (
        "**The peers.** What a step of each includes, and the version that was timed. Each trains "
        "the same network on the same data, in a process of its own. Without dropout and weight "
        "decay all but the C loop take the steps of a reference in float64, to rounding."
    )
    frame, data = pd.DataFrame(shown), pd.DataFrame(plain)
    return Table("T-peers", frame, caption, data, sources=source(found))


def _timed(key: str, title: str, contest: Result) -> Result:
    found, problem = contest["peers"].get(key, {}), contest["problem"]
    values = found | {"ratio": found.get("ratio", {}).get("median")}
    return {
        "peer": key, "measured": title, "network": "-".join(map(str, problem["sizes"])),
        "threads": problem["threads"], **{name: values.get(own) for name, own in _TIMED.items()},
        "blas": "; ".join(found.get("blas", [])),
        "absent": contest["absent"].get(key, {}).get("reason"),
    }  # fmt: skip


_EPOCH = {
    "products": "forward, loss, backward, update", "batches": "fetching the batches, dropout",
    "evaluation": "evaluation", "evolution": "evolution of the topology",
}  # fmt: skip
_EPOCHS = (
    Column("measured", "measured", number=False),
    Column("part of an epoch", "part", by=_EPOCH.__getitem__, number=False),
    Column("seconds", "median", "{:.3f}"),
    Column("share", "share", by=lambda share: f"{100 * share:.1f} %"),
)


def epochs(speed: Speed) -> Table:
    """Make the table of where the time of an epoch goes."""
    found = speed["epochs"]
    rows, told = [], []
    for title, result in found:
        total = sum(part["median"] for part in result["seconds"].values())
        for name in _EPOCH:
            spent = result["seconds"][name]
            share = spent["median"] / total
            rows.append({"measured": title, "part": name, **spent, "share": share})
        median, low, high = map(_percent, result["overhead"].values())
        told.append(f"All but the products took {median} of an epoch ({low} to {high}).")
    caption = (
        "**Where an epoch goes.** Fashion-MNIST's size and network, 60,000 rows for training and "
        "10,000 for the test, one thread, medians over epochs."
    )
    return Table.of("T-epoch", rows, _EPOCHS, caption, source(found, told))


@picture(
    "F-speed-density", "density", label="milliseconds per step", sharey=True,
    caption="**Where dense wins.** Time of a step of 784-1000-1000-1000-10 (batches of 128, "
    "one thread) against density (blue), beside dense matrix products (lines). Bars and bands "
    "reach from the fastest round to the slowest. What to see: time grows in proportion to the "
    "connections. To the right of the dotted line, dense is faster.",
    alt="Milliseconds per step against density on logarithmic axes, with dense levels.",
)  # fmt: skip
def density(ax: Axes, title: str, result: Result) -> str:
    """Draw time per step against density, with the dense peers as levels."""
    x, spreads = zip(*((100 * p["density"], p["ms"]) for p in result["points"]), strict=True)
    with_spread(ax, x, spreads, _COLOUR["sparsecore"], linewidth=1.4)
    slowest = max(ms["median"] for ms in result["dense"].values())
    for key, ms in result["dense"].items():
        style = "-" if key == "numpy-dense" else (0, (4, 2))
        ax.axhline(ms["median"], color=_COLOUR[key], linestyle=style)
        ax.axhspan(ms["low"], ms["high"], color=_COLOUR[key], alpha=0.15, linewidth=0)
        shift, side = (3, "bottom") if ms["median"] == slowest else (-3, "top")
        where, more = (x[0], ms["median"]), {"color": _COLOUR[key], "fontsize": 8}
        tag(ax, PEERS[key].label, where, (0, shift), va=side, **more)
    if result["crossover"]:
        ax.axvline(100 * result["crossover"], color=GREY, linestyle=(0, (1, 1)))
    ax.set(xscale="log", yscale="log", title=title, xlabel="connections that exist (%)")
    _plain_ticks(ax.xaxis, ax.yaxis)
    return f"Density at the crossing: {_percent(result['crossover'])}."


def _percent(share: float | None) -> str:
    return "none" if share is None else f"{100 * share:.0f} %"


@picture(
    "F-speed-roofline", "roofline", height=4.6, label="GFLOP/s, one thread", sharey=True,
    legend=[
        *(dot(colour, _TITLES[shape]) for shape, colour in _SHAPE_COLOUR.items()),
        dot(GREY, "forward"), dot(GREY, "backward", fill="white"),
        *(dot(GREY, f"rows in {level}", _LEVEL_MARKER[level]) for level in ("L1", "L2", "L3")),
    ],
    caption="**The kernels under the roof.** A point per layer and direction (ε = 20, batches "
    "of 128). Lines are measured ceilings: multiply-adds on registers, and reading in order "
    "from each memory. A point's shape is the memory that holds the rows it visits in random "
    "order. What to see: the caches are the limit, not arithmetic.",
    alt="Roofline plot: GFLOP/s against operations per byte, with measured ceilings.",
)  # fmt: skip
def roofline(ax: Axes, title: str, result: Result) -> str:
    """Draw the kernels of both networks under the machine's measured ceilings."""
    x, peak = np.geomspace(0.25, 8, 60), result["gflops"]
    for level, bandwidth in result["bandwidth"].items():
        y = np.minimum(peak, x * bandwidth)
        ax.plot(x, y, color=GREY, linestyle=_LEVEL_STYLE[level], linewidth=1.2)
        tag(ax, f"{level} {bandwidth:.0f} GB/s", (0.26, 0.26 * bandwidth), (2, 6), color=GREY)
    tag(ax, f"multiply-adds {peak:.0f} GFLOP/s", (7.6, peak), (0, 4), color=GREY, ha="right")
    for point in result["kernels"]:
        colour = _SHAPE_COLOUR[point["shape"]]
        fill = colour if point["direction"] == "forward" else "white"
        look = {"color": colour, "markerfacecolor": fill, "markersize": 6}
        ax.plot(point["intensity"], point["gflops"], _LEVEL_MARKER[point["level"]], **look)
    ax.set(xscale="log", yscale="log", title=title, xlabel="operations per byte moved")
    ax.set(xlim=(0.25, 8), xticks=[0.25, 0.5, 1, 2, 4, 8])
    ax.xaxis.set_minor_locator(NullLocator())
    _plain_ticks(ax.xaxis, ax.yaxis)
    shares = [kernel["share"] for kernel in result["kernels"]]
    low, middle, high = map(_percent, (min(shares), np.median(shares), max(shares)))
    return f"Kernels reach {low} to {high} of their ceiling, the median is {middle}."


def _layer(row: Any) -> str:
    return " → ".join(map(str, SHAPES[row["shape"]][row["layer"] - 1 : row["layer"] + 1]))


_KERNELS = (
    Column("measured", "measured", number=False), Column("layer", "", _layer, number=False),
    Column("kernel", "direction", number=False), Column("connections", "nnz", "{:,}"),
    Column("ms", "ms_median", "{:.3f}"), Column("GFLOP/s", "gflops", "{:.0f}"),
    Column("rows in", "level", number=False), Column("of the ceiling", "share", by=_percent),
)  # fmt: skip


def kernels(speed: Speed) -> Table:
    """Make the table behind the roofline."""
    rows = [
        {"measured": title, **{name: value for name, value in point.items() if name != "ms"}}
        | {f"ms_{name}": value for name, value in point["ms"].items()}
        for title, result in speed["roofline"]
        for point in result["kernels"]
    ]
    caption = "**Each kernel's time.** The roofline's numbers: medians, one thread, batches of 128."
    return Table.of("T-kernels", rows, _KERNELS, caption, source(speed["roofline"]))


@picture(
    "F-speed-width", "width", across=2,
    legend=[
        dot(_COLOUR["sparsecore"], "sparsecore"),
        line(_COLOUR["numpy-dense"], "dense weights alone", ":"),
    ],
    caption="**Wider at constant ε.** Time of a step and memory (parameters, velocity, "
    "structure) of 784-n-n-10 neurons, against n (ε = 20, batches of 128, one thread). What to "
    "see: connections grow as n, dense weights as n². Time grows faster than n where a layer's "
    "rows leave a cache.",
    alt="Milliseconds per step and memory against neurons per layer, on logarithmic axes.",
)  # fmt: skip
def width(axes: Any, title: str, result: Result) -> str:
    """Draw time per step and memory against the width of the hidden layers."""
    left, right = axes
    points = result["points"]
    x = [p["width"] for p in points]
    with_spread(left, x, [p["ms"] for p in points], _COLOUR["sparsecore"], linewidth=1.4)
    right.plot(x, [p["mib"] for p in points], "o-", color=_COLOUR["sparsecore"])
    right.plot(x, [p["dense_mib"] for p in points], ":", color=_COLOUR["numpy-dense"])
    for ax, what, unit in ((left, "Time", "milliseconds per step"), (right, "Memory", "MiB")):
        ax.set(xscale="log", yscale="log", title=f"{what}, {title}", ylabel=unit)
        ax.set_xlabel("neurons per hidden layer")
        _plain_ticks(ax.xaxis, ax.yaxis)
    p = result["points"][-1]
    return (
        f"The widest network has {p['nnz']:,} connections. It was made in {p['make_s']:.1f} s and "
        f"takes {p['ms']['median'] / 1e3:.2g} s per step and {p['mib'] / 1024:.2g} GiB "
        f"({p['bytes_per_connection']:.1f} bytes per connection); dense weights would take "
        f"{p['dense_mib'] / 1024:,.0f} GiB."
    )


def _plain_ticks(*axes: Any) -> None:
    for axis in axes:
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        axis.set_minor_formatter(NullFormatter())
