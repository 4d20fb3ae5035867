"""The forest plot of the claims: the checks' effects, intervals and outcomes."""

from itertools import groupby
from typing import Any

from matplotlib.axes import Axes

from sparsecore.paper.claims import FAILS, HOLDS, UNDECIDED, Ledger
from sparsecore.paper.page import Picture
from sparsecore.paper.style import GREY, canvas, dot, legend_above, plain_ticks
from sparsecore.paper.training.effects import CONFIDENCE
from sparsecore.paper.training.shown import source

_INCH = 0.185  # inches per line
_LOOK: dict[str, dict[str, Any]] = {
    HOLDS: {"color": "#0072B2", "marker": "o"},
    FAILS: {"color": "#D55E00", "marker": "X"},
    UNDECIDED: {"color": GREY, "marker": "o", "markerfacecolor": "white"},
}


def figure(ledger: Ledger) -> Picture:
    """Draw the checks that have an interval, by unit: points of accuracy, and ratios."""
    there = [(key, c) for key, some in ledger.checks.items() for c in some if c.low is not None]
    units = [[one for one in there if one[1].unit == unit] for unit in ("points", "×")]
    lines = max(len(some) + len({(key, c.row) for key, c in some}) for some in units)
    with canvas(_INCH * lines + 1.0) as drawing:
        points, times = drawing.subplots(1, 2)
        for ax, some in zip((points, times), units, strict=True):
            _panel(ax, some)
            ax.set_ylim(lines + 0.7, 0.4)
        points.set_xlabel("difference in test accuracy (points)")
        times.set(xlabel="ratio (times)", xscale="log")
        plain_ticks(times.xaxis, subs=(1, 3))
        handles = [dot(look["color"], name, look["marker"], look.get("markerfacecolor"))
                   for name, look in _LOOK.items()]  # fmt: skip
        legend_above(drawing, handles)
    caption = (
        f"**The checks with their {100 * CONFIDENCE:.0f} % intervals.** Dashed: the threshold; a "
        "check holds to its right and fails to its left. Hollow: undecided. Where the interval of "
        "a hollow mark misses the threshold, the correction of p for the claim's other tested "
        "checks makes it undecided."
    )
    alt = "Effect and interval of each check, by row of the grid; points of accuracy, and ratios."
    told = "C4's tests count steps and held-out samples, and give no intervals. "
    return Picture("F-claims", drawing, caption, alt, told + source(ledger.results))


def _panel(ax: Axes, some: list[tuple[str, Any]]) -> None:
    """Draw effects from top to bottom, under their row of the grid."""
    ticks, place = dict[int, str](), 0
    for (key, row), group in groupby(some, lambda one: (one[0], one[1].row)):
        checks = [check for _, check in group]
        place += 1
        where = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # it may reach over the axis
        look = {"va": "center", "size": 8.5, "weight": "bold", "bbox": box}
        ax.annotate(f"{key} {row}", (0, place), (-118, 0), **look, **where)  # as in the grid
        span = place + 0.5, place + len(checks) + 0.5
        ax.plot([checks[0].threshold] * 2, span, color="#333333", linestyle="--", linewidth=1)
        for c in checks:
            place += 1
            ticks[place] = f"{c.dataset}" + (f", λ = {c.decay:g}" if c.decay is not None else "")
            look = {"markersize": 5, "linewidth": 1.2, **_LOOK[c.outcome]}
            sides = [c.effect - c.low], [c.high - c.effect]
            ax.errorbar(c.effect, place, xerr=sides, **look)
    ax.set_yticks([*ticks], [*ticks.values()])
    ax.tick_params("y", labelsize=8, length=0)
    ax.grid(visible=False, axis="y")
