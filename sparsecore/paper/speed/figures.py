"""The pictures and tables of the page on speed: measurements in, pictures out."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from sparsecore import datasets
from sparsecore.paper.page import Column, Note, Table
from sparsecore.paper.speed.contest import PEERS
from sparsecore.paper.speed.measure import SHAPES
from sparsecore.paper.store import NOTHING, Result
from sparsecore.paper.training.effects import two_digits
from sparsecore.paper.training.shown import DASHED
from sparsecore.paper.training.studies import Results

from sparsecore.paper.style import (  # isort: skip
    COLOURS, GREY, dot, line, picture, plain_ticks, shows, tag, with_spread,
)  # fmt: skip

# Recorded on the older CPU; today's contest has "blas-dense" in its place.
_EARLIER = {"numpy-dense": "NumPy, dense"}
_LABELS = {key: peer.label for key, peer in PEERS.items()} | _EARLIER
# One colour for each kind of peer; sparsecore has that of its method.
_KINDS = {
    "sparsecore": (COLOURS["set-all-relu"], ("sparsecore",)),
    "sparse": (COLOURS["set-all-relu-pruned"], ("torch-csr", "sparselab", "sparseprop")),
    "dense": (COLOURS["set-relu"], [key for key in _LABELS if key.endswith(("-dense", "-masked"))]),
    "C loop": ("#333333", ("c-loop",)),
}
_COLOUR = {key: colour for colour, keys in _KINDS.values() for key in keys}
_TITLES = {shape: f"{datasets.describe(shape)['title']}'s network" for shape in SHAPES}
_SHAPE_COLOUR = {"fashion-mnist": COLOURS["set-all-relu"], "cifar10": COLOURS["set-relu"]}
_LEVEL_STYLE = {"L1": "-", "L2": (0, (5, 1)), "L3": (0, (3, 1, 1, 1)), "DRAM": (0, (1, 1))}
_LEVEL_MARKER = {"L1": "s", "L2": "o", "L3": "D", "DRAM": "v"}


def _of_peers(key: str, part: str, title: str) -> Callable[..., Any]:
    """Return a function that draws a contest."""
    return picture(
        key, part, down=len(SHAPES),
        legend=[*(dot(colour, label) for label, (colour, _) in _KINDS.items()),
                dot(GREY, "one thread"), dot(GREY, "two threads", fill="white")],
        caption=f"**{title}.** Time of a full step on the networks of the study's image data sets "
        "(ε = 20, batches of 128): medians of interleaved rounds, bars from the fastest round to "
        "the slowest; in brackets, the median ratio to sparsecore with as many threads. What to "
        "see: farther right is slower.",
        alt="Dot plot of milliseconds per training step for each peer, on two networks.",
    )(_draw_peers)  # fmt: skip


def _draw_peers(axes: Any, result: Result) -> tuple[str, str]:
    """Draw milliseconds per training step of all peers, a panel per network."""
    keys = [key for key in _LABELS if any(key in c["peers"] for c in result["contests"])]
    axes[0].figure.set_figheight(0.9 + 0.75 * len(keys))
    for ax, shape in zip(axes, SHAPES, strict=True):
        _contest(ax, [c for c in result["contests"] if c["shape"] == shape], keys)
        ax.set(title=_TITLES[shape], xlabel="milliseconds per training step")
    return _faster(result), ""


def _faster(result: Result) -> str:
    """State sparsecore's speed relative to the fastest peer of each kind, on one thread."""
    told = []
    for contest in (c for c in result["contests"] if c["problem"]["threads"] == 1):
        ratio = {key: found["ratio"]["median"] for key, found in contest["peers"].items()}
        parts = []
        for kind, (_, keys) in _KINDS.items():
            if there := [ratio[key] for key in keys if key in ratio and key != "sparsecore"]:
                other = "a plain C loop" if kind == "C loop" else f"the fastest {kind} peer"
                parts.append(f"{min(there):.2g} times {other}")
        told.append(f"on {_TITLES[contest['shape']]} {', '.join(parts)}")
    cpu = result["provenance"]["cpu"]
    return f"Steps per second of sparsecore, on one thread of an {cpu}: {'; '.join(told)}."


def _contest(ax: Axes, contests: Sequence[Result], keys: Sequence[str]) -> None:
    for contest in contests:
        threads = contest["problem"]["threads"]
        for key, found in contest["peers"].items():
            place = keys.index(key) + (0.23 if threads > 1 else -0.23 * (len(contests) > 1))
            ax.plot([found["low"], found["high"]], [place] * 2, color=_COLOUR[key], linewidth=1.2)
            fill = _COLOUR[key] if threads == 1 else "white"
            ax.plot(found["ms"], place, "o", color=_COLOUR[key], markerfacecolor=fill, markersize=6)
            text = f"{found['ms']:.3g}"
            if key != "sparsecore":
                text += f" (×{found['ratio']['median']:.2g})"
            tag(ax, text, (found["high"], place), (6, 0), va="center")
    ax.set_yticks(range(len(keys)), [_LABELS[key] for key in keys])
    ax.set_ylim(len(keys) - 0.4, -0.6)
    ax.set_xscale("log")
    low, high = ax.get_xlim()
    ax.set_xlim(low, high * (high / low) ** 0.2)  # room for the numbers
    plain_ticks(ax.xaxis)


