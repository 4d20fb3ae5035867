"""The tables and pictures of the page on extreme networks: results in, tables and pictures out."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from sparsecore.extreme.budget import GIB, plan
from sparsecore.extreme.config import ExtremeConfig
from sparsecore.paper.extreme.runs import BAT, Found, Row, networks
from sparsecore.paper.page import Column, Note, Table
from sparsecore.paper.store import Result
from sparsecore.paper.style import COLOURS, GREY, picture, shows, tag

#: Neurons per brain; the page cites the sources.
BRAINS = {
    "fruit fly": 139_255, "honey bee": 960_000, "frog": 16_000_000, "bat": BAT, "rat": 200_000_000,
}  # fmt: skip
_MEMORY = 22 * GIB  # of a machine, for the projection
_ABOVE = {"xycoords": ("data", "axes fraction"), "ha": "center", "va": "bottom"}


def _seconds(value: float) -> str:
    return f"{value:.0f}" if value >= 99.5 else f"{value:#.2g}".rstrip(".")


def _gib(n_bytes: float) -> str:
    return f"{n_bytes / GIB:.2f}"


def _count(n: float) -> str:
    if 1 <= n < 10_000:
        return f"{n:,}"
    mantissa, exponent = f"{n:.1e}".split("e")
    raised = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{float(mantissa):g}·10{raised}"


_TABLE = (
    Column("neurons", "neurons", _count, once=True), Column("layers", "hidden_layers"),
    Column("density", "density", _count), Column("nnz", "nnz", _count),
    Column("GiB", "peak_bytes", _gib), Column("plan", "budget_bytes", _gib),
    Column("init", "initialise_seconds", _seconds),
    Column("sample", "seconds_per_sample", _seconds),
    Column("epoch", "epoch_seconds", _seconds),
    Column("infer", "inference_seconds_per_sample", _seconds),
    Column("evolve", "evolution_seconds", _seconds),
    Column("loss", "", "{first_loss:.2f} → {last_loss:.2f}".format_map, number=False),
    Column("right", "", "{correct}/{held_out}".format_map),
)  # fmt: skip


@shows(networks)
def table(*runs: Result) -> Table:
    """Make T-extreme: size, memory, times and learning of every run."""
    rows = list(map(_plain, runs))
    sizes = {run["config"]["steps"] * run["config"]["batch_size"] for run in runs}
    caption = (
        "**Extreme networks.** Density is the middle layer's. GiB: peak resident memory, and "
        "the plan. Seconds to initialise, per training sample (of the median step), per epoch "
        "(slow steps included), per sample of inference, per evolution; mean loss of the "
        "first and the last ten batches; held-out samples classified correctly."
    )
    about = "The largest run had {threads} threads and {memory_gib} GiB of memory. "
    guess = max(row["test_p"] for row in rows)
    sources = about.format_map(runs[-1]["provenance"])
    sources += f"Guessing would do as well with a probability of at most {guess:.0e}. "
    off = [100 * (row["peak_bytes"] / row["budget_bytes"] - 1) for row in rows]
    most = f"exceeded it by at most {max(off):.1f} %" if max(off) > 0 else "never exceeded it"
    finding = (
        f"All networks are trained for an epoch of {' or '.join(map(str, sorted(sizes)))} samples. "
        f"A memory plan is printed before each run; the memory used {most}."
    )
    return Table.of("T-extreme", rows, _TABLE, caption, sources, finding)


@picture(
    "F-extreme-scaling", networks, down=2, height=6.6, sharex=True,
    caption="**Growth.** Seconds per training step (batch 4) and peak resident memory, against "
    "hidden neurons; larger circles have more layers. Dashed: proportional to neurons. Grey: "
    "brains with as many neurons. What to see: circles along the dashes cost the same per neuron.",
    alt="Log-log plot of seconds per step and bytes against neurons, with brains as landmarks.",
)  # fmt: skip
def scaling(axes: Any, *runs: Result) -> tuple[str, str]:
    """Draw seconds per step and bytes against neurons, on logarithmic axes, with named brains."""
    names = "neurons", "hidden_layers"
    neurons, layers = np.array([[run["config"][name] for name in names] for run in runs]).T
    times = [float(np.median(run["step_seconds"])) for run in runs]
    peaks, told = [run["peak_bytes"] / GIB for run in runs], []
    values = {"seconds per training step": times, "GiB of memory": peaks}
    for ax, (label, y) in zip(axes, values.items(), strict=True):
        look = {"edgecolors": COLOURS["set-all-relu"], "facecolors": "none", "linewidths": 1.4}
        ax.scatter(neurons, y, 18 + 5 * layers, zorder=3, **look)
        if (slope := _guide(ax, neurons, y)) is not None:
            told.append(f"{slope:.2f} ({label})")
        ax.set(xscale="log", yscale="log", ylabel=label, xlim=(1e5, 5e8))
        for name, count in BRAINS.items():
            ax.axvline(count, color=GREY, linewidth=0.8, linestyle=":", zorder=0)
            if ax is axes[0]:
                tag(ax, f"{name}\n{_count(count)}", (count, 1), (0, 3), **_ABOVE)
    axes[-1].set_xlabel("hidden neurons")
    right = "{correct} of {n} held-out samples correctly".format_map(runs[-1]["test"])
    return (
        f"The largest network has {neurons[-1]:,} neurons, {neurons[-1] / BAT:.2g} times as many "
        f"as a bat's brain: it takes {peaks[-1]:.1f} GiB of memory and "
        f"{times[-1]:.2g} s per training step, and it classifies {right}.",
        f"From 5·10⁶ neurons on the exponents are {' and '.join(told)}. " * bool(told),
    )


@picture(
    "F-extreme-loss", networks, height=3.2,
    caption="**Loss** of each batch before it is trained on (dots), and the mean of five (lines); "
    "every sample is seen once. At dotted lines the topology evolves, and what the removed "
    "connections had learnt is lost. What to see: below the grey line is better than chance.",
    alt="Loss against step for the largest networks.",
)  # fmt: skip
def losses(ax: Axes, *runs: Result) -> tuple[str, str]:
    """Draw the loss curves of the largest networks."""
    deep = [run for run in runs if run["config"]["hidden_layers"] == 10][-3:]
    colours = (COLOURS["set-all-relu-pruned"], COLOURS["set-relu"], COLOURS["set-all-relu"])
    trends = []
    for run, colour in zip(deep, colours, strict=False):
        neurons, values = f"{run['config']['neurons']:,} neurons", pd.Series(run["losses"])
        steps = values.index + 1
        ax.plot(steps, values, ".", color=colour, alpha=0.5)
        ax.plot(steps, values.rolling(5, min_periods=1).mean(), color=colour, label=neurons)
        every = run["config"]["evolve_every"]
        for step in range(every, len(values), every):
            ax.axvline(step + 0.5, color=GREY, linewidth=0.8, linestyle=":")
        trends.append(neurons + ": Kendall's τ {tau:+.2f}, p = {p:.1g}".format_map(run["trend"]))
    ax.axhline(np.log(2), color=GREY, linewidth=0.8)
    tag(ax, "chance", (1, np.log(2)), (0, 3), xycoords=("axes fraction", "data"), ha="right")
    ax.set(xlabel="step", ylabel="cross-entropy (nats)", ylim=(0, None))
    ax.legend()
    falls = sum(run["trend"]["p"] < 0.05 for run in deep)
    finding = (
        f"The loss falls in {falls} of the {len(deep)} largest networks with 10 hidden layers "
        "(Kendall's test, p < 0.05)"
    )
    shares = sorted(round(100 * run["test"]["correct"] / run["test"]["n"]) for run in deep)
    if shares:
        right = " to ".join(map(str, dict.fromkeys((shares[0], shares[-1]))))
        finding += f"; {right} % of the held-out samples are classified correctly"
    return f"{finding}.", f"Trends of {'; '.join(trends)}. " * bool(trends)


def steps_of_brain(found: Found) -> str:
    """State the length of C4's run with ten layers."""
    run = found.get(Row(BAT, 10))
    if run is None:
        return "not recorded yet"
    return "{steps} steps of {batch_size} samples".format_map(run["config"])


