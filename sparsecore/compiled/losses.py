"""Targets of a network's outputs: loss and gradient of a block of the batch.

Class indices use softmax and cross-entropy. For the compiler all kinds of targets are of one type,
`Aim`, so it compiles once.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from sparsecore.compiled.arrays import reads
from sparsecore.compiled.jit import inner
from sparsecore.compiled.lanes import at, put

SOFTMAX, SIGMOID, SQUARED = range(3)


class Aim(NamedTuple):
    """Targets of samples: SOFTMAX has `labels`, the others have `values`."""

    loss: Any  #: int64, one of the three
    labels: np.ndarray = np.zeros(0, np.int64)  #: int64 (n,), class indices
    values: np.ndarray = np.zeros((0, 0), np.float32)  #: float32 (n, n_outputs): 0 or 1, or numbers
    weights: np.ndarray | None = None  #: float32 (n,), factors of the samples' losses; None: 1

    def part(self, rows: Any) -> "Aim":
        """Return the targets of some rows."""
        used = "labels" if self.loss == SOFTMAX else "values"
        weights = None if self.weights is None else self.weights[rows]
        return self._replace(**{used: getattr(self, used)[rows]}, weights=weights)

    def read(self, n: int, n_outputs: int) -> "Aim":
        """Return the targets as kernels read them; refuse shapes that are not of `n` samples."""
        shapes: dict[str, tuple[int, ...]] = {} if self.weights is None else {"weights": (n,)}
        shapes |= {"labels": (n,)} if self.loss == SOFTMAX else {"values": (n, n_outputs)}
        n_weights = 0 if self.loss == SOFTMAX else n  # class indices do without: it is faster
        weights = np.ones(n_weights, np.float32) if self.weights is None else self.weights
        for name, shape in shapes.items():
            found = np.shape(getattr(self, name))
            if found != shape:
                raise ValueError(f"{name}: expected shape {shape}, got {found}")
        return Aim(
            self.loss, reads(self.labels, np.int64), reads(self.values, np.float32, 2),
            reads(weights, np.float32),
        )  # fmt: skip


@inner
def _softmax_cross_entropy(width, n_classes, act, z0, labels, rows, first, count, losses, hits):
    """Replace a block of logits by the gradient of the summed loss."""
    lanes = width.lanes
    for lane in range(count):
        top, best = -np.inf, 0
        for c in range(n_classes):
            z = at(act, z0 + c * lanes + lane)
            if z > top:
                top, best = z, c
        norm = 0.0
        for c in range(n_classes):
            # Subtracting the largest logit keeps exp() from overflowing.
            e = math.exp(at(act, z0 + c * lanes + lane) - top)
            norm += e
        label = labels[at(rows, first + lane)]
        losses[lane] = math.log(norm) + top - at(act, z0 + label * lanes + lane)
        hits[lane] = label == best
        for c in range(n_classes):
            place = z0 + c * lanes + lane
            p = math.exp(at(act, place) - top) / norm
            put(act, place, np.float32(p - (c == label)))


@inner
def loss_gradient(width, n_outputs, act, z0, aim, rows, first, count, losses, hits):
    """Replace a block of outputs by the gradient of the summed, weighted loss; padding gets 0."""
    lanes, one = width.lanes, np.float32(1)
    softmax = aim.loss == SOFTMAX
    if softmax:
        _softmax_cross_entropy(
            width, n_outputs, act, z0, aim.labels, rows, first, count, losses, hits
        )
    # Class indices without weights are done: `Aim.read` leaves `weights` empty.
    for lane in range(count if len(aim.weights) else 0):
        row = at(rows, first + lane)
        weight, loss = aim.weights[row], losses[lane] if softmax else 0.0
        for c in range(n_outputs):
            place = z0 + c * lanes + lane
            z = at(act, place)
            if softmax:
                z *= weight
            elif aim.loss == SIGMOID:
                e = np.float32(math.exp(-abs(z)))  # at most 1: it cannot overflow
                loss += max(z, np.float32(0)) - z * aim.values[row, c] + math.log1p(e)
                z = weight * ((one if z >= 0 else e) / (one + e) - aim.values[row, c])
            else:
                loss += 0.5 * (z - aim.values[row, c]) ** 2
                z = weight * (z - aim.values[row, c])
            put(act, place, z)
        losses[lane], hits[lane] = loss * weight, softmax and hits[lane]
    for lane in range(count, lanes):
        for c in range(n_outputs):
            put(act, z0 + c * lanes + lane, np.float32(0))
