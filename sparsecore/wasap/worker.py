"""A worker: its shard of the data, its copy of the model, and the gradients it computes."""

import time
from dataclasses import dataclass

import numpy as np

from sparsecore import seeds
from sparsecore.compiled.engine import aligned, metrics
from sparsecore.config import integers
from sparsecore.experiment import Shard
from sparsecore.seeds import Purpose
from sparsecore.train import Trainer, diverged, sgd_rule
from sparsecore.wasap.server import Gradient, ParameterServer, Update


def shard_rows(labels: np.ndarray, n_workers: int, seed: int) -> list[np.ndarray]:
    """Deal out all rows so that every class is spread evenly; each share is sorted."""
    integers(1, len(labels), f"at most {len(labels)} (rows)").check("workers", n_workers)
    rng = seeds.generator(seed, Purpose.SPLIT)
    shuffled = rng.permutation(len(labels))
    # Rows of a class follow each other and are dealt out like cards, so no worker lacks a class.
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    return [np.sort(by_class[worker::n_workers]) for worker in range(n_workers)]


@dataclass(eq=False)
class Worker:
    """Computes gradients of a copy of the server's model on a shard, one batch after the other."""

    rank: int
    shard: Shard
    server: ParameterServer
    threads: int = 1
    step: int = 0  #: updates made, including those of an earlier part of the run

    def __post_init__(self) -> None:
        self.config, self.seed, self.plan = self.server.config, self.server.seed, self.server.plan
        self.model, self.version = self.server.pull()
        size, n = self.config.batch_size, len(self.shard)
        self._size = size * self.plan.local_steps  # samples of an update
        # In an epoch: batches, and updates.
        self.batches, self._per_epoch = -(-n // size), self.plan.updates(n, self.config)
        self.samples = self.updates = 0
        self.seconds = {"gradient": 0.0, "lock": 0.0, "update": 0.0}
        self._rule = sgd_rule(self.config, self.seed, self.rank)
        self._sums, self._epoch = metrics(), -1
        self._engine = self.model.new_engine(min(size, n), self.threads)
        self.close = self._engine.close
        self._gradient = aligned(len(self.model.params), np.float32)

    def batches_before(self, updates: int) -> int:
        """Return how many batches the first `updates` updates use."""
        epochs, more = divmod(updates, self._per_epoch)
        return epochs * self.batches + more * self.plan.local_steps

    def compute(self) -> Gradient:
        """Compute the gradient on the shard's next batch; the next call overwrites its values."""
        # With local steps: take them, and return how they have changed the parameters.
        start = time.perf_counter()
        epoch, update = divmod(self.step, self._per_epoch)
        if self._epoch != epoch:
            rng = seeds.generator(self.seed, Purpose.SHUFFLE, self.rank, epoch)
            self._epoch, self._order = epoch, rng.permutation(len(self.shard))
            self._inputs = self.shard(epoch)
        sums, first = self._sums, self.batches_before(self.step)
        rows = self._order[update * self._size : (update + 1) * self._size]
        values = self._gradient[: len(self.model.params)]  # pruning makes it shorter
        sums.loss[0] = sums.correct[0] = 0
        samples = self._inputs, self.shard.labels, rows
        if self.plan.local_steps == 1:
            self._engine.gradient(values, self._rule, *samples, first, sums)
        else:
            n_workers = self.server.place.n_workers
            rate = self.plan.learning_rate(self.config, n_workers, self.step, self._per_epoch)
            rule = self._rule._replace(learning_rate=rate)
            size, values[:] = min(self.config.batch_size, len(self.shard)), self.model.params
            self._engine.train(rule, *samples, size, first, sums)
            np.subtract(self.model.params, values, out=values)
        # A sum is finite only if its terms are.
        with np.errstate(over="ignore", invalid="ignore"):
            finite = np.isfinite(sums.loss[0]) and np.isfinite(values.sum())
        if not finite:
            raise diverged(
                f"worker {self.rank}: the gradient of its batch {first + 1} is not finite "
                f"(mean loss {sums.loss[0] / len(rows)})",
                self.config,
            )
        self.seconds["gradient"] += time.perf_counter() - start
        return Gradient(values, self.rank, len(rows), float(sums.loss[0]), int(sums.correct[0]))

    def pull(self) -> None:
        """Continue with the server's model."""
        self.version = self.server.pull(self.model)[1]

    def push(self, gradient: Gradient) -> Update | None:
        """Push a gradient and continue with the server's new model; None if phase 1 was over."""
        update = self.server.push(gradient, self.version, self.model)
        if update is not None:
            self.count(gradient)
            self.seconds["lock"] += update.waited
            self.seconds["update"] += update.held
            self.version = update.version
        return update

    def count(self, gradient: Gradient) -> None:
        """Count a gradient as used."""
        self.step += 1
        self.updates += 1
        self.samples += gradient.samples

    def trainer(self, first_epoch: int) -> Trainer:
        """Return a trainer of the worker's copy from `first_epoch` (counted from 0) to the end."""
        factor = self.server.place.n_workers if self.plan.keep_rate else 1
        rate = factor * self.config.learning_rate
        # Importance pruning belongs to phase 1, so that all copies keep the same nnz.
        config = self.config.with_values(prune_from=None, learning_rate=rate)
        trainer = Trainer(self.model, config, seed=self.seed, threads=self.threads, rank=self.rank)
        trainer.epoch, trainer.step = first_epoch, self.batches_before(self.step)
        return trainer
