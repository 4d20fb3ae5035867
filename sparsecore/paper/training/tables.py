"""The tables of the data sets, of the hyperparameters, and of all methods' results."""

import itertools
import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np

from sparsecore import datasets
from sparsecore.config import HYPERPARAMETERS
from sparsecore.paper.page import Column, Note, Table
from sparsecore.paper.store import NOT_AVAILABLE, Result
from sparsecore.paper.style import deviation
from sparsecore.paper.training import shown
from sparsecore.paper.training.conditions import METHODS, excluded, sizes
from sparsecore.paper.training.effects import core_seconds, two_digits
from sparsecore.paper.training.on_cluster import WORKERS
from sparsecore.paper.training.studies import Results, cores, training_seconds
from sparsecore.settings import CHOICE, DECAYS, READING, RELEASED, SETTINGS
from sparsecore.wasap.plan import Plan


def data_sets(recorded: Results) -> Table:
    """Make T-datasets; download data that are not here, if possible."""
    columns = (
        Column("data set", "title", number=False),
        Column("domain", "domain", number=False),
        Column("features", "", lambda r: f"{r['n_features']:,}{r['shape']}"),
        Column("classes", "n_classes"),
        Column("training", "n_train", "{:,}"),
        Column("test", "n_test", "{:,}"),
        Column("main table's runs: training, test", "rows_of_runs"),
        Column("source, hash", "", _source, number=False),
    )
    caption = (
        "**The data sets.** The study's rows for training and test; the rows that the main "
        "table's runs used; the source of the data; the first digits of their content's hash, on "
        "this machine. A surrogate has the shape of data that were not available; it only "
        "serves to measure time and memory."
    )
    rows = [_data_set(name, recorded) for name in datasets.names()]
    here = "; ".join(f"{row['title']}: {row['here']}" for row in rows)
    sources = f"On this machine (training, test): {here}."
    partly = []
    for row in (row for row in rows if row["name"] in recorded.study.datasets):
        whole = f"{row['n_train']:,}, {row['n_test']:,}"
        if (used := row["rows_of_runs"]) != whole:
            told = f"training, test: {used} of {whole}" if used else "no run yet"
            partly.append(f"{row['title']} ({told})")
    start = "The main table's runs use all training and test rows, except for"
    finding = shown.sentence(start, "; ".join(partly)).strip()
    return Table.of("T-datasets", rows, columns, caption, sources, finding)


def _data_set(name: str, recorded: Results) -> dict[str, Any]:
    facts: dict[str, Any] = datasets.describe(name)
    plain = ("title", "domain", "n_features", "n_classes", "n_train", "n_test", "home")
    row = {"name": name, **{key: facts[key] for key in plain}, "here": NOT_AVAILABLE}
    shape = "×".join(map(str, facts["feature_shape"]))
    row["shape"] = f" ({shape})" * ("×" in shape)
    used = {(run["data"]["n_train"], run["data"]["n_test"]) for run in recorded.on(name)}
    row["rows_of_runs"] = "; ".join(f"{train:,}, {test:,}" for train, test in sorted(used)) or None
    with suppress(datasets.DataNotAvailable):
        data = datasets.load(name)
        here = f"{data.source} ({len(data.y_train):,}, {len(data.y_test):,})"
        row |= {"here": here, "sha256": data.content_hash, "surrogate": data.surrogate}
    return row


def _source(row: Mapping[str, Any]) -> str:
    here = "not here" if row["here"] == NOT_AVAILABLE else "here a surrogate" * row["surrogate"]
    told = row["home"].split("//")[-1].split("/")[0] + f" ({here})" * bool(here)
    return f"{told}, `{row['sha256']:.8}`" if "sha256" in row else told


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
        row = {"data set": datasets.describe(name)["title"], "name": name}
        row["hidden"] = "-".join(map(str, sizes(name)))
        row |= {field: getattr(setting.config, field) for field in _OF_A_DATASET}
        rows.append(row | {f"{f} from": setting.origin(f) for f in ("hidden", *_OF_A_DATASET)})
    labels = {"hidden": "architecture"} | {f: HYPERPARAMETERS[f].label for f in _OF_A_DATASET}
    columns = [Column("data set", "data set", number=False)]
    columns += [
        Column(label, "", partial(_marked, field), field not in ("hidden", "init"))
        for field, label in labels.items()
    ]
    caption = (
        f"**Hyperparameters per data set.** Unmarked values are from the authors' {RELEASED} (of "
        f"architectures, the hidden layers). A dagger marks {READING} of the study, a double "
        f"dagger {CHOICE} for other data."
    )
    origins = [row[f"{field} from"] for row in rows for field in labels]
    many = [origins.count(origin) for origin in _MARKS]
    finding = "Of {} values, {} are from the {}, {} are {} and {} {}."
    told = finding.format(len(origins), many[0], RELEASED, many[1], READING, many[2], CHOICE)
    return Table.of("T-hyper", rows, columns, caption, finding=told)


