"""Forest plots: effects, intervals and outcomes of the claims' checks, and of others."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sparsecore.paper.claims import FAILS, HOLDS, UNDECIDED, Check, Ledger
from sparsecore.paper.page import Picture
from sparsecore.paper.style import GREY, canvas, dot, legend_above, plain_ticks, tag
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
    checks = [
        replace(check, row=f"{key} {check.row}")  # as in the grid
        for key, some in ledger.checks.items()
        for check in some
        if check.low is not None
    ]
    sides = [[check for check in checks if check.unit == unit] for unit in ("points", "×")]
    drawing = drawn(sides, {outcome: outcome for outcome in _LOOK})
    caption = (
        f"**The checks with their {100 * CONFIDENCE:.0f} % intervals.** Dashed: the threshold; a "
        "check holds to its right and fails to its left. Hollow: undecided. Where the interval of "
        "a hollow mark misses the threshold, the correction of p for the claim's other tested "
        "checks makes it undecided."
    )
    alt = "Effect and interval of each check, by row of the grid; points of accuracy, and ratios."
    told = "C4's tests count steps and held-out samples, and give no intervals. "
    return Picture("F-claims", drawing, caption, alt, told + source(ledger.results))


def drawn(sides: Sequence[Sequence[Check]], words: Mapping[str, str]) -> Figure:
    """Draw checks side by side, ratios on a logarithmic axis; `words` name the outcomes."""
    lines = max(len(some) + len({check.row for check in some}) for some in sides)
    with canvas(_INCH * lines + 1.0) as drawing:
        axes = drawing.subplots(1, len(sides), squeeze=False)[0]
        for ax, some in zip(axes, sides, strict=True):
            _panel(ax, some)
            ax.set(ylim=(lines + 0.7, 0.4), xlabel="difference in test accuracy (points)")
            if any(check.unit == "×" for check in some):
                ax.set(xlabel="ratio (times)", xscale="log")
                plain_ticks(ax.xaxis, subs=(1, 3))
        handles = [dot(look["color"], words[outcome], look["marker"], look.get("markerfacecolor"))
                   for outcome, look in _LOOK.items()]  # fmt: skip
        legend_above(drawing, handles)
    return drawing


def _panel(ax: Axes, some: Sequence[Any]) -> None:
    """Draw effects from top to bottom, under their row of the grid."""
    ticks, place = dict[int, str](), 0
    for row, group in groupby(some, lambda check: check.row):
        checks = list(group)
        place += 1
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # it may reach over the axis
        look = {"va": "center", "fontsize": 8.5, "weight": "bold", "color": "black", "bbox": box}
        tag(ax, row, (0, place), (-118, 0), xycoords=("axes fraction", "data"), **look)
        span = place + 0.5, place + len(checks) + 0.5
        ax.plot([checks[0].threshold] * 2, span, color="#333333", linestyle="--", linewidth=1)
        for c in checks:
            place += 1
            ticks[place] = c.where
            look = {"markersize": 5, "linewidth": 1.2, **_LOOK[c.outcome]}
            # A ratio of medians may lie outside its interval, which is of geometric means.
            sides = [max(0.0, c.effect - c.low)], [max(0.0, c.high - c.effect)]
            ax.errorbar(c.effect, place, xerr=sides, **look)
    ax.set_yticks([*ticks], [*ticks.values()])
    ax.tick_params("y", labelsize=8, length=0)
    ax.grid(visible=False, axis="y")
