"""The figures that look into training: gradient flow, sensitivities, neuron importance.

Results in, a picture with its caption out, with the colours and helpers of `figures`.
"""

from __future__ import annotations

from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sparsecore.paper.figures import (
    COLOURS,
    GREY,
    STYLE,
    WIDTH,
    absent,
    band,
    deviation,
    drawn,
    line,
    method_legend,
    not_there,
    sentence,
    shown,
    source,
    there,
)
from sparsecore.paper.page import Picture
from sparsecore.paper.training.conditions import METHODS, SENSITIVITIES
from sparsecore.paper.training.studies import Result, Results
from sparsecore.settings import setting


@drawn
def gradient_flow(results: Results) -> Picture:
    """Draw gradient flow against epoch, a panel per data set.

    Parameters
    ----------
    results : Results
        Of F-gradient-flow.
    """
    names = shown(results)
    told = []
    with matplotlib.rc_context(STYLE):
        figure, axes = _grid(len(names), columns=2, height=2.7)
        for ax, name in zip(axes, names, strict=True):
            ax.set_title(results.title(name))
            if not there(results, name):
                not_there(results, ax)
                continue
            levels = {}
            for method in there(results, name):
                logs = flow_logs(results.of(name, method))
                epochs = np.arange(logs.shape[1])
                mean, sd = logs.mean(axis=0), deviation(logs, axis=0)
                ax.fill_between(
                    epochs,
                    10 ** (mean - sd),
                    10 ** (mean + sd),
                    color=COLOURS[method],
                    alpha=0.2,
                    linewidth=0,
                )
                ax.plot(epochs, 10**mean, color=COLOURS[method])
                levels[method] = 10 ** logs[:, 1:].mean()
            ax.set_yscale("log")
            ax.set_xlim(0, results.epochs(name))
            ax.set_xlabel("epoch")
            ax.set_ylabel("gradient flow ‖∇L‖²")
            ratios = ", ".join(
                f"{levels['set-all-relu'] / levels[m]:.2g} times {METHODS[m].label}'s"
                for m in ("set-relu", "set-leaky-relu")
                if {m, "set-all-relu"} <= levels.keys()
            )
            if ratios:
                told.append(f"{results.title(name)} ({results.size(name)}) {ratios}")
        method_legend(figure, results.study.methods, {})
    caption = (
        "**Gradient flow.** Squared norm of the loss's gradient over the parameters that exist, on "
        "the same training rows (up to 1,000) after every epoch, without dropout: how much a small "
        "gradient step would lower the loss. Lines are geometric means over seeds, bands one "
        "standard deviation of the logarithm. What to see: a higher line learns more from a step, "
        "unless it is high because nothing has been learned yet: read it beside the learning "
        f"curves. {sentence('SET-All-ReLU, geometric mean over the epochs', '; '.join(told))}"
        f"{absent(results)}{source(results)}"
    )
    alt = "Gradient flow against epoch on a logarithmic axis, a line per activation, by data set."
    return Picture("F-gradient-flow" + results.suffix, figure, caption, alt)


def flow_logs(runs: list[Result]) -> np.ndarray:
    """Return log10 of gradient flow, shape (seeds, epochs + 1); epoch 0 is before training."""
    flows = np.array([[e["gradient_flow"] for e in run["epochs"]] for run in runs])
    return np.log10(np.maximum(flows, np.finfo(np.float32).tiny))


