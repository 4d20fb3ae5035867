"""F-depth: the gradient flow at initialisation, by depth and negative slope.

Nothing is trained: this is where the argument for slopes of alternating signs lives. ReLU is α = 0.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from sparsecore import datasets
from sparsecore.paper.page import Note, Picture
from sparsecore.paper.store import Entry, Result, Versions, current_profile, origin, versions
from sparsecore.paper.style import COLOURS, STYLE, WIDTH, line
from sparsecore.paper.training.observers import ObserveGradientFlow
from sparsecore.paper.training.shown import band
from sparsecore.provenance import provenance
from sparsecore.settings import setting
from sparsecore.train import new_model

STUDY = "F-depth"
DATASET = "fashion-mnist"
DEPTHS = (3, 5, 10)
ALPHAS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
_WIDTH_OF = {"quick": (100, 1), "paper": (1000, 5)}  # neurons per hidden layer, seeds
_METHODS = {"all-relu": "set-all-relu", "leaky-relu": "set-leaky-relu"}
_SCHEMA: dict[str, Any] = {"flows": dict, "depths": list, "alphas": list}


def entry(profile: str) -> Entry:
    """Return where the measurement is kept."""
    expected = {"depths": list(DEPTHS), "alphas": list(ALPHAS)}
    return Entry(STUDY, "initialisation", profile, lambda result: _SCHEMA, lambda: expected)


def entries(profile: str) -> list[Entry]:
    """Return the results that a profile is made of."""
    return [entry(profile)]


def load(profile: str | None = None) -> Versions[Result]:
    """Return both versions; measure what this build lacks."""
    profile = current_profile(profile)
    return versions(entry, partial(measure, *_WIDTH_OF[profile]), profile)


def measure(width: int, n_seeds: int) -> Result:
    """Compute the flow of fresh networks: "flows" per activation, shape (depth, α, seed)."""
    data, base = datasets.load(DATASET), setting(DATASET).config
    see = ObserveGradientFlow(base, data)

    def flow(activation: str, depth: int, alpha: float, seed: int) -> float:
        config = base.with_values(activation=activation, alpha=alpha, hidden=depth * (width,))
        model = new_model(config, data.n_features, data.n_classes, seed)
        return float(see(model, 0)["gradient_flow"])

    flows = {
        activation: [
            [[flow(activation, depth, a, seed) for seed in range(n_seeds)] for a in ALPHAS]
            for depth in DEPTHS
        ]
        for activation in _METHODS
    }
    about = {"depths": list(DEPTHS), "alphas": list(ALPHAS), "width": width, "flows": flows}
    return {**about, "provenance": provenance(1, data.content_hash)}


def figure(shown: Versions[Result]) -> Picture | Note:
    """Draw the flow against α, a panel per depth: what is recorded, or else this build's."""
    if not shown:
        return Note(shown.missing)
    found = shown.first
    with matplotlib.rc_context(STYLE):
        drawing = Figure(figsize=(WIDTH, 3.0), layout="constrained")
        axes = drawing.subplots(1, len(DEPTHS), sharey=True)
        for number, (ax, depth) in enumerate(zip(axes, found["depths"], strict=True)):
            for activation, method in _METHODS.items():
                logs = np.log10(np.array(found["flows"][activation][number])).T
                band(ax, found["alphas"], logs, COLOURS[method], lambda v: 10**v, marker="o")
            ax.set(title=f"{depth} hidden layers", xlabel="α", yscale="log")
        axes[0].set_ylabel("gradient flow ‖∇L‖²")
        names = {"all-relu": "All-ReLU (signs alternate)", "leaky-relu": "LeakyReLU"}
        drawing.legend(
            handles=[line(COLOURS[_METHODS[a]], label) for a, label in names.items()],
            loc="outside upper center", ncols=2,
        )  # fmt: skip
    caption = (
        "**Gradient flow at initialisation.** Squared norm of the loss's gradient of fresh sparse "
        "networks, against the negative slope α; α = 0 is ReLU. Geometric means over seeds, bands "
        "± one standard deviation. What to see: whether alternating signs let more gradient "
        "through, and whether depth matters."
    )
    suffix = "-recorded" if found["profile"] == "paper" else ""
    return Picture(
        f"F-depth{suffix}", drawing, caption,
        "Gradient flow against alpha, a panel per depth, a line per activation.",
        f"{told(found)} {found['width']:,} neurons per hidden layer, Fashion-MNIST, 1000 rows. "
        f"Measured: {origin(found['provenance'])}.",
    )  # fmt: skip


def told(found: Result) -> str:
    """Say in a sentence what the data say: All-ReLU's flow over the others', at the setting's α."""
    alpha = setting(DATASET).config.alpha
    place, parts = found["alphas"].index(alpha), []
    for number, depth in enumerate(found["depths"]):
        logs = {name: np.log(np.array(found["flows"][name][number])) for name in _METHODS}
        ours = logs["all-relu"][place].mean()
        relu, leaky = logs["all-relu"][0].mean(), logs["leaky-relu"][place].mean()
        parts.append(
            f"{np.exp(ours - relu):.2g} times ReLU's and {np.exp(ours - leaky):.2g} times "
            f"LeakyReLU's with {depth} hidden layers"
        )
    return f"At α = {alpha:g} the flow of All-ReLU is {', '.join(parts)}."
