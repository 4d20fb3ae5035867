"""A caller's inputs and labels, checked and converted to the types that kernels accept."""

from typing import Any

import numpy as np
import scipy.sparse as sp

#: Values of a sparse matrix that are made dense at a time: 64 MiB.
DENSE_VALUES = 2**24


def as_inputs(X: Any, n_features: int) -> Any:
    """Return `X` as contiguous float32 or CSR, checked for its number of features."""
    if sp.issparse(X):
        X = sp.csr_array(checked_sparse("X", X), dtype=np.float32)
    else:
        X = np.require(X, np.float32, ["C", "A"])
    if X.ndim != 2 or X.shape[1] != n_features:
        raise ValueError(f"X: expected shape (n, {n_features}), got {X.shape}")
    return X


def checked_sparse(name: str, matrix: Any) -> Any:
    """Return a scipy.sparse matrix after checking pointers and indices: C code trusts them."""
    if matrix.format not in ("csr", "csc", "bsr"):
        matrix = matrix.tocoo()
        for places, length in zip(matrix.coords, matrix.shape, strict=True):
            if len(places) and (places.min() < 0 or places.max() >= length):
                raise ValueError(f"{name}: has a coordinate outside its shape {matrix.shape}")
        return matrix
    try:
        if (matrix.indptr[1:] < matrix.indptr[:-1]).any():  # SciPy may not check
            raise ValueError("indptr must be a non-decreasing sequence")
        matrix.check_format(full_check=True)
    except ValueError as error:
        raise ValueError(f"{name}: not a valid {matrix.format} matrix: {error}") from None
    return matrix


def as_labels(y: Any, n: int, n_classes: int) -> np.ndarray:
    """Return `y` as int64, checked to be `n` class indices: the kernels index with them."""
    labels = np.ascontiguousarray(y, np.int64)
    if np.asarray(y).dtype.kind not in "iub" and not np.array_equal(labels, y):
        raise ValueError("y: expected class indices, got numbers that are not whole")
    if labels.shape != (n,):
        raise ValueError(f"y: expected shape ({n},), one label per row of X, got {labels.shape}")
    outside = labels[(labels < 0) | (labels >= n_classes)]
    if len(outside):
        raise ValueError(f"y: expected class indices from 0 to {n_classes - 1}, got {outside[0]}")
    return labels


def check_finite(X: Any, name: str = "X", advice: str = "impute or remove them first") -> None:
    """Raise a ValueError that names the first NaN or infinite feature of `X`, if there is one."""
    values = X.data if sp.issparse(X) else np.asarray(X)
    finite = np.isfinite(values)
    if not finite.all():
        bad = np.argwhere(~finite)
        place = tuple(map(int, bad[0]))
        where = "stored value {}" if sp.issparse(X) else "row {}, feature {}"
        raise ValueError(
            f"{name}: expected finite numbers, got {values[place]} at {where.format(*place)} "
            f"({len(bad)} in all); {advice}"
        )
