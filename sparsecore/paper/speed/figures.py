"""The pictures and tables of the page on speed: measurements in, a captioned picture or table out.

Measuring is the business of `speed`; what all figures of the book share is in `figures`. A column
of a picture is a place where it was measured: the recorded machine, and that of the build.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sparsecore.paper.figures import COLOURS, GREY, STYLE, WIDTH
from sparsecore.paper.page import Picture, Table
from sparsecore.paper.speed.measure import SHAPES, Result, Speed
from sparsecore.paper.speed.peers import PEERS
from sparsecore.paper.store import origin

# One colour a kind of peer, from the palette of `figures`; sparsecore has that of its method.
_KINDS = {
    "sparsecore": (COLOURS["set-all-relu"], ("sparsecore",)),
    "yardstick": ("#333333", ("c-loop",)),
    "sparse": (COLOURS["set-all-relu-pruned"], ("torch-csr", "sparseprop")),
    "dense": (
        COLOURS["set-relu"],
        ("torch-dense", "torch-masked", "jax-dense", "numpy-dense", "scikit-learn-dense"),
    ),
}
_COLOUR = {key: colour for colour, keys in _KINDS.values() for key in keys}
_TITLES = {"fashion-mnist": "Fashion-MNIST's network", "cifar10": "CIFAR-10's network"}
_LEVEL_STYLE = {"L1": "-", "L2": (0, (5, 1)), "L3": (0, (3, 1, 1, 1)), "DRAM": (0, (1, 1))}
_LEVEL_MARKER = {"L1": "s", "L2": "o", "L3": "D", "DRAM": "v"}


def peers(speed: Speed) -> Picture:
    """Draw milliseconds per training step of all peers, a row per network."""
    versions = speed.versions("peers")
    keys = [key for key in PEERS if any(key in c["peers"] for _, r in versions for c in _all(r))]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.9 + 0.62 * len(keys)), layout="constrained")
        axes = figure.subplots(len(SHAPES), len(versions), squeeze=False, sharey=True)
        for column, (title, result) in enumerate(versions):
            for row, shape in enumerate(SHAPES):
                ax = axes[row, column]
                _contest(ax, [c for c in _all(result) if c["shape"] == shape], keys)
                ax.set_title(f"{_TITLES[shape]}, {title}")
        for ax in axes[-1]:
            ax.set_xlabel("milliseconds per training step")
        handles = [_dot(colour, label) for label, (colour, _) in _KINDS.items()]
        handles += [_dot(GREY, "one thread"), _dot(GREY, "at most two threads", fill="white")]
        figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))
    caption = (
        "**A training step, and the peers.** Time of one full step on the two networks of the "
        "study's images (ε = 20, batches of 128, random data), medians of interleaved rounds; bars "
        "reach from the fastest round to the slowest. What each peer does is in the table below; "
        "the C loop does the sparse work alone. What to see: how far the dense peers and the "
        f"sparse ones lie to the right of sparsecore. {_ratios(versions)}{_distance(versions)}"
        f"{_source(speed, 'peers')}"
    )
    alt = "Dot plot of milliseconds per training step for each peer, on two networks."
    return Picture("F-speed-peers", figure, caption, alt)


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
            ax.annotate(
                text,
                (found["high"], place),
                xytext=(6, 0),
                textcoords="offset points",
                va="center",
                fontsize=7.5,
                color="#333333",
            )
    ax.set_yticks(range(len(keys)), [PEERS[key].label for key in keys])
    ax.set_ylim(len(keys) - 0.4, -0.6)
    ax.set_xscale("log")
    low, high = ax.get_xlim()
    ax.set_xlim(low, high * (high / low) ** 0.3)  # room for the numbers
    _plain_ticks(ax.xaxis)


def _ratios(versions: list[tuple[str, Result]]) -> str:
    """Say how many times as long the others take, with one thread."""
    parts = []
    for title, result in versions:
        for contest in _all(result):
            others = {
                key: found["ratio"]["median"]
                for key, found in contest["peers"].items()
                if key not in ("sparsecore", "c-loop")
            }
            if contest["problem"]["threads"] == 1 and others:
                first = min(others, key=lambda key: others[key])
                last = max(others, key=lambda key: others[key])
                parts.append(
                    f"{_TITLES[contest['shape']]}, {title}: {others[first]:.1f} "
                    f"({PEERS[first].label}) to {others[last]:.1f} ({PEERS[last].label})"
                )
    return f"Times as long as sparsecore, one thread: {'; '.join(parts)}. " if parts else ""


def _distance(versions: list[tuple[str, Result]]) -> str:
    """Say how far from each other the cores were where there were several threads."""
    shared = [c for _, result in versions for c in _all(result) if c["problem"]["threads"] > 1]
    if not shared:
        return ""
    seen = [microseconds for contest in shared for microseconds in contest["meeting_us"]]
    cores = sorted(f"{contest['peers']['sparsecore']['cores']:.1f}" for contest in shared)
    busy = " to ".join(dict.fromkeys((cores[0], cores[-1])))
    return (
        f"A signal between the two threads took {min(seen):.2f} to {max(seen):.2f} µs: the further "
        "their cores are from each other, the less there is to gain by the second, which "
        "sparsecore leaves idle where it does not help: given two threads, it kept "
        f"{busy} busy. "
    )


def what_peers_do(speed: Speed) -> Table:
    """Make the table of the peers: what each does, and where it was timed."""
    versions = speed.versions("peers")
    shown, plain = [], []
    for key, peer in PEERS.items():
        row = {"peer": peer.label, "what a step of it is": peer.note}
        for title, result in versions:
            row[title] = _presence(key, result)
        shown.append(row)
        for title, result in versions:
            for contest in _all(result):
                found = contest["peers"].get(key, {})
                plain.append(
                    {
                        "peer": key,
                        "measured": title,
                        "network": "-".join(map(str, contest["problem"]["sizes"])),
                        "threads": contest["problem"]["threads"],
                        "ms_per_step": found.get("ms"),
                        "low": found.get("low"),
                        "high": found.get("high"),
                        "ratio": found.get("ratio", {}).get("median"),
                        "cores_busy": found.get("cores"),
                        "cpu_ms_per_step": found.get("cpu_ms"),
                        "others_cpus": found.get("others"),
                        "peak_rss_mb": found.get("peak_rss_mb"),
                        "version": found.get("version"),
                        "blas": "; ".join(found.get("blas", [])),
                        "absent": contest["absent"].get(key, {}).get("reason"),
                    }
                )
    caption = (
        "**The peers.** What a step of each includes, and the version that was timed. All train "
        "the same network on the same data, each in a process of its own, with at most the same "
        "number of threads; without dropout and weight decay each but the C loop, scikit-learn "
        "with ReLU, takes the same steps as a reference in float64, to rounding (the project's "
        "tests assert it)."
    )
    return Table("T-peers", pd.DataFrame(shown), caption, pd.DataFrame(plain))


def _presence(key: str, result: Result) -> str:
    for contest in _all(result):
        if key in contest["peers"]:
            return str(contest["peers"][key]["version"])
    return str(_all(result)[0]["absent"].get(key, {}).get("reason", "not there"))


_EPOCH = {
    "products": "forward, loss, backward, update",
    "batches": "fetching the batches, dropout",
    "evaluation": "evaluation",
    "evolution": "evolution of the topology",
}


def epochs(speed: Speed) -> Table:
    """Make the table of where the time of an epoch goes."""
    shown, plain, told = [], [], []
    for title, result in speed.versions("epochs"):
        total = sum(spent["median"] for spent in result["seconds"].values())
        for name, what in _EPOCH.items():
            spent = result["seconds"][name]
            plain.append({"measured": title, "part": name, **spent})
            shown.append(
                {
                    "measured": title,
                    "part of an epoch": what,
                    "seconds": f"{spent['median']:.3f}",
                    "share": f"{100 * spent['median'] / total:.1f} %",
                }
            )
        overhead = result["overhead"]
        told.append(
            f"{title} {100 * overhead['median']:.0f} % ({100 * overhead['low']:.0f} to "
            f"{100 * overhead['high']:.0f} %)"
        )
    caption = (
        "**Where an epoch goes.** Fashion-MNIST's size and network, 60,000 rows for training and "
        "10,000 for the test, one thread, medians over epochs. Share of all but the products: "
        f"{'; '.join(told)}.{_source(speed, 'epochs', ' ')}"
    )
    return Table("T-epoch", pd.DataFrame(shown), caption, pd.DataFrame(plain), ("seconds", "share"))


def density(speed: Speed) -> Picture:
    """Draw time per step against density, with the dense peers as levels."""
    versions = speed.versions("density")
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
        axes = figure.subplots(1, len(versions), squeeze=False, sharey=True)[0]
        for ax, (title, result) in zip(axes, versions, strict=True):
            x = [100 * p["density"] for p in result["points"]]
            _line_with_spread(ax, x, [p["ms"] for p in result["points"]], _COLOUR["sparsecore"])
            for key, ms in result["dense"].items():
                style = "-" if key == "numpy-dense" else (0, (4, 2))
                ax.axhline(ms["median"], color=_COLOUR[key], linestyle=style)
                ax.axhspan(ms["low"], ms["high"], color=_COLOUR[key], alpha=0.15, linewidth=0)
                above = ms["median"] == max(dense["median"] for dense in result["dense"].values())
                ax.annotate(PEERS[key].label, (x[0], ms["median"]), xytext=(0, 3 if above else -3),
                            va="bottom" if above else "top", textcoords="offset points",
                            fontsize=8, color=_COLOUR[key])  # fmt: skip
            if result["crossover"]:
                ax.axvline(100 * result["crossover"], color=GREY, linestyle=(0, (1, 1)))
            ax.set(xscale="log", yscale="log", title=title, xlabel="connections that exist (%)")
            _plain_ticks(ax.xaxis, ax.yaxis)
        axes[0].set_ylabel("milliseconds per step")
    crossings = "; ".join(f"{title} {_percent(result['crossover'])}" for title, result in versions)
    caption = (
        "**Where dense wins.** A step of 784-1000-1000-1000-10 with batches of 128 and one thread, "
        "from half a percent of the connections to all (blue), beside dense matrix products, whose "
        "time does not depend on it (lines); bands and bars reach from the fastest round to the "
        "slowest. What to see: time grows in proportion to the connections until, at the dotted "
        "line, the fastest dense peer takes as long: above that density, dense is the better "
        f"choice. Density at the crossing: {crossings}.{_source(speed, 'density', ' ')}"
    )
    alt = "Milliseconds per step against density on logarithmic axes, with dense levels."
    return Picture("F-speed-density", figure, caption, alt)


def _percent(share: float | None) -> str:
    return "none" if share is None else f"{100 * share:.0f} %"


def roofline(speed: Speed) -> Picture:
    """Draw the kernels of both networks under the machine's measured ceilings."""
    versions = speed.versions("roofline")
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 4.6), layout="constrained")
        axes = figure.subplots(1, len(versions), squeeze=False, sharey=True)[0]
        for ax, (title, result) in zip(axes, versions, strict=True):
            _roof(ax, result)
            for point in result["kernels"]:
                colour = COLOURS[
                    "set-all-relu" if point["shape"] == "fashion-mnist" else "set-relu"
                ]
                fill = colour if point["direction"] == "forward" else "white"
                ax.plot(
                    point["intensity"],
                    point["gflops"],
                    _LEVEL_MARKER[point["level"]],
                    color=colour,
                    markerfacecolor=fill,
                    markersize=6,
                )
            ax.set(xscale="log", yscale="log", title=title, xlabel="operations per byte moved")
            ax.set_xlim(0.25, 8)
            ax.set_xticks([0.25, 0.5, 1, 2, 4, 8])
            ax.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
            _plain_ticks(ax.xaxis, ax.yaxis)
        axes[0].set_ylabel("GFLOP/s, one thread")
        handles = [
            _dot(COLOURS["set-all-relu"], _TITLES["fashion-mnist"]),
            _dot(COLOURS["set-relu"], _TITLES["cifar10"]),
            _dot(GREY, "forward"),
            _dot(GREY, "backward", fill="white"),
            *(_dot(GREY, f"rows in {level}", _LEVEL_MARKER[level]) for level in ("L1", "L2", "L3")),
        ]
        figure.legend(handles=handles, loc="outside upper center", ncols=4)
    shares = "; ".join(
        f"{title} {100 * min(s):.0f} to {100 * max(s):.0f} % (median {100 * np.median(s):.0f} %)"
        for title, result in versions
        if (s := [p["share"] for p in result["kernels"]])
    )
    caption = (
        "**The kernels under the roof.** One point per layer and direction (ε = 20, batches of "
        "128). Lines are what one thread of the machine was measured to do: reading in order from "
        "each level of memory, and fused multiply-adds on registers. Bytes count what the "
        "instructions load and store; a point's shape is the memory that holds the rows which a "
        "layer visits in random order, and its ceiling is that level's line. What to see: each "
        "multiply-add takes an operand from memory, so the caches are the limit, not arithmetic. "
        f"Share of the ceiling: {shares}.{_source(speed, 'roofline', ' ')}"
    )
    alt = "Roofline plot: GFLOP/s against operations per byte, with measured ceilings."
    return Picture("F-speed-roofline", figure, caption, alt)