@drawn
def sensitivity(results: Results) -> Picture:
    """Draw test accuracy against α, ε and ζ, a row per data set.

    Parameters
    ----------
    results : Results
        Of F-alpha.
    """
    names = shown(results)
    told = []
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.6 * len(names) + 0.3), layout="constrained")
        axes = figure.subplots(len(names), len(SENSITIVITIES), squeeze=False, sharey="row")
        for row, name in zip(axes, names, strict=True):
            points_there = there(results, name)
            if not points_there:
                not_there(results, *row)
            for ax, (field, (symbol, _)) in zip(row, SENSITIVITIES.items(), strict=True):
                ax.set_xlabel(symbol)
                if not points_there:
                    continue
                points = _points(results, name, field)
                if not points:
                    not_there(results, ax)
                    continue
                x = list(points)
                scores = [100 * np.array([r["test_accuracy"] for r in points[v]]) for v in x]
                means = [float(np.mean(s)) for s in scores]
                ax.axvline(getattr(setting(name).config, field), color=GREY, linestyle=(0, (1, 2)))
                ax.errorbar(
                    x,
                    means,
                    [float(deviation(s)) for s in scores],
                    color=COLOURS["set-all-relu"],
                    marker="o",
                    markersize=4,
                    capsize=3,
                )
                if field == "epsilon":
                    ax.set_xscale("log", base=2)
                    ax.set_xticks(x, [f"{v:g}" for v in x])
                best = int(np.argmax(means))
                told.append(
                    f"{results.title(name)}, {symbol}: {min(means):.1f} to {max(means):.1f} %, "
                    f"best at {x[best]:g}"
                )
            row[0].set_ylabel(f"{results.title(name)}\ntest accuracy (%)")
    lengths = "; ".join(f"{results.title(n)} {results.size(n)}" for n in names if there(results, n))
    caption = (
        "**Sensitivity to α, ε and ζ.** Test accuracy at the end of training with SET-All-ReLU, "
        "when one hyperparameter is changed and all others stay as in the study's setting (dotted: "
        "its value there). Points are means over seeds, bars ± one standard deviation. α = 0 is "
        "ReLU; ε sets how many connections there are; ζ = 0 never changes the topology. What to "
        "see: whether the setting lies on a plateau or on a slope. "
        f"{sentence('Runs', lengths)}{sentence('Range of the means', '; '.join(told))}"
        f"{absent(results)}{source(results)}"
    )
    alt = "Test accuracy against alpha, epsilon and zeta, one row of panels per data set."
    return Picture("F-alpha" + results.suffix, figure, caption, alt)


def _points(results: Results, dataset: str, field: str) -> dict[float, list[Result]]:
    """Return the runs by the value of one hyperparameter, in ascending order."""
    found = {getattr(setting(dataset).config, field): results.of(dataset, "set-all-relu")}
    if field == "alpha":
        found[0.0] = results.of(dataset, "set-relu")
    for value in SENSITIVITIES[field][1]:
        found.setdefault(value, results.of(dataset, f"{field}-{value:g}"))
    return {value: found[value] for value in sorted(found) if found[value]}


# Before, in the middle and at the end of training.
_MOMENTS = (GREY, "#56B4E9", "#0072B2")


