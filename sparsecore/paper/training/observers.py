"""Observers of a network while it trains: they add entries to an epoch's record.

Each function makes the observer of a run, from the run's configuration and raw data. The observer
sees the network after each epoch; epoch 0 is before training.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from sparsecore.bench import timed
from sparsecore.config import TrainConfig
from sparsecore.datasets import Dataset
from sparsecore.experiment import Observer
from sparsecore.mlp import SparseMLP

Make = Callable[[TrainConfig, Dataset], Observer]

_BINS = 40  # of a histogram of importance


def _now_and_then(look: Callable[[SparseMLP], dict[str, Any]]) -> Make:
    """Make the observer look at epochs 0, 1, 2, 5, 10, 20, 50, … and at the last."""

    def make(config: TrainConfig, data: Dataset) -> Observer:
        due = {0, config.epochs} | {k * 10**e for k in (1, 2, 5) for e in range(6)}
        return lambda model, epoch: look(model) if epoch in due else {}

    return make


@_now_and_then
def observe_topology(model: SparseMLP) -> dict[str, Any]:
    """Record now and then how many neurons have 0, 1, 2, … connections, and input strengths."""
    return {
        "topology": {
            "fan_in": [np.bincount(layer.fan_in()).tolist() for layer in model],
            "fan_out": [np.bincount(layer.fan_out()).tolist() for layer in model],
            "input_strength": [float(f"{s:.4g}") for s in model[0].input_strength()],
        }
    }


def observe_gradient_flow(config: TrainConfig, data: Dataset) -> Observer:
    """Record "gradient_flow" on the same 1000 training rows every epoch, without dropout."""
    rows = data.limited(min(1000, len(data.y_train)))
    X, y = data.scaled(rows.X_train), rows.y_train
    return lambda model, epoch: {"gradient_flow": model.gradient_flow(X, y)}


@_now_and_then
def observe_importance(model: SparseMLP) -> dict[str, Any]:
    """Record now and then a histogram of the importance of connected hidden neurons."""
    seen = []
    for layer in range(1, len(model)):
        values = model.importance(layer)[model[layer - 1].fan_in() > 0]
        largest = float(values.max(initial=0))
        counts, _ = np.histogram(values, _BINS, range=(0, largest or 1.0))
        seen.append({"largest": largest, "counts": counts.tolist()})
    return {"importance": seen}


def observe_pruning(config: TrainConfig, data: Dataset) -> Observer:
    """Prune copies of the trained model by importance, and compact, test and time them."""

    def see(model: SparseMLP, epoch: int) -> dict[str, Any]:
        if epoch < config.epochs:
            return {}
        X, y = data.scaled(data.X_test), data.y_test
        found = []
        for percentile in (0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95):
            pruned = model.copy()
            pruned.velocity = None  # of no use after training, and the compact model has none
            pruned.prune(percentile)
            small = pruned.compact()
            found.append({
                "percentile": percentile, "test_accuracy": float((pruned.predict(X) == y).mean()),
                "nnz": pruned.nnz, "nbytes": pruned.nbytes, "compact_nbytes": small.nbytes,
                "seconds": _seconds(pruned, X[:1000]),
                "compact_seconds": _seconds(small, X[:1000]),
            })  # fmt: skip
        return {"post_pruning": found}

    return see


def _seconds(model: SparseMLP, X: np.ndarray) -> float:
    """Return the least of five times: disturbances only make a measurement longer."""
    return float(timed(partial(model.decision_function, X), 5).min())
