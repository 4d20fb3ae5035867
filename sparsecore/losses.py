"""Softmax and cross-entropy of logits, for evaluation; training has them fused into `kernels`."""

from __future__ import annotations

import numpy as np
from scipy.special import log_softmax, softmax


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Return the softmax of float32 logits, shape (n, n_classes); rows sum to 1."""
    return softmax(logits, axis=1)


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean cross-entropy in nats.

    Parameters
    ----------
    logits : ndarray of float32, shape (n, n_classes)
    labels : ndarray of int, shape (n,)
    """
    chosen = log_softmax(logits.astype(np.float64), axis=1)[np.arange(len(labels)), labels]
    return float(-chosen.mean())
