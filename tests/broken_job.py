"""The command line, with one rank that breaks at a given place of the run: no test by itself.

``mpiexec -n 2 python tests/broken_job.py SIGSTOP 1 lock train …`` has rank 1 stop itself while it
holds the server's lock; "sleep" in place of a signal has its main thread hang, and no other. At
"nowhere" nothing breaks. The data set is made up, for the sake of a quick start.
"""

import faulthandler
import os
import signal
import sys
import time

import numpy as np

import sparsecore.__main__ as command_line
from sparsecore import datasets
from sparsecore.datasets import Dataset


def blobs(name="blobs"):
    """Ten clusters in as many dimensions."""
    rng = np.random.default_rng(0)
    labels = np.arange(1800) % 10
    X = (rng.standard_normal((1800, 64)) + 2 * np.eye(10, 64)[labels]).astype(np.float32)
    return Dataset(
        name=name, X_train=X[:1440], X_test=X[1440:], y_train=labels[:1440], y_test=labels[1440:],
    )  # fmt: skip


def places():
    """Where a rank can break: an owner, the name of its function, how many calls go well before."""
    from sparsecore import train
    from sparsecore.commands import train as command
    from sparsecore.compiled import kernels
    from sparsecore.train import Trainer
    from sparsecore.wasap import phases
    from sparsecore.wasap.worker import Worker

    return {
        "reading": (datasets, "load", 0),
        "loading": (phases._Run, "_load", 0),
        "every gradient": (Worker, "compute", 0),
        "gradient": (Worker, "compute", 100),
        "lock": (kernels, "momentum_step", 100),
        "evolution": (train, "change_topology", 3),
        "test": (phases._Run, "_test", 3),
        "end of phase 1": (phases._Run, "_phase2", 0),
        "phase 2": (Trainer, "run_epoch", 3),
        "averaging": (phases, "average", 1),
        "printing": (command, "_report", 0),
    }


def before(place, do):
    """Have something done before each call of a function, if enough calls have gone well."""
    owner, name, calls = place
    original = getattr(owner, name)

    def changed(*arguments, **options):
        nonlocal calls
        calls -= 1
        if calls < 0:
            do()
        return original(*arguments, **options)

    setattr(owner, name, changed)


def main():
    how, rank, place, *arguments = sys.argv[1:]

    def break_here():
        print("breaks here", file=sys.stderr, flush=True)
        if how == "sleep":
            time.sleep(3600)
        os.kill(os.getpid(), getattr(signal, how))

    here = os.environ["PMI_RANK"] == rank and place != "nowhere"
    datasets.load = blobs
    if place == "starting":  # MPI, which waits for all ranks; five minutes are too long for a test
        later = faulthandler.dump_traceback_later

        def soon(seconds, **how):
            assert seconds == 300, "as the README has it"
            later(2, **how)

        faulthandler.dump_traceback_later = soon
        if here:
            break_here()
    elif here and place != "exit":
        before(places()[place], break_here)
    elif place != "nowhere" and not here:
        # However busy the machine is, the rank that is to break gets its turn.
        before(places()["every gradient"], lambda: time.sleep(2e-3))
    status = command_line.main(arguments)
    if here and place == "exit":
        break_here()
    return status


if __name__ == "__main__":
    sys.exit(main())
