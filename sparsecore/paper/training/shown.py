"""What the figures of training share: panels per data set, bands over seeds, parts of captions."""

import functools
import itertools
import math
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from scipy.ndimage import uniform_filter1d
from scipy.stats import t as student

from sparsecore.paper.page import Note, Picture
from sparsecore.paper.store import NOT_AVAILABLE, NOTHING, Result, origin
from sparsecore.paper.style import COLOURS, GREY, canvas, deviation, legend_above, line
from sparsecore.paper.training.conditions import METHODS
from sparsecore.paper.training.studies import Results, cores, training_seconds
from sparsecore.settings import DECAYS

from sparsecore.paper.training.effects import (  # isort: skip
    CONFIDENCE, Effect, core_seconds, difference, pairs, two_digits,
)  # fmt: skip

DASHED, DOTTED = (0, (4, 2)), (0, (1, 2))
_MOST = 84  # points of a line: every sixth of 500 epochs


def by_dataset(
    key: str, *, alt: str, caption: str, height: float,
    finding: str | Callable[[Results], str] = "", extra: float = 0.0,
    block: tuple[int, int] = (1, 1), across: int = 1, labels: Sequence[str] = (), least: int = 1,
    needs: Callable[[dict[str, list[Result]]], Any] = bool,
    legend: Callable[[Results], Sequence[Any]] = lambda results: (), **subplots: Any,
) -> Callable[[Callable[..., str]], Callable[..., Picture | Note]]:  # fmt: skip
    """Make a picture with a block of panels per data set whose runs, by method, meet `needs`."""
    # A data set needs runs at `least` that many weight decays. ``draw(panels, name, results, ...)``
    # draws it and returns its part of the finding. A block has (rows, columns) of panels, and
    # `labels` name its rows. At most `across` blocks stand side by side; such a row is `height`
    # inches high, and `extra` inches are for the legend. A picture may need T-times' results, too.

    def decorate(draw: Callable[..., str]) -> Callable[..., Picture | Note]:
        @functools.wraps(draw)
        def picture(results: Results, *times: Mapping[str, Result]) -> Picture | Note:
            parts = [results.at(decay) for decay in results.study.decays]
            at = Counter(name for part in parts for name in part.datasets)
            names = [n for n in at if at[n] >= least and any(needs(p.by_method(n)) for p in parts)]
            if not names:
                why = absent(results)
                if results.runs or not why:  # there are runs, but none that the picture needs
                    why = f"{NOTHING['missing']} {why}".strip()
                return Note(why)
            down, (rows, columns) = math.ceil(len(names) / across), block
            beside, told = math.ceil(len(names) / down), []
            with canvas(height * down + extra) as figure:
                grid = figure.subplots(down * rows, beside * columns, squeeze=False, **subplots)
                for ax in grid[-rows:, (len(names) - (down - 1) * beside) * columns :].flat:
                    ax.set_visible(False)  # they have no data set
                for place, name in enumerate(names):
                    row, column = place // beside * rows, place % beside * columns
                    panels = grid[row : row + rows, column : column + columns]
                    title = results.title(name)
                    if columns == 1:
                        panels[0, 0].set_title(textwrap.fill(title, 66 // beside))
                    for ax, label in zip(panels[:, 0] if column == 0 else (), labels, strict=False):
                        ax.set_ylabel(label if columns == 1 else f"{title}\n{label}")
                    told.append(draw(panels.ravel(), name, results, *times))
                legend_above(figure, legend(results))
            found = "; ".join(filter(None, told))
            start = finding(results) if callable(finding) else sentence(finding, found)
            decays = {run["config"]["weight_decay"] for run in results.runs}
            said = caption + f" λ = {min(decays):g}." * (len(decays) == 1)
            sources = absent(results) + "".join(map(clocked, times)) + source(results, names)
            return Picture(key + results.suffix, figure, said, alt, sources, start)

        return picture

    return decorate


Seconds = dict[str, tuple[list[float], int]]  # per epoch, by method, and on how many cores


def epoch_seconds(results: Results, dataset: str, times: Mapping[str, Result]) -> Seconds:
    """Return the methods' seconds per epoch, all measured on one machine."""
    # The contest's; for a quick build those of its runs, which come one after another.
    if results.profile == "paper":
        contest = times.get(dataset, {})
        turns = contest.get("rounds", {}).items()  # none, where it could not be measured
        return {name: (seconds, contest["cores"][name]) for name, seconds in turns}
    return {
        method: ([training_seconds(run) / run["config"]["epochs"] for run in runs], cores(runs[0]))
        for method, runs in results.by_method(dataset).items()
    }


def band(
    ax: Axes, x: Any, values: np.ndarray, colour: str,
    scale: Callable[[np.ndarray], np.ndarray] = lambda values: values, **style: Any,
) -> None:  # fmt: skip
    """Draw the mean of `values`, shape (seeds, points), and a band of one standard deviation."""
    keep = np.linspace(0, len(x) - 1, min(len(x), _MOST)).round().astype(int)
    x, values = np.asarray(x)[keep], values[:, keep]
    mean, sd = values.mean(axis=0), deviation(values)
    low, high = scale(mean - sd), scale(mean + sd)
    ax.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
    ax.plot(x, scale(mean), color=colour, **style)


def gain(ax: Axes, first: list[Result], second: list[Result], colour: str) -> None:
    """Draw a difference of accuracies by epoch, over pairs of runs; the last epoch's as a bar."""
    effect, (first, second, _) = difference(first, second), pairs(first, second)
    n = min(len(first), len(second))
    epochs, ours = over_epochs(first[:n], "test_accuracy", 100)
    gains = smooth(ours - over_epochs(second[:n], "test_accuracy", 100)[1])
    mean = gains.mean(axis=0)
    wide = student.ppf((1 + CONFIDENCE) / 2, n - 1) / np.sqrt(n) if n > 1 else 0.0
    ax.axhline(0, color=GREY, linestyle=DOTTED)
    band(ax, epochs, mean + wide * (gains - mean), colour)
    if effect:
        look = {"color": colour, "marker": "o", "markersize": 4, "capsize": 3, "clip_on": False}
        ax.errorbar(epochs[-1], 100 * effect.value, 50 * (effect.high - effect.low), **look)
    fit_from(ax, len(mean) // 10, 0.0)


def fit_from(ax: Axes, epoch: int, *more: float) -> None:
    """Fit a panel's height to the curves from an epoch on: the first epochs would stretch it."""
    areas = [path.vertices for area in ax.collections for path in area.get_paths()]
    points = np.concatenate([*(one.get_xydata() for one in ax.lines), *areas])
    seen = [*points[points[:, 0] >= min(epoch, points[:, 0].max()), 1], *more]
    margin = 0.1 * float(np.ptp(seen)) or 0.1
    ax.set_ylim(min(seen) - margin, max(seen) + margin)


def with_sd(ax: Axes, x: Sequence[float], runs: Iterable[list[Result]], method: str) -> list[float]:
    """Draw means of accuracies, bars of one standard deviation, one run hollow; return means."""
    percents = [[100 * run["test_accuracy"] for run in some] for some in runs]
    means = [float(np.mean(some)) if some else np.nan for some in percents]
    bars = [float(deviation(some)) if len(some) > 1 else np.nan for some in percents]
    look: dict[str, Any] = {"color": COLOURS[method], "marker": "o", "markersize": 4}
    ax.errorbar(x, means, bars, capsize=3, **look)
    alone = np.isnan(bars)
    ax.plot(np.array(x)[alone], np.array(means)[alone], ls="", mfc="white", zorder=3, **look)
    return means


def mark(runs: list[Result], method: str, shape: str) -> dict[str, Any]:
    """Return the look of a mean's mark: hollow if it is one run."""
    colour = COLOURS[method]
    return {"color": colour, "marker": shape, "mfc": "white" if len(runs) == 1 else colour}


def leave_empty(ax: Axes) -> None:
    """Write into a panel that there is nothing to draw yet."""
    ax.set_yticks([], minor=False)
    look = {"ha": "center", "va": "center", "color": GREY, "transform": ax.transAxes}
    ax.text(0.5, 0.5, "not recorded yet", **look)


def over_epochs(runs: list[Result], name: str, factor: float = 1) -> tuple[list[int], np.ndarray]:
    """Return the epochs that have a value of that name, and the values, shape (seeds, epochs)."""
    records = [[epoch for epoch in run["epochs"] if name in epoch] for run in runs]
    values = factor * np.array([[epoch[name] for epoch in one] for one in records])
    return [epoch["epoch"] for epoch in records[0]], values


def smooth(values: np.ndarray) -> np.ndarray:
    """Return running means over a 25th of the epochs: they show the changes that last."""
    return uniform_filter1d(values, max(1, values.shape[-1] // 25), mode="nearest")


def moments(counts: Sequence[int]) -> tuple[float, float, float]:
    """Return mean, standard deviation and skewness of a histogram, in bins."""
    share, k = np.asarray(counts) / np.sum(counts), np.arange(len(counts))
    mean = share @ k
    sd = np.sqrt(share @ (k - mean) ** 2)
    return float(mean), float(sd), float(share @ (k - mean) ** 3 / sd**3)


def accuracy(runs: list[Result], name: str = "test_accuracy") -> float:
    """Return the mean test accuracy in percent, or that of the best epochs."""
    return float(np.mean([100 * run[name] for run in runs]))


def lines(methods: Sequence[str], styles: Mapping[str, Any] | None = None) -> list[Any]:
    """Return a legend's entries for the methods' colours and for line styles."""
    return [
        *(line(COLOURS[method], METHODS[method].label) for method in methods),
        *(line("#333333", label, style) for label, style in (styles or {}).items()),
    ]


# --- texts ------------------------------------------------------------------------------------


def points(effect: Effect) -> str:
    """Show a difference of accuracies with its interval."""
    value, low, high = (100 * v for v in (effect.value, effect.low, effect.high))
    return f"{value:+.2f} points [{low:+.2f}, {high:+.2f}]"


def gap(first: list[Result], second: list[Result]) -> str:
    """Show how much more accurate the first runs are, with an interval; say if seeds are few."""
    if not (first and second):
        return "an unknown number of points (not recorded yet)"
    effect, gain = difference(first, second), accuracy(first) - accuracy(second)
    return (points(effect) if effect else f"{gain:+.2f} points") + few(first, second)


def few(*methods: list[Result]) -> str:
    """Note how many runs each side of a comparison has at least, where these are few."""
    least = min(map(len, methods))
    return "" if least > 2 else f" ({least} seeds)" if least > 1 else " (one run)"


def against_dense(results: Results, name: str, seconds: Seconds) -> str:
    """State SET-All-ReLU's accuracy and cost against dense on a data set, where both have runs."""
    methods, told = ("set-all-relu", "dense"), []
    for at in map(results.at, results.study.decays):
        if all(both := [at.of(name, method) for method in methods]):
            told.append(f"{gap(*both)} at λ = {at.decay:g}")
            share = both[0][0]["nnz_end"] / both[1][0]["nnz_end"]
    if not told:
        return ""
    spent = [core_seconds(*seconds[method]) for method in methods if method in seconds]
    times = two_digits(spent[1] / spent[0]) if len(spent) == 2 else ""
    slower = f" (dense: {times} times the core-seconds per epoch)" * bool(times)
    told.append(f"with {100 * share:.2g} % of the connections{slower}")
    return f"{results.title(name)} {', '.join(told)}"


def contrast(results: Results, first: str, second: str) -> str:
    """Say on how many data sets a method is more, or less, accurate than another; by how much."""
    effects, told = [], []
    for name in results.datasets:
        runs = [results.of(name, method) for method in (first, second)]
        if effect := difference(*runs):
            effects.append(effect)
        if all(runs):
            told.append(f"{results.title(name)} {gap(*runs)}")
    if not effects:
        return f"{METHODS[first].label} and {METHODS[second].label}: too few runs to compare them."
    more, less = (sum(e.sign == sign for e in effects) for sign in (1, -1))
    return (
        f"At the end {METHODS[first].label} is more accurate than {METHODS[second].label} on "
        f"{more} of {len(effects)} data sets and less accurate on {less}, by "
        f"uncorrected 95 % intervals: {'; '.join(told)}."
    )


def factors(results: Results) -> str:
    """State side by side what weight decay changes, and what All-ReLU changes at each value."""
    told, ours, (some, none) = [], "set-all-relu", [results.at(decay) for decay in DECAYS]
    decay = f"weight decay {none.decay:g} instead of {some.decay:g} brings SET-All-ReLU"
    relu = "All-ReLU instead of ReLU at weight decay {:g} brings"
    names = [name for name in results.study.datasets if not results.surrogate(name)]
    pairs = [(relu.format(at.decay), at, at, "set-relu") for at in (some, none)]
    for text, first, second, other in [(decay, none, some, ours), *pairs]:
        effects = {n: difference(first.of(n, ours), second.of(n, other)) for n in names}
        found = {results.title(n): e for n, e in effects.items() if e}
        parts = [f"{100 * e.value:+.2f} on {title}" for title, e in found.items() if e.sign]
        unclear = [title for title, e in found.items() if not e.sign]
        parts += [f"no clear change on {' and '.join(unclear)}"] * bool(unclear)
        told += [f"{text} {', '.join(parts)}"] * bool(parts)
    start = "**Weight decay and activation**, final accuracy in points, uncorrected 95 % intervals"
    return sentence(start, "; ".join(told))


def sentence(start: str, text: str) -> str:
    """Return "<start>: <text>. ", or nothing if there is no text."""
    return f"{start}{': ' * bool(start)}{text}. " if text else ""


def source(results: Results, names: Sequence[str] | None = None) -> str:
    """Return how long runs are on the data sets shown, or on all, and where they come from."""
    names, lengths = results.datasets if names is None else names, []
    runs = [run for name in names for run in results.on(name)]
    for name in names:
        rows = ", ".join(sorted({f"{run['data']['n_train']:,}" for run in results.on(name)}))
        seeds = len({run["seed"] for run in results.on(name)})
        many = f"up to {seeds} seeds" if seeds > 1 else "one seed"
        length = f"{results.epochs(name)} epochs of {rows} rows, {many}"
        lengths.append(f"{results.title(name)}: {length}")
    told = origin([run["provenance"] for run in runs])
    surrogate = any(run["data"]["surrogate"] for run in runs)
    return (
        "A surrogate's accuracy means nothing; its times count. " * surrogate
        + f"{'; '.join(lengths)}. Runs: profile {results.profile}, {told}." * bool(runs)
    )


def clocked(times: Mapping[str, Result]) -> str:
    """Return where the contest's seconds come from, if there are any."""
    found = [contest["provenance"] for contest in times.values() if "provenance" in contest]
    return sentence("Seconds (T-times)", origin(found)) if found else ""


def lacking(results: Results, name: str) -> str:
    """Name the methods that the study plans on a data set, but that have no result there."""
    return "; ".join(METHODS[m].label for m in results.study.methods if results.lacks(name, m))


def absent(results: Results) -> str:
    """Name all that is not shown: data that are not here, runs not recorded, diverged runs."""
    study, title = results.study, results.title
    empty = [n for n in study.datasets if not results.on(n) + results.on(n, diverged=True)]
    here = [title(name) for name in empty if name in results.unavailable]
    cases = [
        (name, decay, methods)
        for decay, name in itertools.product(study.decays, study.datasets)
        if (methods := lacking(results.at(decay), name))
    ]
    gaps = [*dict.fromkeys(title(n) for n, *_ in cases if n in empty)]
    gaps += [f"{title(n)} at λ = {decay:g} ({m})" for n, decay, m in cases if n not in empty]
    diverged = [
        f"{title(run['condition']['dataset'])} with {METHODS[run['condition']['method']].label} "
        f"(seed {run['seed']}, λ = {run['config']['weight_decay']:g})"
        for run in results.diverged
    ]
    return (
        sentence(NOT_AVAILABLE.capitalize(), ", ".join(here))
        + sentence("Not recorded yet", ", ".join(gaps) * (results.profile == "paper"))
        + sentence("Diverged, and not shown", ", ".join(diverged))
    )