@drawn
def importance(results: Results) -> Picture:
    """Draw how importance is distributed in each hidden layer, at three moments.

    Parameters
    ----------
    results : Results
        Of F-importance; the first seed is shown.
    """
    names = shown(results)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.4 * len(names) + 0.5), layout="constrained")
        axes = figure.subplots(len(names), 3, squeeze=False)
        told = []
        for row, name in zip(axes, names, strict=True):
            if not results.of(name, "set-all-relu"):
                not_there(results, *row)
                continue
            run = results.of(name, "set-all-relu")[0]
            seen = [e for e in run["epochs"] if "importance" in e]
            moments = (seen[0], seen[len(seen) // 2], seen[-1])
            for layer, ax in enumerate(row):
                for record, colour in zip(moments, _MOMENTS, strict=True):
                    _outline(ax, record["importance"][layer], colour)
                ax.set_title(f"hidden layer {layer + 1}")
                ax.set_xlim(left=0)
                ax.set_ylim(bottom=0)
                ax.set_xlabel("importance Σ |weight|")
            row[0].set_ylabel(f"{results.title(name)}\ndensity of neurons")
            spreads = [_relative_spread(moments[i]["importance"][0]) for i in (0, -1)]
            told.append(
                f"{results.title(name)} (epochs {', '.join(str(m['epoch']) for m in moments)}) "
                f"{spreads[0]:.2f} → {spreads[1]:.2f}"
            )
        figure.legend(
            handles=[
                line(colour, label)
                for colour, label in zip(
                    _MOMENTS, ("before training", "on the way", "at the end"), strict=True
                )
            ],
            loc="outside upper center",
            ncols=3,
        )
    caption = (
        "**Neuron importance over training.** Importance is the strength of a hidden neuron's "
        "incoming connections; SET with All-ReLU, no pruning, first seed. What to see: a random "
        "network's neurons are much alike; where training sets them apart, a left tail of neurons "
        "grows that could be done without. "
        + sentence("Standard deviation over mean in hidden layer 1", "; ".join(told))
        + f"{absent(results)}{source(results)}"
    )
    alt = "Histograms of neuron importance per hidden layer before, during and after training."
    return Picture("F-importance" + results.suffix, figure, caption, alt)


def _outline(ax: Axes, seen: dict[str, Any], colour: str) -> None:
    counts = np.asarray(seen["counts"], float)
    edges = np.linspace(0, seen["largest"] or 1.0, len(counts) + 1)
    # Bins are as wide as the largest value of the moment asks for: only densities compare.
    density = counts / max(1.0, counts.sum()) / edges[1]
    ax.stairs(density, edges, color=colour, linewidth=1.3)
    ax.stairs(density, edges, color=colour, alpha=0.15, fill=True)


def _relative_spread(seen: dict[str, Any]) -> float:
    counts = np.asarray(seen["counts"], float)
    middles = (np.arange(len(counts)) + 0.5) * seen["largest"] / len(counts)
    share = counts / counts.sum()
    mean = share @ middles
    return float(np.sqrt(share @ (middles - mean) ** 2) / mean)


@drawn
def pruning_during(results: Results) -> Picture:
    """Draw connections and accuracy against epoch, with importance pruning and without.

    Parameters
    ----------
    results : Results
        Of F-importance.
    """
    names = shown(results)
    told = []
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 4.8), layout="constrained")
        axes = figure.subplots(2, len(names), squeeze=False, sharex="col")
        for (top, bottom), name in zip(axes.T, names, strict=True):
            top.set_title(results.title(name))
            if len(there(results, name)) < len(results.study.methods):
                not_there(results, top, bottom)
                continue
            for method in results.study.methods:
                runs = results.of(name, method)
                band(top, runs, "nnz", COLOURS[method], scale=1e-3)
                band(bottom, runs, "test_accuracy", COLOURS[method], scale=100)
            top.set_xlim(1, results.epochs(name))
            top.set_ylim(bottom=0)
            bottom.set_xlabel("epoch")
            plain, pruned = (results.of(name, m) for m in results.study.methods)
            left = np.mean([run["nnz_end"] / run["nnz_start"] for run in pruned])
            change = 100 * (_accuracy(pruned) - _accuracy(plain))
            told.append(
                f"{results.title(name)} ({results.size(name)}; pruning from epoch "
                f"{pruned[0]['config']['prune_from']} on, every "
                f"{pruned[0]['config']['prune_every']}) {100 * left:.0f} % of the connections are "
                f"left and accuracy differs by {change:+.1f} points"
            )
        axes[0, 0].set_ylabel("connections (thousands)")
        axes[1, 0].set_ylabel("test accuracy (%)")
        method_legend(figure, results.study.methods, {})
    caption = (
        "**Importance pruning during training.** Number of connections (top) and accuracy on the "
        "test set (bottom), with pruning and without, means over seeds with bands of one standard "
        "deviation. Evolution keeps the number of connections; only pruning lowers it. What to "
        f"see: how far the top line falls before the bottom one follows. "
        f"{sentence('At the end', '; '.join(told))}{absent(results)}{source(results)}"
    )
    alt = "Connections and test accuracy against epoch with and without importance pruning."
    return Picture("F-importance-during" + results.suffix, figure, caption, alt)


def _accuracy(runs: list[Result]) -> float:
    return float(np.mean([run["test_accuracy"] for run in runs]))


_AFTER = {"nnz": "#0072B2", "compact_nbytes": "#009E73", "compact_seconds": "#D55E00"}


