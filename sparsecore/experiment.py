"""One run from data to result: train a network on a data set and write down all there is to know.

The result is a dictionary of JSON types whose names are a contract; the command line prints it,
studies store it, notebooks read it. Sequential, dense and parallel runs have in common what stands
here: the checks of the data and of checkpoints, the training inputs, and the result.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from sparsecore import checkpoint, train
from sparsecore.config import TrainConfig
from sparsecore.datasets import Dataset
from sparsecore.datasets.augment import ImageAugmentation
from sparsecore.datasets.dataset import standardize
from sparsecore.mlp import SparseMLP
from sparsecore.progress import bar
from sparsecore.provenance import peak_rss_mb, provenance
from sparsecore.train import Trainer

#: What training computes, as a number: raised, with a line in the changelog, when a change is meant
#: to change it. Recorded results are valid for one recipe.
RECIPE = 1

Observer = Callable[[Any], dict[str, Any]]


def run(
    data: Dataset,
    config: TrainConfig,
    *,
    seed: int = 0,
    threads: int = 1,
    progress: bool = False,
    observe: Observer | None = None,
    checkpoint_path: str | os.PathLike[str] | None = None,
    resume: bool = False,
) -> tuple[SparseMLP, dict[str, Any]]:
    """Train sequentially on a data set and evaluate on its test set after every epoch.

    Parameters
    ----------
    data : Dataset
        Raw values; they are standardised here.
    config : TrainConfig
    seed : int
        With `config` and `data` it determines the weights bit for bit.
    threads : int
    progress : bool
        Show a bar with loss and accuracy on standard error.
    observe : callable, optional
        ``observe(model)`` returns more entries for an epoch's record. It is called after each
        epoch, before the topology changes, and once before the first epoch (record of epoch 0).
    checkpoint_path : path, optional
        Rewritten after every epoch, atomically.
    resume : bool
        Go on from `checkpoint_path` if it exists; the result is the uninterrupted run's.

    Returns
    -------
    model : SparseMLP
    result : dict
        "config", "seed", "recipe", "test_accuracy", "best_test_accuracy", "nnz_start", "nnz_end",
        "seconds", "samples_per_second", "peak_rss_mb", "weights_sha256", "epochs" and
        "provenance".

    Raises
    ------
    ValueError
        If the data is not finite or has one class only, or the checkpoint is another run's, before
        any training.
    FloatingPointError
        If the loss diverges.

    Examples
    --------
    >>> from sparsecore import datasets, experiment, settings
    >>> config = settings.setting("digits").config.with_values(hidden=(40, 30), epochs=2)
    >>> model, result = experiment.run(datasets.load("digits"), config, seed=0)
    >>> [epoch["epoch"] for epoch in result["epochs"]], result["nnz_end"] == model.nnz
    ([1, 2], True)
    """
    found = resumed(checkpoint_path, resume, identity(data, config, seed))
    if found is None:
        model, state = train.new_model(config, data.n_features, data.n_classes, seed), None
    else:
        model, state = found
    return model, fit(model, data, config, seed, threads, progress, observe, checkpoint_path, state)


def fit(
    model: train.Model, data: Dataset, config: TrainConfig, seed: int, threads: int, progress: bool,
    observe: Observer | None, checkpoint_path: str | os.PathLike[str] | None = None,
    state: dict[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Train any kind of model as `run` does, from the `state` in a checkpoint; return the result.

    Only a `SparseMLP` has checkpoints.
    """
    check_data(data)
    inputs, y = Shard(data, slice(None), config, seed), data.y_train
    X_test, y_test = standardize(data.X_test, *data.moments()), data.y_test
    if state is None:
        state = {**identity(data, config, seed), "nnz_start": model.nnz, "epochs": []}
        if observe is not None:
            state["epochs"].append({"epoch": 0, "nnz": model.nnz, **observe(model)})
    epochs, n = state["epochs"], len(y)

    with Trainer(model, config, seed=seed, threads=threads) as trainer:
        trainer.restore(state.get("progress"))

        def test() -> dict[str, Any]:
            found = trainer.evaluate(X_test, y_test)
            more = {} if observe is None else observe(model)
            return {"test_loss": found["loss"], "test_accuracy": found["accuracy"], **more}

        with bar(
            config.epochs * n, data.name, unit="sample", unit_scale=True, hidden=not progress,
            initial=trainer.epoch * n,
        ) as shown:  # fmt: skip
            for record in trainer.epochs(inputs, y, test, lambda rows, _: shown.update(rows)):
                epochs.append(record)
                shown.set_postfix_str(
                    f"epoch {trainer.epoch}, loss {record['loss']:.3f}, "
                    f"test {100 * record['test_accuracy']:.2f} %"
                )
                if checkpoint_path is not None:
                    assert isinstance(model, SparseMLP)
                    state["progress"] = trainer.progress()
                    checkpoint.save(model, checkpoint_path, state)
        seconds, done = dict(trainer.seconds), trainer.epoch
        last = epochs[-1]["test_accuracy"] if done else trainer.evaluate(X_test, y_test)["accuracy"]
    spent = seconds["train"] + seconds["evolve"]
    return result_of(
        model, state, epochs, test_accuracy=last, seconds=seconds,
        # As a parallel run counts: evolution is part of the method, tests are not.
        samples_per_second=done * n / spent if done else 0.0,
        peak_rss_mb=round(peak_rss_mb(), 1), threads=threads,
    )  # fmt: skip


