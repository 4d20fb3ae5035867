"""Convert `X` for the network: standardise it in its own precision, then make it float32."""

import copy
from typing import Any

import numpy as np
import scipy.sparse as sp
from sklearn.preprocessing import StandardScaler

from sparsecore.config import LARGEST
from sparsecore.samples import as_inputs, check_finite

_TOO_LARGE = "divide all values by a constant first"


def moments(known: StandardScaler | None, X: Any, weight: Any, name: str = "X") -> StandardScaler:
    """Return the moments of `X` and the `known` data together; `known` is not changed."""
    if known is None:
        # The caller's configuration may ask for data frames, which have no sparse columns.
        known = StandardScaler(with_mean=not sp.issparse(X)).set_output(transform="default")
    if sp.issparse(X) and known.with_mean:
        X = X.toarray()
    if weight is None and np.asarray(getattr(known, "n_samples_seen_", 0)).dtype.kind == "f":
        weight = np.ones(X.shape[0])  # else scikit-learn cuts the sum of the weights to an integer
    with np.errstate(over="ignore", invalid="ignore"):
        known = copy.deepcopy(known).partial_fit(X, sample_weight=weight)
        if not known.with_mean:
            # One scale for all: scaled by its own deviation, a word that occurs once would be huge.
            square = np.mean(known.var_ + np.square(known.mean_))
            known.scale_ = np.full_like(known.scale_, np.sqrt(square) if square else 1)
        else:  # a constant's mean may be off by so much, which must stay below one deviation
            rounding = (known.n_samples_seen_ + X.shape[0]) * np.finfo(float).eps
            known.scale_ = np.maximum(known.scale_, rounding * np.abs(known.mean_))
    if not np.isfinite(known.scale_).all():
        raise ValueError(f"{name}: its values are too large to be standardised; {_TOO_LARGE}")
    return known


def accepted(X: Any) -> dict[str, Any]:
    """Return how scikit-learn reads `X`: as float32 if that can hold its values, else float64."""
    dtype = getattr(X, "dtype", None)
    exact = isinstance(dtype, np.dtype) and np.can_cast(dtype, np.float32)
    return {"accept_sparse": "csr", "dtype": np.float32 if exact else np.float64, "order": "C"}


def check_weights(name: str, weight: np.ndarray) -> None:
    """Refuse weights if none is above 0, or if one is too large for float32."""
    if not 0 < weight.max() <= LARGEST:
        expected = f"a weight above 0 among these rows, and none above {LARGEST:.2g}"
        raise ValueError(f"{name}: expected {expected}, got {weight.max():.2g} at most")


def scaled(X: Any, scaler: StandardScaler | None, n_features: int, name: str = "X") -> Any:
    """Return `X` scaled, as contiguous float32 or CSR; refuse values too large for float32."""
    if scaler is not None:
        if sp.issparse(X) and scaler.with_mean:  # fitted on dense data
            X = X.toarray()
        X = scaler.transform(X)
    with np.errstate(over="ignore"):
        found = as_inputs(X, n_features)
    check_finite(found, f"{name}, as float32", f"the value is too large: {_TOO_LARGE}")
    return found
