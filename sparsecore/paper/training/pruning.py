"""The pictures of neuron importance: how it is distributed, and what pruning by it does."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sparsecore.paper.style import COLOURS, GREY, line
from sparsecore.paper.training import shown
from sparsecore.paper.training.shown import drawn, sentence
from sparsecore.paper.training.studies import Result, Results

_MOMENTS = {"before training": GREY, "on the way": "#56B4E9", "at the end": "#0072B2"}


@drawn(
    "F-importance",
    "Histograms of neuron importance per hidden layer before, during and after training.",
)
def importance(results: Results) -> tuple[Figure, str, str, str]:
    """Draw how importance is distributed in each hidden layer, first seed; of F-importance."""

    def draw(axes: Any, name: str) -> str:
        run = results.of(name, "set-all-relu")[0]
        seen = [e for e in run["epochs"] if "importance" in e]
        moments = (seen[0], seen[len(seen) // 2], seen[-1])
        for layer, ax in enumerate(axes):
            for record, colour in zip(moments, _MOMENTS.values(), strict=True):
                _outline(ax, record["importance"][layer], colour)
            ax.set(title=f"hidden layer {layer + 1}", xlabel="importance Σ |weight|")
            ax.set_xlim(left=0)
            ax.set_ylim(bottom=0)
        (spread, skew), (then, skewed) = (_shape(moments[i]["importance"][0]) for i in (0, -1))
        return (
            f"on {results.title(name)} the standard deviation goes from {spread:.2f} to {then:.2f} "
            f"of the mean, and the longer tail is on the {'right' if skewed > 0 else 'left'} "
            f"(skewness {skew:+.1f} before, {skewed:+.1f} at the end)"
        )

    figure, told = shown.by_dataset(
        results, draw, height=2.4, extra=0.5, block=(1, 3), needs=("set-all-relu",),
        labels=("density of neurons",),
        legend=[line(colour, label) for label, colour in _MOMENTS.items()],
    )  # fmt: skip
    caption = (
        "**Neuron importance over training.** SET with All-ReLU, no pruning, first seed. What to "
        "see: how far training sets the neurons apart that begin much alike."
    )
    return figure, caption, sentence("In the first hidden layer", told), ""


def _outline(ax: Axes, seen: dict[str, Any], colour: str) -> None:
    counts = np.asarray(seen["counts"], float)
    edges = np.linspace(0, seen["largest"] or 1.0, len(counts) + 1)
    # Bins are as wide as the largest value of the moment asks for: only densities compare.
    density = counts / max(1.0, counts.sum()) / edges[1]
    ax.stairs(density, edges, color=colour, linewidth=1.3)
    ax.stairs(density, edges, color=colour, alpha=0.15, fill=True)


def _shape(seen: dict[str, Any]) -> tuple[float, float]:
    """Return standard deviation over mean, and skewness, of a histogram."""
    share = np.array(seen["counts"]) / np.sum(seen["counts"])
    middles = np.arange(len(share)) + 0.5
    mean = share @ middles
    sd = np.sqrt(share @ (middles - mean) ** 2)
    return float(sd / mean), float(share @ (middles - mean) ** 3 / sd**3)


@drawn(
    "F-importance-during",
    "Connections and test accuracy against epoch with and without importance pruning.",
)
def during_training(results: Results) -> tuple[Figure, str, str, str]:
    """Draw connections and accuracy with importance pruning and without; of F-importance."""
    schedules: list[str] = []

    def draw(axes: Any, name: str) -> str:
        top, bottom = axes
        for method, runs in shown.by_method(results, name).items():
            shown.band(top, *shown.over_epochs(runs, "nnz", 1e-3), COLOURS[method])
            shown.band(bottom, *shown.over_epochs(runs, "test_accuracy", 100), COLOURS[method])
        top.set_xlim(1, results.epochs(name))
        top.set_ylim(bottom=0)
        bottom.set_xlabel("epoch")
        plain, pruned = (results.of(name, m) for m in results.study.methods)
        left = np.mean([run["nnz_end"] / run["nnz_start"] for run in pruned])
        config = pruned[0]["config"]
        schedules.append(
            f"{results.title(name)} from epoch {config['prune_from']} on, every "
            f"{config['prune_every']}"
        )
        return (
            f"on {results.title(name)} {100 * left:.0f} % of the connections are left and accuracy "
            f"differs by {shown.accuracy(pruned) - shown.accuracy(plain):+.1f} points"
        )

    figure, told = shown.by_dataset(
        results, draw, height=4.8, block=(2, 1), across=2, labels=("connections (thousands)",
        "test accuracy (%)"), needs=results.study.methods,
        legend=shown.lines(results.study.methods), sharex="col",
    )  # fmt: skip
    caption = (
        "**Importance pruning during training.** Means over seeds ± one standard deviation. What "
        "to see: how far the connections (top) fall before accuracy (bottom) follows."
    )
    finding = sentence("With pruning during training", told)
    return figure, caption, finding, sentence("Pruned", "; ".join(schedules))


_POINTS: dict[str, Any] = {"marker": "o", "markersize": 3}
# What is left: its colour, the value that it is a share of, its name.
_LEFT = {
    "nnz": ("#0072B2", "nnz", "connections"),
    "compact_nbytes": ("#009E73", "nbytes", "memory, compact"),
    "compact_seconds": ("#D55E00", "seconds", "prediction time, compact"),
}


@drawn(
    "F-importance-after",
    "Accuracy, connections, memory and prediction time against the pruned percentile.",
)
def after_training(results: Results) -> tuple[Figure, str, str, str]:
    """Draw what pruning a trained network costs and saves, by percentile; of F-importance."""

    def draw(axes: Any, name: str) -> str:
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
        return (
            f"on {results.title(name)} up to percentile {x[last]:.0f}, where {shares[0]} of the "
            f"connections are left, {shares[1]} of the memory and {shares[2]} of the time"
        )

    figure, told = shown.by_dataset(
        results, draw, height=4.8, block=(2, 1), across=2, sharex="col", needs=("set-all-relu",),
        labels=("test accuracy (%)", "of the unpruned network (%)"),
        legend=[line(colour, label) for colour, _, label in _LEFT.values()],
    )  # fmt: skip
    caption = (
        "**Importance pruning after training**, and no training afterwards. Means over seeds ± one "
        "standard deviation. What to see: how far to the right accuracy (top) stays level, and "
        "what is left there (bottom), also in the compact network."
    )
    finding = sentence("A trained network can be pruned for at most one point of accuracy", told)
    return figure, caption, finding, ""


def _after(runs: list[Result], name: str) -> np.ndarray:
    """Return what was seen of pruning after training, shape (seeds, percentiles)."""
    seen = [run["epochs"][-1]["post_pruning"] for run in runs]
    return np.array([[record[name] for record in one] for one in seen], float)
