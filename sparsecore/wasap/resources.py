"""CPU and memory of this process over time, sampled by a thread."""

from __future__ import annotations

import threading
import time
from typing import Any

import psutil

_SAMPLES = 400  # when there are more, every other one is dropped and sampling slows down


class Resources:
    """Takes samples until the block ends, at first every `interval` seconds."""

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