@shows("split")
def split(result: Result) -> Note:
    """Report what two ranks save, and what they exchange for it."""
    one, two = result["whole"], result["split"]
    memory = np.max(two["peak_bytes"]) / np.max(one["peak_bytes"])
    steps = [float(np.median(run["step_seconds"])) for run in (one, two)]
    return Note(
        f"On two ranks of one thread, a rank's part of a network of {one['neurons']:,} neurons "
        f"takes {100 * memory:.0f} % of the memory that one rank takes for the whole, and a step "
        f"{100 * steps[1] / steps[0]:.0f} % of the time: {_seconds(steps[1])} s instead of "
        f"{_seconds(steps[0])} s. Messages of {two['message_bytes'] / 2**20:.0f} MiB take "
        f"{_seconds(two['message_seconds'])} s per step on average, waiting included. The losses "
        f"of all steps agree to {result['largest_difference']:.0e}."
    )


@shows("survival")
def survival(result: Result) -> Note:
    """Report how a killed run ended."""
    return Note(
        f"A run of {result['whole']['neurons']:,} neurons got SIGKILL after its first checkpoint "
        f"({result['file_bytes'] / GIB:.1f} GiB, written in "
        f"{_seconds(result['resumed']['seconds']['checkpoint'])} s) and was resumed. In the end "
        f"its weights, velocities and losses were {'' if result['identical'] else '**not** '}those "
        "of an uninterrupted run, to the last bit."
    )