def _roof(ax: Axes, result: Result) -> None:
    x = np.geomspace(0.25, 8, 60)
    for level, bandwidth in result["bandwidth"].items():
        y = np.minimum(result["gflops"], x * bandwidth)
        ax.plot(x, y, color=GREY, linestyle=_LEVEL_STYLE[level], linewidth=1.2)
        ax.annotate(f"{level} {bandwidth:.0f} GB/s", (0.26, 0.26 * bandwidth), xytext=(2, 6),
                    textcoords="offset points", fontsize=7.5, color=GREY)  # fmt: skip
    ax.annotate(f"multiply-adds {result['gflops']:.0f} GFLOP/s", (7.6, result["gflops"]),
                xytext=(0, 4), textcoords="offset points", fontsize=7.5, color=GREY,
                ha="right")  # fmt: skip


def kernels(speed: Speed) -> Table:
    """Make the table behind the roofline."""
    shown, plain = [], []
    for title, result in speed.versions("roofline"):
        for p in result["kernels"]:
            flat = {**{name: v for name, v in p.items() if name != "ms"}, **_prefixed(p["ms"])}
            plain.append({"measured": title, **flat})
            sizes = SHAPES[p["shape"]]
            shown.append(
                {
                    "measured": title,
                    "layer": f"{sizes[p['layer'] - 1]} → {sizes[p['layer']]}",
                    "kernel": p["direction"],
                    "connections": f"{p['nnz']:,}",
                    "ms": f"{p['ms']['median']:.3f}",
                    "GFLOP/s": f"{p['gflops']:.0f}",
                    "rows in": p["level"],
                    "of the ceiling": f"{100 * p['share']:.0f} %",
                }
            )
    caption = "**Each kernel's time.** The roofline's numbers: medians, one thread, batches of 128."
    numbers = ("connections", "ms", "GFLOP/s", "of the ceiling")
    return Table("T-kernels", pd.DataFrame(shown), caption, pd.DataFrame(plain), numbers)


