"""A team of threads that walk through one jitted program together, and a test that it pays.

A waiting member spins for some microseconds, because the others usually arrive soon, and then
sleeps in the kernel (a futex), so that another process can have its core. Numba's own ``prange``
costs 30 ms per barrier on a busy machine.
"""

import os
import platform
import sys
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from statistics import median
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from sparsecore.compiled.arrays import Closing, Fixed
from sparsecore.compiled.jit import jit
from sparsecore.compiled.lanes import call
from sparsecore.limits import cpu_count

PARTS = 8  # of a member's share of a phase; others may take a part that it has not begun
_MOST_PER_CPU = 8  # threads that share a CPU only wait for each other
_SPINS = 300  # about 10 microseconds, more than a part takes
# Linux's system call futex (0: there is none), to wait and to wake within this process.
_FUTEX = {"x86_64": 202, "aarch64": 98}.get(platform.machine(), 0) * (sys.platform == "linux")
_WAIT_PRIVATE, _WAKE_PRIVATE = 128, 129
_EVERYONE = 2**31 - 1
_LINE = 16  # int32 of a cache line: each counter has one to itself
_ARRIVED, _ROUND, _TAKEN = 0, _LINE, 2 * _LINE
# Starting the members takes 0.2 ms, so turns are long; a trial of one member alone is shorter.
_TURN_SECONDS, _ALONE_SECONDS = 64e-3, 16e-3
_LAST = 5  # turns whose median is the speed: one that was interrupted does not count
# Turns between trials: at first, enough for a median that ignores a cold start; in the end, eight
# seconds.
_FIRST_WAIT, _LONGEST_WAIT = 4, 128
# Turns of a team's trial: the system may start its members on one core, and takes up to a tenth of
# a second to move them apart and to speed them up.
_TEAM_TRIAL = 3

_i64, _ptr = types.int64, types.intp
_syscall = types.ExternalFunction("syscall", _i64(_i64, _ptr, _i64, _i64, _ptr, _ptr, _i64))
_sched_yield = types.ExternalFunction("sched_yield", types.int32())


def checked_size(size: int) -> int:
    """Return a number of threads; refuse one that no team can have."""
    if not isinstance(size, (int, np.integer)) or size < 1:
        raise ValueError(f"threads: expected an integer of at least 1, got {size!r}")
    if size > _MOST_PER_CPU and size > (most := _MOST_PER_CPU * cpu_count()):
        each = f"{_MOST_PER_CPU} for each CPU that this process may use"
        raise ValueError(f"threads: expected at most {most}, {each}, got {size}")
    return int(size)


class Team(Fixed, Closing):
    """Threads that run jitted functions side by side; `sync` is for `barrier` and `claimed`."""

    FIXED = ("size", "sync")

    def __init__(self, size: int) -> None:
        self.size = checked_size(size)
        self.sync = np.zeros((2 + self.size) * _LINE, np.int32)
        self._start()

    def _start(self) -> None:
        """Start all threads."""
        # Later, a pool starts a thread only if it believes that none is idle. It may be wrong;
        # then members would wait forever for a thread never started.
        pool, everyone = ThreadPoolExecutor(self.size, "sparsecore"), threading.Barrier(self.size)
        try:
            if self.size > 1:
                wait([pool.submit(everyone.wait) for _ in range(self.size)])
        except BaseException as error:
            everyone.abort()  # those that have started would wait for the others
            pool.shutdown(cancel_futures=True)
            if isinstance(error, RuntimeError) and "start" in str(error):
                raise RuntimeError(
                    f"threads: the system did not start {self.size} ({error}); use fewer, or "
                    "raise its limit (ulimit -u, or pids.max of a control group)"
                ) from error
            raise
        self.sync[:] = 0
        self._pool, self._process = pool, os.getpid()

    def walk(self, function: Callable[..., Any], *args: Any, members: int | None = None) -> None:
        """Call ``function(member, members, sync, *args)`` on all or `members` threads; wait."""
        # The function is jitted with ``nogil=True``; it must not raise between two barriers.
        members = self.size if members is None else members
        args = members, self.sync, *args
        if members == 1:
            function(0, *args)
            return
        if self._process != os.getpid():  # a forked child has no threads of its parent
            self._start()
        # Another thread starts the members. An interrupt (Ctrl-C) comes to the main thread, and if
        # it came between two members, the first would wait for the other forever.
        outcome: Future[None] = Future()
        try:
            self._pool.submit(self._lead, outcome, members, function, args)
            outcome.result()
        finally:
            # However this ends, even by a second interrupt, no thread still works on the arrays.
            while not outcome.done() and not outcome.cancel():
                with suppress(KeyboardInterrupt):
                    wait([outcome])

    def _lead(self, outcome: Future[None], members: int, function: Any, args: Any) -> None:
        """Start the other members, be member 0, and settle `outcome` when all have returned."""
        if not outcome.set_running_or_notify_cancel():
            return
        try:
            others = [self._pool.submit(function, member, *args) for member in range(1, members)]
            try:
                function(0, *args)
            finally:
                wait(others)
            for other in others:
                other.result()
        except BaseException as error:
            outcome.set_exception(error)
        else:
            outcome.set_result(None)

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()


