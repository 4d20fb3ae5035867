"""The learning curves, the gradient flow and the sensitivities: results in, a picture out."""

from __future__ import annotations

from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from sparsecore.paper.style import COLOURS, GREY, deviation
from sparsecore.paper.training import shown
from sparsecore.paper.training.conditions import METHODS, SENSITIVITIES
from sparsecore.paper.training.shown import drawn, sentence
from sparsecore.paper.training.studies import Result, Results
from sparsecore.settings import setting


@drawn(
    "F-curves",
    "Test accuracy and loss against epoch for ReLU and All-ReLU, two panels per data set.",
)
def curves(results: Results) -> tuple[Figure, str, str]:
    """Draw test accuracy and loss against epoch, two panels per data set; of F-curves."""
    dashed = (0, (4, 2))

    def draw(axes: Any, name: str) -> str:
        top, bottom = axes
        found = shown.by_method(results, name)
        for method, runs in found.items():
            colour = COLOURS[method]
            shown.band(top, *shown.over_epochs(runs, "test_accuracy", 100), colour)
            shown.band(bottom, *shown.over_epochs(runs, "test_loss"), colour)
            shown.band(
                bottom, *shown.over_epochs(runs, "loss"), colour, linestyle=dashed, linewidth=1.2
            )
        for ax in axes:
            ax.set_xlim(1, results.epochs(name))
            ax.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(5, integer=True))
        bottom.set_xlabel("epoch")
        ends = (f"{_percent(runs)} with {METHODS[m].label}" for m, runs in found.items())
        return f"{shown.sized(results, name)} {', '.join(ends)}"

    figure, ends = shown.by_dataset(
        results,
        draw,
        height=4.6,
        block=(2, 1),
        across=3,
        labels=("test accuracy (%)", "cross-entropy (nats)"),
        legend=shown.lines(results.study.methods, {"test": "-", "training": dashed}),
    )
    caption = (
        "**ReLU and All-ReLU in sparse networks.** Accuracy on the test set (top); loss on the "
        "test set (solid) and on the training batches, with dropout (dashed). Lines are means over "
        "seeds, bands ± one standard deviation. What to see: whether the lines lie farther apart "
        "than the bands are wide."
    )
    return figure, caption, sentence("Test accuracy at the end", ends) + _surrogates(results)


def _percent(runs: list[Result]) -> str:
    spread = deviation([100 * run["test_accuracy"] for run in runs])
    return f"{shown.accuracy(runs):.1f}{f' ± {spread:.1f}' if len(runs) > 1 else ''} %"


def _surrogates(results: Results) -> str:
    """Return a sentence about the data sets that a surrogate stands in for, if there are any."""
    titles = {name: shown.official_title(name) for name in results.study.datasets}
    names = [title for name, title in titles.items() if results.title(name) != title]
    about = "generated data of the right shape, which say nothing about accuracy on the real ones"
    return sentence(", ".join(names), about) if names else ""


@drawn(
    "F-gradient-flow",
    "Gradient flow against epoch on a logarithmic axis, a line per activation, by data set.",
)
def gradient_flow(results: Results) -> tuple[Figure, str, str]:
    """Draw gradient flow against epoch, a panel per data set; of F-gradient-flow."""

    def draw(axes: Any, name: str) -> str:
        [ax], levels = axes, {}
        for method, runs in shown.by_method(results, name).items():
            logs = flow_logs(runs)
            epochs = np.arange(logs.shape[1])
            shown.band(ax, epochs, logs, COLOURS[method], lambda values: 10**values)
            levels[method] = 10 ** logs[:, 1:].mean()
        ax.set(yscale="log", xlabel="epoch", ylabel="gradient flow ‖∇L‖²")
        ax.set_xlim(0, results.epochs(name))
        ratios = [
            f"{levels['set-all-relu'] / levels[m]:.2g} times {METHODS[m].label}'s"
            for m in ("set-relu", "set-leaky-relu", "set-leaky-relu-0.25")
            if {m, "set-all-relu"} <= levels.keys()
        ]
        return f"{shown.sized(results, name)} {', '.join(ratios)}" if ratios else ""

    names, methods = results.study.datasets, results.study.methods
    there = [m for m in methods if any(results.of(name, m) for name in names)]
    figure, told = shown.by_dataset(
        results, draw, height=2.7, extra=0.4, across=2, legend=shown.lines(there)
    )
    caption = (
        "**Gradient flow.** Squared norm of the loss's gradient over the existing parameters, on "
        "the same rows after every epoch: how much a small step would lower the loss. Geometric "
        "means over seeds, bands one standard deviation of the logarithm. What to see: a higher "
        "line learns more from a step, unless nothing has been learned yet."
    )
    return figure, caption, sentence("SET-All-ReLU, geometric mean over the epochs", told)


