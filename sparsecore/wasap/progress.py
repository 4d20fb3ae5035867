"""What is seen of a run while it lasts: where it stands, and what each process uses."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import psutil

from sparsecore.wasap.place import TESTED
from sparsecore.wasap.plan import Plan
from sparsecore.wasap.server import FIELDS, ParameterServer

_SECONDS = 0.25  # between two reports
_RECENT = 200  # updates over which staleness is averaged
_SAMPLES = 400  # when there are more, every other one is dropped and sampling slows down


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
        self._phase1_epochs = plan.phase1_epochs(server.config.epochs)
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
        epoch = updates / self._server.updates_per_epoch
        self._tell(1, epoch, updates, accuracy, updates_per_second=pace, staleness=staleness)

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
        self, phase: int, epoch: float, updates: int, accuracy: float | None, **pace: float
    ) -> None:
        assert self._show is not None
        about = {
            "algorithm": self._plan.algorithm, "workers": self._server.place.workers,
            "epochs": self._server.config.epochs, "elapsed": self._server.elapsed(),
        }  # fmt: skip
        now = {"phase": phase, "epoch": epoch, "updates": updates, "test_accuracy": accuracy}
        self._show({**about, **now, "updates_per_second": 0.0, "staleness": 0.0, **pace})


class Resources:
    """Samples CPU and memory of this process until the block ends, at first every `interval` s."""

    def __init__(self, interval: float = 0.1) -> None:
        self._interval = interval
        self._rows: list[tuple[float, float, float]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="resources", daemon=True)

    def _sample(self) -> None:
        process, start = psutil.Process(), time.perf_counter()
        process.cpu_percent()
        while not self._stop.wait(self._interval):
            now = time.perf_counter() - start
            self._rows.append((now, process.cpu_percent(), process.memory_info().rss / 2**20))
            if len(self._rows) > _SAMPLES:
                del self._rows[::2]
                self._interval *= 2

    def __enter__(self) -> Resources:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        self._thread.join()

    def to_dict(self) -> dict[str, Any]:
        """Return "seconds", "cpu_percent" (of one core) and "rss_mb" as lists."""
        rows = list(self._rows)
        return {
            "seconds": [round(r[0], 2) for r in rows],
            "cpu_percent": [round(r[1], 1) for r in rows],
            "rss_mb": [round(r[2], 1) for r in rows],
        }
