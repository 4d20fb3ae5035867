"""The hyperparameters of an extreme run."""

from dataclasses import MISSING, dataclass
from itertools import pairwise

from sparsecore.config import (  # isort: skip
    FINITE, FLAG, FRACTION, NOT_NEGATIVE, POSITIVE, check_values, hyperparameters, integers,
    param,
)  # fmt: skip

N_FEATURES, N_CLASSES = 65_536, 2


@dataclass(frozen=True)
class ExtremeConfig:
    """Hyperparameters of an extreme run.

    {parameters}

    Notes
    -----
    `zeta` is less than the study's 0.3, because the topology evolves after some steps, not after
    an epoch, and these steps must undo the noise that new connections bring to every layer. If
    `alpha` is large, the class is lost in the mean of deep layers. A layer that would be too dense
    also raises ValueError.
    """

    neurons: int = param(MISSING, integers(1), "hidden neurons in all layers together", metavar="N")
    hidden_layers: int = param(
        10, integers(1), "number of hidden layers, equally wide", metavar="N"
    )
    batch_size: int = param(4, integers(1), "samples per step, at most 64", metavar="N")
    steps: int = param(50, integers(1), "training steps", metavar="N")
    epsilon: float = param(
        2.5, POSITIVE, "Erdős–Rényi ε: between layers of one width a neuron has 2 ε inputs"
    )
    alpha: float = param(0.05, FINITE, "negative slope of All-ReLU")
    learning_rate: float = param(
        0.2, NOT_NEGATIVE, "step size η, divided by each layer's mean fan-in", metavar="ETA"
    )
    momentum: float = param(0.9, FRACTION, "share of the velocity kept", metavar="MU")
    weight_decay: float = param(2e-4, FRACTION, "decoupled decay λ, per step", metavar="LAMBDA")
    zeta: float = param(0.1, FRACTION, "fraction of connections that an evolution replaces")
    evolve_every: int = param(
        25, integers(1), "steps between evolutions; none after the last step", metavar="STEPS"
    )
    separation: float = param(
        1.0, NOT_NEGATIVE, "separation of the classes, in standard deviations of a feature"
    )
    frozen: bool = param(
        False, FLAG, "train the output layer alone, on hidden layers that stay random: a control"
    )
    held_out: int = param(100, integers(0), "samples to test with, 0 for none", metavar="N")

    def __post_init__(self) -> None:
        """Refuse values that no run can have."""
        check_values(self, HYPERPARAMETERS)
        at_least = f"an integer of at least {self.hidden_layers}, one per hidden layer"
        integers(self.hidden_layers, expected=at_least).check("neurons", self.neurons)
        from sparsecore.extreme import budget  # Numba takes a second, and --help does not need it

        budget.lanes_for(self.batch_size)
        budget.densities(self.sizes, self.epsilon)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Neurons per layer (features, hidden layers of equal size to within one, classes)."""
        ends = [self.neurons * n // self.hidden_layers for n in range(self.hidden_layers + 1)]
        return (N_FEATURES, *(b - a for a, b in pairwise(ends)), N_CLASSES)


HYPERPARAMETERS = hyperparameters(ExtremeConfig)
