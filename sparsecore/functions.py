"""The functions that a network is made of, by name: activations, initial weights, losses.

Every activation is ``f(z) = z`` for z > 0 and ``f(z) = s z`` otherwise, so a kernel needs only the
slope s. Training fuses the loss into its kernels; the losses here serve evaluation.
"""

from collections.abc import Callable

import numpy as np

# The negative slope in hidden layer `layer`, counted from 1: a constant, not trainable.
ACTIVATIONS: dict[str, Callable[[int, float], float]] = {
    "relu": lambda layer, alpha: 0.0,
    "leaky-relu": lambda layer, alpha: alpha,
    "all-relu": lambda layer, alpha: -alpha if layer % 2 else alpha,
}


def _uniform(limit: float, size: int, rng: np.random.Generator) -> np.ndarray:
    return rng.random(size, np.float32) * np.float32(2 * limit) - np.float32(limit)


_DEVIATION = np.float32(0.1)
# Each draws `size` weights, float32; `n_in` and `n_out` are the layer's widths, not its sparse
# fan-in and fan-out.
INITIALIZERS: dict[str, Callable[[int, int, int, np.random.Generator], np.ndarray]] = {
    "he_uniform": lambda n_in, n_out, size, rng: _uniform((6 / n_in) ** 0.5, size, rng),
    "xavier": lambda n_in, n_out, size, rng: _uniform((6 / (n_in + n_out)) ** 0.5, size, rng),
    "normal": lambda n_in, n_out, size, rng: rng.standard_normal(size, np.float32) * _DEVIATION,
}


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Return the softmax of float32 logits, shape (n, n_classes); rows sum to 1."""
    from scipy.special import softmax  # on use: the command line's --help needs the names above

    return softmax(logits, axis=1)


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean cross-entropy of logits (n, n_classes) and class indices (n,), in nats."""
    from scipy.special import log_softmax

    chosen = log_softmax(logits.astype(np.float64), axis=1)[np.arange(len(labels)), labels]
    return float(-chosen.mean())