def projection() -> Note:
    """State how many machines larger networks would need, by the memory plan."""
    fit = []
    for neurons in (1_000_000_000, 2_000_000_000):
        config, ranks = ExtremeConfig(neurons=neurons), 1
        size = config.sizes, config.epsilon, config.batch_size, 1
        while plan(*size, ranks).total > _MEMORY:
            ranks += 1
        fit.append(f"{_count(neurons)} neurons on {ranks}")
    return Note(
        "By calculation, networks of ten hidden layers fit on this many machines with "
        f"{_MEMORY / GIB:.0f} GiB each: {', '.join(fit)}."
    )


def _plain(run: Result) -> Result:
    config, test = run["config"], run["test"]
    predict = float(np.median(run["predict_seconds"]))
    return {
        **{name: config[name] for name in ("neurons", "hidden_layers")},
        **{name: run[name] for name in ("density", "nnz", "peak_bytes", "budget_bytes")},
        "initialise_seconds": run["seconds"]["initialise"],
        "seconds_per_sample": run["seconds_per_sample"],
        "epoch_seconds": sum(run["step_seconds"]),
        "inference_seconds_per_sample": predict / config["batch_size"],
        "evolution_seconds": float(np.mean(run["evolve_seconds"])),
        "first_loss": float(np.mean(run["losses"][:10])),
        "last_loss": float(np.mean(run["losses"][-10:])),
        "correct": test["correct"], "held_out": test["n"], "test_p": test["p"],
    }  # fmt: skip


def _guide(ax: Axes, neurons: np.ndarray, values: Sequence[float]) -> float | None:
    """Draw the line of proportionality; return the measured exponent, if there is one."""
    x, y = np.log(np.array([neurons, values], float))
    x, y = x[x >= np.log(5e6)], y[x >= np.log(5e6)]
    if len(x):
        ends = np.array([1e5, 4e8])
        proportional = ends * np.exp(np.median(y - x))
        ax.plot(ends, proportional, color=GREY, linewidth=1, linestyle=(0, (5, 3)))
    return float(np.polyfit(x, y, 1)[0]) if len(set(x)) >= 3 else None
