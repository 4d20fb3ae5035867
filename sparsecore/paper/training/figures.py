"""Cost, learning curves, gradient flow and sensitivities: results in, a picture out."""

import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from sparsecore.paper.page import Note
from sparsecore.paper.style import COLOURS, GREY, deviation, dot, plain_ticks
from sparsecore.paper.training import shown
from sparsecore.paper.training.conditions import METHODS, SENSITIVITIES
from sparsecore.paper.training.effects import core_seconds, difference, log_ratio, pairs, two_digits
from sparsecore.paper.training.shown import DASHED, DOTTED, by_dataset
from sparsecore.paper.training.studies import Result, Results
from sparsecore.settings import DECAYS, setting

_MARKS = dict(zip(DECAYS, "o^", strict=True))
_LINES: dict[float, Any] = dict(zip(DECAYS, ("-", DASHED), strict=True))
_RACE, _BOTH = ("dense", "set-relu", "set-all-relu"), {"dense", "set-all-relu"}
_GAINS = "Accuracy, SET-All-ReLU minus dense, uncorrected 95 % intervals"


def _comparable(found: Mapping[str, list[Result]]) -> bool:
    """Return whether several methods have accuracies that count; a surrogate's do not."""
    return len(found) > 1 and not next(iter(found.values()))[0]["data"]["surrogate"]


@by_dataset(
    "F-cost",
    alt="Test accuracy against core-seconds, a panel per data set, a mark per method.",
    caption="**The cost of accuracy.** Final test accuracy, means ± one standard deviation over "
    "seeds, against core-seconds: those of an epoch, timed side by side on one machine at λ = "
    "0.0002, times the number of epochs. Hollow: one run. Compare marks of one shape, which share "
    "λ. Higher is better, further left is cheaper.",
    finding=_GAINS,
    height=2.4, extra=0.8, across=2, labels=("test accuracy (%)",),
    needs=_comparable,
    legend=lambda results: [
        *(dot(COLOURS[method], METHODS[method].label) for method in results.study.methods),
        *(dot(GREY, f"λ = {decay:g}", mark) for decay, mark in _MARKS.items()),
    ],
)  # fmt: skip
def cost(axes: Any, name: str, results: Results, times: Mapping[str, Result]) -> str:
    """Draw T-main's accuracies against core-seconds of the contest in `times`."""
    [ax], seconds = axes, shown.epoch_seconds(results, name, times)
    for decay, mark in _MARKS.items():
        for method, runs in results.at(decay).by_method(name).items():
            if method in seconds:
                spent = core_seconds(*seconds[method]) * runs[0]["config"]["epochs"]
                sd = deviation([100 * run["test_accuracy"] for run in runs])
                look = shown.mark(runs, method, mark) | {"elinewidth": 0.8, "markersize": 7}
                ax.errorbar(spent, shown.accuracy(runs), sd, **look)
    ax.set(xscale="log", xlabel="core-seconds of training")
    ax.margins(x=0.2)
    low, high = ax.get_xlim()
    if high < 4 * low:  # else similar times would look far apart
        ax.set_xlim(math.sqrt(low * high) / 2, 2 * math.sqrt(low * high))
    plain_ticks(ax.xaxis, subs=(1, 2, 5))
    return shown.against_dense(results, name, seconds)


