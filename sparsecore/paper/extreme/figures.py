"""The tables and pictures of the page on extreme networks: results in, captioned tables out.

Running is the business of `extreme`; what all figures of the book share is in `figures`.
"""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sparsecore.extreme import split as split_network
from sparsecore.extreme.config import ExtremeConfig
from sparsecore.paper.extreme.runs import Extreme, Result, Row
from sparsecore.paper.figures import COLOURS, GREY, STYLE, WIDTH
from sparsecore.paper.page import Note, Picture, Table

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
_PROJECTED = (1_000_000_000, 2_000_000_000, 5_000_000_000)
_RUN = {"recorded": "rec.", "this build": "here"}
_KINDS = {"recorded": COLOURS["set-all-relu"], "this build": COLOURS["set-relu"]}


def table(extreme: Extreme) -> Table:
    """Make T-extreme: size, memory, times and learning of every run."""
    entries = extreme.rows()
    plain = pd.DataFrame([_plain(row, where, run) for row, where, run in entries])
    shown = pd.DataFrame(
        {
            "neurons": [_count(row.neurons) for row, _, _ in entries],
            "layers": [str(row.hidden_layers) for row, _, _ in entries],
            "density": [_count(run["density"]) for _, _, run in entries],
            "nnz": [_count(run["nnz"]) for _, _, run in entries],
            "GiB": [f"{run['peak_bytes'] / _GIB:.2f}" for _, _, run in entries],
            "plan": [f"{run['budget_bytes'] / _GIB:.2f}" for _, _, run in entries],
            "init": [_seconds(run["seconds"]["initialise"]) for _, _, run in entries],
            "sample": [_seconds(run["seconds_per_sample"]) for _, _, run in entries],
            "epoch": [_seconds(sum(run["step_seconds"])) for _, _, run in entries],
            "infer": [_seconds(_inference(run)) for _, _, run in entries],
            "evolve": [_seconds(_mean(run["evolve_seconds"])) for _, _, run in entries],
            "loss": [_ends(run["losses"]) for _, _, run in entries],
            "right": [_test(run["test"]) for _, _, run in entries],
            "run": [_RUN[where] for _, where, _ in entries],
        }
    )
    worst = max((run["test"]["p"] for _, _, run in entries if run["test"]), default=None)
    caption = (
        "**Extreme networks.** Hidden neurons, hidden layers, density of the middle layer, "
        "connections; GiB: the most memory that the process had resident, and what was planned; "
        "seconds to initialise, per training sample, per epoch of "
        f"{_epoch(entries)} samples, per sample of inference, per evolution of all layers; mean "
        "loss of the first and the last ten batches; held-out samples classified rightly"
        + (
            f" (guessing does as well with a probability of at most {worst:.0e})"
            if worst is not None
            else ""
        )
        + ". Rows marked *here* were run on the machine that built the book, *rec.* (recorded) "
        f"ones {_machine(extreme)}. {_source(extreme)}"
    )
    numbers = tuple(c for c in shown.columns if c not in ("loss", "run"))
    return Table("T-extreme", shown, caption, plain, numbers)


def memory(extreme: Extreme) -> Table | Note:
    """Make the memory plan of the largest run, beside what it took."""
    entries = extreme.rows()
    if not entries:
        return Note("No run is there.")
    row, _, run = entries[-1]
    plain = pd.DataFrame(
        [{"item": name, "bytes": n} for name, n in run["budget"].items()]
        + [{"item": "planned", "bytes": run["budget_bytes"]}]
        + [{"item": "measured", "bytes": run["peak_bytes"]}]
    )
    per = plain["bytes"] / row.neurons
    shown = pd.DataFrame(
        {
            "item": [f"**{n}**" if n in ("planned", "measured") else n for n in plain["item"]],
            "GiB": [f"{n / _GIB:.3f}" for n in plain["bytes"]],
            "bytes a neuron": [f"{n:.1f}" for n in per],
        }
    )
    caption = (
        f"**The memory of {row.neurons:,} neurons**, batch {run['config']['batch_size']}: the plan "
        "that is printed before anything is allocated, and the most that was resident. "
        f"{_source(extreme)}"
    )
    return Table("T-extreme-memory", shown, caption, plain, ("GiB", "bytes a neuron"))


