"""The end of phase 2: models as one message, and their average."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from sparsecore import topology
from sparsecore.config import TrainConfig
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


def pack(model: SparseMLP, about: dict[str, Any]) -> list[np.ndarray]:
    """Return a model's structure and parameters, and JSON `about` it, as arrays to be sent."""
    text, net = np.frombuffer(json.dumps(about).encode(), np.uint8), model.network
    head = np.array([len(text)], np.int64)
    return [head, net.weight_start, net.indptr, net.indices, model.params, text]


def unpack(
    buffer: np.ndarray, sizes: Sequence[int], config: TrainConfig
) -> tuple[SparseMLP, dict[str, Any]]:
    """Return what `pack` was given."""
    start = 0

    def take(n: int, dtype: type) -> np.ndarray:
        nonlocal start
        part = buffer[start : start + n * np.dtype(dtype).itemsize]
        start += part.nbytes
        return part.view(dtype)

    [n_text] = take(1, np.int64)
    starts = take(len(sizes), np.int64)
    indptr = take(sum(sizes[1:]) + len(sizes) - 1, np.int64)
    indices = take(starts[-1], np.int32)
    params = take(starts[-1] + sum(sizes[1:]), np.float32)
    model = SparseMLP.from_flat(
        sizes, starts, indptr, indices, params,
        activation=config.activation, alpha=config.alpha, init=config.init,
    )  # fmt: skip
    return model, json.loads(take(n_text, np.uint8).tobytes())
