"""How a run is parallel: the algorithm and its two phases."""

from __future__ import annotations

from dataclasses import dataclass

from sparsecore.config import FLAG, hyperparameters, integers, names, numbers, param

ALGORITHMS = ("wasap", "wassp")
_SHARE = numbers("a share in [0, 1]", lambda v: 0 <= v <= 1)


@dataclass(frozen=True)
class Plan:
    """How a run is parallel.

    Parameters
    ----------
    {parameters}
    """

    algorithm: str = param("wasap", names(ALGORITHMS), "asynchronous, or synchronous in lockstep")
    phase1: float = param(0.7, _SHARE, "part of the epochs in which workers exchange gradients")
    warmup: int = param(5, integers(0), "epochs over which WASSP's rate rises to `n_workers`-fold")
    local_steps: int = param(
        1, integers(1), "momentum steps that a worker takes on its own copy between two exchanges"
    )
    keep_rate: bool = param(False, FLAG, "WASSP keeps that rate in phase 2, as the released code")

    def __post_init__(self) -> None:
        """Check every value."""
        for name, about in _PARAMETERS.items():
            about.check(getattr(self, name))

    def phase1_epochs(self, epochs: int) -> int:
        """Return how many of the epochs are phase 1, rounded half up."""
        return int(self.phase1 * epochs + 0.5)


_PARAMETERS = hyperparameters(Plan)
