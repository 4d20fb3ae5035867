"""What studies look at while a network trains: additional entries for an epoch's record."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import partial
from typing import Any

import numpy as np

from sparsecore.bench import timed
from sparsecore.config import TrainConfig
from sparsecore.datasets import Dataset
from sparsecore.mlp import SparseMLP


class Observer(ABC):
    """Returns what is new in an epoch's record; `data` are raw, and epoch 0 is before training."""

    def __init__(self, config: TrainConfig, data: Dataset) -> None:
        self.config, self.data = config, data

    def __call__(self, model: SparseMLP, epoch: int) -> dict[str, Any]:
        """Return the entries, as JSON types."""
        return self._look(model) if self._due(epoch) else {}

    def _due(self, epoch: int) -> bool:
        """Tell whether it is epoch 0, 1, 2, 5, 10, 20, 50, … or the last."""
        return epoch in {0, self.config.epochs} | {k * 10**e for k in (1, 2, 5) for e in range(6)}

    @abstractmethod
    def _look(self, model: SparseMLP) -> dict[str, Any]: ...


class ObserveTopology(Observer):
    """Sees now and then how many neurons have 0, 1, 2, … connections, and input strengths."""

    def _look(self, model: SparseMLP) -> dict[str, Any]:
        layers = [model[layer] for layer in range(len(model))]
        return {
            "topology": {
                "fan_in": [np.bincount(layer.fan_in()).tolist() for layer in layers],
                "fan_out": [np.bincount(layer.fan_out()).tolist() for layer in layers],
                "input_strength": [float(f"{s:.4g}") for s in layers[0].input_strength()],
            }
        }


class ObserveGradientFlow(Observer):
    """Sees "gradient_flow" on the same 1000 training rows every epoch, without dropout."""

    def __init__(self, config: TrainConfig, data: Dataset) -> None:
        super().__init__(config, data)
        rows = data.limited(min(1000, len(data.y_train)))
        self._X, self._y = data.scaled(rows.X_train), rows.y_train

    def _due(self, epoch: int) -> bool:
        return True

    def _look(self, model: SparseMLP) -> dict[str, Any]:
        return {"gradient_flow": model.gradient_flow(self._X, self._y)}


class ObserveImportance(Observer):
    """Sees now and then the importance of connected hidden neurons, in bins to the largest."""

    _BINS = 40

    def _look(self, model: SparseMLP) -> dict[str, Any]:
        seen = []
        for layer in range(1, len(model)):
            values = model.importance(layer)[model[layer - 1].fan_in() > 0]
            largest = float(values.max(initial=0))
            counts, _ = np.histogram(values, self._BINS, range=(0, largest or 1.0))
            seen.append({"largest": largest, "counts": counts.tolist()})
        return {"importance": seen}


class ObservePruning(Observer):
    """Prunes copies of the trained model by importance, and compacts, tests and times them."""

    def _due(self, epoch: int) -> bool:
        return epoch >= self.config.epochs

    def _look(self, model: SparseMLP) -> dict[str, Any]:
        X, y = self.data.scaled(self.data.X_test), self.data.y_test
        found = []
        for percentile in (0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95):
            pruned = model.copy()
            pruned.velocity = None  # of no use after training, and the compact model has none
            pruned.prune(percentile)
            small = pruned.compact()
            predicted = pruned.predict(X)
            found.append({
                "percentile": percentile, "test_accuracy": float((predicted == y).mean()),
                "nnz": pruned.nnz, "nbytes": pruned.nbytes, "compact_sizes": list(small.sizes),
                "compact_nnz": small.nnz, "compact_nbytes": small.nbytes,
                "agreement": float((small.predict(X) == predicted).mean()),
                "seconds": _seconds(pruned, X[:1000]),
                "compact_seconds": _seconds(small, X[:1000]),
            })  # fmt: skip
        return {"post_pruning": found}


def _seconds(model: SparseMLP, X: np.ndarray) -> float:
    """Return the least of five times: what disturbs a measurement only ever adds to it."""
    return float(timed(partial(model.decision_function, X), 5).min())