def _marked(field: str, row: Mapping[str, Any]) -> str:
    """Show a value with the mark of its origin."""
    return _text(row[field]) + _MARKS[row[f"{field} from"]]


def common_hyperparameters() -> Table:
    """Make the second part of T-hyper: values that are the same for all data sets."""
    settings = [setting for setting in SETTINGS.values() if setting.released]
    pruning, parallel = (METHODS[m].changes for m in ("set-all-relu-pruned", "wasap-pruned"))
    plan, found = Plan(), []
    for field in _COMMON:
        values = {pruning.get(field, getattr(s.config, field)) for s in settings}
        values |= set(DECAYS) if field == "weight_decay" else set()
        origins = {s.origin(field) for s in settings}
        found.append((HYPERPARAMETERS[field].label, sorted(values), ", ".join(sorted(origins))))
    found += [
        ("LeakyReLU's slope (α is also run)", [0.25], RELEASED),
        ("parallel: epochs between prunings", [parallel["prune_every"]], RELEASED),
        ("parallel: pruned up to this percentile", [parallel["prune_percentile"]], RELEASED),
        ("parallel: workers (maximum; here one per core, at least two)", [WORKERS], RELEASED),
        ("parallel: share of the epochs in phase 1", [plan.phase1], RELEASED),
        ("WASSP: epochs of warm-up of the learning rate", [plan.warmup], RELEASED),
    ]
    rows = [
        {"hyperparameter": label, "value": ", ".join(map(_text, values)), "origin": origin}
        for label, values, origin in found
    ]
    columns = [Column(name, name, number=name == "value") for name in rows[0]]
    augmented = [datasets.describe(n)["title"] for n, s in SETTINGS.items() if s.config.augment]
    caption = (
        "**Hyperparameters of all data sets of the study.** Importance pruning applies to methods "
        "with *pruned* in their name. Images are shifted (by up to 10 %), rotated (by up to 10°) "
        f"and flipped horizontally in training on {', '.join(map(str, augmented))}."
    )
    return Table.of("T-hyper-common", rows, columns, caption)


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


_ACCURACIES = {"last": "test_accuracy", "best": "best_test_accuracy", "chosen": "chosen_accuracy"}


def main(results: Results, times: Mapping[str, Result] | None = None) -> Table:
    """Make T-main: accuracy, connections and time of all methods on all data sets."""
    # Recorded runs shared their machines with other work: T-times has the times.
    rows: list[dict[str, Any]] = []
    for dataset, decay in itertools.product(results.study.datasets, results.study.decays):
        at = results.at(decay)
        seconds = shown.epoch_seconds(at, dataset, times or {})
        # There may be times before there are runs: where runs are planned, they have one row.
        there = [row.get("method") for row in rows if row["dataset"] == dataset]
        timed = {m for m in seconds if METHODS[m].dense or at.wanted(dataset, m)} - {*there}
        methods = [m for m in results.study.methods if m in timed or at.of(dataset, m)]
        rows += [_main_row(at, dataset, method, seconds) for method in methods]
        if dataset in results.unavailable and not methods and decay == results.decay:
            about = {"title": results.title(dataset), "decay": decay, "label": NOT_AVAILABLE}
            rows.append({**about, "dataset": dataset})
    columns = (
        Column("data set", "title", number=False, once=True),
        Column("λ", "decay", "{:g}"),
        Column("method", "label", number=False),
        Column("seeds", "seeds", lambda seeds: str(len(seeds.split()) or "0 (timed)")),
        *(Column(f"{n} (%)", "", partial(_mean_sd, name)) for n, name in _ACCURACIES.items()),
        Column("nnz, start", "nnz_start", "{:,.0f}"),
        Column("nnz, end", "nnz_end", "{:,.0f}"),
        Column("s per epoch", "", partial(_mean_sd, "epoch_seconds")),
        Column("× dense", "speed_against_dense", two_digits),
    )
    caption = (
        "**Dense, sparse and parallel methods.** Means ± standard deviations; seconds, without "
        "tests: medians. Accuracy: last, best, and chosen: each test half at the other's best "
        "epoch; no row is held out from training. In brackets: runs that counted halves; parallel "
        "runs do not. Best and chosen may precede prunings. × dense: dense core-seconds divided by "
        "the row's. Blank: as above."
    )
    own = [r for r in rows if r.get("method") == "set-all-relu" and r["speed_against_dense"]]
    told = dict.fromkeys(f"{r['title']} × {two_digits(r['speed_against_dense'])}" for r in own)
    start = "Core-seconds per epoch, dense training divided by SET-All-ReLU"
    finding = shown.sentence(start, ", ".join(told)).strip()
    sources = _main_sources(results, times or {})
    table = Table.of(f"T-main{results.suffix}", rows, columns, caption, sources, finding)
    again = table.data.reindex(columns=["dataset", "method"]).duplicated()
    table.frame.loc[again, ["s per epoch", "× dense"]] = ""  # they were measured once
    return table


