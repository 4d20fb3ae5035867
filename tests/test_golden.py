"""Short runs of every method against numbers that were written down.

They catch a change of what training computes that nobody meant. When a change is meant to change
it, raise `experiment.RECIPE` and replace these numbers (`python tests/test_golden.py` prints them).
The runs are so short that rounding, which depends on the CPU's vectors, stays below the tolerance.
"""

import json
import subprocess
import sys

import numpy as np
import pytest

from sparsecore import datasets, experiment, train, wasap
from sparsecore.cluster import mpiexec
from sparsecore.config import TrainConfig
from sparsecore.paper.training import dense
from sparsecore.wasap.record import to_json
from sparsecore.wasap.server import Record

CONFIG = TrainConfig(hidden=(40, 30), epsilon=6, batch_size=32, epochs=3, dropout=0.2)
METHODS = {
    "set-relu": {"activation": "relu"},
    "set-leaky-relu": {"activation": "leaky-relu", "alpha": 0.25},
    "set-all-relu": {},
    "set-all-relu, pruned": {"prune_from": 1, "prune_every": 1, "prune_percentile": 20},
}
# Of each epoch, or of the model at the end: nnz, training loss, test loss, test accuracy.
GOLDEN = {
    "set-relu": [
        (1300, 2.3243633, 2.2658644, 0.13333333),
        (1300, 2.3164179, 2.2143786, 0.14722222),
        (1300, 2.1964129, 2.0853636, 0.26388889),
    ],
    "set-leaky-relu": [
        (1300, 2.3344975, 2.2426031, 0.12777778),
        (1300, 2.2492086, 2.1265567, 0.38055556),
        (1300, 2.1734066, 1.9877324, 0.43611111),
    ],
    "set-all-relu": [
        (1300, 2.3987774, 2.2924354, 0.097222222),
        (1300, 2.3409976, 2.2395016, 0.19166667),
        (1300, 2.2609212, 2.1553766, 0.23055556),
    ],
    "set-all-relu, pruned": [
        (1300, 2.3987774, 2.2924354, 0.097222222),
        (1134, 2.3824891, 2.2764342, 0.13611111),
        (1065, 2.2988428, 2.2021966, 0.23055556),
    ],
    "dense": [
        (4060, 3.0035129, 1.7560652, 0.38888889),
        (4060, 1.6321708, 1.1053733, 0.725),
        (4060, 1.2066722, 0.7733089, 0.78888889),
    ],
    "wasap": [
        (1300, 2.2676431, 2.2588746, 0.15555556),
    ],
    "wasap, pruned": [
        (1134, 2.2426523, 2.2476293, 0.11666667),
    ],
    "wassp": [
        (1300, 2.3947029, 2.3421513, 0.069444444),
        (1300, 2.4067504, 2.3384691, 0.097222222),
        (1300, 2.432569, 2.3250314, 0.15138889),
    ],
}


def digits():
    return datasets.load("digits").limited(450)


def numbers(result):
    """Return what is compared of each epoch."""
    names = ("nnz", "loss", "test_loss", "test_accuracy")
    return [[epoch[name] for name in names] for epoch in result["epochs"]]


def sequential(method):
    return numbers(experiment.run(digits(), CONFIG.with_values(**METHODS[method]))[1])


def dense_run():
    return numbers(dense.run(digits(), CONFIG.with_values(zeta=0.0))[1])


def lockstep():
    values = CONFIG.to_dict()
    words = [
        f"--{name.replace('_', '-')}={','.join(map(str, v)) if isinstance(v, list) else v}"
        for name, v in values.items()
        if v is not None and name not in ("density", "augment", "prune_every", "prune_percentile")
    ]
    done = subprocess.run(
        [mpiexec(), "-n", "2", sys.executable, "-m", "sparsecore", "train", "--dataset=digits",
         "--limit=450", "--algorithm=wassp", "--json", *words],
        capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return numbers(json.loads(done.stdout))


def asynchronous(**changes):
    """Replay a made-up order of two workers' updates: phase 1 of one epoch, phase 2 of two."""
    data = digits()
    order = np.resize(np.array([0, 1, 1, 0, 1, 0, 0, 0, 1, 1], np.int16), 16)
    result = {
        "config": {
            **experiment.identity(data, CONFIG.with_values(**changes), 0)["config"],
            "algorithm": "wasap", "workers": 2, "phase1": 0.34, "phase1_epochs": 1,
        },
        "seed": 0,
        "provenance": {"data_sha256": data.content_hash},
        "weights_sha256": "",
        "parallel": {
            "record": to_json(Record(order, order.astype(np.int32), order.astype(np.float32))),
            "restarts": [],
            "failed_workers": [],
        },
    }  # fmt: skip
    model, report = wasap.replay(data, result)
    assert report["updates"] == 16
    scaled = data.standardized()
    parts = ((scaled.X_train, scaled.y_train), (scaled.X_test, scaled.y_test))
    seen, test = (train.evaluate(model, X, y, CONFIG) for X, y in parts)
    return [[model.nnz, seen["loss"], test["loss"], test["accuracy"]]]


RUNS = {  # what compiles a gradient comes first: beside this file, another compiles steps last
    "wasap": asynchronous,
    "wasap, pruned": lambda: asynchronous(**METHODS["set-all-relu, pruned"]),
    **{method: lambda method=method: sequential(method) for method in METHODS},
    "dense": dense_run,
    "wassp": lockstep,
}


@pytest.mark.parametrize(
    "method", [pytest.param(m, marks=pytest.mark.mpi if m == "wassp" else ()) for m in RUNS]
)
def test_a_run_gives_the_numbers_of_its_recipe(method):
    np.testing.assert_allclose(RUNS[method](), GOLDEN[method], rtol=1e-5)


if __name__ == "__main__":
    for name, run in RUNS.items():
        print(f'    "{name}": [')
        for nnz, *values in run():
            print(f"        ({nnz}, {', '.join(f'{value:.8g}' for value in values)}),")
        print("    ],")
