"""What is seen of a run while it lasts: where it stands, and what each process uses."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import psutil

from sparsecore.wasap.server import TESTED, ParameterServer

_SECONDS = 0.25  # between two reports
_RECENT = 200  # updates over which staleness is averaged
_SAMPLES = 400  # when there are more, every other one is dropped and sampling slows down


class Progress:
    """Calls `show`, unless it is None, with a dictionary of where the run stands."""

    def __init__(
        self,
        show: Callable[[dict[str, Any]], None] | None,
        server: ParameterServer,
        about: dict[str, Any],
    ) -> None:
        self._show, self._server = show, server
        self._about = {name: about[name] for name in ("algorithm", "workers", "epochs")}
        self._told = 0.0
        self._pace = server.elapsed(), server.ticket  # at the last report

    def __call__(
        self, phase: int, epoch: float, updates: int, accuracies: Sequence[float] = ()
    ) -> None:
        """Tell that so many are done, if it is time; the last of `accuracies` is the last test's.

        In phase 1 the server has the tests.
        """
        now = time.perf_counter()
        if self._show is None or now - self._told < _SECONDS:
            return
        self._told, place = now, self._server.place
        pace = staleness = 0.0
        if phase == 1:
            if tested := int(place.fetch("control")[TESTED]):
                accuracies = place.fetch("epochs", tested - 1, tested)[:, -1].tolist()
            recent = place.fetch("staleness", max(0, updates - _RECENT), updates)
            staleness = float(recent.mean()) if len(recent) else 0.0
            now, (then, before) = self._server.elapsed(), self._pace
            self._pace = now, updates
            pace = (updates - before) / (now - then) if now > then else 0.0
        self._show(
            {
                **self._about, "elapsed": self._server.elapsed(), "phase": phase, "epoch": epoch,
                "updates": updates, "test_accuracy": accuracies[-1] if accuracies else None,
                "updates_per_second": pace, "staleness": staleness,
            }
        )  # fmt: skip


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