def _main_sources(results: Results, times: Mapping[str, Result]) -> str:
    parallel = [r for r in results.runs if METHODS[r["condition"]["method"]].parallel]
    teams = {(r["provenance"]["ranks"], r["provenance"]["cores"]) for r in parallel}
    told = [f"{workers} workers on {many} cores" for workers, many in sorted(teams)]
    never = [
        f"{results.title(dataset)}, {METHODS[method].label}: {why}"
        for dataset, method in itertools.product(results.study.datasets, results.study.methods)
        if (why := excluded(dataset, method))
    ]
    without = "Not all parallel runs" if told else "No parallel runs"
    return (
        shown.sentence("Parallel runs", ", ".join(told))
        + "In phase 2 a parallel run's accuracy is the mean over its workers. " * bool(told)
        + shown.sentence("", "; ".join(never))
        + shown.sentence(without, results.no_cluster)
        + shown.absent(results)
        + shown.clocked(times)
        + shown.source(results)
    )


def _main_row(
    results: Results, dataset: str, method: str, seconds: shown.Seconds
) -> dict[str, Any]:
    """Return a row's plain values: means and deviations of the runs and times that exist."""
    runs = results.of(dataset, method)
    row: dict[str, Any] = {
        "title": results.title(dataset), "decay": results.decay, "label": METHODS[method].label,
        "profile": results.profile, "dataset": dataset, "method": method,
        "seeds": " ".join(str(run["seed"]) for run in runs), "speed_against_dense": None,
    }  # fmt: skip
    names = ("test_accuracy", "best_test_accuracy", "nnz_start", "nnz_end")
    measured = {name: [run[name] for run in runs] for name in names}
    chosen = {r["seed"]: chosen_accuracy(r["epochs"], r["data"]["n_test"]) for r in runs}
    measured["chosen_accuracy"] = [value for value in chosen.values() if value is not None]
    row["chosen_seeds"] = " ".join(str(n) for n, value in chosen.items() if value is not None)
    if results.surrogate(dataset):  # its accuracy means nothing
        measured |= {name: [] for name in _ACCURACIES.values()}
    turns = measured["epoch_seconds"] = seconds[method][0] if method in seconds else []
    for name, values in measured.items():
        row[name] = float(np.mean(values)) if values else None
        row[f"{name}_sd"] = float(deviation(values)) if len(values) > 1 else None
    if turns:  # the median: a turn may be disturbed
        row["epoch_seconds"] = core_seconds(turns)
    if turns and "dense" in seconds:
        dense, own = (core_seconds(*seconds[m]) for m in ("dense", method))
        row["speed_against_dense"] = dense / own
    return row


def chosen_accuracy(epochs: list[dict[str, Any]], n_test: int) -> float | None:
    """Return the accuracy of each half of the test set at the epoch that the other half chooses."""
    # Both halves' right answers are counted together. None for parallel runs: they count no halves.
    tested = [e for e in epochs if "test_accuracy" in e]
    if not tested or any("test_half_correct" not in e for e in tested):
        return None
    first = np.array([e["test_half_correct"] for e in tested])
    second = np.rint([n_test * e["test_accuracy"] for e in tested]) - first
    return float((second[first.argmax()] + first[second.argmax()]) / n_test)


def _mean_sd(name: str, row: Mapping[str, Any]) -> str:
    """Show a value with its standard deviation: a time's three digits, accuracies in percent."""
    if row.get(name) is None:
        return "—"
    scale, decimals = 100, 1
    if name == "epoch_seconds":
        scale, decimals = 1, max(0, 2 - math.floor(math.log10(row[name])))
    values = (scale * row[part] for part in (name, f"{name}_sd") if row[part] is not None)
    text = "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}".join(f"{value:.{decimals}f}" for value in values)
    few = name == "chosen_accuracy" and row["chosen_seeds"] != row["seeds"]
    return text + f"\N{NO-BREAK SPACE}({len(row['chosen_seeds'].split())})" * few


