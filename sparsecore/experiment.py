"""One run from data to result: train a network on a data set and record everything about it.

The result is a dictionary of JSON types with fixed keys: the command line prints it, studies store
it, notebooks read it. Sequential, dense and parallel runs share this module's checks of data and
checkpoints, its training inputs, and its result.
"""

import base64
import json
import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from sparsecore import checkpoint, train
from sparsecore.config import TrainConfig, integers
from sparsecore.datasets import Dataset
from sparsecore.datasets.augment import ImageAugmentation
from sparsecore.mlp import SparseMLP
from sparsecore.progress import bar
from sparsecore.provenance import peak_bytes, provenance
from sparsecore.samples import check_finite

#: Version of training: raised, with a line in the changelog, when a change is meant to change what
#: training computes. A recorded result is valid for one recipe.
RECIPE = 1

Observer = Callable[[Any, int], dict[str, Any]]


def run(
    data: Dataset, config: TrainConfig, *, seed: int = 0, threads: int = 1, progress: bool = False,
    observe: Observer | None = None, checkpoint_path: str | os.PathLike[str] | None = None,
    resume: bool = False, checkpoint_every: float = 0.0,
) -> tuple[SparseMLP, dict[str, Any]]:  # fmt: skip
    """Train sequentially on a data set and evaluate on its test set after every epoch.

    Parameters
    ----------
    data : Dataset
        Raw values; they are standardised here.
    config : TrainConfig
    seed : int
        With `config` and `data`, determines all weights bit for bit on CPUs of one lane width.
    threads : int
        The weights do not depend on it.
    progress : bool
        Show a bar with loss and accuracy on standard error.
    observe : callable, optional
        ``observe(model, epoch)`` returns further entries for an epoch's record, of JSON or NumPy
        types. It is called after each epoch, before the topology changes, and once before the first
        (record of epoch 0).
    checkpoint_path : path, optional
        File that is rewritten after every epoch, atomically.
    resume : bool
        Resume from `checkpoint_path` if it exists; the result is that of an uninterrupted run. The
        number of epochs in `config` may be new if it is higher than the number already done.
    checkpoint_every : float
        Minimum number of seconds between two checkpoints.

    Returns
    -------
    model : SparseMLP
    result : dict
        "config", "seed", "recipe", "test_accuracy", "best_test_accuracy", "test_right" (see
        `unpacked`), "nnz_start", "nnz_end", "seconds", "samples_per_second", "peak_rss_mb",
        "weights_sha256", "epochs" and "provenance". Accuracies are from 0 to 1, losses in nats;
        "seconds" has "train", "evaluate" and "evolve". Each epoch has its "epoch", "nnz",
        "loss", "train_accuracy", "test_loss", "test_accuracy", "test_half_correct", "pruned",
        "replaced" and "seconds", cumulative.

    Raises
    ------
    ValueError
        Before training, if data are not finite or have only one class, or if the checkpoint is
        another run's.
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
    model, state = found or (train.new_model(config, data.n_features, data.n_classes, seed), None)
    save = checkpoint_path and partial(checkpoint.save, model, checkpoint_path)
    return model, fit(
        model, data, config, seed=seed, threads=threads, progress=progress, observe=observe,
        save=save, checkpoint_every=checkpoint_every, state=state,
    )  # fmt: skip


def fit(
    model: train.Model, data: Dataset, config: TrainConfig, *, seed: int = 0, threads: int = 1,
    progress: bool = False, observe: Observer | None = None, save: Any = None,
    checkpoint_every: float = 0.0, state: dict[str, Any] | None = None,
    check: Callable[[], None] = lambda: None,
) -> dict[str, Any]:  # fmt: skip
    """Train any kind of model as `run` does, from a checkpoint's `state`; return the result."""
    # ``save(state)`` is called after an epoch, and ``check()`` several times per second.
    X_test, y_test = checked_test_rows(data), data.y_test
    inputs, y = Shard(data, slice(None), config, seed), data.y_train
    half, saved = test_half(len(y_test)), time.monotonic()
    if state is None:
        state = {**identity(data, config, seed), "nnz_start": model.nnz, "epochs": []}
        if observe is not None:
            state["epochs"].append({"epoch": 0, "nnz": model.nnz, **_observed(observe, model, 0)})
    epochs, n = state["epochs"], len(y)

    with train.Trainer(model, config, seed=seed, threads=threads) as trainer:
        model.decision_function(X_test[:128], threads)  # compiles; more rows have the same lanes
        trainer.restore(state.get("progress"))
        if state.pop("topology due", False):
            epochs[-1] |= trainer.change_topology()

        def test() -> dict[str, Any]:
            found = trainer.evaluate(X_test, y_test, half)
            more = {} if observe is None else _observed(observe, model, trainer.epoch)
            return {**{f"test_{name}": value for name, value in found.items()}, **more}

        def on_progress(rows: int, loss: float) -> None:
            check()
            shown.update(rows)

        with bar(
            config.epochs * n, data.name, unit="sample", unit_scale=True, hidden=not progress,
            initial=trainer.epoch * n,
        ) as shown:  # fmt: skip
            for record in trainer.epochs(inputs, y, test, on_progress):
                epochs.append(record)
                shown.set_postfix_str(
                    f"epoch {trainer.epoch}, loss {record['loss']:.3f}, "
                    f"test {100 * record['test_accuracy']:.2f} %",
                    refresh=False,
                )
                if save is not None and time.monotonic() >= saved + checkpoint_every:
                    save({**state, "progress": trainer.progress()})
                    saved = time.monotonic()
        seconds, done = dict(trainer.seconds), trainer.epoch
        right = model.decision_function(X_test, threads).argmax(axis=1) == y_test
    spent = seconds["train"] + seconds["evolve"]
    return result_of(
        model, state, epochs, right=right, seconds=seconds,
        # Counted as in a parallel run: evolution is part of the method, tests are not.
        samples_per_second=done * n / spent if done else 0.0,
        peak_rss_mb=round(peak_bytes() / 2**20, 1), threads=threads,
    )  # fmt: skip


