"""Which inputs matter: Madelon's 20 features among 500, found by three rankings.

They are known from the data alone: 15 are linear combinations of 5, so each of the 20 is predicted
by the other features, and no other feature is.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from sklearn.ensemble import RandomForestClassifier
from sklearn.feature_selection import f_classif

from sparsecore import datasets
from sparsecore.estimator import SparseMLPClassifier
from sparsecore.paper.page import Column, Table
from sparsecore.paper.store import Entry, Result, Versions, current_profile, versions
from sparsecore.paper.style import source
from sparsecore.settings import setting

STUDY = "T-estimator"
NAMES = {"madelon-generator": "Madelon's generator", "madelon": "Madelon"}
RANKINGS = ("sparsecore", "random forest", "F-test")
KNOWN = 20
#: Passes over the data, and seeds, by profile; the F-test has no seed.
EFFORT = {"quick": (60, (0,)), "paper": (500, (0, 1, 2))}


def known(X: np.ndarray) -> np.ndarray:
    """Return the features that the others predict, most of all the first."""
    ridge = 1e-6 * np.eye(X.shape[1])  # else rounding would decide of what is exactly predicted
    precision = np.diag(np.linalg.inv(np.corrcoef(X, rowvar=False) + ridge))
    return np.argsort(-precision)[:KNOWN]


def measure(dataset: str, profile: str) -> Result:
    """Count the known features among the 20 of each ranking's top, one count per seed."""
    data, (epochs, seeds) = datasets.load(dataset), EFFORT[profile]
    X, y = data.X_train.astype(np.float64), data.y_train
    matter, config = known(X), setting(dataset).config
    own = {k: v for k, v in config.to_dict().items() if k in SparseMLPClassifier().get_params()}
    own |= {"hidden_layer_sizes": config.hidden, "max_iter": epochs, "n_iter_no_change": epochs}
    found: dict[str, list[int]] = {name: [] for name in RANKINGS}
    for seed in seeds:
        ours = SparseMLPClassifier(**own, random_state=seed).fit(X, y)
        forest = RandomForestClassifier(200, random_state=seed).fit(X, y)
        scores = (ours.feature_importances_, forest.feature_importances_, f_classif(X, y)[0])
        for name, strength in zip(RANKINGS, scores, strict=True):
            found[name].append(int(np.isin(np.argsort(-strength)[:KNOWN], matter).sum()))
    return {"epochs": epochs, "known": matter.tolist(), "found": found}


def entry(dataset: str, profile: str) -> Entry:
    """Return where a data set's result is kept."""
    schema = {"epochs": int, "known": [int], "found": {name: [int] for name in RANKINGS}}
    expected = {"epochs": EFFORT[profile][0]}
    return Entry(STUDY, f"inputs-{dataset}", profile, lambda _: schema, lambda: expected)


def load(profile: str | None = None) -> dict[str, Versions[Result]]:
    """Return both versions of each data set's result; measure what this build lacks."""
    profile = current_profile(profile)
    measured = {name: partial(measure, name, profile) for name in NAMES}
    return {n: versions(partial(entry, n), compute, profile) for n, compute in measured.items()}


def table(found: dict[str, Versions[Result]]) -> Table:
    """Show how many of the known features each ranking has among its first 20."""
    rows = [
        {"data set": NAMES[name], "version": title, "epochs": result["epochs"], **result["found"]}
        for name, version in found.items()
        for title, result in version
    ]
    columns = [
        Column("data set", "data set", number=False, once=True),
        Column("result", "version", number=False),
        Column("epochs", "epochs", "{:,}"),
        *(Column(name, name, by=lambda counts: ", ".join(map(str, counts))) for name in RANKINGS),
    ]
    caption = (
        f"**Of the {KNOWN} features that matter, how many are among the first {KNOWN}.** One count "
        "per seed. What to see: a feature that matters only together with others is invisible to a "
        "test of one feature at a time."
    )
    sources = source(found["madelon-generator"])
    return Table.of("T-estimator-inputs", rows, columns, caption, sources)
