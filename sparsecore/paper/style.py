"""How the book's pictures look: colours, sizes, panels, and what stands where there is nothing."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sparsecore.paper.page import Note, Picture
from sparsecore.paper.store import Result, Versions, origin

# Okabe and Ito's palette, which colour-blind readers can tell apart; a method has one colour
# everywhere.
COLOURS = {
    "dense": "#000000",
    "set-relu": "#D55E00",  # vermillion
    "set-leaky-relu": "#CC79A7",  # reddish purple
    "set-leaky-relu-0.25": "#999933",  # olive
    "set-all-relu": "#0072B2",  # blue
    "set-all-relu-pruned": "#009E73",  # bluish green
    "set-all-relu-pruned-released": "#44AA99",  # teal
    "wassp": "#E69F00",  # orange
    "wassp-released": "#661100",  # brown
    "wasap": "#56B4E9",  # sky blue
    "wasap-pruned": "#882255",  # wine
}
GREY = "#6b6b6b"
Draw = Callable[[Any, Result], tuple[str, str]]  # see `picture`
_QUIET = 0.15  # CPUs that others use: a system is never quite still
WIDTH = 8.0  # inches: the width of a page of the book at 96 dots an inch
_LETTERS, _BESIDE = 114, 10  # of a legend's line; as wide as these is what is beside a label
STYLE = {
    "font.size": 10, "figure.facecolor": "white", "legend.frameon": False, "lines.linewidth": 1.8,
    "axes.titlesize": 10.5, "axes.titleweight": "bold", "axes.labelsize": 10,
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": GREY,
    "axes.grid": True, "axes.axisbelow": True, "grid.color": "#e4e4e4", "grid.linewidth": 0.7,
    "xtick.labelsize": 9, "ytick.labelsize": 9, "xtick.color": "#333333", "ytick.color": "#333333",
}  # fmt: skip


@contextlib.contextmanager
def canvas(height: float) -> Iterator[Figure]:
    """Make an empty figure of the page's width, and draw on it in the book's style."""
    with matplotlib.rc_context(STYLE):
        yield Figure(figsize=(WIDTH, height), layout="constrained")


def picture(
    key: str, *, caption: str, alt: str, label: str = "", across: int = 1, height: float = 3.6,
    legend: Sequence[Any] = (), **subplots: Any,
) -> Callable[[Draw], Callable[[Versions[Result]], Picture | Note]]:  # fmt: skip
    """Make a picture of what a function draws of the only one of `Versions`.

    ``draw(panel or array of `across` panels, version)`` returns what is found, and what the sources
    tell of it. `label` is the first panel's, on its left; `height` in inches.
    """

    def decorate(draw: Draw) -> Callable[[Versions[Result]], Picture | Note]:
        @functools.wraps(draw)
        def shown(found: Versions[Result]) -> Picture | Note:
            if not found:
                return Note(found.missing)
            with canvas(height) as figure:
                finding, told = draw(figure.subplots(1, across, **subplots), found.first)
                if legend:
                    letters = sum(len(handle.get_label()) + _BESIDE for handle in legend)
                    columns = math.ceil(len(legend) / math.ceil(letters / _LETTERS))
                    figure.legend(handles=legend, loc="outside upper center", ncols=columns)
                if label:
                    figure.axes[0].set_ylabel(label)
            name, sources = keyed(key, found.first), source(found, [told])
            return Picture(name, figure, caption, alt, sources, finding)

        return shown

    return decorate


def keyed(key: str, result: Result) -> str:
    """Return the name of a picture or table; that of a quick build differs from the recorded."""
    return key + "-here" * (result["profile"] == "quick")


def source(
    versions: Iterable[tuple[str, Result]], told: Iterable[str] = itertools.repeat("")
) -> str:
    """Return where each version comes from, and what is told of it, in plain sentences.

    They warn of other processes, whose CPUs a result has under "others" or in its provenance.
    """
    texts = []
    for (title, result), text in zip(versions, told, strict=False):
        origins = result["provenance"]
        seeds = [result["seed"]] if "seed" in result else result.get("seeds", [])
        many = f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}, " if seeds else ""
        profile = f"{title.capitalize()} (profile {result['profile']})"
        texts.append(f"{profile}: {many}{origin(origins)}.")
        others = float(np.median(result.get("others", origins.get("others", 0.0))))
        if others > _QUIET:
            texts.append(f"Other processes used {others:.1f} CPUs: these times are too long.")
        texts += [result.get("size", ""), text]
    return " ".join(filter(None, texts))


def line(colour: str, label: str, linestyle: Any = "-", **look: Any) -> Any:
    """Return a line for a legend."""
    look = {"color": colour, "label": label, "linestyle": linestyle, **look}
    return matplotlib.lines.Line2D([], [], **look)


def dot(colour: str, label: str, marker: str = "o", fill: str | None = None) -> Any:
    """Return a mark for a legend."""
    return line(colour, label, "", marker=marker, markerfacecolor=fill or colour)


def patch(colour: str, label: str) -> Any:
    """Return an area for a legend."""
    return matplotlib.patches.Patch(color=colour, alpha=0.6, label=label)


def deviation(values: Any, axis: int | None = None) -> Any:
    """Return the sample's standard deviation; 0 for one value."""
    values = np.asarray(values, float)
    n = values.size if axis is None else values.shape[axis]
    return np.std(values, axis=axis, ddof=1 if n > 1 else 0)


def with_spread(
    ax: Axes, x: Any, spreads: Sequence[Mapping[str, float]], colour: str, **more: Any
) -> None:
    """Draw medians, with bars from the lowest to the highest; see `bench.spread`."""
    y, low, high = (np.array([one[name] for one in spreads]) for name in ("median", "low", "high"))
    ax.errorbar(x, y, yerr=[y - low, high - y], fmt="o-", color=colour, markersize=5, **more)


def tag(
    ax: Axes, text: str, at: tuple[float, float], shift: tuple[float, float], **more: Any
) -> None:
    """Write a small text near a point, so many points of type away from it."""
    look: dict[str, Any] = {"fontsize": 7.5, "color": "#333333", **more}
    ax.annotate(text, at, xytext=shift, textcoords="offset points", **look)


def shows(choose: str | Callable[[Any], Sequence[Result]]) -> Callable[[Any], Callable[[Any], Any]]:
    """Have a function show a part of a page's results, or those that are chosen of them.

    It is called with the results; a quick build's have another key, and sources tell the last one.
    """

    def decorate(show: Callable[..., Any]) -> Callable[[Any], Any]:
        @functools.wraps(show)
        def shown(page: Any) -> Any:
            results = choose(page) if callable(choose) else [page.get(choose)]
            if not any(results):
                return Note("Nothing of this is recorded yet, or it cannot be measured here.")
            made, last = show(*results), results[-1]
            title = "this build" if last["profile"] == "quick" else "recorded"
            told = source([(title, last)], [made.sources])
            return dataclasses.replace(made, key=keyed(made.key, last), sources=told)

        return shown

    return decorate
