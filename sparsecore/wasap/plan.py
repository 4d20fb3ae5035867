"""What a parallel run is told, and what it starts from: a fresh model or a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sparsecore import checkpoint
from sparsecore.config import TrainConfig
from sparsecore.datasets import Dataset
from sparsecore.mlp import SparseMLP
from sparsecore.wasap import record as records
from sparsecore.wasap.server import FIELDS, Record

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
    """

    algorithm: str = "wasap"
    phase1: float = 0.7
    warmup: int = 5

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


def about(data: Dataset, config: TrainConfig, plan: Plan, workers: int) -> dict[str, Any]:
    """Return the configuration of a parallel run as it stands in results and checkpoints."""
    return {
        "dataset": data.name,
        "n_train": len(data.y_train),
        **config.to_dict(),
        "algorithm": plan.algorithm,
        "workers": workers,
        "phase1": plan.phase1,
        "phase1_epochs": plan.phase1_epochs(config.epochs),
        "warmup": plan.warmup,
    }


@dataclass
class Start:
    """What a run starts from."""

    model: SparseMLP
    record: Record | None
    rows: np.ndarray
    elapsed: float
    nnz_start: int
    restarts: list[int]

    @classmethod
    def resumed(cls, path: Path, about: dict[str, Any], seed: int, data: str) -> Start:
        """Read a checkpoint of the same run."""
        model, state = checkpoint.load(path)
        expected = {"seed": seed, "config": about, "data": data}
        state = checkpoint.check_resumed(path, state, expected)
        record = None if state["record"] is None else records.from_json(state["record"])
        rows = records.decode(state["rows"])
        done = len(rows) // len(FIELDS) if record is None else len(record.worker)
        return cls(
            model, record, rows, state["elapsed"], state["nnz_start"], [*state["restarts"], done]
        )
