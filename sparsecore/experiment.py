"""One run from data to result: train a network on a data set and write down all there is to know.

The result is a dictionary of JSON types whose names are a contract; the command line prints it,
studies store it, notebooks read it. Hyperparameters come from the caller.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from sparsecore import checkpoint, train
from sparsecore.config import TrainConfig
from sparsecore.datasets import Dataset
from sparsecore.datasets.augment import ImageAugmentation
from sparsecore.mlp import SparseMLP
from sparsecore.provenance import peak_rss_mb, provenance
from sparsecore.train import Trainer


def run(
    data: Dataset,
    config: TrainConfig,
    *,
    seed: int = 0,
    threads: int = 1,
    progress: bool = False,
    observe: Callable[[SparseMLP], dict[str, Any]] | None = None,
    checkpoint_path: str | os.PathLike[str] | None = None,
    resume: bool = False,
    new_model: Callable[[TrainConfig, int, int, int], Any] = train.new_model,
    new_trainer: Callable[..., Trainer] = Trainer,
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
    new_model, new_trainer : callable
        Make another kind of network and its trainer, to be run in the same way.

    Returns
    -------
    model : SparseMLP
    result : dict
        "config", "seed", "test_accuracy", "best_test_accuracy", "nnz_start", "nnz_end", "seconds",
        "samples_per_second", "peak_rss_mb", "weights_sha256", "epochs" and "provenance".

    Raises
    ------
    ValueError
        If the data is not finite or has one class only, before any training.
    FloatingPointError
        If the loss diverges.
    """
    train.check_finite(data.X_train, "training data")
    train.check_finite(data.X_test, "test data")
    if len(np.unique(data.y_train)) < 2:
        raise ValueError(f"y: expected at least two classes, got only {np.unique(data.y_train)}")
    inputs = _augmented(data, config, seed)
    scaled = data.standardized()
    about = {"dataset": data.name, "n_train": len(data.y_train), **config.to_dict()}

    model, state = None, None
    if resume and checkpoint_path is not None and Path(checkpoint_path).exists():
        model, state = checkpoint.load(checkpoint_path)
        expected = {"seed": seed, "config": about, "data": data.content_hash}
        state = checkpoint.check_resumed(checkpoint_path, state, expected)
    if model is None or state is None:
        model = new_model(config, data.n_features, data.n_classes, seed)
        state = {
            "config": about,
            "seed": seed,
            "data": data.content_hash,
            "nnz_start": model.nnz,
            "epochs": [],
        }
        if observe is not None:
            state["epochs"].append({"epoch": 0, "nnz": model.nnz, **observe(model)})
    epochs = state["epochs"]

    with new_trainer(model, config, seed=seed, threads=threads) as trainer:
        trainer.restore(state.get("progress"))
        bar = tqdm(
            total=config.epochs * len(scaled.y_train),
            initial=trainer.epoch * len(scaled.y_train),
            desc=data.name,
            unit="sample",
            unit_scale=True,
            disable=not progress,
            file=sys.stderr,
            mininterval=0.2 if sys.stderr.isatty() else 10,  # a log is not flooded
        )
        with bar:
            while trainer.epoch < config.epochs:
                begin = time.perf_counter()
                X = scaled.X_train if inputs is None else inputs(trainer.epoch)
                trainer.seconds["train"] += time.perf_counter() - begin  # as in a parallel worker
                record: dict[str, Any] = {"epoch": trainer.epoch + 1, "nnz": model.nnz}
                record |= trainer.run_epoch(X, scaled.y_train, lambda n, loss: bar.update(n))
                tested = trainer.evaluate(scaled.X_test, scaled.y_test)
                record |= {"test_loss": tested["loss"], "test_accuracy": tested["accuracy"]}
                if observe is not None:
                    record |= observe(model)
                record |= trainer.change_topology()
                record["seconds"] = dict(trainer.seconds)
                epochs.append(record)
                bar.set_postfix_str(
                    f"epoch {trainer.epoch}, loss {record['loss']:.3f}, "
                    f"test {100 * tested['accuracy']:.2f} %"
                )
                if checkpoint_path is not None:
                    checkpoint.save(
                        model, checkpoint_path, {**state, "progress": trainer.progress()}
                    )
        seconds = dict(trainer.seconds)
    tests = [e["test_accuracy"] for e in epochs if "test_accuracy" in e]
    if not tests:
        tests = [float((model.predict(scaled.X_test, threads) == scaled.y_test).mean())]
    samples = len(tests) * len(scaled.y_train) if epochs else 0
    result = {
        "config": about,
        "seed": seed,
        "test_accuracy": tests[-1],
        "best_test_accuracy": max(tests),
        "nnz_start": state["nnz_start"],
        "nnz_end": model.nnz,
        "seconds": seconds,
        # As a parallel run counts: evolution is part of the method, tests are not.
        "samples_per_second": samples / (seconds["train"] + seconds["evolve"]) if samples else 0.0,
        "peak_rss_mb": round(peak_rss_mb(), 1),
        "weights_sha256": model.weights_sha256(),
        "epochs": epochs,
        "provenance": provenance(threads, data.content_hash),
    }
    return model, result


def _augmented(data: Dataset, config: TrainConfig, seed: int) -> ImageAugmentation | None:
    """Return what makes each epoch's augmented images, or None."""
    if not config.augment:
        return None
    if len(data.feature_shape) != 3:
        raise ValueError(
            f"augment: expected colour images (height, width, channels), but {data.name} has "
            f"features of shape {data.feature_shape}; train without --augment"
        )
    mean, scale = data.moments()
    return ImageAugmentation(data.X_train, data.feature_shape, mean, scale, seed=seed)
