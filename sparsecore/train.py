"""The sequential trainer: epochs of momentum SGD, then evolution and pruning when they are due.

A `Trainer` takes a model through one epoch at a time, so its caller (the estimator, the command
line, a study) decides what happens between epochs. Random numbers are addressed by epoch (see
`seeds`), so an epoch does not depend on how the trainer came to it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse as sp

from sparsecore import functions, seeds
from sparsecore.compiled.engine import Engine, metrics
from sparsecore.compiled.kernels import Rule
from sparsecore.config import TrainConfig
from sparsecore.mlp import DENSE_VALUES, SparseMLP
from sparsecore.seeds import Purpose

# The kernels cannot be interrupted: they are handed about this many seconds of work at a time.
_SLICE_SECONDS = 0.2


def new_model(config: TrainConfig, n_features: int, n_classes: int, seed: int) -> SparseMLP:
    """Make the network that `config` and `seed` describe."""
    return SparseMLP.erdos_renyi(
        (n_features, *config.hidden, n_classes),
        epsilon=None if config.density is not None else config.epsilon,
        density=config.density,
        activation=config.activation,
        alpha=config.alpha,
        init=config.init,
        random_state=seeds.generator(seed, Purpose.TOPOLOGY),
    )


def check_finite(X: Any, name: str = "X") -> None:
    """Raise a ValueError that names the first NaN or infinite feature of `X`, if there is one."""
    values = X.data if sp.issparse(X) else np.asarray(X)
    # A sum is finite only if its terms are, and needs no temporary; overflow alone is looked into.
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(np.sum(values, dtype=np.float64)):
            return
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        place = tuple(int(i) for i in bad[0])
        where = (
            "stored value " + str(place[0])
            if sp.issparse(X)
            else f"row {place[0]}, feature {place[1]}"
        )
        raise ValueError(
            f"{name}: expected finite numbers, got {values[place]} at {where} "
            f"({len(bad)} in all); impute or remove them first"
        )


def change_topology(
    model: SparseMLP, config: TrainConfig, seed: int, rank: int, epoch: int
) -> dict[str, int]:
    """Prune by importance if that is due after `epoch`, then evolve unless it was the last.

    Returns
    -------
    dict
        "pruned" and "replaced": numbers of connections.
    """
    pruned = replaced = 0
    if config.prunes_after(epoch):
        pruned = model.prune(config.prune_percentile)
    if config.zeta > 0 and epoch < config.epochs:
        rng = seeds.generator(seed, Purpose.EVOLUTION, rank, epoch)
        replaced = model.evolve(config.zeta, rng)
    return {"pruned": pruned, "replaced": replaced}


class Trainer:
    """Trains a model, an epoch at a time.

    Parameters
    ----------
    model : SparseMLP
        Changed in place.
    config : TrainConfig
    seed : int
        Determines data order, dropout and evolution.
    threads : int
        Results do not depend on it.
    rank : int
        Gives parallel workers different streams.

    Attributes
    ----------
    epoch : int
        Epochs done.
    step : int
        Steps done; it keys the dropout noise.
    seconds : dict
        Spent in "train", "evaluate" and "evolve"; compilation excluded.
    """

    def __init__(
        self,
        model: SparseMLP,
        config: TrainConfig,
        *,
        seed: int = 0,
        threads: int = 1,
        rank: int = 0,
    ) -> None:
        self.model, self.config = model, config
        self.seed, self.threads, self.rank = seed, threads, rank
        self.epoch = self.step = 0
        self.seconds = {"train": 0.0, "evaluate": 0.0, "evolve": 0.0}
        self._velocity = model.start_momentum()
        self._engine = Engine(model.network, config.batch_size, threads)
        self._rule = Rule(
            np.float32(config.learning_rate),
            np.float32(config.momentum),
            np.float32(config.weight_decay),
            np.float32(config.dropout),
            seeds.key(seed, Purpose.DROPOUT, rank),
        )
        self._slice_steps = 1
        self._compile()

    def run_epoch(
        self, X: Any, y: np.ndarray, on_progress: Callable[[int, float], None] | None = None
    ) -> dict[str, float]:
        """Take one pass over the training data in a fresh random order.

        Parameters
        ----------
        X : ndarray or scipy.sparse, shape (n, n_features)
            Not copied if it is a contiguous float32 array or CSR.
        y : ndarray of int64, shape (n,)
            Class indices.
        on_progress : callable, optional
            Called some times a second with the samples done since the last call and the mean loss
            so far.

        Returns
        -------
        dict
            "loss" (nats) and "train_accuracy", over the epoch's batches as they were trained on,
            with dropout.

        Raises
        ------
        ValueError
            If shapes do not fit, there are no rows, or a label is not a class index.
        FloatingPointError
            If the loss is no longer finite.
        """
        start = time.perf_counter()
        X = self.model.as_inputs(X)
        y = self.model.as_labels(y, X.shape[0])
        n, batch = len(y), self.config.batch_size
        if n == 0:
            raise ValueError("X: expected at least one row to train on, got none")
        order = seeds.generator(self.seed, Purpose.SHUFFLE, self.rank, self.epoch).permutation(n)
        sums, done = metrics(), 0
        while done < n:
            begin = time.perf_counter()
            rows = order[done : done + self._slice_rows(X)]
            inputs, labels = X, y
            if sp.issparse(X):  # only these rows are ever dense
                inputs, labels, rows = X[rows].toarray(), y[rows], np.arange(len(rows))
            self._engine.train(
                self._velocity, self._rule, inputs, labels, rows, batch, self.step, sums
            )
            done += len(rows)
            self.step += -(-len(rows) // batch)
            loss = float(sums.loss[0]) / done
            if not np.isfinite(loss):
                raise FloatingPointError(
                    f"the loss became {loss} in epoch {self.epoch + 1}, by step {self.step}; "
                    f"a lower learning_rate (now {self.config.learning_rate}) usually helps"
                )
            if on_progress is not None:
                on_progress(len(rows), loss)
            full = len(rows) == self._slice_steps * batch
            if full and time.perf_counter() - begin < _SLICE_SECONDS / 2:
                self._slice_steps *= 2
        with np.errstate(invalid="ignore"):  # the sum of two infinities
            finite = np.isfinite(self.model.params.sum(dtype=np.float64))
        if not finite:
            raise FloatingPointError(
                f"the weights became infinite or NaN by the end of epoch {self.epoch + 1}; a lower "
                f"learning_rate (now {self.config.learning_rate}) usually helps"
            )
        self.epoch += 1
        self.seconds["train"] += time.perf_counter() - start
        return {"loss": loss, "train_accuracy": int(sums.correct[0]) / n}

    def _slice_rows(self, X: Any) -> int:
        """Return how many rows the kernels are handed at a time."""
        batch = self.config.batch_size
        steps = self._slice_steps
        if sp.issparse(X):
            steps = max(1, min(steps, DENSE_VALUES // (X.shape[1] * batch)))
        return steps * batch

    def change_topology(self) -> dict[str, int]:
        """Prune by importance if that is due after this epoch, then evolve unless it was the last.

        Returns
        -------
        dict
            "pruned" and "replaced": numbers of connections.
        """
        start = time.perf_counter()
        changed = change_topology(self.model, self.config, self.seed, self.rank, self.epoch)
        if any(changed.values()):
            self._velocity = self.model.start_momentum()
            self._engine.bind(self.model.network)
        self.seconds["evolve"] += time.perf_counter() - start
        return changed

    def evaluate(self, X: Any, y: np.ndarray) -> dict[str, float]:
        """Return "loss" (nats) and "accuracy" of the model on (X, y).

        Raises
        ------
        FloatingPointError
            If the logits are not finite: the last step of an epoch is seen here first.
        """
        start = time.perf_counter()
        logits = self.model.decision_function(X, self.threads)
        if not np.isfinite(logits).all():
            raise FloatingPointError(
                f"the logits became infinite or NaN in epoch {self.epoch}; a lower learning_rate "
                f"(now {self.config.learning_rate}) usually helps"
            )
        accuracy = float((logits.argmax(axis=1) == y).mean())
        result = {"loss": functions.cross_entropy(logits, y), "accuracy": accuracy}
        self.seconds["evaluate"] += time.perf_counter() - start
        return result

    def progress(self) -> dict[str, Any]:
        """Return where the run stands, as JSON types, for `restore`."""
        return {"epoch": self.epoch, "step": self.step, "seconds": dict(self.seconds)}

    def restore(self, progress: dict[str, Any] | None) -> None:
        """Go on from where `progress` says; the model must be the one of that moment."""
        if progress is not None:
            self.epoch, self.step = progress["epoch"], progress["step"]
            self.seconds = dict(progress["seconds"])

    def close(self) -> None:
        """End the threads."""
        self._engine.close()

    def __enter__(self) -> Trainer:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _compile(self) -> None:
        """Have everything compiled before anything is timed: run it over no or little data."""
        n_features = self.model.sizes[0]
        nothing = (
            np.zeros((0, n_features), np.float32),
            np.zeros(0, np.int64),
            np.zeros(0, np.int64),
        )
        self._engine.train(self._velocity, self._rule, *nothing, 1, 0, metrics())
        self.model.decision_function(np.zeros((1, n_features), np.float32))
        tiny = SparseMLP.erdos_renyi((4, 4, 4, 2), density=0.5, random_state=0)
        tiny.start_momentum()
        tiny.evolve(0.5, np.random.default_rng(0))
