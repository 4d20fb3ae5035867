"""What is given as `X`, as the network takes it: standardised in its precision, then float32."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import scipy.sparse as sp
from sklearn.preprocessing import StandardScaler

from sparsecore.mlp import as_inputs
from sparsecore.train import check_finite


def moments(known: StandardScaler | None, X: Any, weight: Any) -> StandardScaler:
    """Return the moments of `X` and of all that is `known`, which stays as it is."""
    if known is None:
        # The caller's configuration may ask for data frames, which have no sparse columns.
        known = StandardScaler(with_mean=not sp.issparse(X)).set_output(transform="default")
    if sp.issparse(X) and known.with_mean:
        X = X.toarray()
    known = copy.deepcopy(known).partial_fit(X, sample_weight=weight)
    if not known.with_mean:
        # One scale for all features: by its own deviation, a word that occurs once would be huge.
        square = np.mean(known.var_ + np.square(known.mean_))
        known.scale_ = np.full_like(known.scale_, np.sqrt(square) if square else 1)
    return known


def accepted(X: Any) -> dict[str, Any]:
    """Return how scikit-learn is to take `X`: float32 if that holds its values, else float64."""
    dtype = getattr(X, "dtype", None)
    exact = isinstance(dtype, np.dtype) and np.can_cast(dtype, np.float32)
    return {"accept_sparse": "csr", "dtype": np.float32 if exact else np.float64, "order": "C"}


def scaled(X: Any, scaler: StandardScaler | None, n_features: int) -> Any:
    """Return `X` as `scaler` has it, as contiguous float32 or CSR; refuse what float32 has not."""
    if scaler is not None:
        if sp.issparse(X) and scaler.with_mean:  # fitted on dense data
            X = X.toarray()
        X = scaler.transform(X)
    with np.errstate(over="ignore"):
        found = as_inputs(X, n_features)
    check_finite(found, "X, as float32")
    return found
