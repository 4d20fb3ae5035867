"""The playground's panel: widgets that drive a `Session`, and pictures of its runs, live or not."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

import ipywidgets as widgets
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sparsecore import datasets
from sparsecore.compiled.team import cpu_count
from sparsecore.config import HYPERPARAMETERS
from sparsecore.functions import ACTIVATIONS
from sparsecore.paper.page import Column, Picture, Table
from sparsecore.paper.playground.session import Run, Session
from sparsecore.paper.style import COLOURS, GREY, STYLE, WIDTH, line, patch
from sparsecore.paper.training.topology import draw_degrees
from sparsecore.settings import SETTINGS, setting
from sparsecore.wasap import ALGORITHMS

_SECONDS = 0.4  # between two pictures: drawing one takes about as long
_PALETTE = [*list(COLOURS.values())[1:], COLOURS["dense"]]
# Least, largest and step of the sliders; an epoch of pruning of 0 stands for none.
_SLIDERS = {
    "epsilon": (1, 60, 1), "zeta": (0, 0.9, 0.05), "alpha": (0, 1, 0.05),
    "learning_rate": (0.001, 0.1, 0.001), "dropout": (0, 0.8, 0.05), "epochs": (1, 500, 1),
    "prune_from": (0, 300, 1), "prune_every": (1, 100, 1), "prune_percentile": (0, 90, 5),
}  # fmt: skip
_COLUMNS = (
    Column("run", "number"),
    Column("data set", "dataset", number=False),
    Column("what is other than in the study", "told", number=False),
    Column("state", "state", number=False),
    Column("epochs", "epochs"),
    Column("test accuracy (%)", "accuracy", "{:.2f}"),
    Column("best (%)", "best", "{:.2f}"),
    Column("connections", "nnz", "{:,}"),
)


def compared(runs: Sequence[Run]) -> Table:
    """Return a table of runs, one row each."""
    rows = []
    for run in runs:
        row = {"number": run.number, "dataset": run.dataset, "told": "; ".join(run.told) or "–"}
        row |= {"state": run.state, "epochs": run.done}
        if tests := [100 * record["test_accuracy"] for record in run.epochs]:
            row |= {"accuracy": tests[-1], "best": max(tests)}
        rows.append(row if run.model is None else {**row, "nnz": run.model.nnz})
    return Table.of("t-playground", rows, _COLUMNS, "**The runs of this session.**")


def pictured(runs: Sequence[Run], chosen: Run | None = None) -> Picture:
    """Return the curves of all runs, and what evolution has made of the chosen one's network."""
    chosen = chosen or runs[-1]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 4.9), layout="constrained")
        above, below = figure.subplots(2, 3)
        for ax, name, title in zip(
            above,
            ("loss", "test_accuracy", "nnz"),
            ("training loss (nats)", "test accuracy (%)", "connections (thousands)"),
            strict=True,
        ):
            for run in runs:
                factor = {"test_accuracy": 100, "nnz": 1e-3}.get(name, 1)
                y = [factor * record[name] for record in run.epochs]
                ax.plot(range(1, len(y) + 1), y, color=_colour(run), marker="." * (len(y) == 1))
            ax.set(title=title, xlabel="epoch")
            ax.ticklabel_format(axis="y", useOffset=False)
        above[2].set_ylim(bottom=0)
        _draw_network(below, chosen)
        lines = [line(_colour(run), f"run {run.number}") for run in runs]
        figure.legend(handles=lines, loc="outside upper center", ncols=8)
    caption = (
        f"**A session.** Above, every run: training loss, test accuracy, connections. Below, run "
        f"{chosen.number}: connections that leave an input and that enter a neuron of the first "
        "hidden layer, before and now, and the strength Σ |weight| of each input. What to see: "
        "evolution takes connections from inputs that say little."
    )
    return Picture("f-playground", figure, caption, "Curves of the runs, and one run's network.")


def _colour(run: Run) -> str:
    return _PALETTE[(run.number - 1) % len(_PALETTE)]


def _draw_network(axes: Sequence[Axes], run: Run) -> None:
    degrees, more, inputs = axes
    degrees.set(title="outgoing, inputs", xlabel="connections")
    more.set(title="incoming, hidden layer 1", xlabel="connections")
    inputs.set(title="strength of the inputs")
    if run.model is None or run.before is None:
        return
    for model, colour in ((run.before, GREY), (run.model, _colour(run))):
        draw_degrees(degrees, [np.bincount(model[0].fan_out()).tolist()], colour)
        draw_degrees(more, [np.bincount(model[0].fan_in()).tolist()], colour)
    degrees.set_ylabel("share of neurons (%)")
    more.legend(handles=[patch(GREY, "before"), patch(_colour(run), f"run {run.number}")])
    facts: dict[str, Any] = datasets.describe(run.dataset)
    strength = run.model[0].input_strength().reshape(facts["feature_shape"])
    if strength.ndim == 1:
        inputs.plot(np.sort(strength)[::-1], color=_colour(run))
        inputs.set(xlabel="inputs, the strongest first")
        return
    inputs.imshow(strength.sum(axis=2) if strength.ndim == 3 else strength, cmap="cividis")
    inputs.set(xticks=[], yticks=[])
    inputs.grid(False)


