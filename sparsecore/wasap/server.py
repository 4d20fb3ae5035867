"""What is done to the parameter server's state: pull, push, and what ends an epoch.

The server is a place (see `place`), and whoever has its lock is the server. A worker that pushes a
gradient applies it to the server's weights itself, and copies the new weights out in the same
sweep. Who computes gradients, and when, is written in `worker` and `phases`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from sparsecore import topology, train
from sparsecore.compiled import kernels
from sparsecore.config import TrainConfig
from sparsecore.mlp import SparseMLP
from sparsecore.wasap.place import NNZ, TESTED, TICKET, VERSION, Place
from sparsecore.wasap.worker import Worker

#: What is recorded for an epoch of phase 1, a row of the region "epochs".
FIELDS = (
    "samples", "loss", "correct", "staleness", "accepted", "nnz", "pruned", "replaced", "elapsed",
    "aside", "test_loss", "test_accuracy",
)  # fmt: skip
_COLUMN = {name: column for column, name in enumerate(FIELDS)}

Structures = Sequence[tuple[np.ndarray, np.ndarray]]


class Update(NamedTuple):
    """What became of a push."""

    ticket: int  #: number of updates now applied
    epoch: int  #: the epoch that it completed, or 0
    model: SparseMLP | None  #: the server's model at the end of that epoch, before it evolved


class Record(NamedTuple):
    """The updates of phase 1, in the order in which they were applied."""

    worker: np.ndarray  #: int16
    staleness: np.ndarray  #: int32, updates by others between pull and push
    accepted: np.ndarray  #: float32, share of the gradient's connections that still existed


class ParameterServer:
    """Pull and push, by the rules of WASAP-SGD's phase 1.

    Parameters
    ----------
    place : Place
    config : TrainConfig
    seed : int
    updates_per_epoch, epochs : int
        An epoch is as many updates as the shards have batches together; `epochs` of them are phase
        1.

    Notes
    -----
    Source: "Truly Sparse Neural Networks at Scale", WASAP-SGD, parameter server. A push reads and
    writes parameters and velocity, 16 bytes a parameter; the pull that comes with it copies 4 more.
    When the topology has changed, 4 bytes a connection and 8 a neuron are read besides.
    """

    def __init__(
        self, place: Place, config: TrainConfig, seed: int, updates_per_epoch: int, epochs: int
    ) -> None:
        self.place, self.config, self.seed = place, config, seed
        self.updates_per_epoch, self.epochs = updates_per_epoch, epochs
        self.updates = updates_per_epoch * epochs
        self._rule = (
            np.float32(config.learning_rate),
            np.float32(config.momentum),
            np.float32(config.weight_decay),
        )
        self._started, self._elapsed_before = time.perf_counter(), 0.0

    # --- before and after ------------------------------------------------------------------------

    def publish(
        self, model: SparseMLP, record: Record | None = None, rows: np.ndarray | None = None
    ) -> None:
        """Make `model` the server's, with the `record` and the epochs' `rows` of an earlier run."""
        done = 0 if record is None else len(record.worker)
        state = self.place.fetch("state")
        state[[TICKET, VERSION]] = done, 1
        if record is not None:
            for name, values in zip(Record._fields, record, strict=True):
                self.place.write(name, values)
        if rows is not None:
            self.place.write("epochs", rows)
            self.place.write("control", len(rows) // len(FIELDS), TESTED)
        self._write_model(model, state)
        self.place.store("state")

    def start_clock(self, elapsed: float = 0.0) -> None:
        """Count the seconds of the run from now on, after `elapsed` of an earlier part of it."""
        self._started, self._elapsed_before = time.perf_counter(), elapsed

    def elapsed(self) -> float:
        """Return the seconds of the run so far."""
        return self._elapsed_before + time.perf_counter() - self._started

    @property
    def ticket(self) -> int:
        """Number of updates applied."""
        return int(self.place.fetch("state")[TICKET])

    def record(self, stop: int | None = None) -> Record:
        """Return a copy of the record, of the first `stop` updates."""
        stop = self.ticket if stop is None else stop
        return Record(*(self.place.fetch(name, 0, stop).copy() for name in Record._fields))

    def rows(self, epochs: int) -> np.ndarray:
        """Return a copy of the recorded numbers of the first `epochs` epochs, flat."""
        return self.place.fetch("epochs", 0, epochs * len(FIELDS)).copy()

    # --- pull and push ---------------------------------------------------------------------------

    def pull(self, worker: Worker) -> None:
        """Give the worker the server's model with its velocity."""
        with self.place.locked():
            state = self.place.fetch("state")
            n = int(state[NNZ]) + worker.n_biases
            structures = self._structures(worker.sizes)
            params = self.place.fetch("params", 0, n)
            velocity = self.place.fetch("velocity", 0, n)
            worker.adopt(structures, params, velocity)
            worker.pulled, worker.version = int(state[TICKET]), int(state[VERSION])

    def push(self, worker: Worker) -> Update | None:
        """Apply the worker's gradient, give it the new model, end the epoch if it is complete.

        Returns
        -------
        Update or None
            None if phase 1 was over; the gradient is then lost.
        """
        place, asked = self.place, time.perf_counter()
        model, epoch_model, structures = worker.model, None, None
        with place.locked():
            begun = time.perf_counter()
            place.check()
            state = place.fetch("state")
            ticket, nnz = int(state[TICKET]), int(state[NNZ])
            if ticket >= self.updates:
                return None
            n = nnz + worker.n_biases
            gradient, fresh, accepted = worker.gradient, model.params, 1.0
            if worker.version != state[VERSION]:
                # In shared memory these are the server's own arrays, which may soon change.
                structures = [(p.copy(), i.copy()) for p, i in self._structures(worker.sizes)]
                gradient, accepted = retained(model, gradient, structures)
                fresh = np.empty(n, np.float32)
            params, velocity = place.fetch("params", 0, n), place.fetch("velocity", 0, n)
            kernels.momentum_step(params, velocity, gradient, fresh, *self._rule)
            place.store("params", 0, n)
            place.store("velocity", 0, n)

            staleness = ticket - worker.pulled
            place.write("worker", worker.rank, ticket)
            place.write("staleness", staleness, ticket)
            place.write("accepted", accepted, ticket)
            epoch = ticket // self.updates_per_epoch
            first = epoch * len(FIELDS)
            row = place.fetch("epochs", first, first + len(FIELDS))
            row[: _COLUMN["nnz"]] += (
                worker.n_samples, worker.sums.loss[0], worker.sums.correct[0], staleness, accepted
            )  # fmt: skip
            state[TICKET] = ticket + 1
            epoch_ends = (ticket + 1) % self.updates_per_epoch == 0
            if epoch_ends:
                if structures is not None:
                    worker.adopt(structures, fresh)
                    structures = None
                epoch_model = self._end_epoch(worker, velocity, state, row, epoch + 1)
            place.store("epochs", first, first + len(FIELDS))
            place.store("state")
            worker.pulled, worker.version = ticket + 1, int(state[VERSION])
            ended = time.perf_counter()
        if structures is not None:
            worker.adopt(structures, fresh)
        worker.pushed()
        worker.seconds["lock"] += begun - asked
        worker.seconds["update"] += ended - begun
        return Update(ticket + 1, epoch + 1 if epoch_ends else 0, epoch_model)

    def _end_epoch(
        self, worker: Worker, velocity: np.ndarray, state: np.ndarray, row: np.ndarray, epoch: int
    ) -> SparseMLP:
        """Prune and evolve the server's model, by the worker that has just received it."""
        model = worker.model
        evolved = model.copy()
        evolved.start_momentum()[:] = velocity
        changed = train.change_topology(evolved, self.config, self.seed, 0, epoch)
        row[_COLUMN["nnz"] : _COLUMN["test_loss"]] = (
            model.nnz, changed["pruned"], changed["replaced"], self.elapsed(),
            self.place.fetch("aside").sum(),
        )  # fmt: skip
        row[_COLUMN["test_loss"] :] = math.nan
        if any(changed.values()):
            self._write_model(evolved, state)
            state[VERSION] += 1
        worker.take(evolved)
        return model

    def tested(self, epoch: int, loss: float, accuracy: float) -> None:
        """Record the test of an epoch's model."""
        first = (epoch - 1) * len(FIELDS) + _COLUMN["test_loss"]
        self.place.write("epochs", np.array([loss, accuracy]), first)

    # --- the topology ----------------------------------------------------------------------------

    def _structures(self, sizes: Sequence[int]) -> list[tuple[np.ndarray, np.ndarray]]:
        starts = self.place.fetch("weight_start")
        indptr = self.place.fetch("indptr")
        indices = self.place.fetch("indices", 0, int(starts[-1]))
        structures, first = [], 0
        for layer, n_out in enumerate(sizes[1:]):
            pointers = indptr[first : first + n_out + 1]
            structures.append((pointers, indices[starts[layer] : starts[layer + 1]]))
            first += n_out + 1
        return structures

    def _write_model(self, model: SparseMLP, state: np.ndarray) -> None:
        net = model.network
        state[NNZ] = model.nnz
        for name, values in (
            ("weight_start", net.weight_start),
            ("indptr", net.indptr),
            ("indices", net.indices),
            ("params", model.params),
            ("velocity", model.start_momentum()),
        ):
            self.place.write(name, values)


