"""`Dataset`: a data set's arrays, names and origin; standardised copies and subsets."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsecore.config import integers

Arrays = tuple[NDArray, NDArray[np.int64], NDArray, NDArray[np.int64]]  # training, then test

# Values in a block of the statistics: small float64 copies.
BLOCK_VALUES = 1 << 20


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Training and test arrays of one data set, with their provenance.

    Parameters
    ----------
    name : str
        The name given to `load`, or any other.
    X_train, X_test : ndarray of numbers, shape (n_rows, n_features)
        Raw values, one row per sample; uint8 (images) or float32 in the study's data sets.
    y_train, y_test : ndarray of int64, shape (n_rows,)
        Class indices, 0 … n_classes - 1.
    classes : tuple of str, optional
        Name of every class, in the order of the indices; by default the indices in `y_train`.
    feature_shape : tuple of int, optional
        Shape of a sample, e.g. (32, 32, 3) or (500,); rows are flattened in C order.
    domain, source : str, optional
        The field of the data, e.g. "images", and a readable name of their origin; never a path of
        this machine.
    surrogate : bool
        True where generated data of the right shape stand in for missing data.

    Raises
    ------
    ValueError
        If arrays do not fit each other, or labels do not fit the classes; the message says which.
    """

    name: str
    X_train: NDArray
    X_test: NDArray
    y_train: NDArray[np.int64]
    y_test: NDArray[np.int64]
    classes: tuple[str, ...] = ()
    feature_shape: tuple[int, ...] = ()
    domain: str = "own"
    source: str = "arrays"
    surrogate: bool = False

    def __post_init__(self) -> None:
        """Convert the arrays for the kernels; refuse those that do not fit."""
        kept: dict[str, Any] = {"classes": self.classes, "feature_shape": self.feature_shape}

        def check(name: str, fits: bool, expected: str, got: str) -> None:
            if not fits:
                raise ValueError(f"{name}: expected {expected}, got {got}")

        for part in ("train", "test"):
            at_x, at_y = f"X_{part}", f"y_{part}"
            X, y = (np.ascontiguousarray(getattr(self, name)) for name in (at_x, at_y))
            shape = kept["feature_shape"] = kept["feature_shape"] or X.shape[1:]
            fits = X.ndim == 2 and X.shape[1] == math.prod(shape) and X.dtype.kind in "biuf"
            check(at_x, fits, f"a matrix of numbers, rows of {shape}", f"{X.dtype} of {X.shape}")
            fits = y.shape == X.shape[:1] != (0,) and y.dtype.kind in "iu"
            check(
                at_y, fits, f"an integer per row of {at_x}, at least 1", f"{y.dtype} of {y.shape}"
            )
            classes = kept["classes"] = kept["classes"] or tuple(map(str, range(int(y.max()) + 1)))
            fits = 0 <= y.min() <= y.max() < len(classes)
            check(at_y, fits, f"labels from 0 to {len(classes) - 1}", f"{y.min()} to {y.max()}")
            kept |= {at_x: X, at_y: y.astype(np.int64, copy=False)}
        vars(self).update(kept)

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 (hex) of the arrays, or of the files of a data set that `load` has read."""
        return hash_arrays(self.X_train, self.y_train, self.X_test, self.y_test)

    def derived(self, content_hash: str = "", **changes: Any) -> Dataset:
        """Return the data set with arrays derived from its own; the hash stays the same."""
        made = dataclasses.replace(self, **changes)
        vars(made)["content_hash"] = content_hash or self.content_hash
        return made

    @property
    def n_features(self) -> int:
        """Number of features of a sample."""
        return self.X_train.shape[1]

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    def __repr__(self) -> str:
        shape = "×".join(str(n) for n in self.feature_shape)
        kind = " surrogate," if self.surrogate else ""
        return (
            f"<Dataset {self.name}:{kind} {len(self.y_train)}/{len(self.y_test)} rows of {shape} "
            f"{self.X_train.dtype}, {self.n_classes} classes, from {self.source}, "
            f"sha256 {self.content_hash[:12]}>"
        )

    @cached_property
    def moments(self) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
        """Each feature's mean and scale over the training rows, (n_features,).

        They are float32, or float64 where the rows are more precise. The scale is the standard
        deviation of the population; 1 for a constant feature. Two float64 passes over differences
        from the first row make a constant's deviation exactly 0.
        """
        X = self.X_train
        first = X[0].astype(np.float64)
        step = max(1, BLOCK_VALUES // X.shape[1])
        blocks = [X[start : start + step] for start in range(0, len(X), step)]
        offset = sum((block - first).sum(axis=0) for block in blocks) / len(X)
        squares = np.zeros(X.shape[1])
        for block in blocks:
            difference = block - first
            difference -= offset
            squares += np.einsum("ij,ij->j", difference, difference)
        scale = np.sqrt(squares / len(X))
        scale[scale == 0] = 1
        dtype = np.result_type(X.dtype, np.float32)
        return (first + offset).astype(dtype), scale.astype(dtype)

    def standardized(self) -> Dataset:
        """Return the data as float32 (x - mean) / scale, with the training rows' `moments`."""
        train, test = map(self.scaled, (self.X_train, self.X_test))
        return self.derived(X_train=train, X_test=test)

    def scaled(self, X: NDArray) -> NDArray[np.float32]:
        """Return raw rows as new float32 (x - mean) / scale, with the training rows' `moments`."""
        mean, scale = self.moments
        out = X.astype(np.result_type(X.dtype, mean.dtype))
        out -= mean
        out /= scale
        return out.astype(np.float32, copy=False)

    def limited(self, n_train: int | None, random_state: int = 0) -> Dataset:
        """Return a seeded, stratified subset of the training rows, in order, and all test rows.

        Parameters
        ----------
        n_train : int or None
            Rows to keep, from n_classes to the number of training rows; else ValueError. None: all.
        random_state : int
            Seed of the choice.

        Notes
        -----
        Classes keep their shares, by the largest remainders, with at least one row per class. The
        content hash stays that of all rows: a resumed run does not notice another `random_state`.
        """
        n_rows = len(self.y_train)
        if n_train is None or n_train == n_rows:
            return self
        expected = f"{self.n_classes} to {n_rows} rows of {self.name}, at least one per class"
        integers(self.n_classes, n_rows, expected).check("n_train (limit)", n_train)
        counts = np.bincount(self.y_train, minlength=self.n_classes)
        rng = np.random.default_rng(random_state)
        parts = [
            rng.choice(np.flatnonzero(self.y_train == label), size, replace=False)
            for label, size in enumerate(_apportion(counts, n_train))
        ]
        chosen = np.sort(np.concatenate(parts))
        return self.derived(X_train=self.X_train[chosen], y_train=self.y_train[chosen])


