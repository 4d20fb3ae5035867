"""Initial weights, by name; biases start at 0."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def _uniform(limit: float, size: int, rng: np.random.Generator) -> np.ndarray:
    values = rng.random(size, np.float32)
    values *= np.float32(2 * limit)
    values -= np.float32(limit)
    return values


def he_uniform(n_in: int, n_out: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Draw from U(-b, b), b = sqrt(6 / n_in)."""
    return _uniform((6 / n_in) ** 0.5, size, rng)


def xavier(n_in: int, n_out: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Draw from U(-b, b), b = sqrt(6 / (n_in + n_out))."""
    return _uniform((6 / (n_in + n_out)) ** 0.5, size, rng)


def normal(n_in: int, n_out: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Draw from N(0, 0.1**2)."""
    values = rng.standard_normal(size, np.float32)
    values *= np.float32(0.1)
    return values


INITIALIZERS: dict[str, Callable[[int, int, int, np.random.Generator], np.ndarray]] = {
    "he_uniform": he_uniform,
    "xavier": xavier,
    "normal": normal,
}


def initial_weights(
    name: str, n_in: int, n_out: int, size: int, rng: np.random.Generator
) -> np.ndarray:
    """Draw `size` initial weights of a layer.

    Parameters
    ----------
    name : {"he_uniform", "xavier", "normal"}
    n_in, n_out : int
        Neurons of the layer's two sides: the dense widths, not the sparse fan-in, as the paper
        does.
    size : int
        How many.
    rng : numpy.random.Generator

    Returns
    -------
    ndarray of float32, shape (size,)

    Raises
    ------
    ValueError
        If `name` is not an initialiser.
    """
    if name not in INITIALIZERS:
        raise ValueError(f"init: expected one of {', '.join(INITIALIZERS)}, got {name!r}")
    return INITIALIZERS[name](n_in, n_out, size, rng)