def flow_logs(runs: list[Result]) -> np.ndarray:
    """Return log10 of gradient flow, shape (seeds, epochs + 1); epoch 0 is before training."""
    _, flows = shown.over_epochs(runs, "gradient_flow")
    return np.log10(np.maximum(flows, np.finfo(np.float32).tiny))


@drawn("F-alpha", "Test accuracy against alpha, epsilon and zeta, one row of panels per data set.")
def sensitivity(results: Results) -> tuple[Figure, str, str]:
    """Draw test accuracy against α, ε and ζ, a row per data set; of F-alpha."""

    def draw(axes: Any, name: str) -> str:
        told = []
        for ax, (field, (symbol, _)) in zip(axes, SENSITIVITIES.items(), strict=True):
            ax.set_xlabel(symbol)
            if not (points := _points(results, name, field)):
                shown.not_there(results, ax)
                continue
            x, means = list(points), list(map(shown.accuracy, points.values()))
            spreads = [
                float(deviation([100 * run["test_accuracy"] for run in runs]))
                for runs in points.values()
            ]
            ax.axvline(getattr(setting(name).config, field), color=GREY, linestyle=(0, (1, 2)))
            look = {"color": COLOURS["set-all-relu"], "marker": "o", "markersize": 4, "capsize": 3}
            ax.errorbar(x, means, spreads, **look)
            if field == "epsilon":
                ax.set_xscale("log", base=2)
                ax.set_xticks(x, [f"{value:g}" for value in x])
            told.append(
                f"{results.title(name)}, {symbol}: {min(means):.1f} to {max(means):.1f} %, "
                f"best at {x[int(np.argmax(means))]:g}"
            )
        return "; ".join(told)

    figure, told = shown.by_dataset(
        results,
        draw,
        height=2.6,
        extra=0.3,
        block=(1, len(SENSITIVITIES)),
        labels=("test accuracy (%)",),
        sharey="row",
    )
    lengths = "; ".join(shown.sized(results, name) for name in shown.datasets_of(results))
    caption = (
        "**Sensitivity to α, ε and ζ.** Final test accuracy of SET-All-ReLU when one "
        "hyperparameter changes; dotted: the study's value. Means over seeds, bars ± one standard "
        "deviation. α = 0 is ReLU, ζ = 0 a fixed topology. What to see: whether the setting lies "
        "on a plateau or on a slope."
    )
    return figure, caption, sentence("Runs", lengths) + sentence("Range of the means", told)


def _points(results: Results, dataset: str, field: str) -> dict[float, list[Result]]:
    """Return the runs by the value of one hyperparameter, in ascending order."""
    found = {getattr(setting(dataset).config, field): results.of(dataset, "set-all-relu")}
    if field == "alpha":
        found[0.0] = results.of(dataset, "set-relu")
    for value in SENSITIVITIES[field][1]:
        found.setdefault(value, results.of(dataset, f"{field}-{value:g}"))
    return {value: found[value] for value in sorted(found) if found[value]}


@drawn("F-decay", "Test accuracy against weight decay, a panel per data set, a line per method.")
def decay(results: Results) -> tuple[Figure, str, str]:
    """Draw test accuracy against weight decay, a panel per data set; of F-decay."""
    decays = sorted(results.study.decays)
    places = range(len(decays))  # they are no numbers that one scale shows: one is 0

    def draw(axes: Any, name: str) -> str:
        [ax], told = axes, []
        for method in results.study.methods:
            runs = {n: results.at(decays[n]).of(name, method) for n in places}
            there = [n for n in places if runs[n]]
            means = [shown.accuracy(runs[n]) for n in there]
            sds = [float(deviation([100 * r["test_accuracy"] for r in runs[n]])) for n in there]
            look = {"color": COLOURS[method], "marker": "o", "markersize": 4, "capsize": 3}
            ax.errorbar(there, means, sds, **look)
            if there:
                best = decays[there[int(np.argmax(means))]]
                told.append(f"{METHODS[method].label} {max(means):.1f} % at λ = {best:g}")
        ax.set_xticks(places, [f"{value:g}" for value in decays])
        ax.set(xlabel="weight decay λ", ylabel="test accuracy (%)")
        return f"{results.title(name)}: best {', '.join(told)}"

    figure, told = shown.by_dataset(
        results, draw, height=2.7, extra=0.4, across=2, legend=shown.lines(results.study.methods)
    )
    caption = (
        "**Weight decay.** Final test accuracy against the weight decay λ, per step: none, that of "
        "the coupled form (ηλ), a tenth of the released sequential script's, and that. Means over "
        "seeds, bars ± one standard deviation. What to see: λ moves accuracy more than the choice "
        "of the activation does, or it does not."
    )
    return figure, caption, sentence("At the end", told)
