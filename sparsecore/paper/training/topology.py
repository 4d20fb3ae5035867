"""The pictures of how evolution changes a network's graph: its degrees, and the input pixels."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from scipy.stats import binom

from sparsecore import datasets
from sparsecore.paper.style import COLOURS, GREY, deviation, line, patch
from sparsecore.paper.training.shown import DOTTED, by_dataset, moments
from sparsecore.paper.training.studies import Results

_COLOUR = COLOURS["set-all-relu"]
_BESIDE = slice(1, None), slice(-1)  # neighbours: all but the first, and all but the last
_BIN = 4  # connections per bin: fewer make the curves ragged, more hide the first ones' width


@by_dataset(
    "F-topology-degrees",
    alt="Histograms of connections per neuron, before and after training, for each sparse layer.",
    caption="**Degrees before and after training.** A column is one layer of weights: connections "
    "that leave the neurons below it (top) and enter those above it (bottom), in bins of four; "
    "means over seeds ± one standard deviation. What to see: degrees start binomial; a long tail "
    "to the right means a few neurons with many connections.",
    height=4.8, block=(2, 3),  # the output layer does not evolve
    legend=lambda results: [
        patch(GREY, "before training"),
        patch(_COLOUR, f"after {results.epochs(results.study.datasets[0])} epochs"),
        line("black", "Erdős–Rényi (binomial)", DOTTED),
    ],
)  # fmt: skip
def degrees(axes: Any, name: str, results: Results) -> str:
    """Draw the degrees in the layers that evolve, before and after training; of F-topology."""
    runs = results.of(name, "set-all-relu")
    seen = [[e["topology"] for e in run["epochs"] if "topology" in e] for run in runs]
    sizes = [runs[0]["data"]["n_features"], *runs[0]["config"]["hidden"]]
    widest = [(0.0, ""), (0.0, "")]
    for (row, layer), ax in np.ndenumerate(np.reshape(axes, (2, -1))):
        side, word = (("fan_out", "outgoing"), ("fan_in", "incoming"))[row]
        before, after = ([run[at][side][layer] for run in seen] for at in (0, -1))
        draw_degrees(ax, before, GREY)
        draw_degrees(ax, after, _COLOUR)
        # The degrees of a random graph with as many connections.
        degree = np.mean([moments(h)[0] for h in before])
        k, trials = np.arange(int(degree + 5 * np.sqrt(degree)) + 1), sizes[layer + 1 - row]
        share = binom.pmf(k, trials, degree / trials)
        ax.plot(*_binned(share), color="black", linewidth=1.2, linestyle=DOTTED)
        neurons = "input pixels" if layer + row == 0 else f"hidden layer {layer + row}"
        ax.set(title=neurons, xlabel=f"{word} connections", xlim=(0, None), ylim=(0, None))
        first, then = (np.mean([moments(h)[1] for h in some]) for some in (before, after))
        told = f"for {word} connections of {neurons} (from {first:.1f} to {then:.1f})"
        widest[row] = max(widest[row], (then / first, told))
        if layer == 0:
            ax.set_ylabel("share of neurons (%)")
    verb = "grows most" if min(widest)[0] > 1 else "grows most, or shrinks least,"
    return (
        f"In {results.epochs(name)} epochs the standard deviation of the connections per neuron "
        f"{verb} {widest[0][1]} and {widest[1][1]}"
    )


def _binned(histogram: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the middles of the bins and the share, in percent per connection, in each."""
    counts = np.asarray(histogram, float)
    counts = np.pad(counts, (0, -len(counts) % _BIN)).reshape(-1, _BIN).sum(axis=1)
    return np.arange(len(counts)) * _BIN + (_BIN - 1) / 2, 100 * counts / counts.sum()


def draw_degrees(ax: Axes, histograms: list[list[int]], colour: str) -> None:
    """Draw the mean of degrees' histograms, as shares of the neurons, and their spread."""
    longest = max(len(h) for h in histograms)
    padded = [np.pad(h, (0, longest + _BIN - len(h))) for h in histograms]
    x = _binned(padded[0])[0]
    shares = np.array([_binned(h)[1] for h in padded])
    mean, sd = shares.mean(axis=0), deviation(shares)
    ax.fill_between(x, mean, step="mid", color=colour, alpha=0.3, linewidth=0)
    ax.fill_between(x, mean - sd, mean + sd, step="mid", color=colour, alpha=0.35, linewidth=0)
    ax.step(x, mean, where="mid", color=colour, linewidth=1.3)


@by_dataset(
    "F-topology-pixels",
    alt="Images of connection strength per input pixel at several epochs.",
    caption="**Where the network looks.** Strength of the connections that leave each of "
    "Fashion-MNIST's pixels, over training, on one scale; first seed. What to see: noise before "
    "training; where training finds structure, neighbours become alike. Their correlation shows "
    "how much (0: noise, 1: equal).",
    height=2.7, block=(1, 6),
)  # fmt: skip
def pixels(axes: Any, name: str, results: Results) -> str:
    """Draw the strength of the input pixels' connections over epochs, first seed; of F-topology."""
    run, *others = results.of(name, "set-all-relu")
    facts: dict[str, Any] = datasets.describe(name)
    seen = [record for record in run["epochs"] if "topology" in record][-len(axes) :]
    seen[0] = run["epochs"][0]
    images = [np.reshape(r["topology"]["input_strength"], facts["feature_shape"]) for r in seen]
    for ax in axes[len(images) :]:  # a quick build has few
        ax.remove()
    axes = axes[: len(images)]
    low, high = np.quantile(images, (0.001, 0.999))
    for ax, record, image in zip(axes, seen, images, strict=True):
        drawing = ax.imshow(image, vmin=low, vmax=high, cmap="cividis", interpolation="nearest")
        title = "before" if record["epoch"] == 0 else f"epoch {record['epoch']}"
        ax.set(title=title, xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    bar = axes[0].figure.colorbar(
        drawing, ax=axes, orientation="horizontal", fraction=0.07, aspect=50, extend="both"
    )
    bar.set_label("strength of a pixel: Σ |weight| over its outgoing connections")
    bar.outline.set_visible(False)
    bar.ax.grid(False)
    begun, ended = (
        np.mean([_likeness(one["epochs"][at], facts) for one in (run, *others)]) for at in (0, -1)
    )
    return (
        f"The correlation of neighbouring pixels' strengths goes from {begun:.2f} before training "
        f"to {ended:.2f} at the end{f', means over {1 + len(others)} seeds' * bool(others)}"
    )


def _likeness(seen: dict[str, Any], facts: dict[str, Any]) -> float:
    """Return the correlation of neighbouring pixels' strengths."""
    image = np.reshape(seen["topology"]["input_strength"], facts["feature_shape"])
    beside = (np.r_[image[:, a].ravel(), image[a].ravel()] for a in _BESIDE)
    return float(np.corrcoef(*beside)[0, 1])
