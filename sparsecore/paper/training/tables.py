"""The tables of the data sets, of the hyperparameters, and of all methods' results.

Nothing is run here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

import numpy as np

from sparsecore import datasets
from sparsecore.config import HYPERPARAMETERS
from sparsecore.datasets import DataNotAvailable
from sparsecore.paper.page import Column, Table
from sparsecore.paper.store import NOT_AVAILABLE, Result
from sparsecore.paper.style import deviation
from sparsecore.paper.training import shown
from sparsecore.paper.training.conditions import METHODS, STUDIES
from sparsecore.paper.training.on_cluster import WORKERS
from sparsecore.paper.training.studies import (
    Results,
    core_seconds,
    have_learnt,
    of_one_machine,
    training_seconds,
)
from sparsecore.settings import CHOICE, READING, RELEASED, SETTINGS
from sparsecore.wasap.plan import Plan

_HASH_DIGITS = 8


# --- T-datasets ----------------------------------------------------------------------------------


def data_sets() -> Table:
    """Make T-datasets: all data sets, and what this machine has of them.

    A data set that a study uses is brought here if it can be had; others are only looked for.
    """
    wanted = {name for study in STUDIES.values() for name in study.datasets}
    columns = (
        Column("data set", "title", number=False),
        Column("domain", "domain", number=False),
        Column("features", "n_features", _features),
        Column("classes", "n_classes"),
        Column("training", "n_train", "{:,}"),
        Column("test", "n_test", "{:,}"),
        Column("source", "source", number=False),
        Column("SHA-256", "sha256", f"`{{:.{_HASH_DIGITS}}}`", number=False),
    )
    caption = (
        "**The data sets.** Rows for training and test, where this machine found them, and the "
        f"first {_HASH_DIGITS} digits of the SHA-256 of their content. A surrogate has the shape "
        "of data that cannot be had here; it serves to measure time and memory only."
    )
    rows = [_data_set(name, fetch=name in wanted) for name in datasets.names()]
    return Table.of("T-datasets", rows, columns, caption)


def _data_set(name: str, fetch: bool) -> dict[str, Any]:
    facts: dict[str, Any] = datasets.describe(name)
    plain = ("title", "domain", "n_features", "n_classes", "n_train", "n_test")
    row = {"name": name, **{key: facts[key] for key in plain}, "source": NOT_AVAILABLE}
    row["shape"] = "×".join(map(str, facts["feature_shape"]))
    if fetch or datasets.available(name):
        with suppress(DataNotAvailable):
            data = datasets.load(name)
            row |= {"n_classes": data.n_classes, "source": data.source}
            row |= {"n_train": len(data.y_train), "n_test": len(data.y_test)}
            row |= {"sha256": data.content_hash, "surrogate": data.surrogate}
    return row


def _features(row: Mapping[str, Any]) -> str:
    return f"{row['n_features']:,}" + (f" ({row['shape']})" if "×" in row["shape"] else "")


# --- T-hyper -------------------------------------------------------------------------------------

_MARKS = {RELEASED: "", READING: "†", CHOICE: "‡"}
_OF_A_DATASET = ("epsilon", "alpha", "learning_rate", "batch_size", "init")
_COMMON = (
    "momentum", "weight_decay", "dropout", "zeta", "epochs", "prune_from", "prune_every",
    "prune_percentile",
)  # fmt: skip


def hyperparameters() -> Table:
    """Make T-hyper: architecture and training per data set; daggers mark what is our own."""
    rows = []
    for name, setting in SETTINGS.items():
        facts: dict[str, Any] = datasets.describe(name)
        sizes = (facts["n_features"], *setting.config.hidden, facts["n_classes"])
        row = {"data set": facts["title"], "name": name, "hidden": "-".join(map(str, sizes))}
        row |= {field: getattr(setting.config, field) for field in _OF_A_DATASET}
        origins = {f"{f} from": setting.origin(f) for f in ("hidden", *_OF_A_DATASET)}
        rows.append(row | origins)
    columns = (
        Column("data set", "data set", number=False),
        Column("architecture", "hidden", _marked("hidden"), number=False),
        *(
            Column(HYPERPARAMETERS[field].label, field, _marked(field), field != "init")
            for field in _OF_A_DATASET
        ),
    )
    caption = (
        f"**Hyperparameters per data set.** Unmarked values stand in the authors' {RELEASED}; a "
        f"dagger marks {READING} of the study, a double dagger {CHOICE} for data that are not in "
        "the study."
    )
    return Table.of("T-hyper", rows, columns, caption)


def _marked(field: str) -> Callable[[Mapping[str, Any]], str]:
    """Return how a value is shown with the mark of its origin."""
    return lambda row: _text(row[field]) + _MARKS[row[f"{field} from"]]


def common_hyperparameters() -> Table:
    """Make the second part of T-hyper: what is the same for all data sets."""
    settings = [setting for setting in SETTINGS.values() if setting.released]
    pruning, parallel = (METHODS[m].changes for m in ("set-all-relu-pruned", "wasap-pruned"))
    plan, found = Plan(), []
    for field in _COMMON:
        values = {pruning.get(field, getattr(s.config, field)) for s in settings}
        origins = {s.origin(field) for s in settings}
        found.append((HYPERPARAMETERS[field].label, sorted(values), ", ".join(sorted(origins))))
    found += [
        ("parallel: then every … epochs", [parallel["prune_every"]], RELEASED),
        ("parallel: pruned up to this percentile", [parallel["prune_percentile"]], RELEASED),
        ("parallel: workers (here one per core, if there are fewer)", [WORKERS], RELEASED),
        ("parallel: share of the epochs in phase 1", [plan.phase1], RELEASED),
        ("WASSP: epochs of warm-up of the learning rate", [plan.warmup], RELEASED),
    ]
    rows = [
        {"hyperparameter": label, "value": ", ".join(map(_text, values)), "origin": origin}
        for label, values, origin in found
    ]
    columns = [Column(name, name, number=name == "value") for name in rows[0]]
    augmented = [shown.official_title(n) for n, s in SETTINGS.items() if s.config.augment]
    caption = (
        "**Hyperparameters of all data sets of the study.** Importance pruning is for the methods "
        "that have it in their name. Images that are shifted (by up to 10 %), rotated (by up to "
        f"10°) and flipped horizontally in training: {', '.join(augmented)}."
    )
    return Table.of("T-hyper-common", rows, columns, caption)


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


# --- T-main --------------------------------------------------------------------------------------


def main(*found: Results) -> Table:
    """Make T-main: accuracy, connections and time of all methods on all data sets.

    `found` are a build's own results, and the recorded ones to stand beside them.
    """
    found = tuple(results for results in found if results.runs or not results.recorded)
    several = len(found) > 1
    rows = [
        _main_row(results, dataset, method)
        for dataset in found[0].study.datasets
        for method in found[0].study.methods
        for results in found
        if _has_row(results, dataset, method)
    ]
    columns = (
        Column("data set", "title", number=False, once=True),
        Column("method", "label", number=False),
        *([Column("profile", "profile", number=False)] if several else []),
        Column("accuracy (%)", "test_accuracy", _mean_sd("test_accuracy", 100)),
        Column("nnz, start", "nnz_start", "{:,.0f}"),
        Column("nnz, end", "nnz_end", "{:,.0f}"),
        Column("training (s)", "train_seconds", _mean_sd("train_seconds")),
        Column("× dense", "speed_against_dense", "{:.2f}"),
    )
    caption = (
        "**Dense, sparse and parallel methods.** Accuracy on the test set after the last epoch; "
        "connections; seconds of training, evolution included; × dense: seconds × cores of dense "
        "training, divided by those of the run. Means over seeds, ± one standard deviation."
    )
    return Table.of("T-main", rows, columns, caption, _main_sources(found, rows, several))


def _main_sources(found: tuple[Results, ...], rows: list[dict[str, Any]], several: bool) -> str:
    notes = dict.fromkeys(
        f"{row['title']}, {row['label']}{several * (', profile ' + row['profile'])}: {row['note']}."
        for row in rows
        if row["note"]
    ) | dict.fromkeys(
        f"{results.title(run['condition']['dataset'])}, "
        f"{METHODS[run['condition']['method']].label}: seed {run['seed']} diverged."
        for results in found
        for run in results.diverged
    )
    lengths = [
        f"profile {results.profile}: {', '.join(shown.sized(results, n) for n in names)}"
        for results in found
        if (names := shown.datasets_of(results))
    ]
    guessing = [
        f"{results.title(name)}, profile {results.profile}: {', '.join(lost)}"
        for results in found
        for name in shown.datasets_of(results)
        if (lost := _guessing(shown.by_method(results, name)))
    ]
    surrogate = any(run["data"]["surrogate"] for results in found for run in results.runs)
    return (
        shown.sentence("Parallel runs", _teams(found))
        + "A surrogate's accuracy says nothing; its times do. " * surrogate
        + shown.sentence("No better than guessing yet, by their training loss", "; ".join(guessing))
        + shown.sentence("Lengths", "; ".join(lengths))
        + " ".join([*notes, shown.source(*found)])
    )


def _guessing(found: dict[str, list[Result]]) -> list[str]:
    """Return the methods whose networks have learnt nothing."""
    return [METHODS[method].label for method, runs in found.items() if not have_learnt(runs)]


def _teams(found: Iterable[Results]) -> str:
    """Say how many workers the parallel runs had, and on how many cores."""
    teams = {
        f"{about['ranks']} workers on {about['cores']} cores"
        for results in found
        for run in results.runs
        if METHODS[run["condition"]["method"]].parallel
        for about in [run["provenance"]]
    }
    return ", ".join(sorted(teams))


def _unavailable(results: Results, dataset: str) -> bool:
    """Tell whether a data set cannot be had, so that one row says so for all methods."""
    return dataset in results.unavailable and not shown.by_method(results, dataset)


def _has_row(results: Results, dataset: str, method: str) -> bool:
    if results.recorded:
        return bool(results.of(dataset, method))
    return method == results.study.methods[0] or not _unavailable(results, dataset)


def _main_row(results: Results, dataset: str, method: str) -> dict[str, Any]:
    """Return a row's plain values: means and standard deviations; None where there is none."""
    runs = results.of(dataset, method)
    timed, dense = of_one_machine(runs, results.of(dataset, "dense"))
    speed, note = None, ""
    if timed:
        speed = _mean(map(core_seconds, dense)) / _mean(map(core_seconds, timed))
    else:
        [timed] = of_one_machine(runs)
    if not runs:
        note = results.why_not(dataset, method)
    elif speed is None and results.of(dataset, "dense"):
        note = "no dense run on its CPU"
    elif len(timed) < len(runs):
        seeds = ", ".join(str(run["seed"]) for run in timed)
        note = f"seconds of seeds {seeds} only, the others ran on another CPU"
    row: dict[str, Any] = {
        "title": results.title(dataset),
        "label": METHODS[method].label,
        "profile": results.profile,
        "dataset": dataset,
        "method": method,
        "seeds": " ".join(str(run["seed"]) for run in runs),
        "note": note,
        "speed_against_dense": speed,
    }
    if _unavailable(results, dataset):
        row |= {"label": "all methods", "note": NOT_AVAILABLE}
    measured = {n: [run[n] for run in runs] for n in ("test_accuracy", "nnz_start", "nnz_end")}
    measured["train_seconds"] = list(map(training_seconds, timed))
    for name, values in measured.items():
        row[name] = _mean(values) if values else None
        row[f"{name}_sd"] = float(deviation(values)) if len(values) > 1 else None
    return row


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def _mean_sd(name: str, scale: float = 1) -> Callable[[Mapping[str, Any]], str]:
    """Return how a mean is shown with its standard deviation; short times have more digits."""

    def show(row: Mapping[str, Any]) -> str:
        if row[name] is None:
            return "not available" if row["note"] == NOT_AVAILABLE else "—"
        short = name == "train_seconds" and row[name] < 10
        form = "{:.1f}" if name == "test_accuracy" else "{:.2f}" if short else "{:.0f}"
        values = (row[name], row[f"{name}_sd"])
        return "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}".join(
            form.format(scale * value) for value in values if value is not None
        )

    return show