def _prefixed(ms: dict[str, float]) -> dict[str, float]:
    return {f"ms_{name}": value for name, value in ms.items()}


def width(speed: Speed) -> Picture:
    """Draw time per step and memory against the width of the hidden layers."""
    versions = speed.versions("width")
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        for title, result in versions:
            points = result["points"]
            x = [p["width"] for p in points]
            fill = None if title == "recorded" else "white"
            _line_with_spread(left, x, [p["ms"] for p in points], _COLOUR["sparsecore"], fill)
            right.plot(x, [p["mib"] for p in points], "o-", color=_COLOUR["sparsecore"],
                       markerfacecolor=fill)  # fmt: skip
            right.plot(x, [p["dense_mib"] for p in points], ":", color=_COLOUR["numpy-dense"])
        left.set(xscale="log", yscale="log", title="Time", ylabel="milliseconds per step")
        right.set(xscale="log", yscale="log", title="Memory", ylabel="MiB")
        for ax in (left, right):
            ax.set_xlabel("neurons per hidden layer")
            _plain_ticks(ax.xaxis, ax.yaxis)
        handles = [_dot(_COLOUR["sparsecore"], "sparsecore, recorded")]
        if any(title != "recorded" for title, _ in versions):
            handles.append(_dot(_COLOUR["sparsecore"], "sparsecore, this build", fill="white"))
        handles.append(
            matplotlib.lines.Line2D(
                [], [], color=_COLOUR["numpy-dense"], linestyle=":", label="dense weights alone"
            )
        )
        figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))
    told = "; ".join(f"{title}: {_widest(result)}" for title, result in versions)
    caption = (
        "**Wider at constant ε.** Networks of 784-n-n-10 neurons, ε = 20, batches of 128, one "
        "thread. Memory is that of parameters, velocity and structure. What to see: connections "
        "grow as n, dense weights as n². Time grows faster than n where a layer's rows leave a "
        f"cache. The widest network, {told}.{_source(speed, 'width', ' ')}"
    )
    alt = "Milliseconds per step and memory against neurons per layer, on logarithmic axes."
    return Picture("F-speed-width", figure, caption, alt)


