"""The pictures of neuron importance: how it is distributed, and what pruning by it does."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from sparsecore.paper.style import COLOURS, GREY, line
from sparsecore.paper.training import shown
from sparsecore.paper.training.shown import by_dataset
from sparsecore.paper.training.studies import Result, Results

_BOTH = ("set-all-relu", "set-all-relu-pruned")
_MOMENTS = {"before training": GREY, "on the way": "#56B4E9", "at the end": "#0072B2"}


@by_dataset(
    "F-importance",
    alt="Histograms of neuron importance per hidden layer before, during and after training.",
    caption=(
        "**Neuron importance over training.** SET with All-ReLU, no pruning, first seed. What to "
        "see: how far training sets the neurons apart that begin much alike."
    ),
    finding="In the first hidden layer", height=2.4, extra=0.5, block=(1, 3),
    needs=("set-all-relu",), labels=("density of neurons",),
    legend=lambda results: [line(colour, label) for label, colour in _MOMENTS.items()],
)  # fmt: skip
def importance(axes: Any, name: str, results: Results) -> tuple[str, str]:
    """Draw how importance is distributed in each hidden layer, first seed; of F-importance."""
    run = results.of(name, "set-all-relu")[0]
    seen = [e for e in run["epochs"] if "importance" in e]
    moments = (seen[0], seen[len(seen) // 2], seen[-1])
    for layer, ax in enumerate(axes):
        for record, colour in zip(moments, _MOMENTS.values(), strict=True):
            _outline(ax, record["importance"][layer], colour)
        ax.set(title=f"hidden layer {layer + 1}", xlabel="importance Σ |weight|")
        ax.set_xlim(left=0)
        ax.set_ylim(bottom=0)
    shapes = (shown.moments(moments[i]["importance"][0]["counts"]) for i in (0, -1))
    # The middle of the first bin is half a bin from 0.
    (spread, skew), (then, skewed) = ((sd / (mean + 0.5), skew) for mean, sd, skew in shapes)
    told = (
        f"on {results.title(name)} the standard deviation goes from {spread:.2f} to {then:.2f} "
        f"of the mean, and the longer tail is on the {'right' if skewed > 0 else 'left'} "
        f"(skewness {skew:+.1f} before, {skewed:+.1f} at the end)"
    )
    return told, ""


def _outline(ax: Axes, seen: dict[str, Any], colour: str) -> None:
    counts = np.asarray(seen["counts"], float)
    edges = np.linspace(0, seen["largest"] or 1.0, len(counts) + 1)
    # Bins are as wide as the largest value of the moment asks for: only densities compare.
    density = counts / max(1.0, counts.sum()) / edges[1]
    ax.stairs(density, edges, color=colour, linewidth=1.3)
    ax.stairs(density, edges, color=colour, alpha=0.15, fill=True)


@by_dataset(
    "F-importance-during",
    alt="Connections and test accuracy against epoch with and without importance pruning.",
    caption=(
        "**Importance pruning during training.** Means over seeds ± one standard deviation. What "
        "to see: how far the connections (top) fall before accuracy (bottom) follows."
    ),
    finding="With pruning during training", numbers="Pruned", height=4.8, block=(2, 1), across=2,
    labels=("connections (thousands)", "test accuracy (%)"), sharex="col", needs=_BOTH,
    legend=lambda results: shown.lines(_BOTH),
)  # fmt: skip
def during_training(axes: Any, name: str, results: Results) -> tuple[str, str]:
    """Draw connections and accuracy with importance pruning and without; of F-importance."""
    top, bottom = axes
    for method, runs in shown.by_method(results, name).items():
        shown.band(top, *shown.over_epochs(runs, "nnz", 1e-3), COLOURS[method])
        shown.band(bottom, *shown.over_epochs(runs, "test_accuracy", 100), COLOURS[method])
    top.set_xlim(1, results.epochs(name))
    top.set_ylim(bottom=0)
    bottom.set_xlabel("epoch")
    plain, pruned = (results.of(name, method) for method in _BOTH)
    left = np.mean([run["nnz_end"] / run["nnz_start"] for run in pruned])
    config = pruned[0]["config"]
    schedule = f"from epoch {config['prune_from']} on, every {config['prune_every']}"
    told = (
        f"on {results.title(name)} {100 * left:.0f} % of the connections are left and accuracy "
        f"differs by {shown.accuracy(pruned) - shown.accuracy(plain):+.1f} points"
    )
    return told, f"{results.title(name)} {schedule}"


_POINTS: dict[str, Any] = {"marker": "o", "markersize": 3}
# What is left: its colour, the value that it is a share of, its name.
_LEFT = {
    "nnz": ("#0072B2", "nnz", "connections"),
    "compact_nbytes": ("#009E73", "nbytes", "memory, compact"),
    "compact_seconds": ("#D55E00", "seconds", "prediction time, compact"),
}


@by_dataset(
    "F-importance-after",
    alt="Accuracy, connections, memory and prediction time against the pruned percentile.",
    caption=(
        "**Importance pruning after training**, and no training afterwards. Means over seeds ± one "
        "standard deviation. What to see: how far to the right accuracy (top) stays level, and "
        "what is left there (bottom), also in the compact network."
    ),
    finding="A trained network can be pruned for at most one point of accuracy",
    height=4.8, block=(2, 1), across=2, sharex="col", needs=("set-all-relu",),
    labels=("test accuracy (%)", "of the unpruned network (%)"),
    legend=lambda results: [line(colour, label) for colour, _, label in _LEFT.values()],
)  # fmt: skip
def after_training(axes: Any, name: str, results: Results) -> tuple[str, str]:
    """Draw what pruning a trained network costs and saves, by percentile; of F-importance."""
    top, bottom = axes
    runs = results.of(name, "set-all-relu")
    x = _after(runs, "percentile")[0]
    accuracy = 100 * _after(runs, "test_accuracy")
    shown.band(top, x, accuracy, COLOURS["set-all-relu"], **_POINTS)
    kept = accuracy.mean(axis=0)
    last = int(np.flatnonzero(kept >= kept[0] - 1).max())
    shares = []
    for field, (colour, whole, _) in _LEFT.items():
        left = 100 * _after(runs, field) / _after(runs, whole)[:, :1]
        shown.band(bottom, x, left, colour, **_POINTS)
        shares.append(f"{left[:, last].mean():.0f} %")
    bottom.set_ylim(bottom=0)
    bottom.set_xlabel("percentile of importance that is pruned")
    told = (
        f"on {results.title(name)} up to percentile {x[last]:.0f}, where {shares[0]} of the "
        f"connections are left, {shares[1]} of the memory and {shares[2]} of the time"
    )
    return told, ""


def _after(runs: list[Result], name: str) -> np.ndarray:
    """Return what was seen of pruning after training, shape (seeds, percentiles)."""
    seen = [run["epochs"][-1]["post_pruning"] for run in runs]
    return np.array([[record[name] for record in one] for one in seen], float)
