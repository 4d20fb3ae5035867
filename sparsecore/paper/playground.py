"""The playground: runs that are stopped, changed and compared, and the panel that drives them.

A run shows the network of its last whole epoch, so stopping and resuming loses at most one epoch.
"""

import io
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from textwrap import shorten
from typing import Any

import ipywidgets as widgets
import numpy as np
from IPython.paths import get_ipython_dir
from matplotlib.axes import Axes

from sparsecore import checkpoint, cluster, datasets, experiment, train, wasap
from sparsecore.config import HYPERPARAMETERS, TrainConfig, integers, names
from sparsecore.functions import ACTIVATIONS
from sparsecore.limits import cpu_count
from sparsecore.mlp import SparseMLP
from sparsecore.paper.page import Column, Picture, Table
from sparsecore.paper.style import COLOURS, DRAWING, GREY, canvas, legend_above, line, patch
from sparsecore.paper.training.topology import draw_degrees
from sparsecore.settings import SETTINGS, setting
from sparsecore.wasap import record as records
from sparsecore.wasap.outcome import phase1_records

_FIXED = ("hidden", "epsilon", "density", "init")  # what a network was made with
_PAUSE = 0.4  # seconds between two pictures: drawing one takes about as long
_PALETTE = [*list(COLOURS.values())[1:], COLOURS["dense"]]
# Minimum, maximum and step of the sliders; 0 in "prune_from" means no pruning.
_SLIDERS = {
    "epsilon": (1, 60, 1), "zeta": (0, 0.9, 0.05), "alpha": (0, 1, 0.05),
    "learning_rate": (0.001, 0.1, 0.001), "dropout": (0, 0.8, 0.05), "epochs": (1, 1000, 1),
    "prune_from": (0, 300, 1), "prune_every": (1, 100, 1), "prune_percentile": (0, 90, 5),
}  # fmt: skip
_COLUMNS = (
    Column("run", "number"), Column("data set", "dataset", number=False),
    Column("differs from its setting in", "told", number=False),
    Column("state", "state", number=False), Column("epochs", "epochs"),
    Column("test accuracy (%)", "accuracy", "{:.2f}"), Column("best (%)", "best", "{:.2f}"),
    Column("connections", "nnz", "{:,}"),
)  # fmt: skip
# The curves of all runs: name in an epoch's record, factor, the panel's title.
_CURVES = (
    ("loss", 1, "training loss (nats)"),
    ("test_accuracy", 100, "test accuracy (%)"),
    ("nnz", 1e-3, "connections (thousands)"),
)


@dataclass(eq=False)
class Run:
    """A run: its settings, the records of its epochs, its network at the start and now."""

    number: int
    dataset: str
    config: TrainConfig
    seed: int
    workers: str = "1 worker"
    state: str = "waiting"
    epochs: list[dict[str, Any]] = field(default_factory=list)
    told: list[str] = field(default_factory=list)  #: differences from its setting
    before: SparseMLP | None = None
    model: SparseMLP | None = None

    @property
    def done(self) -> int:
        """Epochs that have ended."""
        return len(self.epochs)

    @property
    def colour(self) -> str:
        """Its colour in pictures."""
        return _PALETTE[(self.number - 1) % len(_PALETTE)]