@by_dataset(
    "F-reach",
    alt="Test accuracy against core-seconds so far, a panel per data set.",
    caption="**Accuracy during training.** Test accuracy, means ± one standard deviation over "
    "seeds, against the core-seconds of the epochs so far (logarithmic). Dotted: SET-All-ReLU's "
    "final accuracy at each λ. What to see: which curve reaches it first.",
    finding="When dense first reaches SET-All-ReLU's final accuracy, by means over seeds",
    height=2.2, extra=0.4, across=2, labels=("test accuracy (%)",),
    needs=_BOTH.issubset,
    legend=lambda results: shown.lines(_RACE, {f"λ = {d:g}": s for d, s in _LINES.items()}),
)  # fmt: skip
def reach(axes: Any, name: str, results: Results, times: Mapping[str, Result]) -> str:
    """Draw T-main's accuracies against the time so far, at each weight decay."""
    [ax], seconds, told = axes, shown.epoch_seconds(results, name, times), dict[str, list[str]]()
    spent = {method: core_seconds(*seconds[method]) for method in _RACE if method in seconds}
    for at in map(results.at, results.study.decays):
        found, when = at.by_method(name), dict[str, Any]()
        if not _BOTH <= found.keys():
            continue
        dense, sparse = found["dense"], found["set-all-relu"]
        target = shown.over_epochs(sparse, "test_accuracy", 100)[1].mean(axis=0)[-1]
        for method in (m for m in spent if m in found):
            epochs, values = shown.over_epochs(found[method], "test_accuracy", 100)
            there, alone = values.mean(axis=0) >= target, (values >= target).any(axis=1).sum()
            when[method] = epochs[there.argmax()] if there.any() else None, alone
            some = np.unique(np.geomspace(1, len(epochs), 80).astype(int)) - 1
            x = spent[method] * np.array(epochs)[some]
            shown.band(ax, x, values[:, some], COLOURS[method], linestyle=_LINES[at.decay])
        ax.axhline(target, color=GREY, linestyle=DOTTED)
        if _BOTH <= when.keys():
            (first, alone), (last, _) = when["dense"], when["set-all-relu"]
            text = f"in {alone} of {len(dense)} runs, not in their mean," if alone else "not at all"
            if first:  # SET-All-ReLU reaches it, at the latest in its last epoch
                ratio = two_digits(first * spent["dense"] / (last * spent["set-all-relu"]))
                text = f"after {first} epochs (SET-All-ReLU: {last}), in {ratio} times the "
                text += "core-seconds,"
            told.setdefault(text, []).append(f"{at.decay:g}{shown.few(dense, sparse)}")
    ax.set(xscale="log", xlabel="core-seconds of training")
    ax.set_ylim(bottom=max(ax.get_ylim()[0], target - 15))  # the first epochs gain the most
    plain_ticks(ax.xaxis)
    parts = (f"{text} at λ = {' and '.join(where)}" for text, where in told.items())
    return f"{results.title(name)} {', and '.join(parts)}" * bool(told)


@by_dataset(
    "F-accuracy",
    alt="Test accuracy of all methods, a panel per data set, a row per method.",
    caption="**The accuracy of all methods.** Test accuracy after the last epoch, means over seeds "
    "± one standard deviation; hollow: one run. What to see: how far apart the methods are, "
    "compared with the seeds of each.",
    finding=_GAINS,
    height=2.2, extra=0.2, across=2, sharey=True,
    needs=_comparable,
    legend=lambda results: [dot(GREY, f"λ = {d:g}", mark) for d, mark in _MARKS.items()],
)  # fmt: skip
def accuracies(axes: Any, name: str, results: Results) -> str:
    """Draw the accuracy of all of T-main's methods, a panel per data set."""
    [ax] = axes
    for (decay, mark), shift in zip(_MARKS.items(), (-0.17, 0.17), strict=True):
        for method, runs in results.at(decay).by_method(name).items():
            place = results.study.methods.index(method) + shift
            sd = deviation([100 * run["test_accuracy"] for run in runs])
            look = shown.mark(runs, method, mark) | {"markersize": 5, "linewidth": 1.2}
            ax.errorbar(shown.accuracy(runs), place, xerr=sd, **look)
    labels = [METHODS[method].label for method in results.study.methods]
    ax.set_yticks(range(len(labels)), labels)
    ax.set(xlabel="test accuracy (%)", ylim=(len(labels) - 0.5, -0.5))
    return shown.against_dense(results, name, {})


