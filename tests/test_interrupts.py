"""An interrupt ends a run where its ranks can end together, and not later."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from sparsecore import datasets, wasap
from sparsecore.config import TrainConfig
from sparsecore.wasap.mpi import MPI
from sparsecore.wasap.watch import interrupts_held_back, let_interrupt_through
from sparsecore.wasap.window import Window

SMALL = TrainConfig(hidden=(20, 20), batch_size=32, epochs=2)


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


def run(**options):
    return wasap.run(datasets.load("digits"), SMALL, comm=MPI.COMM_SELF, **options)


def test_interrupt_waits_until_it_is_let_through():
    handler = signal.getsignal(signal.SIGINT)
    passed = []
    with interrupts_held_back():
        interrupt()
        passed.append("held back")
        with pytest.raises(KeyboardInterrupt):
            let_interrupt_through()
        let_interrupt_through()  # it came once
        passed.append("let through")
    assert passed == ["held back", "let through"]
    with pytest.raises(KeyboardInterrupt), interrupts_held_back():
        interrupt()
        passed.append("to the end")
    assert passed[-1] == "to the end"
    assert signal.getsignal(signal.SIGINT) is handler


def test_interrupt_is_the_main_thread_s_whoever_trains_beside_it():
    with ThreadPoolExecutor(1) as other, interrupts_held_back():
        interrupt()
        other.submit(let_interrupt_through).result()
        with pytest.raises(KeyboardInterrupt):
            let_interrupt_through()


def test_interrupt_in_training_ends_the_run():
    states = []

    def on_progress(state):
        states.append(state)
        interrupt()

    with pytest.raises(KeyboardInterrupt):
        run(on_progress=on_progress)
    assert len(states) == 1
    assert run()[1]["config"]["epochs"] == 2


def test_interrupt_while_a_run_ends_does_not_tear_its_end(monkeypatch):
    free, freed = Window.free, []

    def interrupted(window):
        interrupt()
        free(window)
        freed.append(window)

    monkeypatch.setattr(Window, "free", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run()
    assert len(freed) == 1
    monkeypatch.undo()
    assert run()[1]["config"]["epochs"] == 2
