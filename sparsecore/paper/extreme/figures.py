"""The tables and pictures of the page on extreme networks: results in, tables and pictures out."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from sparsecore.extreme import budget
from sparsecore.extreme.config import ExtremeConfig
from sparsecore.extreme.network import step_bytes
from sparsecore.paper.extreme.runs import Extreme, Row
from sparsecore.paper.page import Column, Note, Picture, Table
from sparsecore.paper.store import Result
from sparsecore.paper.style import COLOURS, GREY, canvas, source, tag

#: Neurons of the nervous system or brain; the page says where the numbers are from.
BRAINS = {
    "roundworm": 302,
    "fruit fly": 139_255,
    "honey bee": 960_000,
    "frog": 16_000_000,
    "bat": 50_000_000,
    "rat": 200_000_000,
}
_GIB = 2**30
_MOST_RANKS = 129
_ABOVE = {"xycoords": ("data", "axes fraction"), "ha": "center", "va": "bottom"}
_PROJECTED = (1_000_000_000, 2_000_000_000, 5_000_000_000)
_RUN = {"recorded": "rec.", "this build": "here"}
_KINDS = {"recorded": COLOURS["set-all-relu"], "this build": COLOURS["set-relu"]}


def _seconds(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:#.2g}".rstrip(".")


def _per(unit: float, digits: int = 1) -> Callable[[float], str]:
    return lambda value: f"{value / unit:.{digits}f}"


_gib = _per(_GIB, 2)


def _count(n: float) -> str:
    if 1 <= n < 10_000:
        return f"{n:,}"
    mantissa, exponent = f"{n:.1e}".split("e")
    raised = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{float(mantissa):g}·10{raised}"


# --- the runs ------------------------------------------------------------------------------------

_TABLE = (
    Column("neurons", "neurons", by=_count),
    Column("layers", "hidden_layers"),
    Column("density", "density", by=_count),
    Column("nnz", "nnz", by=_count),
    Column("GiB", "peak_bytes", by=_gib),
    Column("plan", "budget_bytes", by=_gib),
    Column("init", "initialise_seconds", by=_seconds),
    Column("sample", "seconds_per_sample", by=_seconds),
    Column("epoch", "epoch_seconds", by=_seconds),
    Column("infer", "inference_seconds_per_sample", by=_seconds),
    Column("evolve", "evolution_seconds", by=_seconds),
    Column("loss", "", lambda r: f"{r['first_loss']:.2f} → {r['last_loss']:.2f}", number=False),
    Column("right", "", lambda r: f"{r['correct']}/{r['held_out']}" if r["held_out"] else "—"),
    Column("run", "run", by=_RUN.__getitem__, number=False),
)


def table(extreme: Extreme) -> Table:
    """Make T-extreme: size, memory, times and learning of every run."""
    rows = [_plain(*entry) for entry in extreme.runs()]
    sizes = {r["config"]["steps"] * r["config"]["batch_size"] for _, _, r in extreme.runs()}
    caption = (
        "**Extreme networks.** Density is the middle layer's. GiB: the most that was resident, and "
        "the plan. Seconds to initialise, per training sample, per epoch, per sample of inference, "
        "per evolution of all layers; mean loss of the first and the last ten batches; held-out "
        "samples classified rightly. Runs are recorded (rec.) or made with this book (here)."
    )
    sources = f"An epoch has {' or '.join(map(str, sorted(sizes)))} samples. "
    if guesses := [row["test_p"] for row in rows if row["test_p"] is not None]:
        sources += f"Guessing does as well with a probability of at most {max(guesses):.0e}. "
    return Table.of("T-extreme", rows, _TABLE, caption, sources + _source(extreme))


def memory(extreme: Extreme) -> Table | Note:
    """Make the memory plan of the largest run, beside what it took."""
    if not extreme.runs():
        return Note("No run is there.")
    row, _, run = extreme.runs()[-1]
    totals = {"planned": run["budget_bytes"], "measured": run["peak_bytes"]}
    rows = [{"item": item, "bytes": n} for item, n in {**run["budget"], **totals}.items()]
    columns = (
        Column("item", "item", number=False, by=lambda s: f"**{s}**" if s in totals else s),
        Column("GiB", "bytes", by=_per(_GIB, 3)),
        Column("bytes a neuron", "bytes", by=_per(row.neurons)),
    )
    caption = (
        f"**The memory of {row.neurons:,} neurons**, batch {run['config']['batch_size']}: the plan "
        "that is printed before anything is allocated, and the most that was resident."
    )
    return Table.of("T-extreme-memory", rows, columns, caption, _source(extreme))


def scaling(extreme: Extreme) -> Picture:
    """Draw seconds per step and bytes against neurons, on logarithmic axes, with named brains."""
    runs = pd.DataFrame(_plain(*entry) for entry in extreme.runs())
    runs["time"] = [np.median(run["step_seconds"]) for *_, run in extreme.runs()]
    runs["memory"], runs["size"] = runs["peak_bytes"], 18 + 5 * runs["hidden_layers"]
    labels, told = {"time": "seconds per training step", "memory": "bytes of memory"}, []
    with canvas(6.6) as figure:
        axes = figure.subplots(2, 1, sharex=True)
        for ax, (what, label) in zip(axes, labels.items(), strict=True):
            for where, own in runs.groupby("run"):
                look = {"edgecolors": _KINDS[where], "facecolors": "none", "linewidths": 1.4}
                ax.scatter(own["neurons"], own[what], own["size"], label=where, zorder=3, **look)
            slope = _guide(ax, runs["neurons"], runs[what])
            if slope is not None:
                told.append(f"{slope:.2f} ({what})")
            ax.set(xscale="log", yscale="log", ylabel=label, xlim=(150, 6e8))
            for name, count in BRAINS.items():
                ax.axvline(count, color=GREY, linewidth=0.8, linestyle=":", zorder=0)
                if ax is axes[0]:
                    tag(ax, f"{name}\n{_count(count)}", (count, 1), (0, 3), **_ABOVE)
        axes[0].legend(loc="upper left")
        axes[-1].set_xlabel("hidden neurons")
    law = f"From 5·10⁶ neurons on the exponents are {' and '.join(told)}. " * bool(told)
    caption = (
        "**Growth.** Seconds per training step (batch 4) and the most memory resident, against "
        "hidden neurons; the more layers the larger the circle. Dashed: proportional to neurons. "
        "Grey: brains with as many neurons. What to see: both grow nearly linearly."
    )
    alt = "Log-log plot of seconds per step and bytes against neurons, with brains as landmarks."
    return Picture("F-extreme-scaling", figure, caption, alt, law + _source(extreme))


def losses(extreme: Extreme) -> Picture:
    """Draw the loss curves of the largest networks."""
    entries = [entry for entry in extreme.runs() if entry[0].hidden_layers == 10][-3:]
    colours = (COLOURS["set-all-relu-pruned"], COLOURS["set-relu"], COLOURS["set-all-relu"])
    trends = []
    with canvas(3.2) as figure:
        ax = figure.subplots()
        for (row, where, run), colour in zip(entries, colours, strict=False):
            neurons, values = f"{row.neurons:,} neurons", pd.Series(run["losses"])
            steps = values.index + 1
            ax.plot(steps, values, ".", color=colour, alpha=0.5)
            mean = values.rolling(5, min_periods=1).mean()
            ax.plot(steps, mean, color=colour, label=f"{neurons} ({where})")
            every = run["config"]["evolve_every"]
            for step in range(every, len(values), every):
                ax.axvline(step + 0.5, color=GREY, linewidth=0.8, linestyle=":")
            if trend := run["trend"]:
                trends.append(f"{neurons}: Kendall's τ {trend['tau']:+.2f}, p = {trend['p']:.1g}")
        ax.axhline(np.log(2), color=GREY, linewidth=0.8)
        ax.set(xlabel="step", ylabel="cross-entropy (nats)", ylim=(0, None))
        ax.legend()
    caption = (
        "**They learn.** Loss of each batch before it is trained on (dots), and the mean of five "
        "(lines); every sample is seen once. At dotted lines the topology evolves, which costs "
        "what was learnt on the connections that go. What to see: the loss falls below the grey "
        "line, which is chance."
    )
    alt = "Loss against step for the largest networks, falling."
    sources = f"Trends of {'; '.join(trends)}. " * bool(trends) + _source(extreme)
    return Picture("F-extreme-loss", figure, caption, alt, sources)


# --- beside the table ----------------------------------------------------------------------------

_SPLIT = (
    Column("neurons", "neurons", "{:,}"),
    Column("ranks", "ranks"),
    Column("step (s)", "step_seconds", by=_seconds),
    Column("messages a step (MiB)", "message_bytes", by=_per(2**20, 0)),
    Column("messages (s)", "message_seconds", by=_seconds),
    Column("GiB a rank", "peak_bytes", by=_gib),
    Column("last loss", "last_loss", "{:.6f}"),
    Column("run", "run", number=False),
)


def split(extreme: Extreme) -> Table | Note:
    """Make the table of one network on two ranks and on one."""
    found = extreme.parts["split"]
    if not found:
        return Note("Not measured: there is no MPI on this machine.")
    rows = [
        {
            "run": where,
            "neurons": run["neurons"],
            "ranks": ranks,
            "step_seconds": float(np.median(run["step_seconds"])),
            "message_bytes": run.get("message_bytes", 0.0),
            "message_seconds": run.get("message_seconds", 0.0),
            "peak_bytes": int(np.max(run["peak_bytes"])),
            "last_loss": run["losses"][-1],
        }
        for where, result in found
        for ranks, run in ((1, result["whole"]), (2, result["split"]))
    ]
    caption = (
        "**Split over two ranks.** The same network on one rank and on two, one thread each; what "
        "a rank sends and receives in a step, and how long that takes, waiting included."
    )
    apart = max(result["largest_difference"] for _, result in found)
    sources = f"The losses of all steps agree to {apart:.0e}. {source(found)}"
    return Table.of("T-extreme-split", rows, _SPLIT, caption, sources)


_SURVIVAL = (
    Column("neurons", "neurons", "{:,}"),
    Column("checkpoint (GiB)", "file_bytes", by=_gib),
    Column("writing it (s)", "checkpoint_seconds", by=_seconds),
    Column("weights", "weights_sha256", "`{:.8}`", number=False),
    Column(
        "as if it had not been killed", "identical", number=False, by=("**no**", "yes").__getitem__
    ),
    Column("run", "run", number=False),
)


def survival(extreme: Extreme) -> Table:
    """Make the table of the runs that were killed."""
    found = extreme.parts["survival"]
    rows = [
        {
            "run": where,
            "neurons": result["whole"]["neurons"],
            "file_bytes": result["file_bytes"],
            "checkpoint_seconds": result["resumed"]["seconds"]["checkpoint"],
            "weights_sha256": result["resumed"]["weights_sha256"],
            "identical": result["identical"],
        }
        for where, result in found
    ]
    caption = (
        "**Killed and resumed.** A run of four steps and three evolutions gets SIGKILL after its "
        "first checkpoint and goes on from there. In the end weights, velocities and losses are "
        "compared, to the last bit, with those of a run that was left alone."
    )
    return Table.of("T-extreme-survival", rows, _SURVIVAL, caption, source(found))


_PROJECTION = (
    Column("neurons", "neurons", by=_count),
    Column("connections", "connections", "{:.1e}"),
    Column("ranks", "ranks"),
    Column("GiB a rank", "rank_bytes", by=_per(_GIB)),
    Column("messages a step and rank (GiB)", "message_bytes", by=_per(_GIB)),
    Column("computing (s)", "compute_seconds", by=_seconds),
    Column("messages (s)", "message_seconds", by=_seconds),
)


def projection(extreme: Extreme, memory: int = 22 * _GIB, network: float = 12.5e9) -> Table | Note:
    """Make the table of what larger networks would take, on the fewest ranks that they fit on.

    `memory` is that of a rank's machine in bytes, `network` its bytes per second (100 Gbit/s).
    """
    if not extreme.runs():
        return Note("No run is there to go by.")
    row, _, run = extreme.runs()[-1]
    pace = float(np.median(run["step_seconds"])) / run["nnz"]
    rows, beyond = [], []
    for neurons in _PROJECTED:
        config = ExtremeConfig(neurons=neurons)
        sizes, batch = config.sizes, config.batch_size
        planned = partial(budget.plan, sizes, config.epsilon, batch, 1)
        ranks = bisect_left(range(1, _MOST_RANKS), -memory, key=lambda n: -planned(n).total) + 1
        if ranks == _MOST_RANKS:
            beyond.append(f"{_count(neurons)} neurons")
            continue
        plan = planned(ranks)
        moved = step_bytes(sizes, batch, len(plan.expected))
        found = {
            "neurons": neurons,
            "connections": sum(plan.expected),
            "ranks": len(plan.expected),
            "rank_bytes": plan.total,
            "message_bytes": moved,
            "compute_seconds": plan.connections * pace,
            "message_seconds": moved / network,
        }
        rows.append(found)
    rest = "{} fit no number of ranks: one rank holds both outputs with all connections. "
    caption = (
        "**On paper: larger than a rat's.** A projection, not a measurement: ten hidden layers, "
        f"batch 4, on as many machines with {memory / _GIB:.0f} GiB as the network needs. Seconds "
        "are per step, for computing as fast as the largest run here and for messages at "
        f"{network / 1e9:g} GB/s, as large as those measured above, neuron for neuron."
    )
    sources = f"Computing takes {pace * 1e9:.1f} ns per connection at {row.neurons:,} neurons. "
    sources += rest.format(", ".join(beyond)) * bool(beyond) + _source(extreme)
    return Table.of("T-extreme-projection", rows, _PROJECTION, caption, sources)


def _plain(row: Row, where: str, run: Result) -> Result:
    test, trend = run["test"] or {}, run["trend"] or {}
    predict, evolve = run["predict_seconds"], run["evolve_seconds"]
    batch = run["config"]["batch_size"]
    return {
        "run": where,
        "neurons": row.neurons,
        "hidden_layers": row.hidden_layers,
        **{name: run[name] for name in ("density", "nnz", "peak_bytes", "budget_bytes")},
        "initialise_seconds": run["seconds"]["initialise"],
        "seconds_per_sample": run["seconds_per_sample"],
        "epoch_seconds": sum(run["step_seconds"]),
        "inference_seconds_per_sample": float(np.median(predict)) / batch if predict else None,
        "evolution_seconds": float(np.mean(evolve)) if evolve else None,
        "first_loss": float(np.mean(run["losses"][:10])),
        "last_loss": float(np.mean(run["losses"][-10:])),
        "tau": trend.get("tau"),
        "trend_p": trend.get("p"),
        "correct": test.get("correct"),
        "held_out": test.get("n"),
        "test_p": test.get("p"),
        **{name: run["provenance"][name] for name in ("commit", "cpu", "threads")},
    }


def _source(extreme: Extreme) -> str:
    """Say where the largest recorded run is from, and the largest of this build."""
    last = {title: run for _, title, run in extreme.runs()}
    about = "The largest run had {threads} threads and {memory_gib} GiB of memory."
    return source(last.items(), [about.format_map(run["provenance"]) for run in last.values()])


def _guide(ax: Axes, neurons: np.ndarray, values: Sequence[float]) -> float | None:
    """Draw the line of proportionality; return the exponent that is measured, if there is one."""
    x, y = np.log(np.array([neurons, values], float))
    x, y = x[x >= np.log(5e6)], y[x >= np.log(5e6)]
    if len(x):
        ends = np.array([1e5, 4e8])
        proportional = ends * np.exp(np.median(y - x))
        ax.plot(ends, proportional, color=GREY, linewidth=1, linestyle=(0, (5, 3)))
    return float(np.polyfit(x, y, 1)[0]) if len(set(x)) >= 3 else None