def _apportion(counts: NDArray[np.integer], size: int) -> NDArray[np.int64]:
    """Share `size` among classes in proportion to `counts`: largest remainders, at least 1 each."""
    exact = counts * (size / counts.sum())
    shares = np.minimum(np.maximum(exact.astype(np.int64), 1), counts)
    while (missing := size - shares.sum()) != 0:
        direction = 1 if missing > 0 else -1
        free = shares < counts if direction > 0 else shares > 1
        need = np.where(free, direction * (exact - shares), -np.inf)
        shares[np.argmax(need)] += direction
    return shares


def number(cell: str) -> float:
    """Return the number in a cell, or NaN, also for what only Python reads, such as 1_000."""
    try:
        return float(cell) if cell.isascii() and "_" not in cell else np.nan
    except ValueError:
        return np.nan


def hash_arrays(*arrays: NDArray) -> str:
    """Return the SHA-256 of arrays: of their dtype, shape, and values (little-endian, C order)."""
    digest = hashlib.sha256()
    for array in arrays:
        values = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        digest.update(f"{values.dtype.str}{values.shape}".encode())
        digest.update(values.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def every_kth(y: NDArray[np.int64], k: int) -> NDArray[np.bool_]:
    """Mark a test part: every k-th row of each class; no random numbers, so always the same."""
    test = np.zeros(len(y), dtype=bool)
    test[np.argsort(y, kind="stable")[::k]] = True
    return test
