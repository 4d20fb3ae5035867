"""Activation functions of the hidden layers, by name.

All of them are ``f(z) = z`` for z > 0 and ``f(z) = s z`` otherwise; they differ in how the negative
slope s depends on the layer. That is all a kernel has to know of them.
"""

from __future__ import annotations

from collections.abc import Callable


def relu(layer: int, alpha: float) -> float:
    """Return the negative slope of ReLU: 0."""
    return 0.0


def leaky_relu(layer: int, alpha: float) -> float:
    """Return the negative slope of LeakyReLU: ``alpha`` in every layer."""
    return alpha


def all_relu(layer: int, alpha: float) -> float:
    """Return the negative slope of All-ReLU: ``-alpha`` in odd layers, ``+alpha`` in even ones.

    Parameters
    ----------
    layer : int
        Hidden layer, counted from 1.
    alpha : float
        Slope, a constant of the architecture and not a trainable parameter.

    Notes
    -----
    Source: "Truly Sparse Neural Networks at Scale", the definition of All-ReLU; the paper counts
    the input as layer 1, so its even layers are the odd ones here.
    """
    return -alpha if layer % 2 else alpha


ACTIVATIONS: dict[str, Callable[[int, float], float]] = {
    "relu": relu,
    "leaky-relu": leaky_relu,
    "all-relu": all_relu,
}


def negative_slope(name: str, layer: int, alpha: float) -> float:
    """Return the slope for z <= 0 of hidden layer `layer` (1, 2, ...).

    Raises
    ------
    ValueError
        If `name` is not an activation.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"activation: expected one of {', '.join(ACTIVATIONS)}, got {name!r}")
    return ACTIVATIONS[name](layer, alpha)