def scaling(extreme: Extreme) -> Picture:
    """Draw seconds per step and bytes against neurons, on logarithmic axes, with named brains."""
    entries = extreme.rows()
    quantities = (
        ("seconds per training step", [float(np.median(r["step_seconds"])) for _, _, r in entries]),
        ("bytes of memory", [float(r["peak_bytes"]) for _, _, r in entries]),
    )
    neurons = [row.neurons for row, _, _ in entries]
    slopes = []
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 6.6), layout="constrained")
        axes = figure.subplots(2, 1, sharex=True)
        for ax, (label, values) in zip(axes, quantities, strict=True):
            for where, colour in _KINDS.items():
                own = [i for i, (_, w, _) in enumerate(entries) if w == where]
                if own:
                    depths = [entries[i][0].hidden_layers for i in own]
                    ax.scatter(
                        [neurons[i] for i in own], [values[i] for i in own],
                        s=[18 + 5 * d for d in depths], facecolors="none", edgecolors=colour,
                        linewidths=1.4, label=where, zorder=3,
                    )  # fmt: skip
            slopes.append(_guide(ax, neurons, values))
            ax.set(xscale="log", yscale="log", ylabel=label, xlim=(150, 6e8))
            _brains(ax, named=ax is axes[0])
        axes[0].legend(loc="upper left")
        axes[-1].set_xlabel("hidden neurons")
    deep = [s for s in slopes if s is not None]
    named = zip(("time", "memory"), slopes, strict=True)
    exponents = " and ".join(f"{s:.2f} ({what})" for what, s in named if s is not None)
    law = f" From 5·10⁶ neurons on the exponents are {exponents}; linear growth is 1." * bool(deep)
    caption = (
        "**Growth.** Seconds per training step (batch 4) and the most memory resident, against "
        "hidden neurons; the more layers the larger the circle. Dashed: proportional to neurons. "
        f"Grey: brains with as many neurons.{law} {_source(extreme)}"
    )
    alt = "Log-log plot of seconds per step and bytes against neurons, with brains as landmarks."
    return Picture("F-extreme-scaling", figure, caption, alt)


def losses(extreme: Extreme) -> Picture:
    """Draw the loss curves of the largest networks."""
    entries = [entry for entry in extreme.rows() if entry[0].hidden_layers == 10][-3:]
    colours = (COLOURS["set-all-relu-pruned"], COLOURS["set-relu"], COLOURS["set-all-relu"])
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
        ax = figure.subplots()
        for (row, where, run), colour in zip(entries, colours, strict=False):
            values = np.array(run["losses"])
            steps = np.arange(1, len(values) + 1)
            ax.plot(steps, values, ".", color=colour, alpha=0.5)
            mean = [values[max(0, i - 4) : i + 1].mean() for i in range(len(values))]
            ax.plot(steps, mean, color=colour, label=f"{row.neurons:,} neurons ({where})")
            every = run["config"]["evolve_every"]
            for step in range(every, len(values), every):
                ax.axvline(step + 0.5, color=GREY, linewidth=0.8, linestyle=":")
        ax.axhline(np.log(2), color=GREY, linewidth=0.8)
        ax.set(xlabel="step", ylabel="cross-entropy (nats)", ylim=(0, None))
        ax.legend()
    trends = "; ".join(
        f"{row.neurons:,}: Kendall's τ {run['trend']['tau']:+.2f}, p = {run['trend']['p']:.1g}"
        for row, _, run in entries
        if run["trend"]
    )
    caption = (
        "**They learn.** Loss of each batch before it is trained on, and the mean of five; every "
        "sample is seen once. Dotted: the topology evolves, which costs what was learnt on the "
        f"connections that go. The line is chance. {trends}. {_source(extreme)}"
    )
    alt = "Loss against step for the largest networks, falling."
    return Picture("F-extreme-loss", figure, caption, alt)


def split(extreme: Extreme) -> Table | Note:
    """Make the table of one network on two ranks and on one."""
    if not extreme.parts["split"]:
        return Note("Not measured: there is no MPI on this machine.")
    rows = []
    for where, found in extreme.parts["split"].items():
        for name, ranks in (("whole", 1), ("split", 2)):
            run = found[name]
            peaks = run["peak_bytes"] if ranks > 1 else [run["peak_bytes"]]
            rows.append(
                {
                    "run": where,
                    "neurons": run["neurons"],
                    "ranks": ranks,
                    "step_seconds": float(np.median(run["step_seconds"])),
                    "message_bytes": run.get("message_bytes", 0.0),
                    "message_seconds": run.get("message_seconds", 0.0),
                    "peak_bytes": max(peaks),
                    "last_loss": run["losses"][-1],
                }
            )
    plain = pd.DataFrame(rows)
    shown = pd.DataFrame(
        {
            "neurons": [f"{n:,}" for n in plain["neurons"]],
            "ranks": plain["ranks"].astype(str),
            "step (s)": [_seconds(s) for s in plain["step_seconds"]],
            "messages a step (MiB)": [f"{n / 2**20:.0f}" for n in plain["message_bytes"]],
            "messages (s)": [_seconds(s) for s in plain["message_seconds"]],
            "GiB a rank": [f"{n / _GIB:.2f}" for n in plain["peak_bytes"]],
            "last loss": [f"{loss:.6f}" for loss in plain["last_loss"]],
            "run": plain["run"],
        }
    )
    apart = max(found["largest_difference"] for found in extreme.parts["split"].values())
    caption = (
        "**Split over two ranks.** The same network on one rank and on two, one thread each; what "
        "a rank sends and receives in a step, and how long that takes, waiting included. The "
        f"losses of all steps agree to {apart:.0e}."
    )
    numbers = tuple(c for c in shown.columns if c != "run")
    return Table("T-extreme-split", shown, caption, plain, numbers)


