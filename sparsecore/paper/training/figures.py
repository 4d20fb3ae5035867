"""Cost, learning curves, gradient flow and sensitivities: results in, a picture out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from sparsecore.paper.style import COLOURS, GREY, dot
from sparsecore.paper.training import shown
from sparsecore.paper.training.conditions import METHODS, SENSITIVITIES
from sparsecore.paper.training.effects import core_seconds, pairs, two_digits
from sparsecore.paper.training.shown import DOTTED, by_dataset
from sparsecore.paper.training.studies import Result, Results, cores, training_seconds
from sparsecore.settings import DECAYS, setting

_DASHED = (0, (4, 2))
_MARKS = dict(zip(DECAYS, "o^", strict=True))


@by_dataset(
    "F-cost",
    alt="Test accuracy against core-seconds, a panel per data set, a mark per method.",
    caption=(
        "**What accuracy costs.** Final test accuracy against seconds × cores of the training. "
        "Higher is better, further left cheaper. Hollow marks compare in accuracy only."
    ),
    finding="Core-seconds of dense training over those of SET-All-ReLU", numbers="Seconds",
    height=2.4, extra=0.8, across=3, labels=("test accuracy (%)",),
    legend=lambda results: [
        *(dot(COLOURS[method], METHODS[method].label) for method in results.study.methods),
        *(dot(GREY, f"λ = {decay:g}", mark) for decay, mark in _MARKS.items()),
        dot(GREY, "on another machine", fill="none"),
    ],
)  # fmt: skip
def cost(
    axes: Any, name: str, results: Results, times: Mapping[str, Result] | None = None
) -> tuple[str, str]:
    """Draw accuracy against core-seconds, all methods, a panel per data set; of T-main.

    Seconds are those of the contest in `times`, where there is one. Else they are the runs' own,
    and marks of other machines than most of a data set's are hollow.
    """
    [ax], spent = axes, {}
    where = {(run["condition"]["method"], run["provenance"]["cpu"]) for run in results.on(name)}
    [(machine, _)] = Counter(sorted(cpu for _, cpu in where)).most_common(1)
    contest = shown.epoch_seconds(results, name, times or {})
    for decay, mark in _MARKS.items():
        for method, some in results.at(decay).by_method(name).items():
            there = [run for run in some if run["provenance"]["cpu"] == machine]
            own = np.mean([training_seconds(run) * cores(run) for run in there or some])
            if method in contest:
                own, there = core_seconds(*contest[method]) * some[0]["config"]["epochs"], some
            look = {"color": COLOURS[method], "fillstyle": "full" if there else "none"}
            ax.plot(own, shown.accuracy(some), marker=mark, markersize=7, **look)
            if there:
                spent[method] = own
    ax.set(xscale="log", xlabel="core-seconds of training")
    ax.margins(x=0.2)
    ax.xaxis.set_minor_formatter(NullFormatter())
    told = "" if times else "of the whole runs where no contest is recorded"
    if not {"dense", "set-all-relu"} <= spent.keys():
        return "", told
    return f"{two_digits(spent['dense'] / spent['set-all-relu'])} on {results.title(name)}", told


@by_dataset(
    "F-curves",
    alt="Difference in test accuracy, accuracy and loss against epoch for ReLU and All-ReLU.",
    caption=(
        "**ReLU and All-ReLU in sparse networks.** Top: All-ReLU's test accuracy less ReLU's, a "
        "running mean; band: its 95 % interval over seeds. The bar at the end is the last epoch's; "
        "it also counts the size of the test set, and decides. Below: accuracy and loss ± one "
        "standard deviation. Axes fit what follows the first tenth."
    ),
    finding=lambda results: shown.contrast(results, "set-all-relu", "set-relu"),
    numbers="Test accuracy at the end", height=5.2, block=(3, 1), across=3,
    labels=("difference (points)", "test accuracy (%)", "cross-entropy (nats)"),
    legend=lambda results: shown.lines(results.study.methods, {"test": "-", "training": _DASHED}),
)  # fmt: skip
def curves(axes: Any, name: str, results: Results) -> tuple[str, str]:
    """Draw All-ReLU's gain, accuracy and loss against epoch, a column per data set; of F-curves."""
    gain, top, bottom = axes
    found = results.by_method(name)
    for method, runs in found.items():
        colour = COLOURS[method]
        shown.band(top, *shown.over_epochs(runs, "test_accuracy", 100), colour)
        shown.band(bottom, *shown.over_epochs(runs, "test_loss"), colour)
        shown.band(
            bottom, *shown.over_epochs(runs, "loss"), colour, linestyle=_DASHED, linewidth=1.2
        )
    if {"set-relu", "set-all-relu"} <= found.keys():
        shown.gain(gain, found["set-all-relu"], found["set-relu"], COLOURS["set-all-relu"])
    else:
        shown.say(gain, "not recorded yet")
    for ax in (top, bottom):
        shown.fit_from(ax, results.epochs(name) // 10)
    for ax in axes:
        ax.set_xlim(1, results.epochs(name))
        ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    bottom.set_xlabel("epoch")
    ends = (f"{shown.accuracy(runs):.1f} % with {METHODS[m].label}" for m, runs in found.items())
    return "", f"{results.title(name)} {', '.join(ends)}"


@by_dataset(
    "F-gradient-flow",
    alt="Ratio of gradient flows and gradient flow against epoch, logarithmic, by data set.",
    caption=(
        "**Gradient flow.** Top: All-ReLU's over each other activation's; above one All-ReLU has "
        "more. Bottom: the squared norm of the loss's gradient on training rows, geometric means "
        "over seeds ± one standard deviation. Running means over epochs."
    ),
    finding="All-ReLU's gradient flow, a geometric mean over the epochs",
    height=4.4, extra=0.5, block=(2, 1), across=3,
    labels=("All-ReLU's / the other's", "gradient flow ‖∇L‖²"),
    legend=lambda results: shown.lines([
        m for m in results.study.methods if any(results.of(n, m) for n in results.study.datasets)
    ]),
)  # fmt: skip
def gradient_flow(axes: Any, name: str, results: Results) -> tuple[str, str]:
    """Draw All-ReLU's flow over the others', and all, two panels per data set."""
    top, bottom = axes
    found, ratios = results.by_method(name), []
    for method, runs in found.items():
        logs = flow_logs(runs)
        epochs = np.arange(logs.shape[1])
        shown.band(bottom, epochs, shown.smooth(logs), COLOURS[method], lambda v: 10**v)
        if "set-all-relu" not in found or method == "set-all-relu":
            continue
        ours, others, _ = pairs(found["set-all-relu"], runs)
        ratio = flow_logs(ours).mean(axis=0) - flow_logs(others).mean(axis=0)
        top.plot(epochs, 10 ** shown.smooth(ratio), color=COLOURS[method])
        first, last = tenths(ratio)
        whole, early, late = (shown.factor(10**log) for log in (ratio[1:].mean(), first, last))
        label, _, about = METHODS[method].label.partition(", ")
        if method == "set-relu" and first > 0 > last:
            about = f"{early} it in the first tenth of the epochs, {late} it in the last"
        ratios.append(f"{whole} {label}'s" + f" ({about})" * bool(about))
    for ax in axes:
        ax.set(yscale="log", xlim=(0, results.epochs(name)))
    if ratios:
        top.axhline(1, color=GREY, linestyle=DOTTED)
        low, high = np.log10(top.get_ylim())
        if high - low < 2.5:  # else powers of ten are enough
            subs = (1, 2, 5) if high - low > 0.6 else (1, 1.2, 1.5, 2, 3, 4, 6, 8)
            top.yaxis.set_major_locator(LogLocator(subs=subs))
            top.yaxis.set_major_formatter("{x:g}")
        top.yaxis.set_minor_formatter(NullFormatter())
    else:
        shown.say(top, "not recorded yet")
    bottom.set_xlabel("epoch")
    return f"on {results.title(name)} {', '.join(ratios)}" if ratios else "", ""


def flow_logs(runs: list[Result]) -> np.ndarray:
    """Return log10 of gradient flow, shape (seeds, epochs + 1); epoch 0 is before training."""
    _, flows = shown.over_epochs(runs, "gradient_flow")
    return np.log10(np.maximum(flows, np.finfo(np.float32).tiny))


def tenths(logs: np.ndarray) -> tuple[float, float]:
    """Return the means of `flow_logs` over the first and the last tenth of the epochs."""
    tenth = max(1, (logs.shape[-1] - 1) // 10)
    return logs[..., 1 : 1 + tenth].mean(), logs[..., -tenth:].mean()


@by_dataset(
    "F-alpha",
    alt="Test accuracy against alpha, epsilon and zeta, one row of panels per data set.",
    caption=(
        "**Sensitivity to α, ε and ζ.** Final test accuracy when one hyperparameter changes; "
        "dotted: the study's value. Means over seeds ± one standard deviation. α = 0 is ReLU, "
        "ζ = 0 a fixed topology. What to see: on a plateau the choice matters little."
    ),
    finding="What evolution is worth, and the best value tried, against the study's",
    height=2.6, extra=0.3, block=(1, len(SENSITIVITIES)), sharey="row",
    labels=("test accuracy (%)",), legend=lambda results: shown.lines(("set-all-relu", "dense")),
)  # fmt: skip
def sensitivity(axes: Any, name: str, results: Results) -> tuple[str, str]:
    """Draw test accuracy against α, ε and ζ, a row per data set; of F-alpha."""
    told, ours, fixed = [], results.of(name, "set-all-relu"), results.of(name, "zeta-0")
    if ours and fixed:
        told.append(f"evolution {shown.gap(ours, fixed)}")
    for ax, (field, (symbol, values)) in zip(axes, SENSITIVITIES.items(), strict=True):
        own = getattr(setting(name).config, field)
        methods = {value: f"{field}-{value:g}" for value in values}
        methods |= {own: "set-all-relu", **({0.0: "set-relu"} if field == "alpha" else {})}
        x = sorted(value for value, method in methods.items() if results.of(name, method))
        runs = [results.of(name, methods[value]) for value in x]
        means = shown.with_sd(ax, x, runs, "set-all-relu")
        ax.set_xlabel(symbol)
        ax.axvline(own, color=GREY, linestyle=DOTTED)
        if dense := results.of(name, "dense"):
            ax.axhline(shown.accuracy(dense), color=COLOURS["dense"], linewidth=1)
        for value in methods:
            if value not in x and results.of(name, methods[value], diverged=True):
                ax.axvline(value, alpha=0)  # the axis reaches to it
                shown.say(ax, "diverged", value, COLOURS["set-all-relu"])
                x.append(value)
        if field == "epsilon":
            ax.set_xscale("log", base=2)
            ax.set_xticks(x, [f"{value:g}" for value in x])
        if own in x and means:
            best = x[int(np.argmax(means))]
            gap = shown.gap(*(results.of(name, methods[value]) for value in (best, own)))
            told.append(f"{symbol} {best:g}" + (f" {gap}" if best != own else " (the study's)"))
    return f"on {results.title(name)} {', '.join(told)}" if told else "", ""


@by_dataset(
    "F-decay",
    alt="Test accuracy against weight decay, a panel per data set, a line per method.",
    caption=(
        "**Weight decay.** Final test accuracy against λ, per step, where a method has runs at "
        "several; means over seeds ± one standard deviation; hollow: one run. What to see: "
        "where a line is level, λ does not matter; where lines are apart, the method does."
    ),
    finding="λ = {:g} instead of {:g}, where the interval tells a difference".format(*DECAYS),
    height=2.7, extra=0.4, across=2, least=2,
    legend=lambda results: shown.lines(results.study.methods),
)  # fmt: skip
def decay(axes: Any, name: str, results: Results) -> tuple[str, str]:
    """Draw test accuracy against weight decay, a panel per data set; of F-decay."""
    decays = sorted(results.study.decays)
    [ax], told = axes, ["none"]
    for method in results.study.methods:
        runs = [results.at(value).of(name, method) for value in decays]
        there = [place for place, some in enumerate(runs) if some]
        shown.with_sd(ax, there, filter(None, runs), method)
        effect = shown.difference(*(runs[decays.index(value)] for value in DECAYS))
        if effect and not effect.low <= 0 <= effect.high:
            told = [*filter("none".__ne__, told), f"{METHODS[method].label} {shown.points(effect)}"]
    # The values are no numbers that one scale shows: one is 0.
    labels = [{2e-6: "2·10⁻⁶", 2e-5: "2·10⁻⁵"}.get(value, f"{value:g}") for value in decays]
    ax.set_xticks(range(len(decays)), labels)
    ax.set(xlabel="weight decay λ", ylabel="test accuracy (%)")
    return f"on {results.title(name)} {', '.join(told)}", ""
