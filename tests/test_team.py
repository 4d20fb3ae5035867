"""The barrier: every size of team, members that come late, more members than cores."""

import os
import platform
import signal
import sys
import threading
import time
from concurrent.futures import Future

import numpy as np
import pytest
from numba import njit, types

from sparsecore.compiled import team as team_module
from sparsecore.compiled.team import Team, barrier, cpu_count

usleep = types.ExternalFunction("usleep", types.int32(types.uint32))


@njit(nogil=True)
def rounds(member, size, sync, slots, errors, n_rounds, late, n_sleeps):
    """Each round every member writes and reads all; what it reads must be of this round."""
    for r in range(n_rounds):
        if late and r % size == member and r < n_sleeps:
            usleep(2000)  # far longer than the others spin: they sleep in the kernel
        slots[16 * member] = r + 1
        barrier(sync, size)
        for other in range(size):
            if slots[16 * other] != r + 1:
                errors[16 * member] += 1
        barrier(sync, size)


@njit(nogil=True)
def wait_for_the_first(member, size, sync, microseconds):
    if member == 0:
        usleep(microseconds)
    barrier(sync, size)


def run_rounds(size, n_rounds, late=False, n_sleeps=0):
    slots, errors = np.zeros(16 * size, np.int64), np.zeros(16 * size, np.int64)
    with Team(size) as team:
        team.walk(rounds, slots, errors, n_rounds, late, n_sleeps)
        assert not team.sync[0], "nobody is left waiting"
    assert not errors.any()
    assert (slots[::16] == n_rounds).all()


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_no_member_passes_before_the_last_arrives(size):
    # With more members than cores this also takes the way through the kernel, thousands of times.
    run_rounds(size, 2000 if size <= cpu_count() else 300)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_members_that_sleep_are_woken(size):
    run_rounds(size, 40, late=True, n_sleeps=40)


def test_the_round_may_overflow():
    # The round is an int32 that wraps; a team that trains for days gets there.
    size, slots, errors = 2, np.zeros(32, np.int64), np.zeros(32, np.int64)
    with Team(size) as team:
        team.sync[16] = 2**31 - 5
        team.walk(rounds, slots, errors, 20, False, 0)
        assert team.sync[16] == -(2**31) + 35
    assert not errors.any()


@pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"),
    reason="members sleep in a Linux futex; elsewhere they yield",
)
def test_a_waiting_member_gives_its_core_up():
    size = 3
    with Team(size) as team:
        team.walk(wait_for_the_first, 10)  # compiled
        begin, wall = time.process_time(), time.perf_counter()
        team.walk(wait_for_the_first, 300_000)
        spent, wall = time.process_time() - begin, time.perf_counter() - wall
    assert wall >= 0.3
    # Two members that spun would spend the wait's length each where there is a core for them.
    assert spent < 0.1 * wall


def test_a_team_walks_through_many_programs():
    # Threads are handed from run to run; with barriers inside, all of them must be there each time.
    size = 4
    slots, errors = np.zeros(16 * size, np.int64), np.zeros(16 * size, np.int64)
    with Team(size) as team:
        for _ in range(100):
            team.walk(lambda *_: None)
            team.walk(rounds, slots, errors, 1, False, 0)
    assert not errors.any()


def test_every_member_runs_once_on_its_own_thread():
    seen = []
    with Team(3) as team:
        meet = threading.Barrier(3)

        def note(member, size, sync, word):
            meet.wait(10)
            seen.append((member, word, threading.get_ident()))

        team.walk(note, "x")
    assert sorted((m, w) for m, w, _ in seen) == [(0, "x"), (1, "x"), (2, "x")]
    assert len({thread for *_, thread in seen}) == 3
    assert threading.get_ident() not in {thread for *_, thread in seen}


def test_an_error_in_another_member_reaches_the_caller():
    def fail(member, *_):
        if member == 1:
            raise RuntimeError("member 1")

    with Team(2) as team, pytest.raises(RuntimeError, match="member 1"):
        team.walk(fail)


