"""F-depth: the gradient flow of fresh networks, by depth and negative slope; ReLU is α = 0."""

from functools import partial
from typing import Any

import numpy as np

from sparsecore import datasets
from sparsecore.paper.store import Entry, Parts, Result, measured, only
from sparsecore.paper.style import COLOURS, GREY, line, picture
from sparsecore.paper.training.observers import observe_gradient_flow
from sparsecore.paper.training.shown import DOTTED, band
from sparsecore.provenance import provenance
from sparsecore.settings import setting
from sparsecore.train import new_model

STUDY = "F-depth"
DATASET = "fashion-mnist"
DEPTHS = (3, 5, 10)
ALPHAS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
_WIDTH_OF = {"quick": (100, 1), "paper": (1000, 5)}  # neurons per hidden layer, seeds
_COLOURS = {"all-relu": COLOURS["set-all-relu"], "leaky-relu": COLOURS["set-leaky-relu"]}


def _parts(profile: str) -> Parts:
    width, n_seeds = _WIDTH_OF[profile]
    expected = {"depths": list(DEPTHS), "alphas": list(ALPHAS), "width": width}
    entry = Entry(STUDY, "initialisation", profile, lambda: expected)
    return {entry.name: (entry, partial(measure, width, n_seeds))}


entries, recorded, load = measured(_parts, only)


def measure(width: int, n_seeds: int) -> Result:
    """Compute the flow of fresh networks: "flows" per activation, shape (depth, α, seed)."""
    data, base = datasets.load(DATASET), setting(DATASET).config
    see, flows = observe_gradient_flow(base, data), {}
    for activation in _COLOURS:
        flow = np.empty((len(DEPTHS), len(ALPHAS), n_seeds))
        for (depth, alpha, seed), _ in np.ndenumerate(flow):
            changes = {"alpha": ALPHAS[alpha], "hidden": DEPTHS[depth] * (width,)}
            config = base.with_values(activation=activation, **changes)
            model = new_model(config, data.n_features, data.n_classes, seed)
            flow[depth, alpha, seed] = see(model, 0)["gradient_flow"]
        flows[activation] = flow.tolist()
    about = {"depths": list(DEPTHS), "alphas": list(ALPHAS), "width": width, "flows": flows}
    return {**about, "provenance": provenance(1, data.content_hash)}


@picture(
    STUDY, across=len(DEPTHS), height=3.0, sharey=True,
    legend=[line(_COLOURS["all-relu"], "All-ReLU (signs alternate)"),
            line(_COLOURS["leaky-relu"], "LeakyReLU")],
    caption="**Gradient flow at initialisation.** Squared norm of the loss's gradient of fresh "
    "sparse networks, divided by that with ReLU (α = 0, dotted), against the negative slope α. "
    "Geometric means over seeds, bands ± one standard deviation; cut at 0.05. What to see: above "
    "the dotted line a network has more flow in total than with ReLU.",
    alt="Gradient flow against alpha, a panel per depth, a line per activation.",
)  # fmt: skip
def figure(axes: Any, found: Result) -> tuple[str, str]:
    """Draw the flow against α, a panel per depth."""
    for number, (ax, depth) in enumerate(zip(axes, found["depths"], strict=True)):
        for activation, colour in _COLOURS.items():
            logs = np.log10(np.array(found["flows"][activation][number])).T
            band(ax, found["alphas"], logs - logs[:, :1], colour, lambda v: 10**v, marker="o")
        ax.axhline(1, color=GREY, linestyle=DOTTED)
        ax.set(title=f"{depth} hidden layers", xlabel="α", yscale="log")
    axes[0].set_ylabel("gradient flow / ReLU's")
    axes[0].set_ylim(bottom=max(0.05, axes[0].get_ylim()[0]))  # a linear one's at 10 layers
    own = found["alphas"].index(alpha := setting(DATASET).config.alpha)
    ours, leaky = (np.log(found["flows"][name]).mean(axis=2) for name in _COLOURS)
    over_relu, over_leaky = np.exp(ours[:, own] - ours[:, 0]), np.exp(ours - leaky)[:, own]
    parts = [
        f"with {depth} hidden layers {relu:.2g} times ReLU's and {leaky:.2g} times LeakyReLU's"
        for relu, leaky, depth in zip(over_relu, over_leaky, found["depths"], strict=True)
    ]
    than_relu, than_leaky = np.sum(over_relu > 1), np.sum(over_leaky > 1)
    return (
        f"All-ReLU's gradient flow at α = {alpha:g}: {'; '.join(parts)}. So before training "
        f"All-ReLU has more total flow than ReLU at {than_relu} of {len(parts)} depths, and than "
        f"LeakyReLU at {than_leaky} of {len(parts)}.",
        f"{found['width']:,} neurons per hidden layer, Fashion-MNIST, 1000 rows.",
    )
