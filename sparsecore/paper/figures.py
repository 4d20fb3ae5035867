"""The figures: results in, a picture with its caption out.

Everything that figures share is defined once, here: colours, sizes, how seeds become bands. A
caption's numbers are computed from the results it is drawn from. Nothing is run or read here, see
`studies`.
"""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Callable
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sparsecore import datasets
from sparsecore.paper.page import Note, Picture
from sparsecore.paper.store import NOT_AVAILABLE, current_profile
from sparsecore.paper.style import (
    COLOURS,
    GREY,
    STYLE,
    WIDTH,
    deviation,
    line,
    not_available,
    patch,
)
from sparsecore.paper.training.conditions import METHODS
from sparsecore.paper.training.studies import Result, Results


def drawn(draw: Callable[[Results], Picture]) -> Callable[[Results], Picture | Note]:
    """Have a function's picture of recorded results be a note where there are none.

    Parameters
    ----------
    draw : callable
        Draws a picture of results.
    """

    @functools.wraps(draw)
    def drawn_or_said(results: Results) -> Picture | Note:
        return Note(_nothing(results)) if results.recorded and not results.runs else draw(results)

    return drawn_or_said


def _nothing(results: Results) -> str:
    """Return a sentence that says why there are no recorded results."""
    if current_profile() == "paper":
        return "The results above are those of profile paper themselves."
    return f"No results of profile paper are recorded for {results.study.key} yet."