class Session:
    """Runs of one notebook, of which one trains at a time; with several workers, on a cluster."""

    def __init__(self) -> None:
        self.runs: list[Run] = []
        self._idle, self._stopping = threading.Event(), threading.Event()
        self._idle.set()
        self._clusters = ExitStack()
        self._cluster: cluster.Cluster | None = None

    @property
    def running(self) -> bool:
        """Whether a run trains."""
        return not self._idle.is_set()

    def start(self, dataset: str = "digits", *, seed: int = 0, **values: Any) -> Run:
        """Start a new run; `values` replace the study's hyperparameters, or go to `go_on`."""
        run = Run(len(self.runs) + 1, dataset, setting(dataset).config, seed)
        return self.go_on(run, **values)

    def go_on(self, run: Run, *, workers: int = 1, algorithm: str = "wasap", **values: Any) -> Run:
        """Continue a run that was stopped or has finished, with some of its values changed."""
        if self.running:
            raise RuntimeError("a run is training: stop it, or wait until it has ended")
        was, config = run.config.to_dict(), run.config.with_values(**values)
        now = config.to_dict()
        if run in self.runs:
            for name in _FIXED:
                if now[name] != was[name]:
                    raise ValueError(
                        f"{name}: expected {was[name]!r}, with which run {run.number} started, "
                        f"got {now[name]!r}; start a new run to change it"
                    )
            more = f"more than the {run.done} that run {run.number} has done"
            integers(run.done + 1, expected=more).check("epochs", config.epochs)
        else:
            self.runs.append(run)
        found = [
            f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in now.items()
            if value != was.get(name, False) and name != "epochs"
        ]
        ranks = f"{workers} workers ({algorithm})" if workers > 1 else "1 worker"
        found += [ranks] * (ranks != run.workers)
        if found:
            since = f"from epoch {run.done + 1} " if run.done else ""
            run.told.append(since + ", ".join(found))
        what = run, workers, algorithm, run.state == "finished"
        run.config, run.workers, run.state = config, ranks, "loading data"
        self._stopping.clear()
        self._idle.clear()
        threading.Thread(target=self._train, args=what, daemon=True).start()
        return run

    def ask_to_stop(self) -> None:
        """Tell the training run to stop; if it is loading or connecting, it finishes that first."""
        self._stopping.set()

    def stop(self) -> None:
        """Stop the run that trains, and wait until it has."""
        self.ask_to_stop()
        self.wait()

    def wait(self, seconds: float | None = None) -> None:
        """Wait until no run trains, or that many seconds."""
        self._idle.wait(seconds)  # `Thread.join` takes a thread for ended once it is interrupted

    def close(self) -> None:
        """Stop, and release the cluster."""
        self.stop()
        self._leave_cluster()

    def _leave_cluster(self) -> None:
        self._cluster = None
        self._clusters.close()

    def _train(self, run: Run, workers: int, algorithm: str, finished: bool) -> None:
        config = run.config
        try:
            data = datasets.load(run.dataset)
            self._check()
            if run.model is None:
                fresh = train.new_model(config, data.n_features, data.n_classes, run.seed)
                run.model = run.before = fresh
            model = run.model.copy(activation=config.activation, alpha=config.alpha)
            if workers == 1:
                self._train_here(run, model, data, finished)
            else:
                self._train_on_engines(run, model, data, workers, wasap.Plan(algorithm))
            run.state = "finished"
        except KeyboardInterrupt:
            run.state = "stopped"
        except Exception as error:  # a thread's exception would be seen by nobody
            # The checkpoint that an error of the cluster names no longer exists.
            told = str(error).partition("; resume=True")[0] or type(error).__name__
            run.state = f"failed: {told}"
            diverged = getattr(error, "cause", "") == "FloatingPointError"  # the engines go on
            if isinstance(error, cluster.ClusterError) and not diverged:
                self._leave_cluster()
        finally:
            self._idle.set()

    def _check(self) -> None:
        if self._stopping.is_set():
            raise KeyboardInterrupt

    def _train_here(
        self, run: Run, model: SparseMLP, data: datasets.Dataset, finished: bool
    ) -> None:
        step = run.done * -(-len(data.y_train) // run.config.batch_size)
        seconds = dict.fromkeys(("train", "evaluate", "evolve"), 0.0)
        state = {
            **experiment.identity(data, run.config, run.seed), "nnz_start": model.nnz,
            "epochs": list(run.epochs), "topology due": finished,  # its last epoch kept it
            "progress": {"epoch": run.done, "step": step, "seconds": seconds},
        }  # fmt: skip

        def look(state: dict[str, Any]) -> None:
            run.model, run.epochs = model.copy(), list(state["epochs"])

        run.state = "training"
        experiment.fit(
            model, data, run.config, seed=run.seed, save=look, state=state, check=self._check
        )

    def _train_on_engines(
        self, run: Run, start: SparseMLP, data: datasets.Dataset, n: int, plan: wasap.Plan
    ) -> None:
        """Train the remaining epochs as a parallel run; in phase 2 one worker's are shown."""
        earlier, seed, config = list(run.epochs), run.seed + run.done, run.config
        since = config.prune_from and config.prune_from - run.done
        if since is not None and since < 1:
            since = 1 + (since - 1) % config.prune_every
        config = config.with_values(epochs=config.epochs - run.done, prune_from=since)
        run.state = f"connecting to {n} MPI engines"
        if self._cluster is None or self._cluster.n < n:
            self._leave_cluster()
            self._cluster = self._clusters.enter_context(cluster.connect(n))
            self._check()
        # In a folder that engines on other hosts share.
        with tempfile.TemporaryDirectory(prefix="sparsecore-", dir=get_ipython_dir()) as folder:
            path = Path(folder, "run.npz")
            own = path.with_name(f"{path.name}.worker0")
            records.save_start(start, path, records.identity(data, config, plan, seed, n))

            def look(_: Any) -> None:
                run.state = "training"
                run.model, found = checkpoint.load(path)
                rows = phase1_records(records.decode((found or {})["rows"]), n, 1)
                if own.exists():
                    run.model, found = checkpoint.load(own)
                    rows += (found or {})["epochs"]
                run.epochs = earlier + rows

            model, result = cluster.train(
                self._cluster.first(n), config, run.dataset, plan, seed=seed,
                checkpoint_path=path, resume=True, on_progress=look, check=self._check,
            )  # fmt: skip
        for worker in result["parallel"]["failed_workers"]:
            run.told.append(f"lost rank {worker['rank']}: {worker['cause']}")
        result["epochs"][-1]["test_accuracy"] = result["test_accuracy"]  # of the average
        run.model, run.epochs = model, earlier + result["epochs"]


# --- what is shown of runs ------------------------------------------------------------------------


def compared(runs: Sequence[Run]) -> Table:
    """Return a table of runs, one row each."""
    rows = []
    for run in runs:
        known = (record["test_accuracy"] for record in run.epochs)  # None: the tester was lost
        tests: list[Any] = [100 * share for share in known if share is not None] or [None]
        name = run.dataset + ", surrogate" * datasets.stands_in(run.dataset)
        row = {"number": run.number, "dataset": name, "told": "; ".join(run.told) or "–"}
        row |= {"state": run.state, "epochs": run.done, "accuracy": tests[-1], "best": max(tests)}
        rows.append({**row, "nnz": run.model and run.model.nnz})
    return Table.of("t-playground", rows, _COLUMNS, "**The runs of this session.**")


def pictured(runs: Sequence[Run], chosen: Run | None = None) -> Picture:
    """Return the curves of all runs, and the chosen run's network before and now."""
    chosen = chosen or runs[-1]
    with canvas(4.9) as figure:
        above, below = figure.subplots(2, 3)
        for ax, (name, factor, title) in zip(above, _CURVES, strict=True):
            for run in runs:
                values = (record[name] for record in run.epochs)
                y = [np.nan if value is None else factor * value for value in values]
                ax.plot(range(1, len(y) + 1), y, color=run.colour, marker="." * (len(y) == 1))
            ax.set(title=title, xlabel="epoch")
            ax.ticklabel_format(axis="y", useOffset=False)
        above[2].set_ylim(bottom=0)
        _draw_network(below, chosen)
        names = (f"run {run.number}: {'; '.join(run.told) or 'as in its setting'}" for run in runs)
        lines = [line(r.colour, shorten(n, 60)) for r, n in zip(runs, names, strict=True)]
        before = [patch(GREY, f"run {chosen.number}, before")] if chosen.before else []
        legend_above(figure, [*lines, *before])
    cause = "pruning and evolution change" if chosen.config.prune_from else "evolution changes"
    caption = (
        f"**A session.** Top: all runs. Bottom: run {chosen.number}, whose connections {cause}: "
        "the numbers that leave an input and that enter a neuron of the first hidden layer, before "
        "and now; the strength Σ |weight| of each input."
    )
    return Picture("f-playground", figure, caption, "Curves of the runs, and one run's network.")


def _draw_network(axes: Sequence[Axes], run: Run) -> None:
    leaving, entering, inputs = axes
    leaving.set(title="outgoing, inputs", xlabel="connections")
    entering.set(title="incoming, hidden layer 1", xlabel="connections")
    inputs.set(title="strength of the inputs")
    if run.model is None or run.before is None:
        return
    for model, colour in ((run.before, GREY), (run.model, run.colour)):
        draw_degrees(leaving, [np.bincount(model[0].fan_out()).tolist()], colour)
        draw_degrees(entering, [np.bincount(model[0].fan_in()).tolist()], colour)
    leaving.set_ylabel("share of neurons (%)")
    facts: dict[str, Any] = datasets.describe(run.dataset)
    strength = run.model[0].input_strength().reshape(facts["feature_shape"])
    if strength.ndim == 1:
        inputs.plot(np.sort(strength)[::-1], color=run.colour)
        inputs.set(xlabel="inputs, the strongest first")
        return
    image = strength.sum(axis=2) if strength.ndim == 3 else strength
    inputs.figure.colorbar(inputs.imshow(image, cmap="cividis"), ax=inputs)
    inputs.set(xticks=[], yticks=[])
    inputs.grid(False)


class Playground(widgets.VBox):
    """Controls and live pictures of a `session`, which the next panel that is made closes."""

    _open = Session()

    def __init__(self, dataset: str = "digits", **values: Any) -> None:
        Playground._open.close()  # or its engines would stay until the kernel ends
        Playground._open = self.session = Session()
        same = {"layout": {"width": "330px"}, "style": {"description_width": "135px"}}
        there = [name for name in SETTINGS if datasets.available(name)]
        if dataset not in there:
            raise ValueError(
                f"dataset: expected one of {', '.join(there)}, got {dataset!r}; python -m "
                "sparsecore data fetch downloads others"
            )
        choices = {"dataset": there, "activation": ACTIVATIONS, "algorithm": wasap.ALGORITHMS}
        self.controls: dict[str, Any] = {
            name: widgets.Dropdown(options=list(options), description=name, **same)
            for name, options in choices.items()
        }
        for name, (low, high, step) in {**_SLIDERS, "workers": (1, max(2, cpu_count()), 1)}.items():
            whole = name == "workers" or HYPERPARAMETERS[name].range.kind is int
            self.controls[name] = (widgets.IntSlider if whole else widgets.FloatSlider)(
                min=low, max=high, step=step, description=name.replace("_", " "),
                continuous_update=False, **same,
                readout_format="d" if whole else f".{max(0, len(str(step)) - 2)}f",
            )  # fmt: skip
        for name in values:
            names(self.controls).check("setting", name)
        self.chosen = widgets.Dropdown(description="look at", layout={"width": "200px"})
        stop = self.session.ask_to_stop
        acts = {"Start a new run": self.start, "Stop": stop, "Continue": self.go_on}
        self.buttons = {}
        for (text, act), look in zip(acts.items(), ("success", "danger", "info"), strict=True):
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
                box, value = self.controls[name], value or 0 if name == "prune_from" else value
                if isinstance(box, widgets.Dropdown):
                    names(box.options).check(name, value)
                box.value = value
                if box.value != value:  # sliders clip it silently
                    raise ValueError(f"{name}: expected {box.min} to {box.max}, got {value}")

    def _values(self) -> dict[str, Any]:
        values = {name: control.value for name, control in self.controls.items()}
        return {**values, "prune_from": values["prune_from"] or None}

    def start(self) -> None:
        """Start a new run with the controls' values, and watch it."""
        run = self.session.start(**self._values())
        self.chosen.options = [(f"run {r.number}", r) for r in self.session.runs]
        self.chosen.value = run  # which shows it
        threading.Thread(target=self._watch, daemon=True).start()

    def go_on(self) -> None:
        """Continue the chosen run with the controls' values."""
        run, values = self.chosen.value, self._values()
        if values.pop("dataset") != run.dataset:
            told = f"dataset: expected {run.dataset}, on which run {run.number} trains"
            raise ValueError(f"{told}; start a new run for another")
        self.session.go_on(run, **values)
        threading.Thread(target=self._watch, daemon=True).start()

    def _try(self, act: Callable[[], None]) -> None:
        """Perform a button's action."""
        try:
            act()
        except (ValueError, RuntimeError) as error:
            self.status.value = f"<b>{escape(str(error))}</b>"
            return
        self._enable()

    def _watch(self) -> None:
        """Show a run's progress until it ends."""
        while self.session.running:
            self.refresh()
            self.session.wait(_PAUSE)
        self.refresh()

    def _enable(self) -> None:
        running, runs = self.session.running, self.session.runs
        disabled = running, not running, running or not runs
        for button, off in zip(self.buttons.values(), disabled, strict=True):
            button.disabled = off

    def refresh(self) -> None:
        """Show the state of the runs."""
        runs, run = self.session.runs, self.chosen.value
        if run is None:
            return
        # Made before the picture, so that the status is never ahead of it.
        status = f"run {run.number}: {escape(run.state)}, epoch {run.done} of {run.config.epochs}"
        seen = io.BytesIO()
        with DRAWING:
            pictured(runs, run).figure.savefig(seen, dpi=110)
        self.image.value, self.image.layout.display = seen.getvalue(), None
        self.table.value = compared(runs)._repr_html_()
        self._enable()
        self.status.value = status
