"""T-estimator: the estimator's defaults against those of scikit-learn, on users' tables.

Five folds of each table, the same for all: accuracy or R², seconds to fit, size of the model. Every
method has its own defaults. Behind a scaler stand what the networks and the linear models read, and
what the networks are to predict; on numbers in their own units the MLP would be no opponent.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from scipy.stats import rankdata
from sklearn.base import clone
from sklearn.compose import TransformedTargetRegressor
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.model_selection import KFold, StratifiedKFold
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from sparsecore.estimator import SparseMLPClassifier, SparseMLPRegressor
from sparsecore.paper.estimator import importance, sets
from sparsecore.paper.page import Column, Table
from sparsecore.paper.store import Entry, Result, Versions, current_profile, versions
from sparsecore.paper.style import source
from sparsecore.progress import bar
from sparsecore.provenance import busy_cpus

STUDY = importance.STUDY
#: What a build measures by itself, in seconds: tables that need no package but scikit-learn.
QUICK = ("iris", "wine", "diabetes")
FOLDS = 5
METHODS = ("sparsecore", "MLP", "gradient boosting", "linear")
_NUMBER = (int, float)
_SCHEMA = {"defaults": dict, "rows": int, "columns": int, "methods": {m: dict for m in METHODS}}


def _scaled_targets(random_state: int) -> Any:
    mlp = MLPRegressor(random_state=random_state)
    return TransformedTargetRegressor(mlp, transformer=StandardScaler())


def _makers(classes: bool) -> dict[str, Callable[[int], Any]]:
    """Return the methods, each made with a seed."""
    ours = SparseMLPClassifier if classes else SparseMLPRegressor
    mlp = MLPClassifier if classes else _scaled_targets
    trees = HistGradientBoostingClassifier if classes else HistGradientBoostingRegressor
    linear = LogisticRegression(max_iter=1000) if classes else RidgeCV(np.logspace(-3, 3, 13))
    return {
        "sparsecore": lambda seed: ours(random_state=seed),
        "MLP": lambda seed: make_pipeline(StandardScaler(), mlp(random_state=seed)),
        "gradient boosting": lambda seed: trees(random_state=seed),
        "linear": lambda seed: make_pipeline(StandardScaler(), clone(linear)),
    }


def compare(name: str) -> Result:
    """Fit every method on five folds of a table, one thread; scores and seconds of each fold."""
    X, y = sets.load(name)
    classes = name in sets.CLASSES
    makers = _makers(classes)
    makers["sparsecore"](0).set_params(max_iter=1).fit(X, y)  # compiled before anything is timed
    folds = (StratifiedKFold if classes else KFold)(FOLDS, shuffle=True, random_state=0)
    methods, others = {}, busy_cpus()
    with threadpool_limits(1):
        for method, make in makers.items():
            scores, seconds, sizes = [], [], []
            for fold, (train, test) in enumerate(folds.split(X, y)):
                estimator, begin = make(fold), time.perf_counter()
                estimator.fit(X[train], y[train])
                seconds.append(time.perf_counter() - begin)
                scores.append(float(estimator.score(X[test], y[test])))
                sizes.append(len(pickle.dumps(estimator)))
            methods[method] = {"scores": scores, "seconds": seconds, "bytes": sizes}
    size = {"rows": len(X), "columns": X.shape[1], "others": others}
    return {"defaults": _defaults(classes), **size, "methods": methods}


def _defaults(classes: bool) -> Result:
    """Return the defaults that a result is valid for, as JSON has them."""
    values = (SparseMLPClassifier if classes else SparseMLPRegressor)().get_params()
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def entry(name: str, profile: str) -> Entry:
    """Return where a table's result is kept."""
    expected = {"defaults": _defaults(name in sets.CLASSES)}
    return Entry(STUDY, name.replace(" ", "-"), profile, lambda _: _SCHEMA, lambda: expected)


def _tables(profile: str) -> tuple[str, ...]:
    return QUICK if profile == "quick" else (*sets.CLASSES, *sets.NUMBERS)


def entries(profile: str) -> list[Entry]:
    """Return the results that a profile is made of."""
    inputs = [importance.entry(name, profile) for name in importance.NAMES]
    return [entry(name, profile) for name in _tables(profile)] + inputs


def load(profile: str | None = None, *, progress: bool = True) -> dict[str, Versions[Result]]:
    """Return both versions of each table's result; measure what this build lacks."""
    profile, found = current_profile(profile), {}
    importance.load(profile)
    names = (*sets.CLASSES, *sets.NUMBERS)
    with bar(len(names), "tables", hidden=not progress) as shown:
        for name in names:
            if name in _tables(profile):
                found[name] = versions(partial(entry, name), partial(compare, name), profile)
            elif (recorded := entry(name, "paper").recorded()) is not None:
                found[name] = Versions(recorded)
            shown.update()
    return found


def rows(found: dict[str, Versions[Result]], classes: bool) -> list[Result]:
    """Return a row per table: mean scores in percent, seconds and sizes of all methods."""
    made = []
    for name in (name for name in (sets.CLASSES if classes else sets.NUMBERS) if name in found):
        result = found[name].first
        row: Result = {"table": name, "tuned": name in sets.TUNED, "rows": result["rows"]}
        for method, measured in result["methods"].items():
            row[method] = 100 * float(np.mean(measured["scores"]))
            row[f"{method}, s"] = float(np.median(measured["seconds"]))
            row[f"{method}, kB"] = float(np.median(measured["bytes"])) / 1000
        made.append(row)
    return made


def ranks(table: list[Result]) -> dict[str, float]:
    """Return each method's mean rank over the rows of a table, 1 the best; ties share theirs."""
    scores = [[-row[method] for method in METHODS] for row in table]
    return dict(zip(METHODS, rankdata(scores, axis=1).mean(axis=0).tolist(), strict=True))


def table(found: dict[str, Versions[Result]], classes: bool) -> Table:
    """Show the scores of all methods, and how long they fit and how large they are."""
    made = rows(found, classes)
    confirm = [row for row in made if not row["tuned"]]
    told = ", ".join(f"{method}: {rank:.2f}" for method, rank in ranks(confirm).items())
    behind = [row["table"] for row in made if row["sparsecore"] < row["MLP"] - 3]
    columns = [
        Column("table", "table", lambda row: row["table"] + " *" * row["tuned"], False),
        Column("rows", "rows", "{:,}"),
        *(Column(method, method, partial(_score, method)) for method in METHODS),
        *(Column(f"{m}, s", f"{m}, s", "{:.2f}") for m in METHODS[:3]),
        *(Column(f"{m}, kB", f"{m}, kB", "{:,.0f}") for m in METHODS[:3]),
    ]
    caption = (
        f"**{'Accuracy' if classes else 'R²'}, %: mean of {FOLDS} folds.** Bold is the best. A "
        f"star: the defaults were chosen on this table. Mean ranks on the others: {told}. More "
        f"than 3 points behind the MLP: {', '.join(behind) or 'nowhere'}."
    )
    key = f"T-estimator-{'classes' if classes else 'numbers'}"
    return Table.of(key, made, columns, caption, source(next(iter(found.values()))))


def _score(method: str, row: Result) -> str:
    best = row[method] == max(row[m] for m in METHODS)
    return f"**{row[method]:.1f}**" if best else f"{row[method]:.1f}"