def held_out(results: Results) -> Note:
    """State the effect of λ = 0 on held-out training rows, and where `train` uses it."""
    told = [
        f"{results.title(name)} {shown.gap(runs[0], runs[1])}"
        for name in results.datasets
        if all(runs := [results.at(decay).of(name, "set-all-relu") for decay in (0.0, DECAYS[0])])
    ]
    if not told:
        return Note(shown.absent(results))
    free = {name: results.title(name) for name, found in SETTINGS.items() if found.decay == 0}
    chosen = ", ".join(title for name, title in free.items() if name in results.datasets)
    others = ", ".join(title for name, title in free.items() if name not in results.study.datasets)
    start = f"SET-All-ReLU's accuracy on held-out rows, λ = 0 minus {DECAYS[0]:g} (95 % intervals)"
    rule = f"`train` uses λ = 0 where the interval lies above 0, else {DECAYS[0]:g}; so λ = 0 on"
    more = "Without held-out rows it uses λ = 0 where all released code for the data set does"
    sentences = (start, "; ".join(told)), (rule, chosen or "none"), (more, others)
    return Note("".join(shown.sentence(*one) for one in sentences))


def coverage(recorded: Results, *others: Results) -> Table:
    """Make the table of T-main's recorded runs, methods without a run, and `others`' own runs."""
    rows: list[dict[str, Any]] = []
    study = recorded.study
    for name, decay in itertools.product(study.datasets, study.decays):
        at = recorded.at(decay)
        row = {"title": recorded.title(name), "decay": decay}
        row["recorded"] = len(at.on(name)) + len(at.on(name, diverged=True))
        row["planned"] = len(study.part(datasets=[name], decays=[decay]).conditions("paper"))
        rows.append({**row, "hours": _hours(at.on(name)), "missing": shown.lacking(at, name)})
    done, planned, hours = (sum(row[n] for row in rows) for n in ("recorded", "planned", "hours"))
    seen = {*map(_identity, recorded.runs + recorded.diverged)}
    for other in others:
        own = [run for run in other.runs + other.diverged if _identity(run) not in seen]
        spent = _hours(run for run in own if "seconds" in run)
        rows.append({"title": other.study.key, "recorded": len(own), "hours": spent})
    columns = [
        Column("data set", "title", number=False, once=True),
        Column("λ", "decay", "{:g}"),
        Column("recorded runs", "recorded"),
        Column("planned", "planned"),
        Column("core-hours", "hours", "{:.1f}"),
        Column("methods without a run", "missing", number=False),
    ]
    caption = (
        "**Recorded runs of the main table**, at full length; the time of training and tests; "
        "methods without a run. Below: other studies' runs that are in no row above."
    )
    finding = (
        f"Of the main table's {planned} planned runs, {done} are recorded. They took {hours:.0f} "
        f"core-hours; all runs of this table took {sum(row['hours'] for row in rows):.0f}."
    )
    return Table.of("T-recorded", rows, columns, caption, finding=finding)


def compute(studies: Iterable[Results], *others: Iterable[Result]) -> Table:
    """Make the table of the time that recorded runs took, by CPU; `others` are of other kinds."""
    runs = list({_identity(run): run for found in studies for run in found.runs}.values())
    by_cpu: dict[str, list[Result]] = {}
    for run in (run for some in (runs, *others) for run in some if "seconds" in run):
        by_cpu.setdefault(run["provenance"]["cpu"], []).append(run)
    hours = {cpu: _hours(some) for cpu, some in sorted(by_cpu.items())}
    rows = [{"cpu": cpu, "runs": len(by_cpu[cpu]), "hours": spent} for cpu, spent in hours.items()]
    columns = [Column("CPU", "cpu", number=False), Column("runs", "runs")]
    columns += [Column("core-hours", "hours", "{:.1f}")]
    caption = (
        "**Compute** of the runs above, F-parallel and T-extreme: training and tests. A CPU with "
        "no model is of an older record. Not in it: diverged, replayed, split and killed runs; "
        "measurements of speed, times, scaling, depth, reliability and the estimator."
    )
    total = sum(hours.values())
    finding = f"With F-parallel and T-extreme, recorded runs took {total:.0f} core-hours in all."
    return Table.of("T-compute", rows, columns, caption, finding=finding)


def _identity(run: Result) -> tuple[Any, ...]:
    n_train = run["config"].get("n_train")  # fewer where rows are held out
    return (*run["condition"].values(), run["config"]["weight_decay"], n_train, run["seed"])


def _hours(runs: Iterable[Result]) -> float:
    total = 0.0
    for run in runs:
        tests = run["seconds"]["evaluate"] / run["provenance"]["ranks"]  # added up over ranks
        total += (training_seconds(run) + tests) * cores(run)
    return total / 3600
