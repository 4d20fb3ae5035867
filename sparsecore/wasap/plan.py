"""How a run is parallel: the algorithm and its two phases."""

from __future__ import annotations

from dataclasses import dataclass

ALGORITHMS = ("wasap", "wassp")


@dataclass(frozen=True)
class Plan:
    """How a run is parallel.

    Parameters
    ----------
    algorithm : {"wasap", "wassp"}
        Asynchronous, or synchronous in lockstep.
    phase1 : float
        Share of the epochs in which the workers exchange gradients, in [0, 1].
    warmup : int
        Epochs over which WASSP's learning rate rises to `n_workers` times the configuration's.
    keep_rate : bool
        WASSP keeps that learning rate in phase 2, as the released code does.
    """

    algorithm: str = "wasap"
    phase1: float = 0.7
    warmup: int = 5
    keep_rate: bool = False

    def __post_init__(self) -> None:
        """Check every value."""
        if self.algorithm not in ALGORITHMS:
            raise ValueError(
                f"algorithm: expected one of {', '.join(ALGORITHMS)}, got {self.algorithm!r}"
            )
        if not 0 <= self.phase1 <= 1:
            raise ValueError(f"phase1: expected a share in [0, 1], got {self.phase1!r}")
        if self.warmup < 0:
            raise ValueError(f"warmup: expected epochs, at least 0, got {self.warmup!r}")

    def phase1_epochs(self, epochs: int) -> int:
        """Return how many of the epochs are phase 1, rounded half up."""
        return int(self.phase1 * epochs + 0.5)