peers = _of_peers("F-speed-peers", "peers", "A training step, and the peers")
peers_avx2 = _of_peers("F-speed-avx2", "peers-avx2", "The same on an older CPU, without AVX-512")


@shows(lambda page: [page[name] for name in ("peers-avx2", "peers") if name in page])
def what_peers_do(*results: Result) -> Table:
    """Make the table of the peers: what each does, and its version."""
    rows = []
    for key, label in _LABELS.items():
        contests = ((c["peers"], r) for r in reversed(results) for c in r["contests"])
        found = [(peers[key], r["provenance"]["cpu"]) for peers, r in contests if key in peers]
        versions = dict.fromkeys(peer["version"] for peer, _ in found)  # the newest first
        notes = {peer["note"]: cpu for peer, cpu in found}
        if key in _EARLIER and not notes:
            continue
        gone = results[0]["contests"][0]["absent"].get(key, {}).get("reason", "not timed")
        note, *others = notes or [PEERS[key].note]
        rows.append({
            "peer": label,
            "what its step includes": " ".join([note, *(f"On {notes[o]}: {o}" for o in others)]),
            "version": ", ".join(versions) or gone,
        })  # fmt: skip
    caption = (
        "**The peers.** What a step of each includes, and the versions timed. Each trains the same "
        "network on the same data. Without dropout and weight decay the steps of all but the C "
        "loop match a reference in float64, up to rounding. The last layer has all its weights; "
        "sparse peers whose row names hidden layers compute it densely."
    )
    columns = [Column(name, name, number=False) for name in rows[0]]
    return Table.of("T-peers", rows, columns, caption)


def epoch(main: Results) -> Note:
    """State the parts of an epoch's time, in the main table's runs."""
    dataset, spent = "fashion-mnist", []
    for run in main.of(dataset, "set-all-relu"):
        parts = np.array([run["seconds"][name] for name in ("train", "evaluate", "evolve")])
        spent.append(100 * parts / parts.sum())
    if not spent:
        return Note(NOTHING["missing"])
    steps, tests, evolution = np.median(spent, axis=0)
    return Note(
        f"On {main.title(dataset)} training steps take {steps:.0f} % of an epoch, the test after "
        f"it {tests:.0f} %, and evolution {evolution:.1f} % (SET-All-ReLU, the main table's runs)."
    )


@picture(
    "F-speed-density", "density", height=3.8,
    caption="**Where dense wins.** Time of a step of 784-1000-1000-1000-10 (batches of 128, one "
    "thread) against density, beside full steps of dense peers (lines); bars and bands from the "
    "fastest round to the slowest. What to see: right of the dotted line a dense step is faster.",
    alt="Milliseconds per step against density on logarithmic axes, with dense levels.",
)  # fmt: skip
def density(ax: Axes, result: Result) -> tuple[str, str]:
    """Draw time per step against density, with the dense peers as levels."""
    x, spreads = zip(*((100 * p["density"], p["ms"]) for p in result["points"]), strict=True)
    levels, crossing = [ms["median"] for ms in result["dense"].values()], result["crossover"]
    with_spread(ax, x, spreads, _COLOUR["sparsecore"], linewidth=1.4)
    look = {"color": _COLOUR["sparsecore"], "fontsize": 8, "va": "bottom"}
    tag(ax, "sparsecore", (x[0], spreads[0]["median"]), (0, 6), **look)
    for key, ms in result["dense"].items():
        style = "-" if key == "blas-dense" else DASHED
        ax.axhline(ms["median"], color=_COLOUR[key], linestyle=style)
        ax.axhspan(ms["low"], ms["high"], color=_COLOUR[key], alpha=0.15, linewidth=0)
        shift, side = (3, "bottom") if ms["median"] == max(levels) else (-3, "top")
        look |= {"color": _COLOUR[key], "va": side}
        tag(ax, _LABELS[key], (x[0], ms["median"]), (0, shift), **look)
    if crossing:
        ax.axvline(100 * crossing, color=GREY, linestyle=(0, (1, 1)))
    ax.set(xscale="log", yscale="log")
    ax.set(xlabel="connections that exist (%)", ylabel="milliseconds per step")
    plain_ticks(ax.xaxis, ax.yaxis)
    faster = "Sparse" if crossing or spreads[0]["median"] < min(levels) else "Dense"
    where = crossing and f"below a density of {100 * crossing:.0f} %"
    return f"{faster} steps are faster {where or 'at every density measured'}.", ""


