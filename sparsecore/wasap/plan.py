"""The plan of a parallel run: the algorithm and its two phases."""

from dataclasses import dataclass

import numpy as np

from sparsecore.config import (  # isort: skip
    FLAG, TrainConfig, check_values, hyperparameters, integers, names, numbers, param,
)  # fmt: skip

ALGORITHMS = ("wasap", "wassp")
_SHARE = numbers("a number in [0, 1]", lambda v: 0 <= v <= 1)


@dataclass(frozen=True)
class Plan:
    """The parallel algorithm of a run and its parameters.

    {parameters}
    """

    algorithm: str = param("wasap", names(ALGORITHMS), "asynchronous, or synchronous in lockstep")
    phase1: float = param(
        0.7, _SHARE, "share of the epochs in which workers exchange updates", metavar="SHARE"
    )
    warmup: int = param(
        5, integers(0), "epochs over which the learning rate rises to K times its value (K "
        "workers), with WASSP or local steps", metavar="EPOCHS",
    )  # fmt: skip
    local_steps: int = param(
        1, integers(1), "momentum steps that a worker takes on its own copy between two exchanges",
        metavar="H",
    )  # fmt: skip
    keep_rate: bool = param(
        False, FLAG, "keep the learning rate K-fold in phase 2, as the released code does for WASSP"
    )

    def __post_init__(self) -> None:
        """Check every value."""
        check_values(self, HYPERPARAMETERS)
        if self.keep_rate and self.algorithm == "wasap" and self.local_steps == 1:
            expected = "False: WASAP without local steps has no K-fold rate to keep"
            raise ValueError(f"keep_rate: expected {expected}; got True")

    def phase1_epochs(self, epochs: int) -> int:
        """Return the number of epochs in phase 1, rounded half up."""
        return int(self.phase1 * epochs + 0.5)

    def updates(self, samples: int, config: TrainConfig) -> int:
        """Return how many updates a worker makes from `samples`; the last may use fewer."""
        return -(-samples // (config.batch_size * self.local_steps))

    def learning_rate(
        self, config: TrainConfig, n_workers: int, step: int, steps: int
    ) -> np.float32:
        """Return the learning rate of a step in phase 1, counted from 0; an epoch has `steps`."""
        # The average of K workers moves K times as slowly (Goyal et al., 2017).
        rise = self.warmup * steps
        share = min(1.0, (step + 1) / rise) if rise else 1.0
        return np.float32(config.learning_rate * (1 + (n_workers - 1) * share))


HYPERPARAMETERS = hyperparameters(Plan)