@drawn
def curves(results: Results) -> Picture:
    """Draw test accuracy and loss against epoch, two panels per data set.

    Parameters
    ----------
    results : Results
        Of F-curves.
    """
    names, columns = shown(results), 3
    blocks = -(-len(names) // columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 4.6 * blocks), layout="constrained")
        axes = figure.subplots(2 * blocks, min(columns, len(names)), squeeze=False)
        for place, name in enumerate(names):
            row, column = 2 * (place // columns), place % columns
            top, bottom = axes[row, column], axes[row + 1, column]
            top.set_title(textwrap.fill(results.title(name), 22))
            if not there(results, name):
                not_there(results, top, bottom)
                continue
            for method in there(results, name):
                runs = results.of(name, method)
                colour = COLOURS[method]
                band(top, runs, "test_accuracy", colour, scale=100)
                band(bottom, runs, "test_loss", colour)
                band(bottom, runs, "loss", colour, linestyle=(0, (4, 2)), linewidth=1.2)
            for ax in (top, bottom):
                ax.set_xlim(1, results.epochs(name))
                ax.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(5, integer=True))
            bottom.set_xlabel("epoch")
        for ax in axes[:, :].flat[len(names) + (blocks - 1) * columns :]:
            if not ax.has_data() and not ax.texts:
                ax.set_visible(False)
        for row in range(blocks):
            axes[2 * row, 0].set_ylabel("test accuracy (%)")
            axes[2 * row + 1, 0].set_ylabel("cross-entropy (nats)")
        method_legend(figure, results.study.methods, {"test": "-", "training": (0, (4, 2))})
    ends = "; ".join(
        f"{results.title(name)} ({results.size(name)}) "
        + ", ".join(
            f"{percent(results.of(name, m))} with {METHODS[m].label}" for m in there(results, name)
        )
        for name in names
        if there(results, name)
    )
    caption = (
        "**ReLU and All-ReLU in sparse networks.** Accuracy on the test set (top); loss on the "
        "test set (solid) and on the training batches, with dropout (dashed; bottom). Lines are "
        "means over seeds, bands ± one standard deviation. What to see: whether the lines lie "
        f"farther apart than the bands are wide. {sentence('Test accuracy at the end', ends)}"
        f"{surrogates(results)}{absent(results)}{source(results)}"
    )
    alt = "Test accuracy and loss against epoch for ReLU and All-ReLU, two panels per data set."
    return Picture("F-curves" + results.suffix, figure, caption, alt)


@drawn
def degrees(results: Results) -> Picture:
    """Draw the degree distributions of the layers that evolve, before and after training.

    Parameters
    ----------
    results : Results
        Of F-topology.
    """
    (name,), (method,) = results.study.datasets, results.study.methods
    runs = results.of(name, method)
    sides = (("fan_out", "outgoing"), ("fan_in", "incoming"))
    with matplotlib.rc_context(STYLE):
        if not runs:
            figure = Figure(figsize=(WIDTH, 2.4), layout="constrained")
            not_there(results, figure.subplots())
            told = ""
        else:
            sizes = _sizes(runs[0])
            last = runs[0]["epochs"][-1]["epoch"]
            layers = range(len(sizes) - 2)  # the output layer does not evolve
            figure = Figure(figsize=(WIDTH, 4.8), layout="constrained")
            axes = figure.subplots(2, len(layers), squeeze=False)
            for row, (side, word) in enumerate(sides):
                for column, layer in enumerate(layers):
                    ax = axes[row, column]
                    for epoch, colour in ((0, GREY), (last, COLOURS[method])):
                        _histogram(ax, [_topology(r, epoch)[side][layer] for r in runs], colour)
                    trials = sizes[layer + 1] if side == "fan_out" else sizes[layer]
                    _binomial(ax, runs, layer, trials)
                    ax.set_title(_neurons(layer if side == "fan_out" else layer + 1))
                    ax.set_xlabel(f"{word} connections")
                    ax.set_xlim(left=0)
                    ax.set_ylim(bottom=0)
                axes[row, 0].set_ylabel("share of neurons (%)")
            figure.legend(
                handles=[
                    patch(GREY, "before training"),
                    patch(COLOURS[method], f"after {last} epochs"),
                    line("black", "Erdős–Rényi (binomial)", (0, (1, 1))),
                ],
                loc="outside upper center",
                ncols=3,
            )
            changes = ", ".join(
                f"{np.mean([_spread(_topology(r, 0)[side][layer]) for r in runs]):.1f} → "
                f"{np.mean([_spread(_topology(r, last)[side][layer]) for r in runs]):.1f} "
                f"({word}, {_neurons(layer + (side == 'fan_in'))})"
                for (side, word), layer in ((sides[0], layers[0]), (sides[1], layers[-1]))
            )
            told = f"Standard deviations: {changes}. "
    caption = (
        f"**Degrees before and after training.** {_title(name)}{_length(results, name)}; each "
        "column is one layer of weights: the connections that leave the neurons below it (top) "
        "and that enter those above it (bottom). Means over seeds in bins of "
        f"{_BIN} connections, bands ± one standard deviation; the output layer does not evolve. "
        "What to see: the networks start as random graphs, whose degrees are binomial (dotted); "
        "wherever evolution takes connections from some neurons and gives them to others, the "
        "distribution grows wider. "
        f"{told}{absent(results)}{source(results)}"
    )
    alt = "Histograms of connections per neuron, before and after training, for each sparse layer."
    return Picture("F-topology-degrees" + results.suffix, figure, caption, alt)


@drawn
def pixels(results: Results) -> Picture:
    """Draw the strength of the input pixels' connections as images over epochs.

    Parameters
    ----------
    results : Results
        Of F-topology; the first seed is shown.
    """
    (name,), (method,) = results.study.datasets, results.study.methods
    runs = results.of(name, method)
    facts: dict[str, Any] = datasets.describe(name)
    shape = facts["feature_shape"]
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        if not runs:
            figure = Figure(figsize=(WIDTH, 2.4), layout="constrained")
            not_there(results, figure.subplots())
            told = ""
        else:
            run = runs[0]
            seen = [record for record in run["epochs"] if "topology" in record][-6:]
            seen[0] = run["epochs"][0]
            images = [np.reshape(r["topology"]["input_strength"], shape) for r in seen]
            figure = Figure(figsize=(WIDTH, 2.7), layout="constrained")
            axes = figure.subplots(1, len(images))
            low, high = np.quantile(images, (0.001, 0.999))
            for ax, record, image in zip(axes, seen, images, strict=True):
                drawn = ax.imshow(
                    image, vmin=low, vmax=high, cmap="cividis", interpolation="nearest"
                )
                ax.set_title("before" if record["epoch"] == 0 else f"epoch {record['epoch']}")
                ax.set_xticks([])
                ax.set_yticks([])
                ax.spines[:].set_visible(False)
            bar = figure.colorbar(
                drawn, ax=axes, orientation="horizontal", fraction=0.07, aspect=50, extend="both"
            )
            bar.set_label("strength of a pixel: Σ |weight| over its outgoing connections")
            bar.outline.set_visible(False)
            first, final = (100 * _held_by_strongest(image) for image in (images[0], images[-1]))
            told = (
                f"The strongest tenth of the pixels holds {first:.0f} % of all strength before "
                f"training and {final:.0f} % at the end. "
            )
    seed = f" Seed {runs[0]['seed']}, one scale for all images." if runs else ""
    caption = (
        "**Where the network looks.** Strength of the connections that leave each of "
        f"{_title(name)}'s pixels, over training.{seed} What to see: the network starts without "
        "preferences, and nobody tells it which pixels lie beside each other. Look for shapes, "
        f"such as the outlines of clothes. {told}{absent(results)}{source(results)}"
    )
    alt = "Images of connection strength per input pixel at several epochs."
    return Picture("F-topology-pixels" + results.suffix, figure, caption, alt)


# --- shared --------------------------------------------------------------------------------------


def _title(dataset: str) -> str:
    return str(datasets.describe(dataset)["title"])


def _length(results: Results, dataset: str) -> str:
    return f" ({results.size(dataset)})" if results.runs else ""


def shown(results: Results) -> list[str]:
    """Return the data sets to show: of recorded results only those that are there."""
    return [n for n in results.study.datasets if there(results, n) or not results.recorded]


def there(results: Results, dataset: str) -> list[str]:
    """Return the methods that have runs on a data set."""
    return [m for m in results.study.methods if results.of(dataset, m)]


def surrogates(results: Results) -> str:
    """Return a sentence about the data sets that a surrogate stands in for, if there are any."""
    names = [_title(n) for n in results.study.datasets if results.title(n) != _title(n)]
    if not names:
        return ""
    return (
        f"{', '.join(names)}: generated data of the right shape, which say nothing about accuracy "
        "on the real ones. "
    )


def sentence(start: str, text: str) -> str:
    """Return "<start>: <text>. ", or nothing if there is no text."""
    return f"{start}: {text}. " if text else ""


def percent(runs: list[Result]) -> str:
    """Return mean and standard deviation of the test accuracy, as a text."""
    values = [100 * run["test_accuracy"] for run in runs]
    spread = f" ± {deviation(values):.1f}" if len(values) > 1 else ""
    return f"{np.mean(values):.1f}{spread} %"


def absent(results: Results) -> str:
    """Return sentences that name what is not shown: data or records not there, diverged runs."""
    names = ", ".join(_title(n) for n in results.study.datasets if n in results.unavailable)
    diverged = ", ".join(
        f"{results.title(run['condition']['dataset'])} with "
        f"{METHODS[run['condition']['method']].label} (seed {run['seed']})"
        for run in results.diverged
    )
    missing = [n for n in results.study.datasets if results.recorded and not there(results, n)]
    return (
        sentence("Not available on this machine", names)
        + sentence("Not recorded yet", ", ".join(map(_title, missing)))
        + sentence("Diverged, and not shown", diverged)
    )


def source(results: Results) -> str:
    """Return where results come from, in italics."""
    return f"*Source: {results.provenance}.*"


def band(
    ax: Axes, runs: list[Result], name: str, colour: str, scale: float = 1, **style: Any
) -> None:
    """Draw the mean over seeds of an epoch's `name`, and a band of one standard deviation."""
    records = [[e for e in run["epochs"] if name in e] for run in runs]
    x = [e["epoch"] for e in records[0]]
    y = scale * np.array([[e[name] for e in one] for one in records])
    mean, sd = y.mean(axis=0), deviation(y, axis=0)
    ax.fill_between(x, mean - sd, mean + sd, color=colour, alpha=0.2, linewidth=0)
    ax.plot(x, mean, color=colour, **style)


def not_there(results: Results, *axes: Axes) -> None:
    """Have panels say that there are no results: no data here, or not recorded yet."""
    not_available(*axes, text="not recorded yet" if results.recorded else NOT_AVAILABLE)


def method_legend(figure: Figure, methods: tuple[str, ...], styles: dict[str, Any]) -> None:
    """Put the methods' colours, and what line styles mean, above a figure."""
    handles = [line(COLOURS[m], METHODS[m].label) for m in methods]
    handles += [line("#333333", label, style) for label, style in styles.items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))


