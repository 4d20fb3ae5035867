"""A worker: its shard of the data, its copy of the model, and the gradients it computes.

Where the gradient goes is the business of `server`; which phase it is, of `phases`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sparsecore import seeds
from sparsecore.compiled.engine import Engine, aligned, metrics
from sparsecore.compiled.kernels import Metrics, Rule
from sparsecore.config import TrainConfig
from sparsecore.datasets import Dataset
from sparsecore.datasets.augment import ImageAugmentation
from sparsecore.datasets.dataset import standardize
from sparsecore.mlp import SparseMLP
from sparsecore.seeds import Purpose
from sparsecore.train import Trainer


def shard_rows(labels: np.ndarray, n_workers: int, seed: int) -> list[np.ndarray]:
    """Split the rows among workers so that every class is spread evenly.

    Parameters
    ----------
    labels : ndarray of int64, shape (n,)
    n_workers : int
    seed : int

    Returns
    -------
    list of ndarray of int64
        Ascending row numbers; sizes differ by one at most, and no row is left out.

    Raises
    ------
    ValueError
        If there are fewer rows than workers.
    """
    if len(labels) < n_workers:
        raise ValueError(
            f"workers: {n_workers} workers cannot share {len(labels)} rows; start fewer ranks"
        )
    rng = seeds.generator(seed, Purpose.SPLIT)
    shuffled = rng.permutation(len(labels))
    # Rows of a class follow each other and are dealt out like cards, so no worker lacks a class.
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    return [np.sort(by_class[worker::n_workers]) for worker in range(n_workers)]


class Shard:
    """The training data of one worker, standardised by the moments of the whole data set.

    Parameters
    ----------
    data : Dataset
        Raw values.
    rows : ndarray of int64
    config : TrainConfig
    seed, rank : int
    """

    def __init__(
        self, data: Dataset, rows: np.ndarray, config: TrainConfig, seed: int, rank: int
    ) -> None:
        self.labels = data.y_train[rows]
        self._augmentation: ImageAugmentation | None = None
        mean, scale = data.moments()
        if config.augment:
            # Worker 0 draws what the sequential trainer draws.
            key: Any = np.random.SeedSequence(seed, spawn_key=(rank,)) if rank else seed
            self._augmentation = ImageAugmentation(
                data.X_train[rows], data.feature_shape, mean, scale, seed=key
            )
        else:
            self._inputs = standardize(data.X_train[rows], mean, scale)

    def __len__(self) -> int:
        return len(self.labels)

    def inputs(self, epoch: int) -> np.ndarray:
        """Return the inputs of a pass, float32; passes are counted from 0."""
        return self._inputs if self._augmentation is None else self._augmentation(epoch)


class Worker:
    """Computes gradients on its shard, one batch after the other.

    Parameters
    ----------
    rank : int
        Gives it its own streams of random numbers.
    shard : Shard
    sizes : tuple of int
        Neurons per layer.
    config : TrainConfig
    seed, threads : int
    step : int
        Batches done in an earlier part of the run.

    Attributes
    ----------
    model : SparseMLP
        As last received from the server.
    version, pulled : int
        The topology's version, and the number of updates that the server had applied.
    gradient : ndarray of float32
        Of the last batch, laid out like ``model.params``.
    sums : Metrics
        Of the last batch.
    n_samples : int
        Of the last batch.
    seconds : dict
        Spent on "gradient", waiting for the "lock", and on "update" under it.
    """

    def __init__(
        self,
        rank: int,
        shard: Shard,
        sizes: Sequence[int],
        config: TrainConfig,
        seed: int,
        threads: int = 1,
        step: int = 0,
    ) -> None:
        self.rank, self.shard, self.config = rank, shard, config
        self.sizes, self.seed, self.threads, self.step = tuple(sizes), seed, threads, step
        self.n_biases = sum(self.sizes[1:])
        self.batches = -(-len(shard) // config.batch_size)
        self.version = self.pulled = self.samples = self.updates = self.n_samples = 0
        self.seconds = {"gradient": 0.0, "lock": 0.0, "update": 0.0}
        self.sums: Metrics = metrics()
        zero = np.float32(0)
        key = seeds.key(seed, Purpose.DROPOUT, rank)
        self._rule = Rule(zero, zero, zero, np.float32(config.dropout), key)
        self._engine: Engine | None = None
        self._order: tuple[int, np.ndarray] = (-1, np.zeros(0, np.int64))

    # --- the model -------------------------------------------------------------------------------

    def take(self, model: SparseMLP) -> None:
        """Work on `model` from now on."""
        self.model = model
        if self._engine is None:
            size = min(self.config.batch_size, len(self.shard))
            self._engine = Engine(model.network, size, self.threads)
            self._gradient = aligned(len(model.params), np.float32)
        else:
            self._engine.bind(model.network)
        self.gradient = self._gradient[: len(model.params)]

    def adopt(
        self,
        structures: Sequence[tuple[np.ndarray, np.ndarray]],
        params: np.ndarray,
        velocity: np.ndarray | None = None,
    ) -> None:
        """Work on a model of this structure from now on; the arrays are copied."""
        if not hasattr(self, "model"):
            weights = [np.zeros(len(indices), np.float32) for _, indices in structures]
            model = SparseMLP(
                self.sizes, structures, weights, activation=self.config.activation,
                alpha=self.config.alpha, init=self.config.init,
            )  # fmt: skip
        else:
            model = self.model
        model.adopt(structures, params, velocity)
        self.take(model)

    # --- phase 1 ---------------------------------------------------------------------------------

    def compute(self) -> None:
        """Compute the gradient on the next batch of the shard.

        Raises
        ------
        FloatingPointError
            If it is not finite.
        """
        start = time.perf_counter()
        number, batch = divmod(self.step, self.batches)
        if self._order[0] != number:
            rng = seeds.generator(self.seed, Purpose.SHUFFLE, self.rank, number)
            self._order = (number, rng.permutation(len(self.shard)))
            self._inputs = self.shard.inputs(number)
        size = self.config.batch_size
        rows = self._order[1][batch * size : (batch + 1) * size]
        self.sums.loss[0], self.sums.correct[0], self.n_samples = 0, 0, len(rows)
        assert self._engine is not None
        self._engine.gradient(
            self.gradient, self._rule, self._inputs, self.shard.labels, rows, self.step, self.sums
        )
        # A sum is finite only if its terms are.
        with np.errstate(over="ignore", invalid="ignore"):
            finite = np.isfinite(self.sums.loss[0]) and np.isfinite(self.gradient.sum())
        if not finite:
            raise FloatingPointError(
                f"worker {self.rank}: the gradient of its batch {self.step + 1} is not finite "
                f"(mean loss {self.sums.loss[0] / len(rows)}); a lower learning_rate "
                f"(now {self.config.learning_rate}) usually helps, if the data are finite"
            )
        self.seconds["gradient"] += time.perf_counter() - start

    def pushed(self) -> None:
        """Count the last batch as done."""
        self.step += 1
        self.updates += 1
        self.samples += self.n_samples

    # --- phase 2 ---------------------------------------------------------------------------------

    def train_alone(
        self,
        first_epoch: int,
        test: Callable[[Trainer], dict[str, Any]] | None = None,
        on_epoch: Callable[[Trainer, dict[str, Any]], None] | None = None,
        on_progress: Callable[[int, float], None] | None = None,
        resumed: tuple[SparseMLP, dict[str, Any]] | None = None,
    ) -> None:
        """Train the worker's own copy on its shard from `first_epoch` (counted from 0) to the end.

        Parameters
        ----------
        first_epoch : int
        test : callable, optional
            Called after an epoch, before the topology changes; returns more entries for its record.
        on_epoch : callable, optional
            Called with the trainer and the record when the topology has changed.
        on_progress : callable, optional
            As `Trainer.run_epoch` calls it.
        resumed : (SparseMLP, progress), optional
            Where an earlier part of the run got to.

        Notes
        -----
        Source: "Truly Sparse Neural Networks at Scale", WASAP-SGD, phase 2. SET evolves every copy
        by itself; importance pruning belongs to phase 1, so that all copies keep the same nnz.
        """
        config = self.config.with_values(prune_from=None)
        progress: dict[str, Any] = {
            "epoch": first_epoch,
            "step": self.step,
            "seconds": {"train": 0.0, "evaluate": 0.0, "evolve": 0.0},
        }
        if resumed is not None:
            self.model, progress = resumed
        with Trainer(
            self.model, config, seed=self.seed, threads=self.threads, rank=self.rank
        ) as trainer:
            trainer.restore(progress)
            while trainer.epoch < config.epochs:
                X = self.shard.inputs(trainer.epoch)
                record: dict[str, Any] = {"epoch": trainer.epoch + 1, "nnz": self.model.nnz}
                record |= trainer.run_epoch(X, self.shard.labels, on_progress)
                if test is not None:
                    record |= test(trainer)
                record |= trainer.change_topology()
                if on_epoch is not None:
                    on_epoch(trainer, record)
                self.samples += len(self.shard)
            self.step = trainer.step

    def close(self) -> None:
        """End the threads."""
        if self._engine is not None:
            self._engine.close()
