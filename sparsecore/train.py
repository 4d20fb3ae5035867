"""The sequential trainer: epochs of momentum SGD, then evolution and pruning when they are due.

A `Trainer` trains a model one epoch at a time, so its caller (the estimator, the command line, a
study) decides what happens between epochs.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import scipy.sparse as sp

from sparsecore import functions, seeds
from sparsecore.compiled.arrays import Closing, Fixed
from sparsecore.compiled.engine import metrics
from sparsecore.compiled.kernels import Rule
from sparsecore.compiled.losses import Aim
from sparsecore.config import TrainConfig
from sparsecore.mlp import SparseMLP
from sparsecore.samples import DENSE_VALUES, as_inputs, as_labels
from sparsecore.seeds import Purpose

# The kernels cannot be interrupted: they get about this many seconds of work at a time.
_CALL_SECONDS = 0.2
Targets = np.ndarray | Aim  #: class indices, or other targets
#: A `SparseMLP`, or a network with its own engine and, like a `SparseMLP`, the members `sizes`,
#: `params`, `nnz`, `new_engine`, `start_momentum`, `decision_function` and `weights_sha256`; also
#: `evolve` and `prune`, unless zeta is 0 and nothing is pruned.
Model = Any


def new_model(config: TrainConfig, n_features: int, n_classes: int, seed: int) -> SparseMLP:
    """Make the network that `config` and `seed` describe."""
    return new_network((n_features, *config.hidden, n_classes), config, seed)


def new_network(sizes: tuple[int, ...], config: TrainConfig, seed: int) -> SparseMLP:
    """Make a network of these layers, whatever the hidden layers of `config` are."""
    return SparseMLP.erdos_renyi(
        sizes, epsilon=config.epsilon if config.density is None else None, density=config.density,
        activation=config.activation, alpha=config.alpha, init=config.init,
        random_state=seeds.generator(seed, Purpose.TOPOLOGY),
    )  # fmt: skip


def diverged(what: str, config: TrainConfig) -> FloatingPointError:
    """Return the error for a run whose numbers are no longer finite, with advice."""
    return FloatingPointError(
        f"{what}; a lower learning_rate (now {config.learning_rate}) usually helps"
    )


def outputs(
    model: Model, X: Any, config: TrainConfig, threads: int = 1, when: str = ""
) -> np.ndarray:
    """Return the logits; raise a FloatingPointError if they are not finite."""
    logits = model.decision_function(X, threads)
    if not np.isfinite(logits).all():
        raise diverged(f"the logits became infinite or NaN{when}", config)
    return logits


def evaluate(
    model: Model, X: Any, y: np.ndarray, config: TrainConfig, threads: int = 1, when: str = "",
    half: np.ndarray | None = None,
) -> dict[str, float]:  # fmt: skip
    """Return "loss" (nats) and "accuracy" of a model on (X, y); with `half`, "half_correct"."""
    logits = outputs(model, X, config, threads, when)
    correct = logits.argmax(axis=1) == y
    found = {"loss": functions.cross_entropy(logits, y), "accuracy": float(correct.mean())}
    return found if half is None else {**found, "half_correct": int(correct[half].sum())}


def sgd_rule(config: TrainConfig, seed: int, rank: int = 0) -> Rule:
    """Return the update rule that `config` describes, with the key of the dropout noise."""
    rates = config.learning_rate, config.momentum, config.weight_decay, config.dropout
    return Rule._make([*map(np.float32, rates), seeds.key(seed, Purpose.DROPOUT, rank)])


def change_topology(
    model: SparseMLP, config: TrainConfig, seed: int, rank: int, epoch: int
) -> dict[str, int]:
    """Prune if due after `epoch`, evolve unless it was the last; count the connections."""
    pruned = replaced = 0
    if config.prunes_after(epoch):
        pruned = model.prune(config.prune_percentile, config.prune_counts_empty)
    if config.zeta > 0 and epoch < config.epochs:
        replaced = model.evolve(config.zeta, seeds.generator(seed, Purpose.EVOLUTION, rank, epoch))
    return {"pruned": pruned, "replaced": replaced}


class Trainer(Fixed, Closing):
    """Trains a model in place: `run_epoch` makes a pass, then `change_topology` prunes and evolves.

    Parameters
    ----------
    model : SparseMLP
        The study's dense network trains in the same way, with zeta 0 and without pruning.
    config : TrainConfig
    seed, rank : int
        Determine data order, dropout and evolution; each parallel worker has its own rank.
    threads : int
        Results of a `SparseMLP` do not depend on it.

    Attributes
    ----------
    epoch, step : int
        Epochs and steps done.
    seconds : dict
        Time spent to "train", "evaluate" and "evolve"; compilation of training is not counted.

    Notes
    -----
    After an interrupt (Ctrl-C) the last step or change of topology is complete, and `step` counts
    the steps done. An unfinished epoch does not count: `run_epoch` repeats it in the same data
    order, with the model as it is now and with fresh dropout.
    """

    FIXED = ("model", "config", "seed", "threads", "rank")

    def __init__(
        self, model: Model, config: TrainConfig, *, seed: int = 0, threads: int = 1, rank: int = 0
    ) -> None:
        self.model, self.config = model, config
        self.seed, self.threads, self.rank = seed, threads, rank
        self.epoch, self._steps = 0, np.zeros(1, np.int64)
        self.seconds = {"train": 0.0, "evaluate": 0.0, "evolve": 0.0}
        model.start_momentum()
        self._engine = model.new_engine(config.batch_size, threads)
        self.close = self._engine.close
        self._rule = sgd_rule(config, seed, rank)
        self._call_steps = 1
        self._compile()

    @property
    def step(self) -> int:
        """Steps done; a kernel counts each when it is complete."""
        return int(self._steps[0])

    @step.setter
    def step(self, value: int) -> None:
        self._steps[0] = value

    def epochs(
        self, inputs: Callable[[int], Any], y: Targets, test: Callable[[], dict[str, Any]] = dict,
        on_progress: Callable[[int, float], None] | None = None,
    ) -> Iterator[dict[str, Any]]:  # fmt: skip
        """Run the remaining epochs, and yield the record of each."""
        # ``inputs(epoch)``, counted from 0, makes an epoch's inputs; its time counts as training.
        # ``test()`` is called before the topology changes, and returns more entries of the record.
        while self.epoch < self.config.epochs:
            begin = time.perf_counter()
            X = inputs(self.epoch)
            self.seconds["train"] += time.perf_counter() - begin
            record: dict[str, Any] = {"epoch": self.epoch + 1, "nnz": self.model.nnz}
            record |= self.run_epoch(X, y, on_progress)
            record |= test()
            record |= self.change_topology()
            yield {**record, "seconds": dict(self.seconds)}

    def run_epoch(
        self, X: Any, y: Targets, on_progress: Callable[[int, float], None] | None = None
    ) -> dict[str, float]:
        """Make one pass over the training data in a fresh random order. O(nnz n) time.

        Parameters
        ----------
        X : ndarray or scipy.sparse, shape (n, n_features)
            Not copied if it is contiguous float32 or CSR.
        y : ndarray of int, shape (n,), or Aim
            Class indices, or the targets of an estimator.
        on_progress : callable, optional
            Called several times per second with the number of samples since its last call, and
            the mean loss so far.

        Returns
        -------
        dict
            "loss" (nats) and "train_accuracy" (0 to 1) of the batches in training, with dropout.

        Raises
        ------
        ValueError
            If the shapes do not fit, there are no rows, or a label is not a class index.
        FloatingPointError
            If loss or weights are no longer finite.
        """
        start = time.perf_counter()
        X = as_inputs(X, self.model.sizes[0])
        n, batch = X.shape[0], self.config.batch_size
        y = y if isinstance(y, Aim) else as_labels(y, n, self.model.sizes[-1])
        if n == 0:
            raise ValueError("X: expected at least one row to train on, got none")
        order = seeds.generator(self.seed, Purpose.SHUFFLE, self.rank, self.epoch).permutation(n)
        self.model.start_momentum()
        sums, done = metrics()._replace(steps=self._steps), 0
        most = max(1, DENSE_VALUES // (X.shape[1] * batch)) if sp.issparse(X) else n  # steps
        while done < n:
            begin = time.perf_counter()
            rows = order[done : done + min(self._call_steps, most) * batch]
            inputs, labels = X, y
            if sp.issparse(X):  # only these rows are ever dense
                labels = y.part(rows) if isinstance(y, Aim) else y[rows]
                inputs, rows = X[rows].toarray(), np.arange(len(rows))
            self._engine.train(self._rule, inputs, labels, rows, batch, self.step, sums)
            done += len(rows)
            loss = float(sums.loss[0]) / done
            if not np.isfinite(loss):
                when = f"in epoch {self.epoch + 1}, by step {self.step}"
                raise diverged(f"the loss became {loss} {when}", self.config)
            if on_progress is not None:
                on_progress(len(rows), loss)
            full = len(rows) == self._call_steps * batch
            if full and time.perf_counter() - begin < _CALL_SECONDS / 2:
                self._call_steps *= 2
        with np.errstate(invalid="ignore"):  # the sum of two infinities
            finite = np.isfinite(self.model.params.sum(dtype=np.float64))
        if not finite:
            when = f"by the end of epoch {self.epoch + 1}"
            raise diverged(f"the weights became infinite or NaN {when}", self.config)
        self.epoch += 1
        self.seconds["train"] += time.perf_counter() - start
        return {"loss": loss, "train_accuracy": int(sums.correct[0]) / n}

    def change_topology(self) -> dict[str, int]:
        """Prune and evolve if due; return how many connections are "pruned", "replaced". O(nnz)."""
        start = time.perf_counter()
        changed = change_topology(self.model, self.config, self.seed, self.rank, self.epoch)
        self.seconds["evolve"] += time.perf_counter() - start
        return changed

    def evaluate(self, X: Any, y: np.ndarray, half: np.ndarray | None = None) -> dict[str, float]:
        """Return "loss" (mean cross-entropy, nats) and "accuracy" (0 to 1) on (X, y)."""
        # With rows `half`, also "half_correct": the number of them that are right.
        start = time.perf_counter()
        about = self.threads, f" in epoch {self.epoch}", half
        found = evaluate(self.model, X, y, self.config, *about)
        self.seconds["evaluate"] += time.perf_counter() - start
        return found

    def progress(self) -> dict[str, Any]:
        """Return the position in the run, as JSON types, for `restore`."""
        return {"epoch": self.epoch, "step": self.step, "seconds": dict(self.seconds)}

    def restore(self, progress: dict[str, Any] | None) -> None:
        """Continue from `progress`; the model must be the one of that moment."""
        if progress is not None:
            self.epoch, self.step = progress["epoch"], progress["step"]
            self.seconds = dict(progress["seconds"])

    def _compile(self) -> None:
        """Compile training before it is timed, by running it over no or little data."""
        X, none = np.zeros((0, self.model.sizes[0]), np.float32), np.zeros(0, np.int64)
        self._engine.train(self._rule, X, none, none, 1, 0, metrics())
        if self.config.zeta > 0:  # pruning calls only what making a network has called
            tiny = SparseMLP.erdos_renyi((4, 4, 2), density=0.5, random_state=0)
            tiny.evolve(0.5, np.random.default_rng(0))