def _sizes(run: Result) -> list[int]:
    return [run["data"]["n_features"], *run["config"]["hidden"], run["data"]["n_classes"]]


def _topology(run: Result, epoch: int) -> dict[str, Any]:
    return next(e["topology"] for e in run["epochs"] if e["epoch"] == epoch)


def _connections(histogram: list[int]) -> int:
    return int(np.dot(np.arange(len(histogram)), histogram))


def _neurons(layer: int) -> str:
    return "input pixels" if layer == 0 else f"hidden layer {layer}"


def _spread(histogram: list[int]) -> float:
    """Return the standard deviation of the degrees that a histogram counts."""
    k, weights = np.arange(len(histogram)), np.asarray(histogram) / np.sum(histogram)
    mean = k @ weights
    return float(np.sqrt((k - mean) ** 2 @ weights))


_BIN = 4  # connections: fewer make the curves ragged, more hide the width of the first ones


def _binned(histogram: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the middles of the bins and the share, in percent per connection, in each."""
    counts = np.asarray(histogram, float)
    counts = np.pad(counts, (0, -len(counts) % _BIN)).reshape(-1, _BIN).sum(axis=1)
    return np.arange(len(counts)) * _BIN + (_BIN - 1) / 2, 100 * counts / counts.sum()


def _histogram(ax: Axes, histograms: list[list[int]], colour: str) -> None:
    longest = max(len(h) for h in histograms)
    padded = [np.pad(h, (0, longest + _BIN - len(h))) for h in histograms]
    x = _binned(padded[0])[0]
    shares = np.array([_binned(h)[1] for h in padded])
    mean, sd = shares.mean(axis=0), deviation(shares, axis=0)
    ax.fill_between(x, mean, step="mid", color=colour, alpha=0.3, linewidth=0)
    ax.fill_between(x, mean - sd, mean + sd, step="mid", color=colour, alpha=0.35, linewidth=0)
    ax.step(x, mean, where="mid", color=colour, linewidth=1.3)


def _binomial(ax: Axes, runs: list[Result], layer: int, trials: int) -> None:
    from scipy.stats import binom

    sizes = _sizes(runs[0])
    nnz = np.mean([_connections(_topology(run, 0)["fan_in"][layer]) for run in runs])
    density = nnz / (sizes[layer] * sizes[layer + 1])
    k = np.arange(int(trials * density + 5 * np.sqrt(trials * density)) + 1)
    x, share = _binned(binom.pmf(k, trials, density))
    ax.plot(x, share, color="black", linewidth=1.2, linestyle=(0, (1, 1)))


def _held_by_strongest(image: np.ndarray) -> float:
    """Return the share of all strength that the strongest tenth of the pixels has."""
    strengths = np.sort(image, axis=None)[::-1]
    return float(strengths[: len(strengths) // 10].sum() / strengths.sum())