@by_dataset(
    "F-curves",
    alt="Difference in test accuracy, accuracy and loss against epoch for ReLU and All-ReLU.",
    caption="**ReLU and All-ReLU in sparse networks.** Top: All-ReLU's test accuracy minus ReLU's, "
    "a running mean with its 95 % interval over seeds. The last epoch's interval, the bar, also "
    "includes the size of the test set. Below: accuracy and loss ± one standard deviation. What to "
    "see: whether the bar lies above zero.",
    finding=lambda results: shown.contrast(results, "set-all-relu", "set-relu"),
    height=5.2, block=(3, 1), across=3,
    labels=("difference (points)", "test accuracy (%)", "cross-entropy (nats)"),
    legend=lambda results: shown.lines(results.study.methods, {"test": "-", "training": DASHED}),
)  # fmt: skip
def curves(axes: Any, name: str, results: Results) -> str:
    """Draw All-ReLU's gain, accuracy and loss against epoch, a column per data set."""
    gain, top, bottom = axes
    found = results.by_method(name)
    for method, runs in found.items():
        colour = COLOURS[method]
        shown.band(top, *shown.over_epochs(runs, "test_accuracy", 100), colour)
        shown.band(bottom, *shown.over_epochs(runs, "test_loss"), colour)
        shown.band(bottom, *shown.over_epochs(runs, "loss"), colour, linestyle=DASHED, lw=1.2)
    if {"set-relu", "set-all-relu"} <= found.keys():
        shown.gain(gain, found["set-all-relu"], found["set-relu"], COLOURS["set-all-relu"])
    else:
        shown.leave_empty(gain)
    for ax in (top, bottom):
        shown.fit_from(ax, results.epochs(name) // 10)
    for ax in axes:
        ax.set_xlim(1, results.epochs(name))
        ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    bottom.set_xlabel("epoch")
    return ""


@by_dataset(
    "F-gradient-flow",
    alt="Ratio of gradient flows and gradient flow against epoch, logarithmic, by data set.",
    caption="**Gradient flow.** Top: All-ReLU's flow divided by each other activation's; above "
    "one, All-ReLU has more. Bottom: the squared norm of the loss's gradient on training rows. "
    "Geometric means over seeds (top: over pairs) ± one standard deviation; running means over "
    "epochs. What to see: when a top curve crosses one.",
    finding="All-ReLU's gradient flow relative to ReLU's, geometric means over the epochs",
    height=4.4, extra=0.5, block=(2, 1), across=3,
    labels=("All-ReLU's / the other's", "gradient flow ‖∇L‖²"),
    legend=lambda results: shown.lines([
        m for m in results.study.methods if any(results.of(n, m) for n in results.study.datasets)
    ]),
)  # fmt: skip
def gradient_flow(axes: Any, name: str, results: Results) -> str:
    """Draw All-ReLU's flow over the others', and all, two panels per data set."""
    top, bottom = axes
    found, told = results.by_method(name), ""
    for method, runs in found.items():
        logs = flow_logs(runs)
        epochs = np.arange(logs.shape[1])
        shown.band(bottom, epochs, shown.smooth(logs), COLOURS[method], lambda v: 10**v)
        if "set-all-relu" not in found or method == "set-all-relu":
            continue
        *both, paired = pairs(found["set-all-relu"], runs)
        ours, others = map(flow_logs, both)
        ratio = ours.mean(axis=0) - others.mean(axis=0)
        seen = shown.smooth(ours - others if paired else ratio[None])
        shown.band(top, epochs, seen, COLOURS[method], lambda v: 10**v)
        if method != "set-relu":
            continue
        every, first, last = (two_digits(10**r) for r in (ratio[1:].mean(), *tenths(ratio)))
        span = ", no interval"
        if effect := log_ratio(mean_flows(both[0]), mean_flows(both[1]), paired):
            span = " [{}, {}]".format(*map(two_digits, np.exp([effect.low, effect.high])))
        told = f"on {results.title(name)} × {every}{span} (first tenth × {first}, last × {last})"
    for ax in axes:
        ax.set(yscale="log", xlim=(0, results.epochs(name)))
    if "set-all-relu" in found and len(found) > 1:
        top.axhline(1, color=GREY, linestyle=DOTTED)
        low, high = np.log10(top.get_ylim())
        if high - low < 2.5:  # else powers of ten are enough
            subs = (1, 2, 5) if high - low > 0.6 else (1, 1.2, 1.5, 2, 3, 4, 6, 8)
            plain_ticks(top.yaxis, subs=subs)
    else:
        shown.leave_empty(top)
    bottom.set_xlabel("epoch")
    return told


def early_and_late_flow(results: Results) -> Note:
    """Say in how many cases All-ReLU has more flow than ReLU, early and late in training."""
    counts, cases = np.zeros((2, 3), int), 0  # first, last tenth: more; interval above, below 1
    for at, name in itertools.product(map(results.at, results.study.decays), results.datasets):
        *both, paired = pairs(at.of(name, "set-all-relu"), at.of(name, "set-relu"))
        if all(both):
            cases += 1
            logs = zip(*(tenths(flow_logs(some)) for some in both), strict=True)
            for count, (ours, others) in zip(counts, logs, strict=True):
                e = log_ratio(10**ours, 10**others, paired)
                sign = e.sign if e else 0
                count += ours.mean() > others.mean(), sign > 0, sign < 0
    told = " ".join(
        f"In the {part} tenth of training All-ReLU has more gradient flow than ReLU in {more} of "
        f"{cases} cases (data set and λ). The uncorrected 95 % interval of the ratio lies above 1 "
        f"in {above}, and below 1 in {below}."
        for part, (more, above, below) in zip(("first", "last"), counts, strict=True)
    )
    return Note(told if cases else shown.absent(results))


def flow_logs(runs: list[Result]) -> np.ndarray:
    """Return log10 of gradient flow, shape (seeds, epochs + 1); epoch 0 is before training."""
    _, flows = shown.over_epochs(runs, "gradient_flow")
    return np.log10(np.maximum(flows, np.finfo(np.float32).tiny))


def mean_flows(runs: list[Result]) -> np.ndarray:
    """Return the geometric mean of each run's gradient flow over the epochs of training."""
    return np.asarray(10 ** flow_logs(runs)[:, 1:].mean(axis=1))


def tenths(logs: np.ndarray) -> tuple[Any, Any]:
    """Return the means of `flow_logs` over the first and the last tenth of the epochs."""
    tenth = max(1, (logs.shape[-1] - 1) // 10)
    return logs[..., 1 : 1 + tenth].mean(axis=-1), logs[..., -tenth:].mean(axis=-1)


@by_dataset(
    "F-alpha",
    alt="Test accuracy against alpha, epsilon and zeta, one row of panels per data set.",
    caption="**Sensitivity to α, ε and ζ.** Final test accuracy when one hyperparameter changes. "
    "Dotted: the study's value. Level line: dense. Means over seeds ± one standard deviation. α = "
    "0 is ReLU, ζ = 0 a fixed topology. What to see: on a plateau the value matters little.",
    finding="When one hyperparameter changes",
    height=2.6, extra=0.3, block=(1, len(SENSITIVITIES)), sharey="row",
    labels=("test accuracy (%)",), legend=lambda results: shown.lines(("set-all-relu", "dense")),
)  # fmt: skip
def sensitivity(axes: Any, name: str, results: Results) -> str:
    """Draw F-alpha's test accuracies against α, ε and ζ, a row per data set."""
    better, lost, spans = [], [], []
    ours, fixed = results.of(name, "set-all-relu"), results.of(name, "zeta-0")
    for ax, (field, (symbol, values)) in zip(axes, SENSITIVITIES.items(), strict=True):
        own = getattr(setting(name).config, field)
        methods = {value: f"{field}-{value:g}" for value in values}
        methods |= {own: "set-all-relu", **({0.0: "set-relu"} if field == "alpha" else {})}
        x = sorted(value for value, method in methods.items() if results.of(name, method))
        runs = [results.of(name, methods[value]) for value in x]
        means, ticks = shown.with_sd(ax, x, runs, "set-all-relu"), {*x}
        ax.set_xlabel(symbol)
        ax.axvline(own, color=GREY, linestyle=DOTTED)
        if dense := results.of(name, "dense"):
            ax.axhline(shown.accuracy(dense), color=COLOURS["dense"], linewidth=1)
        for value in methods:
            if results.of(name, methods[value], diverged=True):
                ax.axvline(value, alpha=0)  # the axis reaches to it
                look = {"ha": "center", "va": "center", "color": COLOURS["set-all-relu"]}
                place = ax.get_xaxis_transform()
                ax.text(value, 0.5, "diverged", rotation=90, transform=place, **look)
                ticks.add(value)
                if value not in x:
                    lost.append(f"{symbol} = {value:g}")
        if field == "epsilon":
            ax.set_xscale("log", base=2)
            ax.set_xticks(sorted(ticks), [f"{value:g}" for value in sorted(ticks)])
        if ours:
            spans.append(f"{min(means):.1f} to {max(means):.1f} % over {symbol}")
        if ours and max(means) > shown.accuracy(ours):
            best = x[int(np.argmax(means))]
            gap = shown.gap(results.of(name, methods[best]), ours)
            better.append(f"{symbol} = {best:g} ({gap})")
    if not (ours and fixed):
        return ""
    higher = "no other value has a higher mean"
    if better:
        higher = f"the highest mean is not at the study's value but at {', '.join(better)}"
    zeta = f"ζ = {setting(name).config.zeta:g} instead of 0"
    told = f"mean accuracy ranges from {', '.join(spans)}; evolution ({zeta}) changes it by "
    told += f"{shown.gap(ours, fixed)}, and {higher}"
    diverged = f"; all runs diverge with {', '.join(lost)}" * bool(lost)
    return f"on {results.title(name)} {told}{diverged}"


@by_dataset(
    "F-decay",
    alt="Test accuracy against weight decay, a panel per data set, a line per method.",
    caption="**Weight decay.** Final test accuracy against λ (per step), means over seeds ± one "
    "standard deviation. Hollow: one run. A line breaks at values without runs. What to see: where "
    "a line is level, λ does not matter; where lines are apart, the method does.",
    finding="Final accuracy, λ = {1:g} minus λ = {0:g}, uncorrected 95 % intervals".format(*DECAYS),
    height=2.7, extra=0.4, across=2, least=2,
    legend=lambda results: shown.lines(results.study.methods),
)  # fmt: skip
def decay(axes: Any, name: str, results: Results) -> str:
    """Draw F-decay's test accuracies against weight decay, a panel per data set."""
    decays = sorted(results.study.decays)
    [ax], told, between, best = axes, [], [], []
    # The axis has no scale: one of the values is 0, the others are apart by factors of ten.
    labels = {value: {2e-6: "2·10⁻⁶", 2e-5: "2·10⁻⁵"}.get(value, f"{value:g}") for value in decays}
    for place, method in enumerate(results.study.methods):
        runs = [results.at(value).of(name, method) for value in decays]
        aside = 0.06 * (place - (len(results.study.methods) - 1) / 2)  # bars would hide each other
        shown.with_sd(ax, [at + aside for at in range(len(decays))], runs, method)
        both, label = [runs[decays.index(v)] for v in DECAYS[::-1]], METHODS[method].label
        if min(map(len, both)) > 1:
            peaks = [shown.accuracy(some, "best_test_accuracy") for some in both]
            best.append(f"{label} {peaks[0] - peaks[1]:+.2f}")
        if (effect := difference(*both)) and effect.sign:
            told.append(f"{label} {shown.points(effect)}")
        end = max(filter(None, both), key=shown.accuracy, default=[])
        for value, inner in zip(decays, runs, strict=True):
            gain = None if value in DECAYS else difference(inner, end)
            if gain and gain.sign > 0:
                between.append(f"{label} {shown.points(gain)} at λ = {labels[value]}")
    ax.set_xticks(range(len(decays)), [*labels.values()])
    ax.set(xlabel="weight decay λ", ylabel="test accuracy (%)")
    more = f"; a λ between them is better than both: {', '.join(between)}" * bool(between)
    text = f"{', '.join(told) or 'no clear change'} (at the best epochs {', '.join(best)})"
    return f"on {results.title(name)} {text}{more}" * bool(best)
