"""Where a parallel run stands, told some times a second to whoever wants to show it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from sparsecore.config import TrainConfig
from sparsecore.wasap.place import TESTED
from sparsecore.wasap.plan import Plan
from sparsecore.wasap.server import FIELDS, ParameterServer

_SECONDS = 0.25  # between two reports
_RECENT = 200  # updates over which staleness is averaged


class Progress:
    """Tells where a run stands.

    Parameters
    ----------
    show : callable or None
        Called with a dictionary; None: nothing is told.
    server : ParameterServer
    config : TrainConfig
    plan : Plan
    phase1_epochs : int
    n_samples : int
        Of this worker's shard.
    """

    def __init__(
        self,
        show: Callable[[dict[str, Any]], None] | None,
        server: ParameterServer,
        config: TrainConfig,
        plan: Plan,
        phase1_epochs: int,
        n_samples: int,
    ) -> None:
        self._show, self._server, self._plan = show, server, plan
        self._epochs, self._phase1_epochs, self._n_samples = config.epochs, phase1_epochs, n_samples
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
        self._tell(
            phase=1,
            epoch=updates / self._server.updates_per_epoch,
            updates=updates,
            updates_per_second=(updates - before) / (now - then) if now > then else 0.0,
            test_accuracy=accuracy,
            staleness=staleness,
        )

    def phase2(self, samples: int, own_epochs: list[dict[str, Any]]) -> None:
        """Tell that so many samples are done; `own_epochs` are the records of the epochs."""
        if not self._due():
            return
        self._tell(
            phase=2,
            epoch=self._phase1_epochs + samples / self._n_samples,
            updates=self._server.updates_per_epoch * self._phase1_epochs,
            updates_per_second=0.0,
            test_accuracy=own_epochs[-1]["test_accuracy"] if own_epochs else None,
            staleness=0.0,
        )

    def _due(self) -> bool:
        now = time.perf_counter()
        if self._show is None or now - self._told < _SECONDS:
            return False
        self._told = now
        return True

    def _tell(self, **state: Any) -> None:
        assert self._show is not None
        self._show(
            {
                "algorithm": self._plan.algorithm,
                "workers": self._server.place.workers,
                "epochs": self._epochs,
                "elapsed": self._server.elapsed(),
                **state,
            }
        )
