"""Whatever moment an interrupt comes, the model is the one before or after a step.

The interrupt is raised at a chosen bytecode instead of at a chosen time, so every moment can be
tried, and none twice. The suite tries some; ``pytest -m endurance`` many more.
"""

import concurrent.futures
import contextlib
import gc
import linecache
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from oracle import Net, batch, network
from test_mlp import assert_consistent

import sparsecore
from sparsecore import train
from sparsecore.compiled.team import Team
from sparsecore.config import TrainConfig
from sparsecore.paper import reliability
from sparsecore.train import Trainer

OURS = Path(sparsecore.__file__).parent
THREADS = concurrent.futures.thread, concurrent.futures._base, threading
TRACED = {Path(module.__file__) for module in THREADS}


@contextlib.contextmanager
def interrupted(moment):
    """Raise KeyboardInterrupt at this bytecode of our code, or line of the threads' own.

    Yields a list whose length is the number of moments met; None counts them. The interpreter lets
    no signal between the end of a `with` block and the release of its lock, nor do we. Neither at a
    `pass`: raised in that of a handler, it would leave the handled error to all later tests.
    """
    met = []

    def trace(frame, event, _):
        own = OURS in (path := Path(frame.f_code.co_filename)).parents
        if not own and path not in TRACED:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = own, not own
        line = "" if own else linecache.getline(str(path), frame.f_lineno)
        held = "with " in line or line.strip() == "pass"
        held |= frame.f_code.co_name in ("__exit__", "__enter__")
        if event in ("opcode", "line") and not held:
            met.append((path.name, frame.f_lineno))
            if len(met) - 1 == moment:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    gc.disable()  # what it runs, now or another time, would be counted
    sys.settrace(trace)
    try:
        yield met
    finally:
        sys.settrace(before)
        gc.enable()


#: A change of the topology, which may prune and evolve, is the main thread's alone.
CASES = [("step", 1), ("step", 2), ("prune", 1), ("evolve", 1)]


class Situation:
    """A network in training, which comes back to where it began; what work may leave of it."""

    CONFIG = TrainConfig(
        hidden=(20, 20), batch_size=32, epochs=3, prune_from=1, prune_every=1, prune_percentile=30.0
    )

    def __init__(self, threads):
        self.model = network((12, 20, 20, 4), 0.5)
        self.X, self.y = batch(self.model, 80)
        self.trainer = Trainer(self.model, self.CONFIG, seed=1, threads=threads)
        self.trainer.run_epoch(self.X, self.y)
        model = self.model
        self.begin = model.structures(), model.params.copy(), model.velocity.copy()
        self.progress = self.trainer.progress()
        self.parts = {"step": self.epoch, "prune": self.prune, "evolve": self.evolve}

    def reset(self):
        self.model.adopt(*self.begin)
        self.trainer.restore(self.progress)

    def epoch(self, on_progress=None):
        self.trainer.run_epoch(self.X, self.y, on_progress)

    def prune(self):
        self.model.prune(30.0)

    def evolve(self):
        self.trainer.change_topology()

    def fingerprint(self):
        return self.model.weights_sha256(), self.model.velocity.tobytes(), self.trainer.step

    def wholes(self, part):
        """Return how the model may be: after each step, or before and after another topology."""
        self.reset()
        found = [self.fingerprint()]
        if part == "step":
            self.epoch(lambda *_: found.append(self.fingerprint()))
        if part == "evolve":  # which prunes first
            self.model.prune(self.CONFIG.prune_percentile)
            found.append(self.fingerprint())
            self.reset()
        if part != "step":
            self.parts[part]()
            found.append(self.fingerprint())
        assert len(set(found)) == {"step": 4, "prune": 2, "evolve": 3}[part]
        return found

    def moments(self, part):
        self.reset()
        with interrupted(None) as met:
            self.parts[part]()
        return len(met)

    def check(self, part, moment, wholes):
        """Interrupt once; the model is whole. Return whether there was such a moment."""
        self.reset()
        # The standard library's own code has windows in which an interrupt becomes the other error.
        with contextlib.suppress(KeyboardInterrupt, RuntimeError), interrupted(moment) as met:
            self.parts[part]()
        assert self.fingerprint() in wholes, met[-1]
        assert_consistent(self.model)
        done = self.trainer.epoch - self.progress["epoch"]
        assert done == 0 or self.fingerprint() == wholes[-1], "an epoch counts when it is finished"
        return len(met) > moment

    def check_training(self):
        """What is left computes what dense NumPy does, and trains on as a copy of it would."""
        net = Net(self.model)
        net.logits(self.X).holds(self.model.decision_function(self.X))
        net.loss_and_gradient(self.X, self.y)[1].holds(
            self.model.loss_and_gradient(self.X, self.y)[1]
        )
        twin = self.model.copy()
        with Trainer(twin, self.CONFIG, seed=1) as other:
            other.restore(self.trainer.progress())
            other.run_epoch(self.X, self.y)
        self.epoch()
        assert twin.weights_sha256() == self.model.weights_sha256()
        assert np.array_equal(twin.velocity, self.model.velocity)


def interrupt_all(part, threads, stride=1):
    """Interrupt at every so many moments; return at how many."""
    situation = Situation(threads)
    with situation.trainer:
        wholes, n = situation.wholes(part), situation.moments(part)
        chosen = range(min(stride, n) // 2, n, stride)
        done = 0
        for moment in chosen:
            done += situation.check(part, moment, wholes)
            if done % 20 == 1:
                situation.check_training()
    assert done > 0.9 * len(chosen)
    return done


def interrupt_starts(stride=1):
    """Interrupt a team that starts and ends; threads must not wait for each other forever."""
    known, moment = set(threading.enumerate()), 0
    while True:
        with contextlib.suppress(KeyboardInterrupt, RuntimeError), interrupted(moment) as met:
            Team(2).close()
        # One that was interrupted before the system started it stays in the list.
        started, until = set(threading.enumerate()) - known, time.monotonic() + 10
        while any(thread.is_alive() for thread in started):
            assert time.monotonic() < until, met[-1]
            time.sleep(0.001)
        if len(met) <= moment:
            return -(-len(met) // stride)
        moment += stride


@pytest.fixture(autouse=True)
def one_step_at_a_time(monkeypatch):
    monkeypatch.setattr(train, "_CALL_SECONDS", 0.0)


@pytest.mark.parametrize(("part", "threads"), CASES)
def test_an_interrupt_leaves_the_model_before_or_after(part, threads):
    assert interrupt_all(part, threads, stride=211)


def test_an_interrupt_while_threads_start_leaves_none():
    assert interrupt_starts(stride=11)


@pytest.mark.endurance
@pytest.mark.timeout(0)
@pytest.mark.parametrize(("part", "threads"), CASES)
def test_every_moment_leaves_the_model_before_or_after(part, threads):
    keep("interrupts", f"{part} with {threads} threads", interrupt_all(part, threads, stride=7))


@pytest.mark.endurance
@pytest.mark.timeout(0)
def test_every_moment_while_threads_start_leaves_none():
    keep("interrupts", "start of 2 threads", interrupt_starts())


def keep(check, what, moments):
    """Record that it held at all moments: no failure comes so far."""
    reliability.keep(check, what, moments, moments)
