"""The tables: facts and results in, a table with its caption out, to be shown or downloaded.

A table's texts are what the book shows; its data, which the CSV file holds, are the plain values
behind them. Nothing is run here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from sparsecore import datasets
from sparsecore.datasets import DataNotAvailable
from sparsecore.paper.page import Table
from sparsecore.paper.training.conditions import METHODS, STUDIES
from sparsecore.paper.training.on_cluster import WORKERS
from sparsecore.paper.training.studies import (
    NOT_AVAILABLE,
    Results,
    core_seconds,
    have_learnt,
    of_one_machine,
    training_seconds,
)
from sparsecore.settings import CHOICE, READING, RELEASED, SETTINGS
from sparsecore.wasap.plan import Plan

_HASH_DIGITS = 8


def data_sets() -> Table:
    """Make T-datasets: all data sets, and what this machine has of them.

    Returns
    -------
    Table
        A data set that a study uses is brought here if it can be had; others are only looked for.
    """
    wanted = {name for study in STUDIES.values() for name in study.datasets}
    rows = [_data_set(name, fetch=name in wanted) for name in datasets.names()]
    plain = pd.DataFrame(rows)
    shown = pd.DataFrame(
        {
            "data set": plain["title"],
            "domain": plain["domain"],
            "features": [_shape(row) for row in rows],
            "classes": plain["classes"].astype(str),
            "training": [f"{n:,}" for n in plain["training_rows"]],
            "test": [f"{n:,}" for n in plain["test_rows"]],
            "source": plain["source"],
            "SHA-256": [f"`{h[:_HASH_DIGITS]}`" if h else "—" for h in plain["sha256"]],
        }
    )
    caption = (
        "**The data sets.** Rows for training and test, where this machine has them from, and the "
        f"first {_HASH_DIGITS} digits of the SHA-256 of their content (the CSV file has all). A "
        "surrogate has the shape of data that cannot be had here; it serves to measure time and "
        "memory only."
    )
    return Table("T-datasets", shown, caption, plain, ("features", "classes", "training", "test"))


def _data_set(name: str, fetch: bool) -> dict[str, Any]:
    facts: dict[str, Any] = datasets.describe(name)
    row = {
        "name": name,
        "title": facts["title"],
        "domain": facts["domain"],
        "features": facts["n_features"],
        "shape": "×".join(str(n) for n in facts["feature_shape"]),
        "classes": facts["n_classes"],
        "training_rows": facts["n_train"],
        "test_rows": facts["n_test"],
        "source": NOT_AVAILABLE,
        "sha256": "",
        "surrogate": False,
    }
    if not (fetch or datasets.available(name)):
        return row
    try:
        data = datasets.load(name)
    except DataNotAvailable:
        return row
    return {
        **row,
        "classes": data.n_classes,
        "training_rows": len(data.y_train),
        "test_rows": len(data.y_test),
        "source": data.source,
        "sha256": data.content_hash,
        "surrogate": data.surrogate,
    }


def _shape(row: dict[str, Any]) -> str:
    return f"{row['features']:,}" + (f" ({row['shape']})" if "×" in row["shape"] else "")


# Fields of TrainConfig as the table names them: those that differ between data sets, and those that
# do not.
_PER_DATASET = {
    "epsilon": "ε",
    "alpha": "α",
    "learning_rate": "η",
    "batch_size": "batch",
    "init": "init",
}
_COMMON = {
    "momentum": "momentum μ",
    "weight_decay": "weight decay λ, per step",
    "dropout": "dropout",
    "zeta": "connections replaced after each epoch ζ",
    "epochs": "epochs",
    "prune_from": "importance pruning from epoch",
    "prune_every": "then every … epochs",
    "prune_percentile": "pruned up to this percentile of importance",
}


def hyperparameters() -> Table:
    """Make T-hyper: architecture and training per data set; daggers mark what is our own."""
    shown, plain = [], []
    for name, setting in SETTINGS.items():
        facts = datasets.describe(name)
        sizes = (facts["n_features"], *setting.config.hidden, facts["n_classes"])
        row = {
            "data set": facts["title"],
            "architecture": _marked("-".join(map(str, sizes)), setting.origin("hidden")),
        }
        plain.append(
            _plain(name, "architecture", "-".join(map(str, sizes)), setting.origin("hidden"))
        )
        for field, label in _PER_DATASET.items():
            value = getattr(setting.config, field)
            row[label] = _marked(value, setting.origin(field))
            plain.append(_plain(name, field, value, setting.origin(field)))
        shown.append(row)
    caption = (
        f"**Hyperparameters per data set.** Unmarked values stand in the authors' {RELEASED}; a "
        f"dagger marks {READING} of the study, a double dagger {CHOICE} for data that are not in "
        "the study."
    )
    numbers = ("ε", "α", "η", "batch")
    return Table("T-hyper", pd.DataFrame(shown), caption, pd.DataFrame(plain), numbers)


def common_hyperparameters() -> Table:
    """Make the second part of T-hyper: what is the same for all data sets."""
    settings = [setting for name, setting in SETTINGS.items() if setting.released]
    pruning, parallel = (METHODS[m].changes for m in ("set-all-relu-pruned", "wasap-pruned"))
    shown, plain = [], []
    for field, label in _COMMON.items():
        values = {pruning.get(field, getattr(s.config, field)) for s in settings}
        origins = {s.origin(field) for s in settings}
        text = ", ".join(map(_text, sorted(values)))
        shown.append({"hyperparameter": label, "value": text, "origin": ", ".join(sorted(origins))})
        plain += [_plain("", field, v, o) for v in sorted(values) for o in sorted(origins)]
    plan = Plan()
    for label, value, origin in (
        ("parallel: then every … epochs", parallel["prune_every"], RELEASED),
        ("parallel: pruned up to this percentile", parallel["prune_percentile"], RELEASED),
        ("parallel: workers (here one a core, if there are fewer)", WORKERS, READING),
        ("parallel: share of the epochs in phase 1", plan.phase1, READING),
        ("WASSP: epochs of warm-up of the learning rate", plan.warmup, READING),
    ):
        shown.append({"hyperparameter": label, "value": _text(value), "origin": origin})
        plain.append(_plain("", label, value, origin))
    augmented = ", ".join(
        str(datasets.describe(n)["title"]) for n, s in SETTINGS.items() if s.config.augment
    )
    caption = (
        "**Hyperparameters of all data sets of the study.** Importance pruning is for the methods "
        "that have it in their name. Images that are shifted (by up to 10 %), rotated (by up to "
        f"10°) and flipped horizontally in training: {augmented}."
    )
    return Table("T-hyper-common", pd.DataFrame(shown), caption, pd.DataFrame(plain), ("value",))


def main(*found: Results) -> Table:
    """Make T-main: accuracy, connections and time of all methods on all data sets.

    Parameters
    ----------
    *found : Results
        Of T-main: a build's own, and the recorded ones to stand beside them.
    """
    found = tuple(results for results in found if results.runs or not results.recorded)
    rows = [
        _main_row(results, dataset, method)
        for dataset in found[0].study.datasets
        for method in found[0].study.methods
        for results in found
        if _has_row(results, dataset, method)
    ]
    plain = pd.DataFrame(rows)
    shown = pd.DataFrame(
        {
            "data set": _once(plain["title"]),
            "method": plain["label"],
            "profile": plain["profile"],
            "accuracy (%)": [_mean_sd(row, "test_accuracy", 100, "{:.1f}") for row in rows],
            "nnz, start": [_mean(row, "nnz_start", "{:,.0f}") for row in rows],
            "nnz, end": [_mean(row, "nnz_end", "{:,.0f}") for row in rows],
            "training (s)": [_mean_sd(row, "train_seconds", 1, _seconds_form(row)) for row in rows],
            "× dense": [_mean(row, "speed_against_dense", "{:.2f}") for row in rows],
        }
    )
    if len(found) == 1:
        shown = shown.drop(columns="profile")
    several = len(found) > 1
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
    lengths = "; ".join(
        f"profile {results.profile}: "
        + ", ".join(
            f"{results.title(n)} {results.size(n)}"
            for n in results.study.datasets
            if any(r["condition"]["dataset"] == n for r in results.runs)
        )
        for results in found
        if results.runs
    )
    guessing = "; ".join(
        f"{results.title(dataset)}, profile {results.profile}: {', '.join(labels)}"
        for results in found
        for dataset in results.study.datasets
        if (labels := _guessing(results, dataset))
    )
    surrogate = any(run["data"]["surrogate"] for results in found for run in results.runs)
    caption = (
        "**Dense, sparse and parallel methods.** Accuracy on the test set after the last epoch, "
        "connections at the start and at the end, seconds of training with evolution and without "
        "evaluation, and × dense: seconds × cores of dense training of as many epochs on the same "
        "rows, divided by those of the run. Means over seeds, ± one standard deviation. "
        f"{_cores(found)}"
        + ("A surrogate's accuracy says nothing; its times do. " if surrogate else "")
        + (f"No better than guessing yet, by their training loss: {guessing}. " if guessing else "")
        + f"Runs: {lengths}. "
        + " ".join(notes)
        + " "
        + " ".join(f"*Source: {results.provenance}.*" for results in found)
    )
    numbers = ("accuracy (%)", "nnz, start", "nnz, end", "training (s)", "× dense")
    return Table("T-main", shown, caption, plain, numbers)


def _cores(found: tuple[Results, ...]) -> str:
    """Say how many workers the parallel runs had, and on how many cores."""
    teams = {
        f"{about['ranks']} workers on {about['cores']} cores"
        for results in found
        for run in results.runs
        if METHODS[run["condition"]["method"]].parallel
        for about in [run["provenance"]]
    }
    return f"Parallel runs: {', '.join(sorted(teams))}. " if teams else ""


_COUNTED = ("test_accuracy", "nnz_start", "nnz_end")


def _guessing(results: Results, dataset: str) -> list[str]:
    """Return the methods whose networks have learnt nothing on a data set."""
    tried = [(m, results.of(dataset, m)) for m in results.study.methods]
    return [METHODS[m].label for m, runs in tried if runs and not have_learnt(runs)]


def _absent(results: Results, dataset: str) -> bool:
    """Tell whether a data set cannot be had, so that there is nothing to say of its methods."""
    methods = results.study.methods
    return dataset in results.unavailable and not any(results.of(dataset, m) for m in methods)


def _has_row(results: Results, dataset: str, method: str) -> bool:
    if results.recorded:
        return bool(results.of(dataset, method))
    return method == results.study.methods[0] or not _absent(results, dataset)


def _main_row(results: Results, dataset: str, method: str) -> dict[str, Any]:
    """Return a row's plain values: means and standard deviations; None where there is none."""
    runs, dense = results.of(dataset, method), results.of(dataset, "dense")
    absent = _absent(results, dataset)
    row: dict[str, Any] = {
        "title": results.title(dataset),
        "label": "all methods" if absent else METHODS[method].label,
        "profile": results.profile,
        "dataset": dataset,
        "method": method,
        "seeds": " ".join(str(run["seed"]) for run in runs),
        "note": "",
    }
    has_dense = bool(dense)
    timed, dense = of_one_machine(runs, dense)
    row["speed_against_dense"] = None
    if timed:
        seconds = [np.mean([core_seconds(run) for run in of]) for of in (dense, timed)]
        row["speed_against_dense"] = float(seconds[0] / seconds[1])
    else:
        [timed] = of_one_machine(runs)
    measured = {name: [run[name] for run in runs] for name in _COUNTED}
    measured["train_seconds"] = [training_seconds(run) for run in timed]
    for name, values in measured.items():
        row[name] = float(np.mean(values)) if values else None
        row[f"{name}_sd"] = float(np.std(values, ddof=1)) if len(values) > 1 else None
    if len(timed) < len(runs):
        seeds = ", ".join(str(run["seed"]) for run in timed)
        row["note"] = f"seconds of seeds {seeds} only, the others ran on another CPU"
    if runs and has_dense and row["speed_against_dense"] is None:
        row["note"] = "no dense run on its CPU"
    if not runs:
        row["note"] = NOT_AVAILABLE if absent else results.why_not(dataset, method)
    return row


def _once(values: Any) -> list[str]:
    """Return texts with repetitions left out, as in a table with groups of rows."""
    texts = list(values)
    return [t if i == 0 or texts[i - 1] != t else "" for i, t in enumerate(texts)]


def _mean(row: dict[str, Any], name: str, form: str) -> str:
    return "—" if row[name] is None else form.format(row[name])


def _seconds_form(row: dict[str, Any]) -> str:
    return "{:.2f}" if (row["train_seconds"] or 0) < 10 else "{:.0f}"


def _mean_sd(row: dict[str, Any], name: str, scale: float, form: str) -> str:
    if row[name] is None:
        return "—" if row["note"] != NOT_AVAILABLE else "not available"
    sd = row[f"{name}_sd"]
    return form.format(scale * row[name]) + (
        f"\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}{form.format(scale * sd)}" if sd is not None else ""
    )


def _marked(value: Any, origin: str) -> str:
    return _text(value) + {RELEASED: "", READING: "†", CHOICE: "‡"}[origin]


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _plain(dataset: str, parameter: str, value: Any, origin: str) -> dict[str, Any]:
    return {"data set": dataset, "parameter": parameter, "value": _text(value), "origin": origin}