def _widest(result: Result) -> str:
    p = result["points"][-1]
    return (
        f"{p['width']:,} neurons per layer, {p['nnz']:,} connections, made in {p['make_s']:.1f} s, "
        f"{p['ms']['median'] / 1e3:.2g} s per step, {p['mib'] / 1024:.2g} GiB "
        f"({p['bytes_per_connection']:.1f} bytes per connection; dense weights would take "
        f"{p['dense_mib'] / 1024:,.0f} GiB)"
    )


# --- shared --------------------------------------------------------------------------------------


def _all(result: Result) -> list[Result]:
    contests: list[Result] = result["contests"]
    return contests


def _dot(colour: str, label: str, marker: str = "o", fill: str | None = None) -> Any:
    return matplotlib.lines.Line2D(
        [], [], color=colour, marker=marker, linestyle="", markerfacecolor=fill or colour,
        label=label,
    )  # fmt: skip


def _plain_ticks(*axes: Any) -> None:
    for axis in axes:
        axis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:,g}"))
        axis.set_minor_formatter(matplotlib.ticker.NullFormatter())


def _line_with_spread(
    ax: Axes, x: Sequence[float], ms: Sequence[dict[str, float]], colour: str,
    fill: str | None = None,
) -> None:  # fmt: skip
    y = [value["median"] for value in ms]
    below = [value["median"] - value["low"] for value in ms]
    above = [value["high"] - value["median"] for value in ms]
    ax.errorbar(
        x, y, yerr=[below, above], fmt="o-", color=colour, markersize=5, linewidth=1.4,
        markerfacecolor=fill or colour,
    )  # fmt: skip


def _source(speed: Speed, part: str, before: str = "") -> str:
    places = []
    for title, result in speed.versions(part):
        about = result["provenance"]
        load = about.get("load_before")
        places.append(
            f"{title}: {origin(about)}"
            + f", Python {about['python']}, NumPy {about['packages']['numpy']}"
            + ("" if load is None else f", load before it {load:.1f}")
        )
    return f"{before}*Source: {'; '.join(places)}.*"