class Governor:
    """Chooses, turn by turn, whether the whole team works or its first member alone: `members`."""

    # Another process may want a core, or passing data between cores may cost more than their help
    # is worth: no rule predicts it. So now and then the other choice is tried, and kept if it was
    # faster. Trials that fail become rare: of a team that takes 1.5, 2 or 4 times as long they cost
    # 1, 2 or 7 %. Rarer ones would find out too late that the cores are free again.

    def __init__(self, size: int) -> None:
        self.size = self.members = size
        self._seconds: deque[float] = deque(maxlen=_LAST)  # per unit of work, in its turns
        self._wait = self._left = _FIRST_WAIT  # turns until the next trial
        self._trial = 0  # turns left of a trial

    def units(self, most: int) -> int:
        """Return how many units of work the coming turn should take, at most `most`."""
        if self.size == 1 or not most:
            return most
        if not self._seconds:
            return 1
        length = _ALONE_SECONDS if self._trial and self.members == 1 else _TURN_SECONDS
        # Turns are equal: a short one at the end would spend more time on its start than on work.
        turns = max(1, round(most * median(self._seconds) / length))
        return -(-most // turns) if turns < most else 1

    def took(self, seconds: float) -> None:
        """Note how long a unit of the turn took, in seconds, and choose for the next turn."""
        if not self._trial:
            self._seconds.append(seconds)
            self._left -= 1
            if self._left <= 0:
                self.members = self._other()
                self._trial = 1 if self.members == 1 else _TEAM_TRIAL
            return
        self._trial -= 1
        if seconds < median(self._seconds):
            self._trial = 0
            self._seconds.clear()
            self._seconds.append(seconds)
            self._wait = self._left = _FIRST_WAIT
        elif not self._trial:
            self.members = self._other()
            self._wait = self._left = min(2 * self._wait, _LONGEST_WAIT)

    def _other(self) -> int:
        return 1 if self.members == self.size else self.size


@intrinsic
def _fetch_add(typingctx, counters, index, value):
    signature = types.int32(types.Array(types.int32, 1, "C"), types.intp, types.int32)

    def codegen(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        pointer = builder.gep(data, [args[1]])
        return builder.atomic_rmw("add", pointer, args[2], ordering="seq_cst")

    return signature, codegen


@intrinsic
def _read(typingctx, counters, index):
    signature = types.int32(types.Array(types.int32, 1, "C"), types.intp)

    def codegen(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.load_atomic(builder.gep(data, [args[1]]), ordering="seq_cst", align=4)

    return signature, codegen


@intrinsic
def _pause(typingctx):
    """Tell the CPU that this is a waiting loop."""

    def codegen(context, builder, signature, args):
        if platform.machine() in ("x86_64", "AMD64"):
            call(builder, "llvm.x86.sse2.pause", ir.VoidType(), [])
        return context.get_dummy_value()

    return types.void(), codegen


@jit(inner=True)
def barrier(sync, size):
    """Return once all `size` members have called it; a new phase begins, with nothing taken."""
    if size == 1:
        sync[_TAKEN] = 0
        return
    # The round is read before arriving: the last to arrive may end it at once.
    current = _read(sync, _ROUND)
    if _fetch_add(sync, _ARRIVED, 1) == size - 1:
        for owner in range(size):
            sync[_TAKEN + _LINE * owner] = 0
        _fetch_add(sync, _ARRIVED, -size)
        _fetch_add(sync, _ROUND, 1)
        if _FUTEX:
            _syscall(_FUTEX, sync.ctypes.data + 4 * _ROUND, _WAKE_PRIVATE, _EVERYONE, 0, 0, 0)
        return
    spins = 0
    while _read(sync, _ROUND) == current:
        spins += 1
        if spins < _SPINS:
            _pause()
        elif _FUTEX:
            _syscall(_FUTEX, sync.ctypes.data + 4 * _ROUND, _WAIT_PRIVATE, current, 0, 0, 0)
        else:
            _sched_yield()


@jit(keep=False)  # Numba cannot load a generator from a cache; its callers' code has it
def claimed(sync, size, member):
    """Yield parts of a phase that nobody has taken yet; end when all members are done."""
    # A member takes its own parts first, in order, as its cache has their rows; then it helps the
    # others, who may have lost a core to another process.
    for turn in range(size):
        owner = (member + turn) % size
        counter = _TAKEN + _LINE * owner
        while _read(sync, counter) < PARTS:
            part = _fetch_add(sync, counter, 1)
            if part < PARTS:
                yield owner * PARTS + part
    barrier(sync, size)


@jit(keep=False)
def shares(sync, size, member, first, stop):
    """Yield ranges that share [first, stop) among the members; end when all members are done."""
    n, parts = stop - first, size * PARTS
    for part in claimed(sync, size, member):
        yield range(first + n * part // parts, first + n * (part + 1) // parts)
