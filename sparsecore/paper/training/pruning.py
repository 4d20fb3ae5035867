"""The pictures of neuron importance: its distribution, and the effects of pruning by it."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from sparsecore.paper.style import COLOURS, GREY, line
from sparsecore.paper.training import shown
from sparsecore.paper.training.studies import Result, Results

_BOTH = ("set-all-relu", "set-all-relu-pruned")
_COLOURS = GREY, "#56B4E9", "#0072B2"  # before training, on the way, at the end


@shown.by_dataset(
    "F-importance",
    alt="Histograms of neuron importance per hidden layer before, during and after training.",
    caption="**Neuron importance over training.** Its distribution among the neurons of each "
    "hidden layer; epoch 0 is before training. SET with All-ReLU, no pruning, first seed. What to "
    "see: a long tail to the right means a few strong neurons; neurons near zero can be pruned.",
    finding="Where the spread of importance changes most", height=2.4, block=(1, 3),
    needs=lambda found: _observed(found, "importance"), labels=("density of neurons",),
)  # fmt: skip
def importance(axes: Any, name: str, results: Results) -> str:
    """Draw the distribution of importance in each hidden layer, first seed; of F-importance."""
    seen = [e for e in results.of(name, "set-all-relu")[0]["epochs"] if "importance" in e]
    times_seen, shapes = (seen[0], seen[len(seen) // 2], seen[-1]), list[list[Any]]()
    for layer, ax in enumerate(axes):
        for record, colour in zip(times_seen, _COLOURS, strict=True):
            _outline(ax, record["importance"][layer], colour, f"epoch {record['epoch']}")
        ax.set(title=f"hidden layer {layer + 1}", xlabel="importance Σ |weight|")
        ax.set(xlim=(0, None), ylim=(0, None))
        shapes.append([])
        for one in (times_seen[at]["importance"][layer] for at in (0, -1)):
            mean, sd, skew = shown.moments(one["counts"])
            middle = mean + 0.5  # the first bin's middle is half a bin from 0
            width = (one["largest"] or 1.0) / len(one["counts"])
            shapes[-1].append((sd / middle, skew, middle * width))
    axes[-1].legend(fontsize=8)
    most = max(range(len(shapes)), key=lambda i: abs(np.log(shapes[i][1][0] / shapes[i][0][0])))
    (spread, skew, mean), (then, skewed, meant) = shapes[most]
    return (
        f"on {results.title(name)} in hidden layer {most + 1}, mean from {mean:.1f} to "
        f"{meant:.1f}, standard deviation from {spread:.2f} to {then:.2f} of the mean, skewness "
        f"from {skew:+.1f} to {skewed:+.1f}"
    )


def _observed(found: Mapping[str, list[Result]], name: str) -> bool:
    """Whether runs of SET-All-ReLU recorded that; the last epoch has all that a run records."""
    return any(name in run["epochs"][-1] for run in found.get(_BOTH[0], ()))


def _outline(ax: Axes, seen: dict[str, Any], colour: str, label: str) -> None:
    counts = np.asarray(seen["counts"], float)
    edges = np.linspace(0, seen["largest"] or 1.0, len(counts) + 1)
    # An epoch's largest value sets the width of its bins: only densities can be compared.
    density = counts / max(1.0, counts.sum()) / edges[1]
    ax.stairs(density, edges, color=colour, linewidth=1.3, label=label)
    ax.stairs(density, edges, color=colour, alpha=0.15, fill=True)


@shown.by_dataset(
    "F-importance-during",
    alt="Connections with and without importance pruning, and its gain in accuracy, by epoch.",
    caption="**Importance pruning during training.** Top: connections. Bottom: test accuracy with "
    "pruning minus that without, a running mean with its 95 % interval over seeds. The last "
    "epoch's interval, the bar, also includes the size of the test set. What to see: how many "
    "connections go before accuracy falls.",
    finding="Connections left by pruning during training, and the change in accuracy (uncorrected "
    "95 % intervals)",
    height=4.4, block=(2, 1), across=4, sharex="col",
    labels=("connections (thousands)", "difference (points)"),
    needs=lambda found: set(_BOTH) <= found.keys(),
    legend=lambda results: shown.lines(_BOTH),
)  # fmt: skip
def during_training(axes: Any, name: str, results: Results) -> str:
    """Draw connections, and the effect of importance pruning on accuracy; of F-importance."""
    top, bottom = axes
    for method, runs in results.by_method(name).items():
        shown.band(top, *shown.over_epochs(runs, "nnz", 1e-3), COLOURS[method])
    top.set(xlim=(1, results.epochs(name)), ylim=(0, None))
    bottom.set_xlabel("epoch")
    plain, pruned = (results.of(name, method) for method in _BOTH)
    shown.gain(bottom, pruned, plain, COLOURS[_BOTH[1]])
    left = np.mean([run["nnz_end"] / run["nnz_start"] for run in pruned])
    return f"{results.title(name)} {100 * left:.0f} %, {shown.gap(pruned, plain)}"


_POINTS: dict[str, Any] = {"marker": "o", "markersize": 3}
# The shares that are left: colour, the whole network's value, label.
_LEFT = {
    "nnz": ("#0072B2", "nnz", "connections"),
    "compact_nbytes": ("#009E73", "nbytes", "compact network: memory"),
    "compact_seconds": ("#D55E00", "seconds", "compact network: time of prediction"),
}


@shown.by_dataset(
    "F-importance-after",
    alt="Accuracy, connections, memory and prediction time against the pruned percentile.",
    caption="**Importance pruning after training**, without further training. Means over at most "
    "three seeds ± one standard deviation. What to see: how far to the right accuracy (top) stays "
    "level, and how much is left there (bottom), also in the compact network.",
    finding="Pruning after training costs at most one point of accuracy, by the mean over seeds",
    height=4.8, extra=0.2, block=(2, 1), across=2, sharex="col",
    needs=lambda found: _observed(found, "post_pruning"),
    labels=("test accuracy (%)", "of the unpruned network (%)"),
    legend=lambda results: [
        line("black", "test accuracy"), line("black", "one point less", shown.DOTTED),
        *(line(colour, label) for colour, _, label in _LEFT.values()),
    ],
)  # fmt: skip
def after_training(axes: Any, name: str, results: Results) -> str:
    """Draw the costs and savings of pruning a trained network, by percentile; of F-importance."""
    top, bottom = axes
    runs = [run for run in results.of(name, "set-all-relu") if "post_pruning" in run["epochs"][-1]]
    x = _after(runs, "percentile")[0]
    accuracy = 100 * _after(runs, "test_accuracy")
    shown.band(top, x, accuracy, "black", **_POINTS)
    kept = accuracy.mean(axis=0)
    top.set_ylim(max(accuracy.min() - 1, kept[0] - 20), accuracy.max() + 2)
    top.axhline(kept[0] - 1, color="black", linestyle=shown.DOTTED)
    last = int(np.argmin([*(kept >= kept[0] - 1), False])) - 1  # before the first that loses more
    shares = []
    for field, (colour, whole, _) in _LEFT.items():
        left = 100 * _after(runs, field) / _after(runs, whole)[:, :1]
        shown.band(bottom, x, left, colour, **_POINTS)
        shares.append(f"{left[:, last].mean():.0f} %")
    bottom.set(xlabel="percentile of importance that is pruned", ylim=(0, None))
    if not last:
        return f"on {results.title(name)} not even up to percentile {x[1]:.0f}"
    return (
        f"on {results.title(name)} up to percentile {x[last]:.0f}, where {shares[0]} of the "
        f"connections are left and the compact network takes {shares[1]} of the memory and "
        f"{shares[2]} of the time"
    )


def _after(runs: list[Result], name: str) -> np.ndarray:
    """Return values recorded of pruning after training, shape (seeds, percentiles)."""
    seen = [run["epochs"][-1]["post_pruning"] for run in runs]
    return np.array([[record[name] for record in one] for one in seen], float)
