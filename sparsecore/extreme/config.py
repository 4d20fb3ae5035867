"""The hyperparameters of an extreme run: default, range and help, once for library and command."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field, fields
from itertools import pairwise
from typing import Any

import numpy as np

from sparsecore.extreme.data import N_CLASSES, N_FEATURES


def _whole(default: Any, least: int, text: str, metavar: str = "N") -> Any:
    """Declare a whole number: its default, least value, and help on the command line."""
    return field(default=default, metadata={"least": least, "help": text, "metavar": metavar})


def _real(
    default: float, text: str, span: tuple[float, float] | None = None, metavar: str | None = None
) -> Any:
    """Declare a number: its default, help, and the range [low, high) if it is checked here."""
    return field(default=default, metadata={"span": span, "help": text, "metavar": metavar})


@dataclass(frozen=True)
class ExtremeConfig:
    """What an extreme run trains, and how.

    Parameters
    ----------
    neurons : int
        Hidden neurons in all, at least `hidden_layers`.
    hidden_layers : int
        They share the neurons equally, to within one.
    batch_size : int
        Samples per step, 1 to 64.
    steps : int
    epsilon : float
        Erdős–Rényi sparsity, positive; between layers of equal width a neuron has 2 ε inputs.
    alpha : float
        Negative slope of All-ReLU. If it is large, the class is lost in the mean of deep layers.
    learning_rate : float
        Of a neuron with one input: it is divided by each layer's mean fan-in.
    momentum : float
        In [0, 1).
    weight_decay : float
        Decoupled, per step, in [0, 1).
    zeta : float
        Fraction of connections that an evolution replaces, in [0, 1). It is less than the study's
        0.3, because an evolution comes after some steps and not after an epoch, and the steps have
        to undo the noise that new connections bring to every layer.
    evolve_every : int
        Steps between evolutions; there is none after the last step.
    separation : float
        Distance of the classes, in standard deviations of a feature.
    held_out : int
        Samples of the test; 0 for none.

    Raises
    ------
    ValueError
        If a value is out of its range, or a layer would be too dense; the message says which.
    """

    neurons: int = _whole(MISSING, 1, "hidden neurons, such as 2e8")
    hidden_layers: int = _whole(10, 1, "that share them equally")
    batch_size: int = _whole(4, 1, "samples a step, 1 to 64")
    steps: int = _whole(50, 1, "")
    epsilon: float = _real(
        2.5, "Erdős–Rényi sparsity, > 0; between layers of one width a neuron has 2 ε inputs"
    )
    alpha: float = _real(0.05, "negative slope of All-ReLU", (-np.inf, np.inf))
    learning_rate: float = _real(
        0.2, ">= 0, divided by each layer's mean fan-in", (0, np.inf), "ETA"
    )
    momentum: float = _real(0.9, "in [0, 1)", (0, 1), "MU")
    weight_decay: float = _real(2e-4, "per step, in [0, 1)", (0, 1), "LAMBDA")
    zeta: float = _real(0.1, "fraction of connections that an evolution replaces", (0, 1))
    evolve_every: int = _whole(25, 1, "steps between evolutions", "STEPS")
    separation: float = _real(1.0, "of the classes, in standard deviations", (0, np.inf))
    held_out: int = _whole(100, 0, "samples to test with, 0 for none")

    def __post_init__(self) -> None:
        """Refuse values that no run can have."""
        for name, facts in ((each.name, each.metadata) for each in fields(self)):
            value = getattr(self, name)
            if "least" in facts:
                least = self.hidden_layers if name == "neurons" else facts["least"]
                if not isinstance(value, (int, np.integer)) or value < least:
                    raise ValueError(
                        f"{name}: expected an integer of at least {least}, got {value!r}"
                    )
            elif facts["span"] is not None:
                low, high = facts["span"]
                if not (np.isfinite(value) and low <= value < high):
                    raise ValueError(f"{name}: expected a number in [{low}, {high}), got {value!r}")
        from sparsecore.extreme import budget  # Numba takes a second, and --help does not need it

        budget.lane_width(self.batch_size)
        budget.densities(self.sizes, self.epsilon)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Neurons per layer: features, hidden layers of equal size to within one, classes."""
        ends = [self.neurons * n // self.hidden_layers for n in range(self.hidden_layers + 1)]
        return (N_FEATURES, *(b - a for a, b in pairwise(ends)), N_CLASSES)

    def evolves_after(self, step: int) -> bool:
        """Tell whether the topology evolves after `step`, counted from 1."""
        return self.zeta > 0 and step % self.evolve_every == 0 and step < self.steps
