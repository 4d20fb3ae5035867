"""The end of phase 2: the average of the workers' models."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sparsecore import topology
from sparsecore.mlp import SparseMLP


def average(models: Sequence[SparseMLP]) -> tuple[SparseMLP, int]:
    """Average models over the union of their topologies, and cut each layer back to its nnz.

    Return the model, and the number of connections that any of `models` has. A connection that a
    model lacks counts as 0; the weights of smallest magnitude are cut. Source: "Truly Sparse Neural
    Networks at Scale", WASAP-SGD, phase 2. O(models * union).
    """
    first = models[0]
    structures, data, union_nnz = [], [], 0
    for layer in range(len(first)):
        views = [model[layer] for model in models]
        indptr, indices, mean = topology.union_average(
            [(view.indptr, view.indices, view.data) for view in views]
        )
        union_nnz += len(mean)
        keep = topology.strongest(mean, max(view.nnz for view in views))
        structures.append(topology.keep_only(keep, indptr, indices))
        data.append(mean[keep])
    biases = np.stack([model.biases for model in models]).mean(axis=0, dtype=np.float64)
    model = SparseMLP(
        first.sizes, structures, data, [np.asarray(biases, np.float32)],
        activation=first.activation, alpha=first.alpha, init=first.init,
    )  # fmt: skip
    return model, union_nnz