def checked_test_rows(data: Dataset) -> np.ndarray:
    """Return the standardised test rows; refuse data that are not finite, or of one class."""
    check_finite(data.X_train, "training data")
    check_finite(data.X_test, "test data")
    with np.errstate(over="ignore"):
        if not np.isfinite(data.moments).all():
            told = "its values are too large to be standardised; divide all by a constant first"
            raise ValueError(f"training data: {told}")
        X_test = data.scaled(data.X_test)
    check_finite(X_test, "test data, standardised", "it is too far from the training data")
    found = np.unique(data.y_train)
    if len(found) < 2:
        raise ValueError(f"y: expected at least two classes, got only {found}")
    return X_test


def _observed(observe: Observer, model: train.Model, epoch: int) -> dict[str, Any]:
    """Return the observed entries, with NumPy's values as JSON types, to be saved."""
    found = observe(model, epoch)
    try:
        return {**json.loads(json.dumps(found, default=lambda value: value.tolist()))}
    except (AttributeError, TypeError, ValueError):
        raise TypeError(f"observe: expected a dict of JSON types, got {found!r:.200}") from None


def test_half(n_test: int) -> np.ndarray:
    """Return the rows of a fixed random half of a test set, in which right answers are counted."""
    return np.sort(np.random.default_rng(0).permutation(n_test)[: n_test // 2])


class Shard:
    """Training rows, all or a worker's, as inputs: scaled by the moments of the whole data set."""

    def __init__(
        self, data: Dataset, rows: Any, config: TrainConfig, seed: int, rank: int = 0
    ) -> None:
        self.labels = data.y_train[rows]
        self._augmentation: ImageAugmentation | None = None
        if not config.augment:
            self._inputs = data.scaled(data.X_train[rows])
            return
        if len(data.feature_shape) != 3:
            raise ValueError(
                f"augment: expected colour images (height, width, channels), but {data.name} has "
                f"features of shape {data.feature_shape}; train without --augment"
            )
        self._augmentation = ImageAugmentation(
            data.X_train[rows], data.feature_shape, *data.moments, seed, rank
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __call__(self, epoch: int) -> np.ndarray:
        """Return the inputs of an epoch, counted from 0, float32."""
        return self._inputs if self._augmentation is None else self._augmentation(epoch)


# --- the identity of a run, and its result --------------------------------------------------------


def identity(data: Dataset, config: TrainConfig, seed: int, **parallel: Any) -> dict[str, Any]:
    """Return what identifies a run: "config", "seed", "data", "recipe", as JSON types."""
    seed = int(integers(0).check("seed", seed))
    about = {"dataset": data.name, "n_train": len(data.y_train), **config.to_dict(), **parallel}
    return {"config": about, "seed": seed, "data": data.content_hash, "recipe": RECIPE}


def resumed(
    path: str | os.PathLike[str] | None, resume: bool, expected: dict[str, Any],
    read: Callable[[Any], Any] = checkpoint.load,
) -> tuple[Any, dict[str, Any]] | None:  # fmt: skip
    """Return model and state of a checkpoint that `read` reads, if there is one to resume."""
    if checkpoint.to_resume(path, resume) is None:
        return None
    model, state = checkpoint.latest(path, read)
    if state is not None and "config" in state:
        state.setdefault("recipe", 1)  # older checkpoints do not have it
        _take_other_epochs(path, state, expected["config"])
    return model, checkpoint.check_resumed(path, state, expected)


def _take_other_epochs(path: Any, state: dict[str, Any], now: dict[str, Any]) -> None:
    """Accept another number of epochs in a checkpoint, if those already done stay the same."""
    # After its last epoch a run keeps its topology; resumed with more, it evolves first.
    was, parallel = state["config"], "phase1_epochs" in now
    if (before := was["epochs"]) == now["epochs"] or parallel != ("phase1_epochs" in was):
        return
    done = state["progress"]["epoch"] if "progress" in state else state.get("epoch", before)
    fits = done < now["epochs"]
    if parallel:  # phase 1 may be over if it has one length in both, and neither run ends with it
        one, other = was["phase1_epochs"], now["phase1_epochs"]
        fits = done < min(one, other) or done <= one == other < min(before, now["epochs"])
    if not fits:
        why = "phase 1 would end elsewhere" if parallel else "that is too many"
        raise ValueError(
            f"{path}: belongs to a run with epochs {before}, not {now['epochs']}; {done} are done: "
            f"{why}; resume with --epochs {before}, or name another checkpoint"
        )
    state["topology due"] = done == before
    same = {name: now[name] for name in ("epochs", "phase1_epochs") if name in now and name in was}
    state["config"] = was | same


def result_of(
    model: train.Model, run: dict[str, Any], epochs: list[dict[str, Any]], *, right: np.ndarray,
    threads: int, ranks: int = 1, **measured: Any,
) -> dict[str, Any]:  # fmt: skip
    """Return the result of a run, as JSON types; `run` has its `identity` and "nnz_start"."""
    test_accuracy = float(right.mean())
    tests = [e["test_accuracy"] for e in epochs if e.get("test_accuracy") is not None]
    return {
        "config": run["config"], "seed": run["seed"], "recipe": RECIPE,
        "test_accuracy": test_accuracy, "best_test_accuracy": max([*tests, test_accuracy]),
        "test_right": base64.b64encode(np.packbits(right).tobytes()).decode(),
        "nnz_start": run["nnz_start"], "nnz_end": model.nnz, **measured,
        "weights_sha256": model.weights_sha256(), "epochs": epochs,
        "provenance": provenance(threads, run["data"], ranks),
    }  # fmt: skip


def unpacked(test_right: str, n_test: int) -> np.ndarray:
    """Return which of `n_test` rows a model gets right; `test_right` is base64, a bit per row."""
    packed = np.frombuffer(base64.b64decode(test_right), np.uint8)
    return np.unpackbits(packed, count=n_test).astype(bool)
