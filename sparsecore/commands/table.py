"""``train --data`` and ``predict``: a user's own table, from a file to predictions."""

import argparse
import csv
import json
import sys
import time
from typing import Any

import numpy as np

from sparsecore.commands import options as shared
from sparsecore.config import HYPERPARAMETERS

_MANY = 50  # classes; a column with more may have been meant as numbers
_KNOWN = ("command", "function", "default", "data", "target", "test", "task", "seed", "threads",
          "out", "json")  # fmt: skip


def add_data(sub: Any) -> None:
    """Add the options of ``train`` for a table in a file."""
    group = sub.add_argument_group(
        "your own table (instead of --dataset; the defaults are the estimator's, not those above)"
    )
    group.add_argument("--data", metavar="FILE", help=".csv with a header, .npz, or .svmlight")
    group.add_argument("--target", metavar="NAME", help="column, or array in .npz, to predict")
    group.add_argument("--test", metavar="FILE", help="rows to test the trained network on")
    task = (
        "kind of target: classes or numbers (numbers if all values are numbers and not all are "
        "whole; in .npz: if they are floats)"
    )
    group.add_argument("--task", choices=("classes", "numbers"), help=task)


def train(options: argparse.Namespace) -> None:
    """Train an estimator on a table, and test, report and save it."""
    from sparsecore.datasets import tables
    from sparsecore.estimator import SparseMLPClassifier, SparseMLPRegressor, saved
    from sparsecore.estimator.base import NAMES

    own = {name: NAMES.get(name, name) for name in HYPERPARAMETERS}
    names = SparseMLPClassifier().get_params()
    foreign = [n for n in shared.changed(options) if n not in _KNOWN and own.get(n) not in names]
    parallel = "; in Python, sparsecore.wasap.run trains a Dataset of your own"
    shared.refuse(foreign, f"not with --data{parallel * ('algorithm' in foreign[:1])}")
    shared.check_common(options)
    epochs = names["max_iter"] if options.epochs is None else options.epochs
    activation = options.activation or names["activation"]
    shared.refuse_idle(options, epochs, options.prune_from, activation)
    shared.check_targets(options)
    if options.epochs == 0:  # with --dataset, 0 gives an untrained network
        raise ValueError("--epochs: expected an integer of at least 1 with --data, got 0")
    if not options.target and options.data.endswith((".csv", ".npz")):
        raise ValueError("--target: expected the name of the column to be predicted, got none")
    if options.target is not None and options.data.endswith((".svmlight", ".libsvm")):
        raise ValueError("--target: not with svmlight files, where it comes first in each line")
    if options.target is None and (options.test or "").endswith((".csv", ".npz")):
        raise ValueError(f"--test: expected a file of --data's kind, svmlight, got {options.test}")
    shared.warn_of_twins("start it without mpiexec")
    table = tables.read(options.data, options.target)
    y, n_features = tables.learnable(table.y, options.task, options.data), table.X.shape[1]
    numbers = y.dtype.kind == "f"
    if options.task is None and not numbers and len(np.unique(y)) > _MANY:
        shared.say(
            f"{options.target or 'the target'} has more than {_MANY} different values, and each is "
            "treated as a class; to predict numbers: --task numbers"
        )
    test: Any = None
    if options.test is not None:
        test = tables.read(options.test, options.target, table.names, n_features)
    # The same number is the same class, whatever its type: 1 and 1.0.
    if test and "U" not in (table.y.dtype.kind, test.y.dtype.kind):
        with np.errstate(invalid="ignore"):
            same = test.y.astype(table.y.dtype)
        if table.y.dtype.kind == "f" or (same == test.y).all():
            test = test._replace(y=same)
    y_test = test and tables.learnable(test.y, "numbers" if numbers else "classes", options.test)
    if test and numbers and len(y_test) < 2:
        raise ValueError(f"{options.test}: R² needs at least two rows, got one; see predict")
    if test and y.dtype.kind == "U":
        y_test = y_test.astype(str)
    elif test and y_test.dtype.kind == "U":
        raise ValueError(
            f"{options.test}: expected integers as in {options.data}, got text or fractions"
        )
    chosen = {own[name]: value for name, value in shared.given(options, HYPERPARAMETERS).items()}
    kind: Any = SparseMLPRegressor if numbers else SparseMLPClassifier
    estimator = kind(**chosen, random_state=options.seed, n_jobs=options.threads, verbose=True)
    begin = time.perf_counter()
    try:
        estimator.fit(table.X, y)
    finally:  # an interrupt keeps what is trained so far
        if options.out is not None and hasattr(estimator, "model_"):
            try:
                saved.save(estimator, options.out, table.names)
            except KeyboardInterrupt:  # interrupted once more: save again
                saved.save(estimator, options.out, table.names)
                raise
            finally:
                if isinstance(sys.exc_info()[1], KeyboardInterrupt):
                    done = f"the {estimator.n_iter_} completed epochs"
                    shared.say(f"{done} are saved in {options.out}")
    result = {
        "kind": kind.__name__, "epochs": estimator.n_iter_, "seconds": time.perf_counter() - begin,
        "score": "R2" if numbers else "accuracy", "train_score": estimator.score(table.X, y),
        "test_score": estimator.score(test.X, y_test) if test else None,
        "nnz": estimator.model_.nnz, "weights_sha256": estimator.model_.weights_sha256(),
    }  # fmt: skip
    if options.json:
        print(json.dumps(result))
        return
    print(estimator.model_)
    told = {"training": result["train_score"], "test": result["test_score"]}
    scores = ", ".join(f"{part} {value:.4f}" for part, value in told.items() if value is not None)
    print(f"{result['score']}: {scores}; {result['epochs']} epochs, {result['seconds']:.1f} s")


def add(commands: Any) -> None:
    """Add ``predict`` to the command line."""
    sub = commands.add_parser("predict", help="predict the rows of a table with a saved estimator")
    sub.set_defaults(function=_predict)
    saved = "estimator that train --data … --out saved (train --dataset saves only a network)"
    sub.add_argument("model", metavar="MODEL", help=saved)
    sub.add_argument("file", metavar="FILE", help=".csv with a header, .npz, or .svmlight")
    sub.add_argument("--proba", action="store_true", help="add the probability of each class")


def _predict(options: argparse.Namespace) -> None:
    from sparsecore.datasets import tables
    from sparsecore.estimator import saved

    estimator, names = saved.load(options.model)
    vars(estimator).pop("feature_names_in_", None)  # `read` puts the columns in the saved order
    X = tables.read(options.file, None, names, estimator.n_features_in_).X
    found = estimator.predict(X)
    header, columns = ["prediction"], [found]
    if found.ndim > 1:
        header, columns = [f"prediction {output}" for output in range(len(found.T))], [*found.T]
    if options.proba:
        if not hasattr(estimator, "classes_"):
            raise ValueError(f"--proba: {options.model} predicts numbers, not probabilities")
        header += map(str, estimator.classes_)
        columns += [*estimator.predict_proba(X).T]
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(encoding="utf-8")  # as tables are read: names stay the same
    out = csv.writer(sys.stdout, lineterminator="\n")
    out.writerow(header)
    out.writerows(zip(*(values.tolist() for values in columns), strict=True))