class Playground(widgets.VBox):
    """A panel of controls and live pictures, and its `session`."""

    def __init__(self, dataset: str = "digits", **values: Any) -> None:
        self.session, self._drawing = Session(), threading.Lock()
        same: dict[str, Any] = {
            "layout": {"width": "330px"},
            "style": {"description_width": "135px"},
        }
        there = [name for name in SETTINGS if datasets.available(name)]
        choices = {"dataset": there, "activation": ACTIVATIONS, "algorithm": ALGORITHMS}
        self.controls: dict[str, Any] = {
            name: widgets.Dropdown(options=list(options), description=name, **same)
            for name, options in choices.items()
        }
        for name, (low, high, step) in {**_SLIDERS, "workers": (1, max(2, cpu_count()), 1)}.items():
            kind = widgets.FloatSlider
            digits = f".{max(0, len(str(step)) - 2)}f"
            if name == "workers" or HYPERPARAMETERS[name].range.kind is int:
                kind, digits = widgets.IntSlider, "d"
            self.controls[name] = kind(
                min=low, max=high, step=step, description=name.replace("_", " "),
                continuous_update=False, readout_format=digits, **same,
            )  # fmt: skip
        self.chosen = widgets.Dropdown(description="look at", layout={"width": "200px"})
        self.buttons = {}
        for text, look, act in (
            ("Start a new run", "success", self.start),
            ("Stop", "danger", self.session.stop),
            ("Go on", "info", self.go_on),
        ):
            self.buttons[text] = widgets.Button(description=text, button_style=look)
            self.buttons[text].on_click(lambda _, act=act: self._try(act))
        self.status, self.table = widgets.HTML("Nothing has been trained yet."), widgets.HTML()
        self.image = widgets.Image(format="png", layout={"display": "none"})
        above = widgets.HBox([*self.buttons.values(), self.chosen])
        left = widgets.VBox(list(self.controls.values()), layout={"flex": "0 0 350px"})
        right = widgets.VBox([above, self.status, self.image], layout={"flex": "1 1 auto"})
        super().__init__([widgets.HBox([left, right]), self.table])
        self.controls["dataset"].value = dataset
        self.controls["dataset"].observe(lambda _: self._set(), "value")
        self.chosen.observe(lambda _: self.refresh(), "value")
        self._set(**values)
        self._enable()

    def _set(self, **values: Any) -> None:
        """Set the controls to the study's values for the data set, and those that are given."""
        config = setting(self.controls["dataset"].value).config
        for name, value in {**config.to_dict(), **values}.items():
            if name in self.controls:
                self.controls[name].value = value or 0 if name == "prune_from" else value

    def _values(self) -> dict[str, Any]:
        values = {name: control.value for name, control in self.controls.items()}
        return {**values, "prune_from": values["prune_from"] or None}

    def start(self) -> None:
        """Start a new run with what the controls say, and watch it."""
        run = self.session.start(**self._values())
        self.chosen.options = [(f"run {r.number}", r) for r in self.session.runs]
        self.chosen.value = run  # which shows it

    def go_on(self) -> None:
        """Go on with the run that is looked at, with what the controls say now."""
        run, values = self.chosen.value, self._values()
        if values.pop("dataset") != run.dataset:
            raise ValueError(f"data set: run {run.number} is of {run.dataset}; start a new one")
        self.session.go_on(run, **values)

    def _watch(self) -> None:
        """Show how a run goes until it ends."""
        while self.session.running:
            self.refresh()
            time.sleep(_SECONDS)
        self.refresh()

    def _try(self, act: Callable[[], None]) -> None:
        """Do what a button says, and watch what comes of it from another thread."""
        try:
            act()
        except (ValueError, RuntimeError) as error:
            self.status.value = f"<b>{escape(str(error))}</b>"
            return
        self._enable()
        threading.Thread(target=self._watch, daemon=True).start()

    def _enable(self) -> None:
        running, runs = self.session.running, self.session.runs
        for button, off in zip(
            self.buttons.values(), (running, not running, running or not runs), strict=True
        ):
            button.disabled = off

    def refresh(self) -> None:
        """Show where the runs stand."""
        runs, run = self.session.runs, self.chosen.value
        if run is None:
            return
        # What is told is no further than what is drawn.
        status = f"run {run.number}: {escape(run.state)}, epoch {run.done} of {run.config.epochs}"
        seen = io.BytesIO()
        with self._drawing:  # the style is the whole process's
            pictured(runs, run).figure.savefig(seen, dpi=110)
        self.image.value, self.image.layout.display = seen.getvalue(), None
        self.table.value = compared(runs)._repr_html_()
        self.status.value = status
        self._enable()
