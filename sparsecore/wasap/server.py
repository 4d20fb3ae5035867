"""The parameter server of WASAP-SGD: its state, pull, push, the end of an epoch; averaging.

The server is a place in memory, and the rank that holds its lock acts as the server. Here the place
is plain memory of one process, which a replay uses; `window` has the same in MPI memory.
"""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from sparsecore import topology, train
from sparsecore.compiled import engine, kernels
from sparsecore.config import TrainConfig
from sparsecore.mlp import SparseMLP, Structures, split_layers
from sparsecore.wasap.plan import Plan

#: Columns of the region "epochs", which has one row per epoch of phase 1.
FIELDS = (
    "samples", "loss", "correct", "staleness", "accepted", "nnz", "pruned", "replaced", "elapsed",
    "aside", "test_loss", "test_accuracy",
)  # fmt: skip
_NNZ, _TEST_LOSS = FIELDS.index("nnz"), FIELDS.index("test_loss")

LOCK, DONE, TESTED = 0, 1, 2  # words of the region "control"
TICKET, VERSION, NNZ = 0, 1, 2  # words of the region "state"


class Place:
    """State of the parameter server in this process's own memory: named arrays, and a lock."""

    # `nnz` is the largest number of connections; `updates` and `epochs` are phase 1's. `fetch`
    # returns a part of an array to read and change, `store` writes it back.
    def __init__(
        self, sizes: Sequence[int], nnz: int, n_workers: int, updates: int, epochs: int
    ) -> None:
        self.sizes, self.n_workers = tuple(sizes), n_workers
        n_params = nnz + sum(sizes[1:])
        arrays: dict[str, tuple[type, tuple[int, ...]]] = {
            "control": (np.int64, (8,)),  # first, where `Window` looks for the lock
            "state": (np.int64, (8,)),
            "aside": (np.float64, (n_workers,)),  # seconds spent on tests and checkpoints
            "weight_start": (np.int64, (len(sizes),)),
            "indptr": (np.int64, (sum(sizes[1:]) + len(sizes) - 1,)),
            "indices": (np.int32, (nnz,)),
            "params": (np.float32, (n_params,)),
            "velocity": (np.float32, (n_params,)),
            "worker": (np.int16, (updates,)),
            "staleness": (np.int32, (updates,)),
            "accepted": (np.float32, (updates,)),
            "epochs": (np.float64, (epochs, len(FIELDS))),
        }
        n_bytes = [math.prod(shape) * np.dtype(dtype).itemsize for dtype, shape in arrays.values()]
        starts = np.cumsum([0] + [-(-n // 64) * 64 for n in n_bytes]).tolist()  # cache lines
        memory = self._allocate(starts[-1])
        self._views = {
            name: np.ndarray(shape, dtype, memory, start)
            for (name, (dtype, shape)), start in zip(arrays.items(), starts, strict=False)
        }

    def _allocate(self, n_bytes: int) -> np.ndarray:
        return engine.aligned(n_bytes, np.uint8)

    def fetch(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return ``region[start:stop]`` as it is now."""
        return self._views[name][start:stop]

    def store(self, name: str, start: int = 0, stop: int | None = None) -> None:
        """Write back the changes to ``region[start:stop]`` in the array that `fetch` returned."""

    def write(self, name: str, values: Any, start: int = 0) -> None:
        """Set ``region[start:]`` to `values`, without fetching it."""
        values = np.atleast_1d(values)
        self._views[name][start : start + len(values)] = values
        self.store(name, start, start + len(values))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the server's exclusive lock."""
        yield


class Version(NamedTuple):
    """The state of the server's model when a copy of it was made."""

    updates: int  #: that were applied
    topology: int  #: raised whenever the topology changes


class Gradient(NamedTuple):
    """The mean gradient of a batch, or the change by local steps, and its entry in the record."""

    values: np.ndarray  #: float32, laid out like the parameters of the model
    worker: int  #: rank
    samples: int
    loss: float  #: sum over the samples, in nats
    correct: int


class Update(NamedTuple):
    """The outcome of a push."""

    version: Version  #: of the model that came back
    epoch: int  #: the epoch that it completed, or 0
    model: SparseMLP | None  #: the server's model at the end of that epoch, before it evolved
    waited: float  #: seconds for the server's lock
    held: float  #: seconds under it


class Record(NamedTuple):
    """The updates of phase 1, in the order in which they were applied."""

    worker: np.ndarray  #: int16
    staleness: np.ndarray  #: int32, updates by others between pull and push
    accepted: np.ndarray  #: float32, share of the gradient's connections that still existed


def retained(
    model: SparseMLP, values: np.ndarray, structures: Structures
) -> tuple[np.ndarray, float]:
    """Return a gradient laid out for a newer topology, and the share of connections left in it."""
    before = model.structures()  # RetainValidUpdates: new connections get 0
    here, there = (np.cumsum([len(i) for _, i in layers]) for layers in (before, structures))
    out = np.empty(there[-1] + len(model.biases), np.float32)
    old, new, kept = np.split(values, here), np.split(out, there), 0
    for layer, structure in enumerate(structures):
        kept += topology.retain_valid(*before[layer], old[layer], *structure, new[layer])
    new[-1][:] = old[-1]  # biases
    return out, kept / max(1, model.nnz)


def average(models: Sequence[SparseMLP]) -> tuple[SparseMLP, int]:
    """Return the average of models, each layer cut back to its nnz, and the nnz of their union."""
    # A connection that a model lacks counts as 0; the weights of smallest magnitude are cut.
    # Source: "Truly Sparse Neural Networks at Scale", WASAP-SGD, phase 2. O(models * union).
    first = models[0]
    structures, data, union_nnz = [], [], 0
    for layer in range(len(first)):
        views = [model[layer] for model in models]
        indptr, indices, mean = topology.union_average(
            [(view.indptr, view.indices, view.data) for view in views]
        )
        union_nnz += len(mean)
        keep = topology.strongest(mean, max(view.nnz for view in views))
        structures.append(topology.keep_only(keep, indptr, indices))
        data.append(mean[keep])
    biases = np.stack([model.biases for model in models]).mean(axis=0, dtype=np.float64)
    model = SparseMLP(first.sizes, structures, data, **first.options)
    model.biases[:] = biases
    return model, union_nnz


class ParameterServer:
    """Pull and push; phase 1 is `epochs` times `updates_per_epoch` updates."""

    # Source: "Truly Sparse Neural Networks at Scale", WASAP-SGD. A push moves 16 bytes per
    # parameter, and 4 per connection and 8 per neuron more when the topology has changed. A worker
    # that takes local steps keeps its own velocity, and a push moves 8 bytes: the change by its
    # steps is divided by one plus its staleness, and added (Zhang et al., 2016), which averages
    # workers of equal speed.
    def __init__(
        self, place: Place, config: TrainConfig, seed: int, updates_per_epoch: int, epochs: int,
        plan: Plan | None = None,
    ) -> None:  # fmt: skip
        self.place, self.config, self.seed, self.plan = place, config, seed, plan or Plan()
        self.updates_per_epoch, self.updates = updates_per_epoch, updates_per_epoch * epochs
        self._n_biases = sum(place.sizes[1:])
        self._rule = train.sgd_rule(config, seed)[:3]
        self._began = time.perf_counter()

    # --- before and after ------------------------------------------------------------------------

    def publish(
        self, model: SparseMLP, record: Record | None = None, rows: np.ndarray | None = None
    ) -> None:
        """Make `model` the server's, with the `record` and the epochs' `rows` of an earlier run."""
        state = self.place.fetch("state")
        state[[TICKET, VERSION]] = 0, 1
        if record is not None:
            state[TICKET] = len(record.worker)
            for name, values in record._asdict().items():
                self.place.write(name, values)
        if rows is not None:
            self.place.write("epochs", rows := rows.reshape(-1, len(FIELDS)))
            self.place.write("control", len(rows), TESTED)
        self._write_model(model, state)
        self.place.store("state")

    def start_clock(self, elapsed: float = 0.0) -> None:
        """Count the seconds of the run from now on, after `elapsed` of an earlier part of it."""
        self._began = time.perf_counter() - elapsed

    def elapsed(self) -> float:
        """Return the seconds of the run so far."""
        return time.perf_counter() - self._began

    def record(self, stop: int | None = None) -> Record:
        """Return a copy of the record, of the first `stop` updates."""
        stop = int(self.place.fetch("state")[TICKET]) if stop is None else stop
        return Record(*(self.place.fetch(name, 0, stop).copy() for name in Record._fields))

    # --- pull and push ---------------------------------------------------------------------------

    def pull(self, out: SparseMLP | None = None) -> tuple[SparseMLP, Version]:
        """Make `out`, or a new model, a copy of the server's model with its velocity."""
        with self.place.locked():
            place, state = self.place, self.place.fetch("state")
            n = int(state[NNZ]) + self._n_biases
            params, velocity = (place.fetch(name, 0, n) for name in ("params", "velocity"))
            if out is None:
                config = self.config
                out = SparseMLP.from_flat(
                    place.sizes, *self._topology(), params,
                    activation=config.activation, alpha=config.alpha, init=config.init,
                )  # fmt: skip
            out.adopt(self._structures(), params, velocity)
            return out, Version(int(state[TICKET]), int(state[VERSION]))

    def push(self, gradient: Gradient, version: Version, out: SparseMLP) -> Update | None:
        """Apply a gradient of `out`, a copy at `version`; renew `out`. None if phase 1 is over."""
        place, asked = self.place, time.perf_counter()
        # Where the topology has not changed, `fresh`, the new parameters, are written into `out`.
        values, fresh, accepted = gradient.values, out.params, 1.0
        epoch_model = velocity = None
        structures = moved = None  # the new topology, until `out` adopts it, and its velocity
        with place.locked():
            begun = time.perf_counter()
            state = place.fetch("state")
            ticket = int(state[TICKET])
            if ticket >= self.updates:
                return None
            n, staleness = int(state[NNZ]) + self._n_biases, ticket - version.updates
            if version.topology != state[VERSION]:
                # In shared memory these are the server's own arrays, which may soon change.
                structures = [(p.copy(), i.copy()) for p, i in self._structures()]
                values, accepted = retained(out, values, structures)
                fresh = np.empty(n, np.float32)
                if self.plan.local_steps > 1:  # a worker keeps its own velocity
                    moved = retained(out, out.start_momentum(), structures)[0]
            if self.plan.local_steps == 1:
                params, velocity = place.fetch("params", 0, n), place.fetch("velocity", 0, n)
                kernels.momentum_step(params, velocity, values, fresh, *self._rule)
                place.store("params", 0, n)
                place.store("velocity", 0, n)
            elif staleness:
                params = place.fetch("params", 0, n)
                params += values / np.float32(1 + staleness)  # the others have moved it, too
                fresh[:] = params
                place.store("params", 0, n)
            else:  # the worker's model is the new one
                place.write("params", fresh)

            place.write("worker", gradient.worker, ticket)
            place.write("staleness", staleness, ticket)
            place.write("accepted", accepted, ticket)
            epoch = ticket // self.updates_per_epoch
            row = place.fetch("epochs", epoch, epoch + 1)[0]
            row[:_NNZ] += gradient.samples, gradient.loss, gradient.correct, staleness, accepted
            state[TICKET] = ticket + 1
            completed = 0 if (ticket + 1) % self.updates_per_epoch else epoch + 1
            if completed:
                if structures is not None:
                    out.adopt(structures, fresh, moved)
                    structures = None
                epoch_model = out.copy()
                self._end_epoch(out, velocity, state, row, completed)
            place.store("epochs", epoch, epoch + 1)
            place.store("state")
            version = Version(ticket + 1, int(state[VERSION]))
            ended = time.perf_counter()
        if structures is not None:
            out.adopt(structures, fresh, moved)
        return Update(version, completed, epoch_model, begun - asked, ended - begun)

    def _end_epoch(
        self, model: SparseMLP, velocity: np.ndarray | None, state: np.ndarray, row: np.ndarray,
        epoch: int,
    ) -> None:  # fmt: skip
        """Prune and evolve `model`, a copy of the server's, and make it the server's."""
        nnz = model.nnz
        if velocity is None:  # after local steps; restart and phase 2 use this worker's
            self.place.write("velocity", model.start_momentum())
        else:
            model.start_momentum()[:] = velocity
        changed = train.change_topology(model, self.config, self.seed, 0, epoch)
        aside = self.place.fetch("aside").sum()
        row[_NNZ:_TEST_LOSS] = nnz, changed["pruned"], changed["replaced"], self.elapsed(), aside
        row[_TEST_LOSS:] = math.nan
        if any(changed.values()):
            self._write_model(model, state)
            state[VERSION] += 1

    def tested(self, epoch: int, loss: float, accuracy: float) -> None:
        """Record the test of an epoch's model."""
        self.place.fetch("epochs", epoch - 1, epoch)[0, _TEST_LOSS:] = loss, accuracy
        self.place.store("epochs", epoch - 1, epoch)

    def _topology(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        starts = self.place.fetch("weight_start")
        return starts, self.place.fetch("indptr"), self.place.fetch("indices", 0, int(starts[-1]))

    def _structures(self) -> Structures:
        return split_layers(self.place.sizes, *self._topology())

    def _write_model(self, model: SparseMLP, state: np.ndarray) -> None:
        net = model.network
        state[NNZ] = model.nnz
        for name in ("weight_start", "indptr", "indices"):
            self.place.write(name, getattr(net, name))
        self.place.write("params", model.params)
        self.place.write("velocity", model.start_momentum())
