"""Where a parallel run stands, told some times a second to whoever wants to show it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from sparsecore.wasap.place import TESTED
from sparsecore.wasap.plan import Plan
from sparsecore.wasap.server import FIELDS, ParameterServer

_SECONDS = 0.25  # between two reports
_RECENT = 200  # updates over which staleness is averaged


class Progress:
    """Calls `show`, unless it is None, with a dictionary of where the run stands.

    `n_samples` is the size of this worker's shard.
    """

    def __init__(
        self,
        show: Callable[[dict[str, Any]], None] | None,
        server: ParameterServer,
        plan: Plan,
        n_samples: int,
    ) -> None:
        self._show, self._server, self._plan, self._n_samples = show, server, plan, n_samples
        self._epochs = server.config.epochs
        self._phase1_epochs = plan.phase1_epochs(self._epochs)
        self._told = 0.0
        self._pace = server.elapsed(), server.ticket  # at the last report

    def phase1(self, updates: int) -> None:
        """Tell that so many updates are done."""
        if not self._due():
            return
        place = self._server.place
        tested, accuracy, staleness = int(place.fetch("control")[TESTED]), None, 0.0
        if tested:
            at = (tested - 1) * len(FIELDS) + FIELDS.index("test_accuracy")
            accuracy = float(place.fetch("epochs", at, at + 1)[0])
        if self._plan.algorithm == "wasap":
            recent = place.fetch("staleness", max(0, updates - _RECENT), updates)
            staleness = float(recent.mean())
        now, (then, before) = self._server.elapsed(), self._pace
        self._pace = now, updates
        pace = (updates - before) / (now - then) if now > then else 0.0
        self._tell(1, updates / self._server.updates_per_epoch, updates, accuracy, pace, staleness)

    def phase2(self, samples: int, own_epochs: list[dict[str, Any]]) -> None:
        """Tell that so many samples are done; `own_epochs` are the records of the epochs."""
        if not self._due():
            return
        accuracy = own_epochs[-1]["test_accuracy"] if own_epochs else None
        updates = self._server.updates_per_epoch * self._phase1_epochs
        self._tell(2, self._phase1_epochs + samples / self._n_samples, updates, accuracy)

    def _due(self) -> bool:
        now = time.perf_counter()
        if self._show is None or now - self._told < _SECONDS:
            return False
        self._told = now
        return True

    def _tell(
        self,
        phase: int,
        epoch: float,
        updates: int,
        accuracy: float | None,
        pace: float = 0.0,
        staleness: float = 0.0,
    ) -> None:
        assert self._show is not None
        self._show(
            {
                "algorithm": self._plan.algorithm,
                "workers": self._server.place.workers,
                "epochs": self._epochs,
                "elapsed": self._server.elapsed(),
                "phase": phase,
                "epoch": epoch,
                "updates": updates,
                "updates_per_second": pace,
                "test_accuracy": accuracy,
                "staleness": staleness,
            }
        )
