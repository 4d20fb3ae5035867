"""What all tests share: settings that come before any import, or are the same for all."""

import os
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

# SciPy reads it when it is first imported; scikit-learn's check of array API input is skipped
# without.
os.environ["SCIPY_ARRAY_API"] = "1"

import hypothesis
import pytest

hypothesis.settings.register_profile(
    # Examples are the same in every run, so a failure repeats. A deadline would measure compilation
    # and the neighbours' load, not the code.
    "repeatable",
    derandomize=True,
    deadline=None,
    max_examples=100,
)
hypothesis.settings.load_profile("repeatable")

# Files are handed to workers whole and in this order. First comes what compiles for all: each rank
# of an MPI job would compile for itself. Then comes what waits for other processes, and what else
# is long; the short rest fills both workers to the end.
_FIRST = (
    "test_golden.py", "test_kernels.py", "test_parallel.py", "test_cluster.py", "test_split.py",
    "test_wasap.py", "test_estimator.py", "test_extreme.py", "test_execution_key.py",
    "test_recorded.py", "test_speed.py", "test_extreme_page.py",
)  # fmt: skip


def pytest_collection_modifyitems(config, items):
    """Order the files, and leave what takes long to those who ask for it."""
    for name in ("fuzz", "endurance", "site"):
        if name not in config.option.markexpr:
            left = [item for item in items if item.get_closest_marker(name)]
            config.hook.pytest_deselected(items=left)
            items[:] = [item for item in items if item not in left]
    order = {name: place for place, name in enumerate(_FIRST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


@pytest.fixture
def results(tmp_path, monkeypatch):
    """Have a results folder of a test's own, which is returned, and the profile of a build."""
    from sparsecore.paper import store

    monkeypatch.setenv(store.FOLDER, str(tmp_path))
    monkeypatch.delenv(store.PROFILE, raising=False)
    return tmp_path


@pytest.fixture
def one_worker(results, monkeypatch):
    """What would be trained on a cluster is trained here by one worker, and listed."""
    from sparsecore import cluster, datasets, wasap
    from sparsecore.wasap.mpi import MPI

    calls, message = [], {"seconds": 1e-6, "bytes_per_second": 1e9}
    job = SimpleNamespace(get=lambda: message)
    workers = SimpleNamespace(first=lambda n: workers, submit=lambda function, *args: [job, job])
    workers.own = "started here"

    @contextmanager
    def connect(n):
        yield workers

    def train(workers, config, dataset, plan, *, seed, limit):
        calls.append((plan.algorithm, seed, plan.phase1))
        data = datasets.load(dataset).limited(limit, random_state=seed)
        return wasap.run(data, config, plan, seed=seed, comm=MPI.COMM_SELF)

    monkeypatch.setattr(cluster, "connect", connect)
    monkeypatch.setattr(cluster, "train", train)
    return calls


@pytest.fixture
def study(results, monkeypatch):
    """Return a study of four short runs on embedded data, with a results folder of its own."""
    from sparsecore.paper.training.conditions import STUDIES, Study
    from sparsecore.paper.training.observers import observe_topology

    small = Study(
        "F-test", "two methods on digits", datasets=("digits",),
        methods=("set-relu", "set-all-relu"), seeds={"quick": (0, 1), "paper": (0,)},
        quick={"digits": {"epochs": 2, "hidden": (20, 20)}}, quick_rows={"digits": (300, 100)},
        observers={("digits", "set-all-relu"): (observe_topology,)},
    )  # fmt: skip
    monkeypatch.setitem(STUDIES, "F-test", small)
    return small


@pytest.fixture
def parallel(study, monkeypatch, tmp_path):
    """Return the study with parallel methods, and the list of clusters that are asked for."""
    from sparsecore import cluster
    from sparsecore.paper.training.conditions import STUDIES

    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    both = replace(study, methods=("set-relu", "wassp", "wasap"), seeds={"quick": (0,)})
    monkeypatch.setitem(STUDIES, "F-test", replace(both, observers={}))
    asked, connect = [], cluster.connect
    monkeypatch.setattr(cluster, "connect", lambda n: asked.append(n) or connect(n))
    return asked


@pytest.fixture
def interrupted_in():
    """Return a context in which Ctrl-C comes late in an epoch, counted from 0."""
    from sparsecore.train import Trainer

    @contextmanager
    def interrupted(epoch):
        def run(trainer, *args):
            record = whole(trainer, *args)
            if trainer.epoch > epoch:
                raise KeyboardInterrupt
            return record

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Trainer, "run_epoch", run)
            yield

    whole = Trainer.run_epoch
    return interrupted


@pytest.fixture
def threads_seen(monkeypatch):
    """Return the list of the threads with which an engine was made, or predicted."""
    from sparsecore.compiled import engine

    def told(call):
        return lambda *args: seen.append(args[-1]) or call(*args)

    seen = []
    for name in ("Engine", "logits"):
        monkeypatch.setattr(engine, name, told(getattr(engine, name)))
    return seen


@pytest.fixture(scope="module")
def short_simulations():
    """Simulate up to 16 workers, and for less long."""
    from sparsecore.paper.scaling import figures, simulate

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simulate, "_UPDATES", 300)
        patch.setattr(figures, "_NUMBERS", (1, 2, 4, 8, 16))
        simulate.simulate.cache_clear()
        yield
    simulate.simulate.cache_clear()
