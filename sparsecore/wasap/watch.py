"""A thread that looks around while the main thread computes, or waits inside MPI.

A call into MPI cannot be interrupted. If it needs a rank that hangs, only another thread can say so
and end the process; mpiexec then ends the job.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LOOK = 0.2  # seconds between looks
PATIENCE = 5.0  # seconds of silence after which a rank counts as lost


class Watch:
    """Looks around some times a second, from `start` to `end`.

    Parameters
    ----------
    look : callable
        Returns which rank is in trouble, or None.
    patience : float
        Seconds that the main thread may be held up while a rank is in trouble.

    Attributes
    ----------
    last_words : callable
        Called before the process is ended; returns what is appended to the cause.
    """

    def __init__(self, look: Callable[[], str | None], patience: float) -> None:
        self._look, self._patience = look, patience
        self.last_words: Callable[[], str] = str
        self._since: float | None = None
        self._what = ""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def end(self) -> None:
        """Look no more."""
        self._ended.set()
        self._thread.join()

    @contextmanager
    def over(self, what: str) -> Iterator[None]:
        """Watch over a call that may never return because a rank hangs."""
        self._what, self._since = what, time.monotonic()
        try:
            yield
        finally:
            self._since = None

    def _run(self) -> None:
        while not self._ended.wait(LOOK):
            trouble, since = self._look(), self._since
            if trouble and since is not None and time.monotonic() - since > self._patience:
                self.end_process(f"{self._what} does not end: {trouble}")

    def end_process(self, cause: str) -> None:
        """Say why, and end the process whatever the main thread does."""
        print(f"sparsecore: {cause}{self.last_words()}", file=sys.stderr, flush=True)
        os._exit(1)
