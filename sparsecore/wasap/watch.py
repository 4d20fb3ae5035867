"""The watchdog: a rank that hangs or fails is named, with the cause, within ten seconds.

1. Every rank has a thread, its watch, that looks around five times a second.
2. All ranks have rows in a window of memory (`ranks`). The watch raises the count in its own row,
   except while a step of the main thread takes much longer than any before.
3. A rank is lost if its process has ended, or its count stands still for longer than the patience.
4. The others poll where they wait, so they notice: they continue without it, or end with an error.
5. Some calls into MPI cannot poll; they run under `Watch.over`. If one lasts longer than the
   patience while a rank is in trouble, the watch says which and ends the process, and mpiexec the
   job.
6. When a rank is killed, mpiexec kills all within milliseconds; `witness` says which was first.
7. An interrupt (Ctrl-C) may reach the ranks one after the other. The later ones are ending already,
   because the first has ended the run; interrupted then, they would leave the others in a call
   that never returns. So `wasap.run` and a cluster's engines hold interrupts back, and let them
   through where they poll. On the command line an interrupt ends its process; the other ranks end
   where they poll, or their watches end them (5).
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import psutil

LOOK = 0.2  # seconds between looks
PATIENCE = 5.0  # seconds of silence after which a rank counts as lost

_TROUBLE = {"zombie": "gone", "dead": "gone", "stopped": "stopped", "tracing-stop": "stopped"}


class ParallelError(RuntimeError):
    """A parallel run that cannot continue; the message names the rank and the cause."""


class NotStarted(ParallelError):  # noqa: N818 (named for what happened)
    """A run that one of its ranks could not start."""


def trouble(pid: int) -> str | None:
    """Return "gone" or "stopped" if a process on this machine is; None if not, or if unknown."""
    try:
        return _TROUBLE.get(psutil.Process(pid).status())
    except psutil.NoSuchProcess:
        return "gone"
    except psutil.Error:
        return None


class Watch:
    """A thread that looks around until it is closed; `look` returns which rank is in trouble."""

    def __init__(self, look: Callable[[], str | None], patience: float) -> None:
        self._look, self._patience = look, patience
        self.last_words: Callable[[], str] = str  # appended to the cause
        self._over, self._since = "", time.monotonic()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop looking."""
        self._closed.set()
        self._thread.join()

    @contextmanager
    def over(self, call: str) -> Iterator[None]:
        """Watch over a call that may never return because a rank hangs."""
        self._since, self._over = time.monotonic(), call
        try:
            yield
        finally:
            self._over = ""

    def _run(self) -> None:
        while not self._closed.wait(LOOK):
            who, over = self._look(), self._over
            if who and over and time.monotonic() - self._since > self._patience:
                self.end_process(f"{over} does not return: {who}")

    def end_process(self, cause: str) -> NoReturn:
        """Print the cause and end the process at once; mpiexec then ends the job."""
        try:
            told = f"sparsecore: {cause}{self.last_words()}\n"  # in one piece: others print, too
            print(told, end="", file=sys.stderr, flush=True)
        finally:
            os._exit(1)


_interrupted = threading.Event()


@contextmanager
def handled(number: int, handler: Callable[..., Any]) -> Iterator[None]:
    """Let `handler` handle a signal in this block; only the main thread handles signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(number, handler) or signal.SIG_DFL
    try:
        yield
    finally:
        signal.signal(number, before)


@contextmanager
def interrupts_held_back() -> Iterator[None]:
    """Hold interrupts back until they are let through."""
    try:
        with handled(signal.SIGINT, lambda *_: _interrupted.set()):
            yield
    finally:
        let_interrupt_through()


@contextmanager
def interruptible() -> Iterator[None]:
    """Let interrupts come at once in this block, which must not use MPI."""
    let_interrupt_through()
    with handled(signal.SIGINT, signal.default_int_handler):
        yield


def let_interrupt_through() -> None:
    """Raise `KeyboardInterrupt` in the main thread, if an interrupt was held back."""
    if _interrupted.is_set() and threading.current_thread() is threading.main_thread():
        _interrupted.clear()
        raise KeyboardInterrupt