@drawn
def pruning_after(results: Results) -> Picture:
    """Draw what pruning a trained network costs and saves, against the percentile.

    Parameters
    ----------
    results : Results
        Of F-importance.
    """
    names = shown(results)
    told = []
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 4.8), layout="constrained")
        axes = figure.subplots(2, len(names), squeeze=False, sharex="col")
        for (top, bottom), name in zip(axes.T, names, strict=True):
            top.set_title(results.title(name))
            if not results.of(name, "set-all-relu"):
                not_there(results, top, bottom)
                continue
            table = _after(results.of(name, "set-all-relu"))
            x = table["percentile"][0]
            _mean_band(top, x, 100 * table["test_accuracy"], COLOURS["set-all-relu"])
            for field, colour in _AFTER.items():
                whole = {"nnz": "nnz", "compact_nbytes": "nbytes", "compact_seconds": "seconds"}
                before = table[whole[field]][:, :1]
                _mean_band(bottom, x, 100 * table[field] / before, colour)
            bottom.set_ylim(bottom=0)
            bottom.set_xlabel("percentile of importance that is pruned")
            kept = table["test_accuracy"].mean(axis=0)
            last = int(np.flatnonzero(kept >= kept[0] - 0.01).max())
            told.append(
                f"{results.title(name)} ({results.size(name)}): up to percentile {x[last]:.0f} "
                f"accuracy loses no more than one point; there "
                f"{_share(table['nnz'], last)} of the connections are left, and the compact "
                f"network takes {_ratio(table, 'compact_nbytes', 'nbytes', last)} of the memory "
                f"and {_ratio(table, 'compact_seconds', 'seconds', last)} of the time of a "
                "prediction"
            )
        axes[0, 0].set_ylabel("test accuracy (%)")
        axes[1, 0].set_ylabel("of the unpruned network (%)")
        labels = ("connections", "memory, compact", "prediction time, compact")
        figure.legend(
            handles=[
                line(colour, label) for colour, label in zip(_AFTER.values(), labels, strict=True)
            ],
            loc="outside upper center",
            ncols=3,
        )
    caption = (
        "**Importance pruning after training.** Hidden neurons up to a percentile of their layer's "
        "importances lose their incoming connections, once, with no training afterwards. Top: "
        "accuracy on the test set. Bottom: what is left, and what `compact()` makes of it: the "
        "same predictions from a network without the neurons that no longer matter. Means over "
        "seeds, bands ± one standard deviation. What to see: how far to the right the top line "
        f"stays level. {sentence('SET with All-ReLU', '; '.join(told))}"
        f"{absent(results)}{source(results)}"
    )
    alt = "Accuracy, connections, memory and prediction time against the pruned percentile."
    return Picture("F-importance-after" + results.suffix, figure, caption, alt)


def _after(runs: list[Result]) -> dict[str, np.ndarray]:
    """Return what was seen of pruning after training, each of shape (seeds, percentiles)."""
    seen = [run["epochs"][-1]["post_pruning"] for run in runs]
    return {
        field: np.array([[record[field] for record in one] for one in seen], float)
        for field in seen[0][0]
        if field != "compact_sizes"
    }


def _share(values: np.ndarray, place: int) -> str:
    return f"{100 * (values[:, place] / values[:, 0]).mean():.0f} %"


def _ratio(table: dict[str, np.ndarray], field: str, whole: str, place: int) -> str:
    return f"{100 * (table[field][:, place] / table[whole][:, 0]).mean():.0f} %"


def _mean_band(ax: Axes, x: np.ndarray, y: np.ndarray, colour: str) -> None:
    mean, sd = y.mean(axis=0), deviation(y, axis=0)
    ax.fill_between(x, mean - sd, mean + sd, color=colour, alpha=0.2, linewidth=0)
    ax.plot(x, mean, color=colour, marker="o", markersize=3)


def _grid(n: int, columns: int, height: float) -> tuple[Figure, list[Axes]]:
    """Return a figure with `n` panels, row by row."""
    rows = -(-n // columns)
    figure = Figure(figsize=(WIDTH, height * rows + 0.4), layout="constrained")
    axes = list(figure.subplots(rows, min(n, columns), squeeze=False).flat)
    for ax in axes[n:]:
        ax.set_visible(False)
    return figure, axes[:n]