@picture(
    "F-speed-roofline", "roofline", height=4.8,
    legend=[*(dot(colour, _TITLES[shape]) for shape, colour in _SHAPE_COLOUR.items()),
            dot(GREY, "filled: forward"), dot(GREY, "hollow: backward", fill="white"),
            *(dot(GREY, f"rows in {level}", mark) for level, mark in _LEVEL_MARKER.items())],
    caption="**The kernels under the roof.** A point per layer and direction (ε = 20, batches of "
    "128). Lines are measured ceilings: multiply-adds in registers, sequential reads from a "
    "memory. A point's shape shows the memory that holds the rows read. What to see: a point at "
    "its line leaves little to gain.",
    alt="Roofline plot: GFLOP/s against operations per byte, with measured ceilings.",
)  # fmt: skip
def roofline(ax: Axes, result: Result) -> tuple[str, str]:
    """Draw the kernels of both networks under the machine's measured ceilings."""
    x, peak, kernels = np.geomspace(0.25, 2, 60), result["gflops"], result["kernels"]
    for number, (level, bandwidth) in enumerate(result["bandwidth"].items()):
        y = np.minimum(peak, x * bandwidth)
        ax.plot(x, y, color=GREY, linestyle=_LEVEL_STYLE[level], linewidth=1.2)
        # Alternately below and above the rising lines: two of them may be close.
        at, shift, ha, va = ((0.26, 3, "left", "top"), (0.4, -3, "right", "bottom"))[number % 2]
        where, look = (at, at * bandwidth), {"color": GREY, "ha": ha, "va": va}
        tag(ax, f"{level} {bandwidth:.0f} GB/s", where, (shift, 0), **look)
    tag(ax, f"multiply-adds {peak:.0f} GFLOP/s", (1.95, peak), (0, 4), color=GREY, ha="right")
    for point in kernels:
        colour = _SHAPE_COLOUR[point["shape"]]
        fill = colour if point["direction"] == "forward" else "white"
        more = {"color": colour, "markerfacecolor": fill, "markersize": 6}
        ax.plot(point["intensity"], point["gflops"], _LEVEL_MARKER[point["level"]], **more)
    ax.set(xscale="log", yscale="log", xlim=(0.25, 2), xticks=[0.25, 0.5, 1, 2])
    ax.set(xlabel="operations per byte moved", ylabel="GFLOP/s, one thread")
    ax.xaxis.set_minor_locator(NullLocator())
    plain_ticks(ax.xaxis, ax.yaxis)
    shares = [100 * kernel["share"] for kernel in kernels]
    bound = sum(p["intensity"] * result["bandwidth"][p["level"]] < peak for p in kernels)
    return (
        f"Kernels reach {min(shares):.0f} % to {max(shares):.0f} % of their ceiling, the median "
        f"{np.median(shares):.0f} %; for {bound} of {len(kernels)} that ceiling is a cache or "
        "memory, for the others arithmetic.",
        "",
    )


@picture(
    "F-speed-width", "width", across=2,
    legend=[dot(_COLOUR["sparsecore"], "sparsecore"),
            line(_COLOUR["blas-dense"], "dense weights alone", ":")],
    caption="**Wider at constant ε.** Time of a step and memory (parameters, velocity, structure) "
    "of networks 784-n-n-10, against n (ε = 20, batches of 128, one thread). What to see: memory "
    "grows as n, dense weights as n².",
    alt="Milliseconds per step and memory against neurons per layer, on logarithmic axes.",
)  # fmt: skip
def width(axes: Any, result: Result) -> tuple[str, str]:
    """Draw time per step and memory against the width of the hidden layers."""
    points, ours, (left, right) = result["points"], _COLOUR["sparsecore"], axes
    x, last = [p["width"] for p in points], points[-1]
    with_spread(left, x, [p["ms"] for p in points], ours, linewidth=1.4)
    right.plot(x, [p["mib"] / 1024 for p in points], "o-", color=ours)
    right.plot(x, [p["dense_mib"] / 1024 for p in points], ":", color=_COLOUR["blas-dense"])
    for ax, what, unit in ((left, "Time", "milliseconds per step"), (right, "Memory", "GiB")):
        ax.set(xscale="log", yscale="log", title=what, ylabel=unit)
        ax.set_xlabel("neurons per hidden layer")
        plain_ticks(ax.xaxis, ax.yaxis)
    return (
        f"With {last['width']:,} neurons per hidden layer the network takes "
        f"{last['mib'] / 1024:.2g} GiB and a step {last['ms']['median'] / 1e3:.2g} s; dense "
        f"weights alone would take {two_digits(last['dense_mib'] / 1024)} GiB.",
        f"The widest network has {last['nnz']:,} connections, was built in {last['make_s']:.1f} s "
        f"and takes {last['bytes_per_connection']:.1f} bytes per connection.",
    )
