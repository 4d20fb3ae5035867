"""The pictures of the pages on parallel training: the schematic, the runs, the resources."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

from sparsecore import wasap
from sparsecore.paper.page import Column, Note, Picture, Table
from sparsecore.paper.parallel.runs import ALGORITHMS
from sparsecore.paper.store import Result, Versions
from sparsecore.paper.style import COLOURS, GREY, canvas, line, nothing, picture, source
from sparsecore.paper.training.studies import training_seconds

Runs = Versions[Result]

LABELS = {"sequential": "sequential", "wasap": "WASAP-SGD", "wassp": "WASSP-SGD"}
# The sequential runs are SET-All-ReLU's.
COLOUR = {name: COLOURS.get(name, COLOURS["set-all-relu"]) for name in ALGORITHMS}


# --- the schematic -------------------------------------------------------------------------------


def overview(workers: int = 3) -> Picture:
    """Draw the two phases: shards, workers, the server's window, averaging."""
    push, pull = COLOURS["set-relu"], COLOURS["set-all-relu"]
    with canvas(4.0) as figure:
        ax = figure.subplots()
        ax.set(xlim=(0, 16), ylim=(0, 8), xticks=[], yticks=[])
        ax.grid(False)
        ax.spines[:].set_visible(False)
        heights = np.linspace(6.2, 1.2, workers)
        middle = float(heights.mean())
        for x, title in ((1.2, "data"), (5.6, "phase 1: exchange"), (12.0, "phase 2: alone")):
            ax.text(x, 7.6, title, ha="center", weight="bold")
        ax.axvline(9.2, ymax=0.92, color=GREY, linestyle=(0, (4, 3)), linewidth=1)
        window = "server's\nwindow\n\nweights\nvelocity\ntopology"
        _box(ax, 7.4, middle, 1.9, 3.4, window, "#fff3d6")
        for rank, y in enumerate(heights):
            _box(ax, 1.2, y, 1.7, 0.9, f"shard {rank}", "#eeeeee")
            _box(ax, 4.0, y, 1.8, 0.9, f"worker {rank}", "#dbe9f6")
            _box(ax, 11.2, y, 2.3, 0.9, f"copy {rank}\nown evolution", "#dbe9f6")
            target = middle + (y - middle) * 0.45
            for start, end, colour in (
                ((2.05, y), (3.1, y), GREY),
                ((4.9, y + 0.15), (6.45, target + 0.15), push),
                ((6.45, target - 0.2), (4.9, y - 0.2), pull),
                ((8.35, target), (10.05, y), GREY),
                ((12.35, y), (13.3, middle + (y - middle) * 0.2), GREY),
            ):
                look = {"arrowstyle": "-|>", "mutation_scale": 10, "shrinkA": 2, "shrinkB": 2}
                ax.annotate("", end, start, arrowprops={**look, "color": colour, "linewidth": 1.2})
        _box(ax, 14.6, middle, 2.5, 1.9, "average\nover the union,\ncut to nnz", "#dff2e4")
        ax.text(5.7, 0.25, "push gradient", color=push, ha="right", fontsize=9)
        ax.text(5.9, 0.25, "pull weights", color=pull, ha="left", fontsize=9)
        ax.text(11.2, 0.25, "no exchange", color=GREY, ha="center", fontsize=9)
    caption = (
        "**WASAP-SGD in two phases.** In phase 1 every worker computes gradients on its shard and "
        "applies them, under a lock, to the weights in the server's window. In phase 2 it trains "
        "its own copy; at the end the copies are averaged. What to see: the server is a place, not "
        "a process, and nobody waits for a slower worker."
    )
    alt = "Schematic: shards feed workers, which exchange gradients and weights with a window."
    return Picture("F-overview", figure, caption, alt)


def _box(ax: Axes, x: float, y: float, width: float, height: float, text: str, fill: str) -> None:
    corner, form = (x - width / 2, y - height / 2), "round,pad=0.05,rounding_size=0.15"
    look = {"boxstyle": form, "facecolor": fill, "edgecolor": GREY, "linewidth": 1}
    ax.add_patch(FancyBboxPatch(corner, width, height, **look))
    ax.text(x, y, text, ha="center", va="center", fontsize=9)


# --- the runs ------------------------------------------------------------------------------------