def test_an_interrupt_waits_for_the_members_and_leaves_the_team_fit_for_work(monkeypatch):
    slots, errors = np.zeros(32, np.int64), np.zeros(32, np.int64)
    with Team(2) as team:
        original, raised = Future.result, []

        def interrupted(self, timeout=None):
            if threading.current_thread() is threading.main_thread() and not raised:
                raised.append(True)
                while not slots.any():
                    time.sleep(0)
                raise KeyboardInterrupt
            return original(self, timeout)

        monkeypatch.setattr(Future, "result", interrupted)
        with pytest.raises(KeyboardInterrupt):
            team.walk(rounds, slots, errors, 2000, False, 0)
        assert (slots[::16] == 2000).all(), "nobody touches the arrays any more"
        team.walk(rounds, slots, errors, 3000, False, 0)
    assert (slots[::16] == 3000).all() and not errors.any()


def test_work_that_has_not_begun_when_an_interrupt_comes_never_begins(monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    seen = []
    with Team(2) as team:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(team._pool, "submit", interrupted)
            team.walk(lambda member, *_: seen.append(member))
        team.walk(lambda member, *_: seen.append(member))
    assert sorted(seen) == [0, 1]


def test_some_members_may_work_alone():
    seen = []
    with Team(3) as team:
        team.walk(lambda member, *_: seen.append((member, threading.get_ident())), members=1)
        assert seen == [(0, threading.get_ident())]
        team.walk(lambda member, *_: seen.append((member, 0)), members=2)
    assert sorted(seen[1:]) == [(0, 0), (1, 0)]


def test_closing_ends_the_threads():
    before = threading.active_count()
    team = Team(3)
    meet = threading.Barrier(3)
    team.walk(lambda *_: meet.wait(10))
    assert threading.active_count() == before + 3
    team.close()
    assert threading.active_count() == before


@pytest.mark.parametrize("size", [0, -1, 1.5, "2", None])
def test_a_team_has_a_whole_number_of_members(size):
    with pytest.raises(ValueError, match=r"threads: expected an integer of at least 1, got"):
        Team(size)


def test_threads_are_a_small_multiple_of_the_cpus():
    most = 8 * cpu_count()
    with pytest.raises(ValueError, match=f"threads: expected at most {most}, .* got 100000"):
        Team(100_000)
    Team(most).close()


@pytest.mark.parametrize("started", [0, 1, 3])
def test_threads_that_cannot_start_are_an_error_and_leave_none(started, monkeypatch):
    before, start = threading.active_count(), threading.Thread.start
    left = iter(range(started))

    def limited(thread):
        if next(left, None) is None:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    with pytest.raises(RuntimeError, match="threads: the system did not start 4"):
        Team(4)
    assert threading.active_count() == before


def test_a_second_interrupt_waits_for_the_members_too(monkeypatch):
    slots, errors = np.zeros(32, np.int64), np.zeros(32, np.int64)
    with Team(2) as team:
        left = [Future.result, team_module.wait]

        def interrupted(*args):
            while not slots.any():
                time.sleep(0)
            monkeypatch.setattr(Future, "result", left[0])
            raise KeyboardInterrupt

        def interrupted_again(futures):
            monkeypatch.setattr(team_module, "wait", left[1])
            raise KeyboardInterrupt

        monkeypatch.setattr(Future, "result", interrupted)
        monkeypatch.setattr(team_module, "wait", interrupted_again)
        with pytest.raises(KeyboardInterrupt):
            team.walk(rounds, slots, errors, 2000, False, 0)
        assert (slots[::16] == 2000).all() and team_module.wait is left[1]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_team_works_in_a_forked_child():
    slots, errors = np.zeros(32, np.int64), np.zeros(32, np.int64)
    with Team(2) as team:
        team.walk(rounds, slots, errors, 20, False, 0)
        child = os.fork()
        if not child:
            signal.alarm(30)  # instead of hanging
            team.walk(rounds, slots, errors, 40, False, 0)
            os._exit(0 if (slots[::16] == 40).all() and not errors.any() else 1)
        assert os.waitpid(child, 0)[1] == 0
        team.walk(rounds, slots, errors, 60, False, 0)
    assert (slots[::16] == 60).all() and not errors.any()
