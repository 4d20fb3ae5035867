"""What passes between workers and the parameter server, and what a newer topology keeps of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sparsecore import topology
from sparsecore.mlp import SparseMLP

Structures = Sequence[tuple[np.ndarray, np.ndarray]]  # (indptr, indices) of each layer


class Version(NamedTuple):
    """The state of the server's model that a copy was made of."""

    updates: int  #: that had been applied
    topology: int  #: raised whenever the topology changes


class Gradient(NamedTuple):
    """The mean gradient of a batch, and the batch's part in the record."""

    values: np.ndarray  #: float32, laid out like the parameters of the model it was computed on
    worker: int  #: rank
    samples: int
    loss: float  #: sum over the samples, in nats
    correct: int


class Update(NamedTuple):
    """What became of a gradient that was pushed."""

    version: Version  #: of the model that came back
    epoch: int  #: the epoch that it completed, or 0
    model: SparseMLP | None  #: the server's model at the end of that epoch, before it evolved
    waited: float  #: seconds for the server's lock
    held: float  #: seconds under it


def retained(
    model: SparseMLP, values: np.ndarray, structures: Structures
) -> tuple[np.ndarray, float]:
    """Keep of a gradient on `model` what exists in a newer topology (RetainValidUpdates).

    Return it laid out for `structures`, 0 for connections that the gradient knows nothing of, and
    the share of the old connections that still exist.
    """
    sizes = [len(indices) for _, indices in structures]
    out = np.empty(sum(sizes) + len(model.biases), np.float32)
    old = new = kept = 0
    for layer, (indptr, indices) in enumerate(structures):
        view = model[layer]
        kept += topology.retain_valid(
            view.indptr, view.indices, values[old : old + view.nnz],
            indptr, indices, out[new : new + sizes[layer]],
        )  # fmt: skip
        old += view.nnz
        new += sizes[layer]
    out[new:] = values[old:]
    return out, kept / max(1, model.nnz)
