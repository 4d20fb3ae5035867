"""What the figures of training share: panels per data set, bands over seeds, parts of captions.

Nothing is run or read here. How the book's pictures look is in `style`, what is in them in
`figures`, `pruning` and `topology`.
"""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sparsecore import datasets
from sparsecore.paper.page import Note, Picture
from sparsecore.paper.store import NOT_AVAILABLE, current_profile
from sparsecore.paper.style import COLOURS, STYLE, WIDTH, deviation, line, not_available, nothing
from sparsecore.paper.training.conditions import METHODS
from sparsecore.paper.training.studies import Result, Results

Draw = Callable[[Results], tuple[Figure, str, str]]


def drawn(key: str, alt: str) -> Callable[[Draw], Callable[[Results], Picture | Note]]:
    """Make a picture of the figure that a function draws of results, its caption and its numbers.

    Numbers, what is missing, and where the runs come from are a fold under the figure. Where there
    are no runs at all, the function is not called.
    """

    def decorate(draw: Draw) -> Callable[[Results], Picture | Note]:
        @functools.wraps(draw)
        def picture(results: Results) -> Picture | Note:
            name = key + results.suffix
            if results.runs:
                with matplotlib.rc_context(STYLE):
                    figure, caption, numbers = draw(results)
                absent = _absent(results, NOT_AVAILABLE.capitalize())
                return Picture(name, figure, caption, alt, numbers + absent + source(results))
            if not results.recorded:
                return nothing(name, _absent(results, "Missing"))
            if current_profile() == "paper":
                return Note("The results above are those of profile paper themselves.")
            return Note(f"No results of profile paper are recorded for {results.study.key} yet.")

        return picture

    return decorate


def by_dataset(
    results: Results,
    draw: Callable[[Any, str], str],
    *,
    height: float,
    extra: float = 0.0,
    block: tuple[int, int] = (1, 1),
    across: int = 1,
    labels: Sequence[str] = (),
    needs: Sequence[str] = (),
    legend: Sequence[Any] = (),
    **subplots: Any,
) -> tuple[Figure, str]:
    """Draw a block of panels per data set, or say in it that there is nothing to be drawn.

    ``draw(panels, name)`` draws a data set that has runs, and some of each method in `needs`; it
    returns the numbers to be told of it. All of them are returned beside the figure. A block has
    (rows, columns) of panels, and `labels` name its rows. At most `across` blocks stand side by
    side; such a row is `height` inches high, and `extra` inches are for the legend.
    """
    names = datasets_of(results) if results.recorded else results.study.datasets
    across, (rows, columns) = min(across, len(names)), block
    down = -(-len(names) // across)
    figure = Figure(figsize=(WIDTH, height * down + extra), layout="constrained")
    grid = figure.subplots(down * rows, across * columns, squeeze=False, **subplots)
    told = []
    for place in range(down * across):
        row, column = place // across * rows, place % across * columns
        panels = grid[row : row + rows, column : column + columns]
        if place >= len(names):
            for ax in panels.flat:
                ax.set_visible(False)
            continue
        name = names[place]
        title = results.title(name)
        if columns == 1:
            panels[0, 0].set_title(textwrap.fill(title, 66 // across))
        for ax, label in zip(panels[:, 0] if column == 0 else (), labels, strict=False):
            ax.set_ylabel(label if columns == 1 else f"{title}\n{label}")
        there = by_method(results, name)
        if there and set(needs) <= set(there):
            told.append(draw(panels.ravel(), name))
        else:
            not_there(results, *panels.flat)
    if legend:
        figure.legend(handles=legend, loc="outside upper center", ncols=len(legend))
    return figure, "; ".join(filter(None, told))


def not_there(results: Results, *axes: Axes) -> None:
    """Have panels say that there are no results: no data here, or not recorded yet."""
    not_available(*axes, text="not recorded yet" if results.recorded else NOT_AVAILABLE)


def datasets_of(results: Results) -> list[str]:
    """Return the data sets that have runs."""
    return [name for name in results.study.datasets if by_method(results, name)]


def by_method(results: Results, dataset: str) -> dict[str, list[Result]]:
    """Return the runs of each method that has any on a data set."""
    found = {method: results.of(dataset, method) for method in results.study.methods}
    return {method: runs for method, runs in found.items() if runs}


def band(
    ax: Axes,
    x: Any,
    values: np.ndarray,
    colour: str,
    scale: Callable[[np.ndarray], np.ndarray] = lambda values: values,
    **style: Any,
) -> None:
    """Draw the mean of `values`, shape (seeds, points), and a band of one standard deviation."""
    mean, sd = values.mean(axis=0), deviation(values, axis=0)
    low, high = scale(mean - sd), scale(mean + sd)
    ax.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
    ax.plot(x, scale(mean), color=colour, **style)


def over_epochs(runs: list[Result], name: str, factor: float = 1) -> tuple[list[int], np.ndarray]:
    """Return the epochs that have a value of that name, and the values, shape (seeds, epochs)."""
    records = [[epoch for epoch in run["epochs"] if name in epoch] for run in runs]
    values = factor * np.array([[epoch[name] for epoch in one] for one in records])
    return [epoch["epoch"] for epoch in records[0]], values


def moments(histogram: Sequence[int]) -> tuple[float, float]:
    """Return mean and standard deviation of what a histogram counts, in bins."""
    k, share = np.arange(len(histogram)), np.asarray(histogram) / np.sum(histogram)
    return float(share @ k), float(np.sqrt(share @ (k - share @ k) ** 2))


def accuracy(runs: list[Result]) -> float:
    """Return the mean test accuracy in percent."""
    return float(np.mean([100 * run["test_accuracy"] for run in runs]))


def lines(methods: Sequence[str], styles: Mapping[str, Any] | None = None) -> list[Any]:
    """Return the entries that name the methods' colours, and what line styles mean."""
    return [
        *(line(COLOURS[method], METHODS[method].label) for method in methods),
        *(line("#333333", label, style) for label, style in (styles or {}).items()),
    ]


# --- texts ------------------------------------------------------------------------------------


def official_title(dataset: str) -> str:
    """Return a data set's title, whether or not a surrogate stands in."""
    return str(datasets.describe(dataset)["title"])


def sized(results: Results, dataset: str) -> str:
    """Return a data set's title, and how long its runs are."""
    return f"{results.title(dataset)} ({results.size(dataset)})"


def sentence(start: str, text: str) -> str:
    """Return "<start>: <text>. ", or nothing if there is no text."""
    return f"{start}: {text}. " if text else ""


def source(*results: Results) -> str:
    """Return where results come from, a sentence for each."""
    return " ".join(f"Runs: {one.provenance}." for one in results if one.runs)


def _absent(results: Results, unavailable: str) -> str:
    """Name what is not shown: data that are not here or not recorded, and diverged runs."""
    names = results.study.datasets
    missing = set(names) - set(datasets_of(results)) if results.recorded else set()
    diverged = [
        f"{results.title(run['condition']['dataset'])} with "
        f"{METHODS[run['condition']['method']].label} (seed {run['seed']})"
        for run in results.diverged
    ]

    def titles(of: Iterable[str]) -> str:
        return ", ".join(official_title(name) for name in names if name in of)

    return (
        sentence(unavailable, titles(results.unavailable))
        + sentence("Not recorded yet", titles(missing))
        + sentence("Diverged, and not shown", ", ".join(diverged))
    )
