"""The hyperparameters of a network and its training, checked when they are set."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from sparsecore.functions import ACTIVATIONS, INITIALIZERS


@dataclass(frozen=True)
class TrainConfig:
    """Hyperparameters of a network and its training.

    Parameters
    ----------
    hidden : tuple of int
        Neurons of each hidden layer.
    epsilon : float
        Sparsity of the Erdős–Rényi topology, positive.
    density : float or None
        Connection probability in (0, 1] of all layers instead of `epsilon`.
    activation : {"all-relu", "relu", "leaky-relu"}
    alpha : float
        Slope of All-ReLU and LeakyReLU.
    init : {"he_uniform", "xavier", "normal"}
    learning_rate : float
        Positive.
    momentum : float
        In [0, 1).
    weight_decay : float
        Decoupled, per step, in [0, 1).
    dropout : float
        Share of hidden activations dropped, in [0, 1).
    zeta : float
        Fraction of connections replaced after an epoch, in [0, 1); 0 keeps the topology.
    batch_size : int
    epochs : int
    prune_from : int or None
        First epoch (counted from 1) after which importance pruning may happen; None: never.
    prune_every : int
        Epochs between prunings.
    prune_percentile : float
        In [0, 100].
    augment : bool
        Train on shifted, rotated and flipped images where the data set has them.

    Raises
    ------
    ValueError
        If a value is out of its range; the message names it.
    """

    hidden: tuple[int, ...] = (1000, 1000, 1000)
    epsilon: float = 20.0
    density: float | None = None
    activation: str = "all-relu"
    alpha: float = 0.6
    init: str = "he_uniform"
    learning_rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 0.0002
    dropout: float = 0.3
    zeta: float = 0.3
    batch_size: int = 128
    epochs: int = 500
    prune_from: int | None = None
    prune_every: int = 10
    prune_percentile: float = 20.0
    augment: bool = False

    def __post_init__(self) -> None:
        """Check every value."""
        for name, value in vars(self).items():
            if isinstance(value, np.generic):  # JSON does not know NumPy's numbers
                object.__setattr__(self, name, value.item())
        for n in self.hidden:
            _require(_is_integer(n) and n >= 1, "hidden", self.hidden, "integers of at least 1")
        object.__setattr__(self, "hidden", tuple(map(int, self.hidden)))
        _require(
            _is_number(self.epsilon) and self.epsilon > 0,
            "epsilon",
            self.epsilon,
            "a positive number",
        )
        if self.density is not None:
            ok = _is_number(self.density) and 0 < self.density <= 1
            _require(ok, "density", self.density, "a number in (0, 1]")
        _require(
            self.activation in ACTIVATIONS,
            "activation",
            self.activation,
            f"one of {', '.join(ACTIVATIONS)}",
        )
        _require(self.init in INITIALIZERS, "init", self.init, f"one of {', '.join(INITIALIZERS)}")
        _require(_is_number(self.alpha), "alpha", self.alpha, "a finite number")
        ok = _is_number(self.learning_rate) and self.learning_rate > 0
        _require(ok, "learning_rate", self.learning_rate, "a positive number")
        for name in ("momentum", "weight_decay", "dropout", "zeta"):
            value = getattr(self, name)
            _require(_is_number(value) and 0 <= value < 1, name, value, "a number in [0, 1)")
        for name, least in (("batch_size", 1), ("epochs", 0), ("prune_every", 1)):
            value = getattr(self, name)
            _require(
                _is_integer(value) and value >= least,
                name,
                value,
                f"an integer of at least {least}",
            )
        if self.prune_from is not None:
            ok = _is_integer(self.prune_from) and self.prune_from >= 1
            _require(ok, "prune_from", self.prune_from, "an epoch of at least 1, or None")
        ok = _is_number(self.prune_percentile) and 0 <= self.prune_percentile <= 100
        _require(ok, "prune_percentile", self.prune_percentile, "a number in [0, 100]")

    def to_dict(self) -> dict[str, Any]:
        """Return the values as plain JSON types."""
        return {**asdict(self), "hidden": list(self.hidden)}

    def with_values(self, **changes: Any) -> TrainConfig:
        """Return a copy with some values changed, checked again."""
        return replace(self, **changes)

    def prunes_after(self, epoch: int) -> bool:
        """Tell whether importance pruning is due after `epoch` (counted from 1)."""
        if self.prune_from is None or epoch < self.prune_from or epoch >= self.epochs:
            return False
        return (epoch - self.prune_from) % self.prune_every == 0


def _require(ok: bool, name: str, value: Any, expected: str) -> None:
    if not ok:
        raise ValueError(f"{name}: expected {expected}, got {value!r}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.number)) and bool(np.isfinite(value))


def _is_integer(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)