@picture(
    "F-parallel", across=2, sharey="row",
    legend=[line(COLOUR[name], LABELS[name]) for name in ALGORITHMS],
    caption="**Parallel training on Fashion-MNIST.** Test accuracy against epochs and seconds, "
    "a line per seed. Right of the dotted line workers train alone, and the line is the mean "
    "of their copies; the dot is the averaged model. What to see: what parallel training costs "
    "in accuracy per epoch, and what it gains per second.",
    alt="Lines of test accuracy against epochs and against seconds, one colour an algorithm.",
)  # fmt: skip
def accuracy(axes: Any, title: str, found: Result) -> str:
    """Draw test accuracy against epochs and against seconds."""
    left, right = axes
    shown: list[float] = []
    told, pace = [], {}
    width = 1.8 if len(found["runs"]["sequential"][0]["epochs"]) < 100 else 0.8
    for algorithm, runs in found["runs"].items():
        for run in runs:
            colour, final = COLOUR[algorithm], 100 * run["test_accuracy"]
            tests = [100 * epoch["test_accuracy"] for epoch in run["epochs"]]
            epochs = [epoch["epoch"] for epoch in run["epochs"]]
            seconds = [training_seconds(epoch) for epoch in run["epochs"]]
            for ax, x, end in ((left, epochs, epochs[-1]), (right, seconds, training_seconds(run))):
                ax.plot(x, tests, color=colour, linewidth=width)
                if algorithm != "sequential":
                    ax.plot(end, final, "o", color=colour, markersize=5)
            shown += [*tests[len(tests) // 20 :], final]
        mean = 100 * np.mean([run["test_accuracy"] for run in runs])
        pace[algorithm] = np.mean([run["samples_per_second"] for run in runs])
        gain = f" at {pace[algorithm] / pace['sequential']:.2f} times the samples per second"
        told.append(f"{LABELS[algorithm]} {mean:.2f} %{gain * (algorithm != 'sequential')}")
    alone_from = found["runs"]["wasap"][0]["config"]["phase1_epochs"]
    left.axvline(alone_from, color=GREY, linestyle=":", linewidth=1)
    low, high = min(shown), max(shown)
    room = max(1.0, 0.05 * (high - low))
    left.set(title=title, xlabel="epoch", ylabel="test accuracy, %", ylim=(low - room, high + room))
    right.set(xlabel="seconds of training")
    return f"Final test accuracy: {', '.join(told)}."


@picture(
    "F-parallel-staleness", height=2.8, label="share of updates, %",
    caption="**Staleness of WASAP-SGD's updates.** Staleness counts the updates that others "
    "made while a gradient was computed. Bars: share of all updates, up to the 99.9th "
    "percentile, first seed. What to see: the peak near the number of other workers.",
    alt="Bars: share of updates for each staleness.",
)  # fmt: skip
def staleness(ax: Axes, title: str, found: Result) -> str:
    """Draw how many updates others made between a worker's pull and push."""
    counts = np.array(found["runs"]["wasap"][0]["parallel"]["staleness_histogram"])
    top = int(np.flatnonzero(np.cumsum(counts) >= 0.999 * counts.sum())[0])
    shares = 100 * counts / counts.sum()
    ax.bar(range(top + 1), shares[: top + 1], color=COLOUR["wasap"], width=0.8)
    ax.set(xlabel="staleness, updates", title=title)
    ax.xaxis.get_major_locator().set_params(integer=True)
    record = wasap.from_json(found["runs"]["wasap"][0]["parallel"]["record"])
    lost = 100 * float((record.accepted < 1).mean())
    return (
        f"Mean staleness {record.staleness.mean():.2f}, largest {record.staleness.max()}; "
        f"{lost:.2f} % of the updates met a newer topology and lost a part of their connections."
    )


_RESOURCES = (
    Column("where", "where", number=False, once=True),
    Column("algorithm", "algorithm", number=False, once=True),
    Column("rank", "rank"),
    Column("seconds", "seconds", "{:,.0f}"),
    Column("CPU, mean (% of a core)", "cpu_percent", "{:.0f}"),
    Column("memory, most (MiB)", "rss_mb", "{:,.0f}"),
)


def resources(found: Runs) -> Table | Picture:
    """Make the table of the CPU and the memory of every rank."""
    if not found:
        return nothing("F-resources", found.missing)
    rows = [
        {
            "where": title, "algorithm": LABELS[name], "rank": rank["rank"],
            "seconds": max(samples["seconds"], default=None),  # a run may end before a sample
            "cpu_percent": float(np.mean(cpu)) if (cpu := samples["cpu_percent"]) else None,
            "rss_mb": max(samples["rss_mb"], default=None),
        }
        for title, version in found
        for name in ("wasap", "wassp")
        for rank in version["runs"][name][0]["parallel"]["ranks"]
        for samples in (rank["resources"],)
    ]  # fmt: skip
    told = [_waiting(version) for _, version in found]
    caption = (
        "**CPU and memory of every rank.** Of the whole process (Python, compiled code, the rank's "
        "data), sampled until the run ends; first seed. What to see: whether each rank keeps its "
        "core busy, and whether all need the same memory."
    )
    return Table.of("F-resources", rows, _RESOURCES, caption, source(found, told))


def replayed(found: Runs) -> Note:
    """Say what the replays found."""
    told = []
    for title, version in found:
        report = version["replay"]
        verdict = "identical to the last bit" if report["identical"] else "different"
        told.append(
            f"The replay ({title}) repeated {report['updates']:,} updates in one process; its "
            f"weights are {verdict} (SHA-256 `{report['weights_sha256'][:16]}…`, recorded "
            f"`{report['recorded_sha256'][:16]}…`)."
        )
    return Note(" ".join(told) or found.missing)


# --- sources -------------------------------------------------------------------------------------


def _waiting(found: Result) -> str:
    """Say how much of WASAP-SGD's first phase goes to the server, and what an update moves."""
    run = found["runs"]["wasap"][0]
    ranks = [rank["seconds"] for rank in run["parallel"]["ranks"]]
    whole = sum(seconds["phase1"] for seconds in ranks)
    lock, update = (100 * sum(seconds[n] for seconds in ranks) / whole for n in ("lock", "update"))
    return (
        f"Waiting for the server's lock took {lock:.1f} % of WASAP-SGD's phase 1, updates under "
        f"it {update:.1f} %. An update moves {run['parallel']['bytes_per_update'] / 1e6:.2f} MB "
        f"({run['nnz_start']:,} connections)."
    )