def check_data(data: Dataset) -> None:
    """Raise a ValueError if the data are not finite, or have one class only."""
    train.check_finite(data.X_train, "training data")
    train.check_finite(data.X_test, "test data")
    found = np.unique(data.y_train)
    if len(found) < 2:
        raise ValueError(f"y: expected at least two classes, got only {found}")


class Shard:
    """Training rows, all or a worker's, as inputs: scaled by the moments of the whole data set.

    With ``config.augment`` the inputs are other pictures in each epoch; worker 0 draws what the
    sequential trainer draws.
    """

    def __init__(
        self, data: Dataset, rows: Any, config: TrainConfig, seed: int, rank: int = 0
    ) -> None:
        self.labels = data.y_train[rows]
        self._augmentation: ImageAugmentation | None = None
        mean, scale = data.moments()
        if not config.augment:
            self._inputs = standardize(data.X_train[rows], mean, scale)
            return
        if len(data.feature_shape) != 3:
            raise ValueError(
                f"augment: expected colour images (height, width, channels), but {data.name} has "
                f"features of shape {data.feature_shape}; train without --augment"
            )
        key: Any = np.random.SeedSequence(seed, spawn_key=(rank,)) if rank else seed
        self._augmentation = ImageAugmentation(
            data.X_train[rows], data.feature_shape, mean, scale, seed=key
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __call__(self, epoch: int) -> np.ndarray:
        """Return the inputs of an epoch, counted from 0, float32."""
        return self._inputs if self._augmentation is None else self._augmentation(epoch)


# --- what a run is, and what came of it -----------------------------------------------------------


def identity(data: Dataset, config: TrainConfig, seed: int, **parallel: Any) -> dict[str, Any]:
    """Return what tells a run from others: "config", "seed" and "data", as JSON types."""
    about = {"dataset": data.name, "n_train": len(data.y_train), **config.to_dict(), **parallel}
    return {"config": about, "seed": seed, "data": data.content_hash}


def resumed(
    path: str | os.PathLike[str] | None, resume: bool, expected: dict[str, Any]
) -> tuple[SparseMLP, dict[str, Any]] | None:
    """Return model and state of a checkpoint, if there is one to go on from."""
    if not resume or path is None or not Path(path).exists():
        return None
    model, state = checkpoint.load(path)
    return model, checkpoint.check_resumed(path, state, expected)


def result_of(
    model: train.Model,
    run: dict[str, Any],
    epochs: list[dict[str, Any]],
    *,
    test_accuracy: float,
    threads: int,
    ranks: int = 1,
    **measured: Any,
) -> dict[str, Any]:
    """Return the result of a run, as JSON types; `run` has its `identity` and "nnz_start"."""
    tests = [e["test_accuracy"] for e in epochs if e.get("test_accuracy") is not None]
    return {
        "config": run["config"],
        "seed": run["seed"],
        "recipe": RECIPE,
        "test_accuracy": test_accuracy,
        "best_test_accuracy": max([*tests, test_accuracy]),
        "nnz_start": run["nnz_start"],
        "nnz_end": model.nnz,
        **measured,
        "weights_sha256": model.weights_sha256(),
        "epochs": epochs,
        "provenance": provenance(threads, run["data"], ranks),
    }
