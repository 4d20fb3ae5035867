"""How the book's pictures look: colours, sizes, panels, and notes in place of missing ones."""

import contextlib
import dataclasses
import functools
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from sparsecore.paper.page import Note, Picture
from sparsecore.paper.store import NOTHING, Result, origin

# Okabe and Ito's palette, which colour-blind readers can distinguish. A method has the same colour
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
Choose = str | Callable[[Any], Sequence[Result]]  # see `shows`
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]
_QUIET = 0.15  # CPUs that other processes may use: a system is never quite idle
WIDTH = 8.0  # inches: the width of a page of the book at 96 dots an inch
_LETTERS, _BESIDE = 114, 10  # widths in letters: of a legend's line, and of a label's mark
STYLE = {
    "font.size": 10, "figure.facecolor": "white", "legend.frameon": False, "lines.linewidth": 1.8,
    "axes.titlesize": 10.5, "axes.titleweight": "bold", "axes.labelsize": 10,
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": GREY,
    "axes.grid": True, "axes.axisbelow": True, "grid.color": "#e4e4e4", "grid.linewidth": 0.7,
    "xtick.labelsize": 9, "ytick.labelsize": 9, "xtick.color": "#333333", "ytick.color": "#333333",
}  # fmt: skip

DRAWING = threading.RLock()  # the style is global to the process


@contextlib.contextmanager
def canvas(height: float) -> Iterator[Figure]:
    """Make an empty figure of the page's width, and draw on it in the book's style."""
    with DRAWING, matplotlib.rc_context(STYLE):
        yield Figure(figsize=(WIDTH, height), layout="constrained")


def shows(choose: Choose = lambda page: [page]) -> Decorator:
    """Make a function show results of a page: its only one, one by name, or a choice."""
    # The function gets the results that exist and all other arguments; without any result, a note
    # says why. It returns a picture or table, whose sources are completed by those of the results.
    # If a quick build made the last one, the key ends in "-here".

    def decorate(show: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(show)
        def shown(page: Any, *more: Any, **named: Any) -> Any:
            results = choose(page) if callable(choose) else [page.get(choose, NOTHING)]
            there = [result for result in results if "missing" not in result]
            if not there:
                return Note([*results, NOTHING][0]["missing"])
            made, last = show(*there, *more, **named), there[-1]
            if isinstance(made, Note):
                return made
            key = made.key + "-here" * (last["profile"] == "quick")
            return dataclasses.replace(made, key=key, sources=source(there, made.sources))

        return shown

    return decorate


def picture(
    key: str, choose: Choose = lambda page: [page], *, caption: str, alt: str, across: int = 1,
    down: int = 1, height: float = 3.6, legend: Sequence[Any] = (), **subplots: Any,
) -> Decorator:  # fmt: skip
    """Make a picture with a function that draws a page's results; see `shows`."""
    # ``draw(panel or array of `down` × `across` panels, *results)`` returns the finding, and a text
    # for the sources. `height` is in inches.

    def decorate(draw: Callable[..., tuple[str, str]]) -> Callable[..., Any]:
        @shows(choose)
        @functools.wraps(draw)
        def drawn(*results: Result) -> Picture:
            with canvas(height) as figure:
                finding, told = draw(figure.subplots(down, across, **subplots), *results)
                legend_above(figure, legend)
            return Picture(key, figure, caption, alt, told, finding)

        return drawn

    return decorate


def legend_above(figure: Figure, handles: Sequence[Any]) -> None:
    """Put a legend above a figure, if it has entries, in as few lines as their letters need."""
    if handles:
        letters = sum(len(handle.get_label()) + _BESIDE for handle in handles)
        columns = math.ceil(len(handles) / math.ceil(letters / _LETTERS))
        figure.legend(handles=handles, loc="outside upper center", ncols=columns)


def source(results: Sequence[Result], told: str = "") -> str:
    """Return where results come from, in plain sentences, followed by `told`."""
    # All but machines and commits is the last result's. Its "others" are the CPUs that other
    # processes used: if many, a sentence warns of them.
    result = results[-1]
    origins = [one for some in results for one in some.get("origins") or [some["provenance"]]]
    seeds = [result["seed"]] if "seed" in result else result.get("seeds", [])
    many = f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}, " if seeds else ""
    title = "This build" if result["profile"] == "quick" else "Recorded"
    texts = [f"{title} (profile {result['profile']}): {many}{origin(origins)}."]
    others = float(np.median(result.get("others", 0.0)))
    if others > _QUIET:
        texts.append(f"Other processes used {others:.1f} CPUs: any measured times are too long.")
    return " ".join(filter(None, [*texts, result.get("size", ""), told]))


def line(colour: str, label: str, linestyle: Any = "-", **look: Any) -> Any:
    """Return a line for a legend."""
    return matplotlib.lines.Line2D([], [], color=colour, label=label, linestyle=linestyle, **look)


def dot(colour: str, label: str, marker: str = "o", fill: str | None = None) -> Any:
    """Return a mark for a legend."""
    return line(colour, label, "", marker=marker, markerfacecolor=fill or colour)


def patch(colour: str, label: str, alpha: float = 0.6) -> Any:
    """Return an area for a legend."""
    return matplotlib.patches.Patch(color=colour, alpha=alpha, label=label)


def deviation(values: Any) -> Any:
    """Return the sample's standard deviation along the first axis; 0 for one value."""
    values = np.asarray(values, float)
    return values.std(axis=0, ddof=min(1, len(values) - 1))


def plain_ticks(*axes: Axis, subs: Sequence[float] = ()) -> None:
    """Write plain numbers on logarithmic axes, at powers of ten or these multiples of them."""
    for axis in axes:
        if subs:
            axis.set_major_locator(LogLocator(subs=subs))
        axis.set_major_formatter("{x:,.10g}")
        axis.set_minor_formatter(NullFormatter())


def with_spread(
    ax: Axes, x: Any, spreads: Sequence[Mapping[str, float]], colour: str, **more: Any
) -> None:
    """Draw medians, with bars from the lowest to the highest; see `bench.spread`."""
    y, low, high = (np.array([one[name] for one in spreads]) for name in ("median", "low", "high"))
    ax.errorbar(x, y, yerr=[y - low, high - y], fmt="o-", color=colour, markersize=5, **more)


def tag(
    ax: Axes, text: str, at: tuple[float, float], shift: tuple[float, float], **more: Any
) -> None:
    """Write a small text near a point, shifted from it by points of type."""
    look: dict[str, Any] = {"fontsize": 7.5, "color": "#333333", **more}
    ax.annotate(text, at, xytext=shift, textcoords="offset points", **look)