def retained(
    model: SparseMLP, gradient: np.ndarray, structures: Structures
) -> tuple[np.ndarray, float]:
    """Keep of a gradient what exists in a newer topology (RetainValidUpdates).

    Returns
    -------
    gradient : ndarray of float32
        Laid out for `structures`; 0 for connections that the gradient knows nothing of.
    accepted : float
        Share of the old connections that still exist.
    """
    sizes = [len(indices) for _, indices in structures]
    out = np.empty(sum(sizes) + len(model.biases), np.float32)
    old = new = kept = 0
    for layer, (indptr, indices) in enumerate(structures):
        view = model[layer]
        kept += topology.retain_valid(
            view.indptr, view.indices, gradient[old : old + view.nnz],
            indptr, indices, out[new : new + sizes[layer]],
        )  # fmt: skip
        old += view.nnz
        new += sizes[layer]
    out[new:] = gradient[old:]
    return out, kept / max(1, model.nnz)


def epoch_records(rows: np.ndarray, n_workers: int, updates_per_epoch: int) -> list[dict[str, Any]]:
    """Return the epochs of phase 1 under the names of the sequential trainer's records."""
    records = []
    for number, row in enumerate(rows.reshape(-1, len(FIELDS)), 1):
        value = dict(zip(FIELDS, row.tolist(), strict=True))
        tested = math.isfinite(value["test_loss"])
        records.append(
            {
                "epoch": number,
                "phase": 1,
                "nnz": int(value["nnz"]),
                "loss": value["loss"] / value["samples"],
                "train_accuracy": value["correct"] / value["samples"],
                "test_loss": value["test_loss"] if tested else None,
                "test_accuracy": value["test_accuracy"] if tested else None,
                "pruned": int(value["pruned"]),
                "replaced": int(value["replaced"]),
                "staleness": value["staleness"] / updates_per_epoch,
                "accepted": value["accepted"] / updates_per_epoch,
                "seconds": {
                    "elapsed": value["elapsed"],
                    "train": value["elapsed"] - value["aside"] / n_workers,
                },
            }
        )
    return records