def survival(extreme: Extreme) -> Table:
    """Make the table of the runs that were killed."""
    found = extreme.parts["survival"]
    plain = pd.DataFrame(
        [
            {
                "run": where,
                "neurons": result["whole"]["neurons"],
                "file_bytes": result["file_bytes"],
                "checkpoint_seconds": result["resumed"]["seconds"]["checkpoint"],
                "weights_sha256": result["resumed"]["weights_sha256"],
                "identical": result["identical"],
            }
            for where, result in found.items()
        ]
    )
    shown = pd.DataFrame(
        {
            "neurons": [f"{n:,}" for n in plain["neurons"]],
            "checkpoint (GiB)": [f"{n / _GIB:.2f}" for n in plain["file_bytes"]],
            "writing it (s)": [_seconds(s) for s in plain["checkpoint_seconds"]],
            "weights": [f"`{digest[:8]}`" for digest in plain["weights_sha256"]],
            "as if it had not been killed": np.where(plain["identical"], "yes", "**no**"),
            "run": plain["run"],
        }
    )
    caption = (
        "**Killed and resumed.** A run of four steps and three evolutions gets SIGKILL after its "
        "first checkpoint and goes on from there. In the end weights, velocities and losses are "
        "compared, to the last bit, with those of a run that was left alone."
    )
    return Table(
        "T-extreme-survival", shown, caption, plain,
        ("neurons", "checkpoint (GiB)", "writing it (s)"),
    )  # fmt: skip


def projection(extreme: Extreme, memory: int = 22 * _GIB, network: float = 12.5e9) -> Table | Note:
    """Make the table of what larger networks would take, on paper.

    Parameters
    ----------
    extreme : Extreme
    memory : int
        Bytes of a rank's machine.
    network : float
        Bytes a second between machines: 100 Gbit/s.
    """
    entries = extreme.rows()
    if not entries:
        return Note("No run is there to go by.")
    row, _, run = entries[-1]
    pace = float(np.median(run["step_seconds"])) / run["nnz"]
    tried = {n: _projected(n, memory, network, pace) for n in _PROJECTED}
    rows = [found for found in tried.values() if found is not None]
    beyond = ", ".join(f"{_count(n)} neurons" for n, found in tried.items() if found is None)
    plain = pd.DataFrame(rows)
    shown = pd.DataFrame(
        {
            "neurons": [_count(n) for n in plain["neurons"]],
            "connections": [f"{n:.1e}" for n in plain["connections"]],
            "ranks": plain["ranks"].astype(str),
            "GiB a rank": [f"{n / _GIB:.1f}" for n in plain["rank_bytes"]],
            "messages a step and rank (GiB)": [f"{n / _GIB:.1f}" for n in plain["message_bytes"]],
            "computing (s)": [_seconds(s) for s in plain["compute_seconds"]],
            "messages (s)": [_seconds(s) for s in plain["message_seconds"]],
        }
    )
    caption = (
        f"**On paper: larger than a rat's.** Ten hidden layers, batch 4, machines like this one "
        f"with {memory / _GIB:.0f} GiB: as many as the network needs, seconds per step for their "
        f"computing at the {pace * 1e9:.1f} ns a connection of {row.neurons:,} neurons, and for "
        f"messages at {network / 1e9:g} GB/s. A projection, not a measurement; messages are as "
        "large as those measured above, neuron for neuron."
        + (
            f" {beyond} fit no number of ranks: the two outputs, with all their connections, are "
            "on one of them."
            if beyond
            else ""
        )
    )
    numbers = tuple(shown.columns)
    return Table("T-extreme-projection", shown, caption, plain, numbers)


# --- parts ---------------------------------------------------------------------------------------


