"""The `Dataset` that everything else receives: arrays, names, origin; standardised, and subsets.

`readers` reads files, `sources` finds them, `registry` knows the facts about each data set.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Values in a block of the statistics: small float64 copies.
BLOCK_VALUES = 1 << 20


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Training and test arrays of one data set, with their provenance.

    Parameters
    ----------
    name : str
        Name as given to `load`.
    X_train, X_test : ndarray of uint8 (images) or float32, shape (n_rows, n_features)
        Raw values, C-contiguous, one row per sample.
    y_train, y_test : ndarray of int64, shape (n_rows,)
        Class indices, 0 … n_classes - 1.
    classes : tuple of str
        Name of every class, in the order of the indices.
    feature_shape : tuple of int
        Shape of one sample, e.g. (28, 28), (32, 32, 3) or (500,); rows are flattened in C order.
    domain : str
        Field that the data come from, e.g. "images".
    source : str
        Where the content came from, for people; never a path of this machine.
    content_hash : str
        SHA-256 (hex) of the whole content; derived data sets (`standardized`, `limited`) keep it.
    surrogate : bool
        True where generated data of the right shape stand in for data that are not at hand.
    """

    name: str
    X_train: NDArray
    X_test: NDArray
    y_train: NDArray[np.int64]
    y_test: NDArray[np.int64]
    classes: tuple[str, ...]
    feature_shape: tuple[int, ...]
    domain: str
    source: str
    content_hash: str
    surrogate: bool = False

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

    def moments(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Compute mean and scale of every feature over the training rows.

        Returns
        -------
        mean : ndarray of float32, shape (n_features,)
            Training mean.
        scale : ndarray of float32, shape (n_features,)
            Training standard deviation (of the population); 1 for a constant feature.

        Notes
        -----
        Two passes in float64 over differences from the first row, so that the standard deviation
        of a constant feature is exactly 0. O(n_rows · n_features) time, O(n_features) memory beyond
        one block.
        """
        X = self.X_train
        first = X[0].astype(np.float64)
        step = max(1, BLOCK_VALUES // X.shape[1])
        total = np.zeros(X.shape[1])
        for start in range(0, len(X), step):
            total += (X[start : start + step] - first).sum(axis=0)
        offset = total / len(X)
        squares = np.zeros(X.shape[1])
        for start in range(0, len(X), step):
            block = X[start : start + step] - first
            block -= offset
            squares += np.einsum("ij,ij->j", block, block)
        scale = np.sqrt(squares / len(X))
        scale[scale == 0] = 1
        return (first + offset).astype(np.float32), scale.astype(np.float32)

    def standardized(self) -> Dataset:
        """Standardise every feature with the mean and standard deviation of the training rows.

        Returns
        -------
        Dataset
            The same data as float32, (x - mean) / scale; constant features are divided by 1.

        Notes
        -----
        Allocates 4 bytes per value and one block; the raw arrays stay as they are.
        """
        mean, scale = self.moments()
        return dataclasses.replace(
            self,
            X_train=standardize(self.X_train, mean, scale),
            X_test=standardize(self.X_test, mean, scale),
        )

    def limited(self, n_train: int, random_state: int = 0) -> Dataset:
        """Take a seeded, stratified subset of the training rows.

        Parameters
        ----------
        n_train : int
            Rows to keep, between n_classes and the number of training rows.
        random_state : int, default 0
            Seed of the choice.

        Returns
        -------
        Dataset
            The chosen rows in their original order; the test rows are all kept.

        Raises
        ------
        ValueError
            If `n_train` is out of range.

        Notes
        -----
        Classes keep their shares, by the largest remainders, with at least one row per class.
        """
        n_rows = len(self.y_train)
        if not self.n_classes <= n_train <= n_rows:
            raise ValueError(
                f"n_train={n_train}: {self.name} has {n_rows} training rows of {self.n_classes} "
                f"classes; choose between {self.n_classes} and {n_rows}"
            )
        if n_train == n_rows:
            return self
        counts = np.bincount(self.y_train, minlength=self.n_classes)
        rng = np.random.default_rng(random_state)
        chosen = np.concatenate(
            [
                rng.choice(np.flatnonzero(self.y_train == label), size, replace=False)
                for label, size in enumerate(_apportion(counts, n_train))
            ]
        )
        chosen.sort()
        return dataclasses.replace(self, X_train=self.X_train[chosen], y_train=self.y_train[chosen])


def standardize(
    X: NDArray, mean: NDArray[np.float32], scale: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return ``(X - mean) / scale`` as new float32, with the moments of `Dataset.moments`."""
    out = X.astype(np.float32)
    out -= mean
    out /= scale
    return out


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


def hash_arrays(*arrays: NDArray) -> str:
    """Return the SHA-256 of arrays: of their dtype, shape, and values (little-endian, C order)."""
    digest = hashlib.sha256()
    for array in arrays:
        values = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        digest.update(f"{values.dtype.str}{values.shape}".encode())
        digest.update(values.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def every_kth(y: NDArray[np.int64], k: int) -> NDArray[np.bool_]:
    """Mark a stratified test part: every k-th row, once rows are ordered by class.

    No random numbers: the split is the same on every machine and for every NumPy.
    """
    test = np.zeros(len(y), dtype=bool)
    test[np.argsort(y, kind="stable")[::k]] = True
    return test
