"""Interrupts (Ctrl-C) that come only where a rank can end together with the others.

An interrupt may reach the ranks of a cluster one after the other. When it reaches the later ones,
they are ending already, because the first has ended the run; torn out of that, they would leave the
others alone in a collective call that nothing ends. So a run holds interrupts back, and lets them
through where it also asks whether a rank has failed.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_came = threading.Event()


@contextmanager
def held_back() -> Iterator[None]:
    """Hold interrupts back until `let_through`, or the end; only the main thread has interrupts."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, lambda *_: _came.set()) or signal.SIG_DFL
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        let_through()


def let_through() -> None:
    """Raise `KeyboardInterrupt` if an interrupt was held back."""
    if _came.is_set():
        _came.clear()
        raise KeyboardInterrupt