def _plain(row: Row, where: str, run: Result) -> Result:
    test, found = run["test"] or {}, run["trend"] or {}
    return {
        "run": where,
        "neurons": row.neurons,
        "hidden_layers": row.hidden_layers,
        "density": run["density"],
        "nnz": run["nnz"],
        "peak_bytes": run["peak_bytes"],
        "budget_bytes": run["budget_bytes"],
        "initialise_seconds": run["seconds"]["initialise"],
        "seconds_per_sample": run["seconds_per_sample"],
        "epoch_seconds": sum(run["step_seconds"]),
        "inference_seconds_per_sample": _inference(run),
        "evolution_seconds": _mean(run["evolve_seconds"]),
        "tau": found.get("tau"),
        "trend_p": found.get("p"),
        "correct": test.get("correct"),
        "held_out": test.get("n"),
        "test_p": test.get("p"),
        "commit": run["provenance"]["commit"],
        "cpu": run["provenance"]["cpu"],
        "threads": run["provenance"]["threads"],
    }


def _projected(neurons: int, memory: int, network: float, pace: float) -> Result | None:
    """Return what a network takes on the fewest ranks that it fits on; None if on none."""
    config = ExtremeConfig(neurons=neurons)
    sizes, batch = config.sizes, config.batch_size
    every = (split_network.loads(sizes, config.epsilon, batch, n) for n in range(1, _MOST_RANKS))
    fit = (found for found in every if max(load.n_bytes for load in found) <= memory)
    loads = next(fit, None)
    if loads is None:
        return None
    ranks = len(loads)
    moved = split_network.step_bytes(sizes, batch, ranks)
    return {
        "neurons": neurons,
        "connections": sum(load.connections for load in loads),
        "ranks": ranks,
        "rank_bytes": max(load.n_bytes for load in loads),
        "message_bytes": moved,
        "compute_seconds": max(load.connections for load in loads) * pace,
        "message_seconds": moved / network,
    }


def _inference(run: Result) -> float:
    seconds = run["predict_seconds"]
    return float(np.median(seconds)) / run["config"]["batch_size"] if seconds else float("nan")


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")


def _seconds(value: float) -> str:
    if not np.isfinite(value):
        return "—"
    return f"{value:.0f}" if value >= 100 else f"{value:#.2g}".rstrip(".")


def _ends(losses: Sequence[float]) -> str:
    return f"{np.mean(losses[:10]):.2f} → {np.mean(losses[-10:]):.2f}"


def _test(test: Result | None) -> str:
    return "—" if test is None else f"{test['correct']}/{test['n']}"


def _epoch(entries: Sequence[tuple[Row, str, Result]]) -> str:
    sizes = {r["config"]["steps"] * r["config"]["batch_size"] for _, _, r in entries}
    return " or ".join(str(n) for n in sorted(sizes))


def _source(extreme: Extreme) -> str:
    """Return profiles, versions and commits, in italics."""
    about = [
        f"{title}: profile {run['profile']}, seed {run['seed']}, sparsecore "
        f"{run['provenance']['sparsecore']}, commit {(run['provenance']['commit'] or '?')[:7]}"
        for title, runs in (("recorded", extreme.recorded), ("here", extreme.here))
        for run in list(runs.values())[-1:]
    ]
    return f"*Source: {'; '.join(about)}.*"


def _machine(extreme: Extreme) -> str:
    runs = list((extreme.recorded or extreme.here).values())
    if not runs:
        return "are not there yet"
    about = runs[-1]["provenance"]
    return f"on {about['cpu']}, {about['threads']} threads, {about['memory_gib']} GiB"


def _guide(ax: Axes, neurons: Sequence[int], values: Sequence[float]) -> float | None:
    """Draw the line of proportionality; return the exponent that is measured, if there is one."""
    x, y = np.log(np.array(neurons, float)), np.log(np.array(values, float))
    large = x >= np.log(5e6)
    if large.any():
        level = np.median((y - x)[large])
        ends = np.array([1e5, 4e8])
        ax.plot(ends, ends * np.exp(level), color=GREY, linewidth=1, linestyle=(0, (5, 3)))
    if len(set(x[large])) < 3:
        return None
    return float(np.polyfit(x[large], y[large], 1)[0])


def _brains(ax: Axes, named: bool) -> None:
    for name, count in BRAINS.items():
        ax.axvline(count, color=GREY, linewidth=0.8, linestyle=":", zorder=0)
        if named:
            ax.annotate(
                f"{name}\n{_count(count)}", (count, 1), xycoords=("data", "axes fraction"),
                xytext=(0, 3), textcoords="offset points", ha="center", va="bottom",
                fontsize=7.5, color="#333333",
            )  # fmt: skip


def _count(n: float) -> str:
    if 1 <= n < 10_000:
        return f"{n:,}"
    mantissa, exponent = f"{n:.1e}".split("e")
    raised = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{float(mantissa):g}·10{raised}"
