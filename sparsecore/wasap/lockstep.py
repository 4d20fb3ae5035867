"""WASSP-SGD's phase 1: all workers' gradients of a step are averaged, and all take the same step.

Every worker holds the whole model and a share of the velocity: it receives its share of all
gradients, sums them in the order of the ranks, takes the momentum step there, and sends its share
of the new parameters to all. The result does not depend on timing, nor on how MPI reduces.
"""

from __future__ import annotations

import time

import numpy as np

from sparsecore.compiled import kernels
from sparsecore.config import TrainConfig
from sparsecore.train import change_topology
from sparsecore.wasap.mpi import MPI
from sparsecore.wasap.window import Window
from sparsecore.wasap.worker import Worker


class Lockstep:
    """The synchronous schedule.

    Parameters
    ----------
    window : Window
        For its ranks, and to count the bytes moved.
    worker : Worker
        With the model and velocity that all workers have.
    shard_sizes : list of int
        Of all workers.
    config : TrainConfig
    warmup : int
        Epochs over which the learning rate rises from the configuration's to `n_workers` times
        that.

    Notes
    -----
    Source: "Truly Sparse Neural Networks at Scale", WASSP-SGD; the scaling of the learning rate
    and its warm-up are Goyal et al., 2017. Sends and receives 16 (K - 1) / K bytes a parameter and
    step.
    """

    def __init__(
        self,
        window: Window,
        worker: Worker,
        shard_sizes: list[int],
        config: TrainConfig,
        warmup: int,
    ) -> None:
        self._window, self._worker, self._config = window, worker, config
        self._ranks, self._shards, self._warmup = window.ranks, shard_sizes, warmup
        self.steps = max(-(-size // config.batch_size) for size in shard_sizes)
        self._share_out()

    def _share_out(self) -> None:
        """Divide the parameters among the workers."""
        n, workers = len(self._worker.model.params), self._ranks.size
        cuts = n * np.arange(workers + 1) // workers
        self._starts, self._counts = cuts[:-1], np.diff(cuts)
        self._mine = slice(int(cuts[self._ranks.rank]), int(cuts[self._ranks.rank + 1]))
        size = int(self._counts[self._ranks.rank])
        self._received = np.empty((workers, size), np.float32)
        self._mean, self._term = np.empty(size, np.float32), np.empty(size, np.float32)

    def learning_rate(self, step: int) -> np.float32:
        """Return the rate of a step, counted from 0."""
        workers, rise = self._ranks.size, self._warmup * self.steps
        share = min(1.0, (step + 1) / rise) if rise else 1.0
        return np.float32(self._config.learning_rate * (1 + (workers - 1) * share))

    def take_step(self, step: int) -> None:
        """Take step number `step` of phase 1 together with all other workers."""
        worker, batch = self._worker, step % self.steps
        size = self._config.batch_size
        samples = np.array([min(max(n - batch * size, 0), size) for n in self._shards])
        if samples[worker.rank]:
            self._ranks.step()
            worker.compute()
            self._ranks.rest()
        else:
            worker.gradient[:] = 0
            worker.n_samples = 0
        begun = time.perf_counter()
        self._exchange_gradients()
        # In the order of the ranks, so that the sum is the same whoever was first.
        shares = (samples / samples.sum()).astype(np.float32)
        np.multiply(self._received[0], shares[0], out=self._mean)
        for received, share in zip(self._received[1:], shares[1:], strict=True):
            np.multiply(received, share, out=self._term)
            self._mean += self._term
        params, velocity = worker.model.params, worker.model.start_momentum()
        kernels.momentum_step(
            params[self._mine], velocity[self._mine], self._mean, params[self._mine],
            self.learning_rate(step), np.float32(self._config.momentum),
            np.float32(self._config.weight_decay),
        )  # fmt: skip
        self._gather(params)
        if samples[worker.rank]:
            worker.pushed()
        worker.seconds["update"] += time.perf_counter() - begun

    def _exchange_gradients(self) -> None:
        size = self._received.shape[1]
        places = np.arange(self._ranks.size) * size
        self._ranks.transfer(
            lambda: self._ranks.comm.Ialltoallv(
                [self._worker.gradient, self._counts, self._starts, MPI.FLOAT],
                [self._received, np.full(self._ranks.size, size), places, MPI.FLOAT],
            )
        )
        self._count_bytes()

    def _gather(self, vector: np.ndarray) -> None:
        """Fill in the other workers' shares of a vector."""
        self._ranks.transfer(
            lambda: self._ranks.comm.Iallgatherv(
                MPI.IN_PLACE, [vector, self._counts, self._starts, MPI.FLOAT]
            )
        )
        self._count_bytes()

    def _count_bytes(self) -> None:
        n, mine = len(self._worker.model.params), len(self._mean)
        self._window.moved += 4 * (n - mine + mine * (self._ranks.size - 1))

    def sums(self, values: list[float]) -> np.ndarray:
        """Return the sums of numbers over all workers, in the order of the ranks, float64."""
        sent = np.array(values, np.float64)
        received = np.empty((self._ranks.size, len(sent)))
        self._ranks.wait(self._ranks.comm.Iallgather(sent, received))
        return received.sum(axis=0)

    def change_topology(self, seed: int, epoch: int) -> dict[str, int]:
        """Prune and evolve after an epoch, on rank 0, and send the outcome to all."""
        worker = self._worker
        model = worker.model
        self._gather(model.start_momentum())
        counts = np.zeros(2, np.int64)
        if worker.rank == 0:
            changed = change_topology(model, self._config, seed, 0, epoch)
            counts[:] = changed["pruned"], changed["replaced"]
        self._send(counts)
        if counts.any():
            sizes = worker.sizes
            starts = model.network.weight_start.copy()
            self._send(starts)
            if worker.rank == 0:
                indptr, indices = model.network.indptr, model.network.indices
                params, velocity = model.params, model.start_momentum()
            else:
                indptr, indices = np.empty_like(model.network.indptr), np.empty(starts[-1], "i4")
                params = np.empty(starts[-1] + worker.n_biases, np.float32)
                velocity = np.empty_like(params)
            for array in (indptr, indices, params, velocity):
                self._send(array)
            if worker.rank == 0:
                worker.take(model)
            else:
                structures, first = [], 0
                for layer, n_out in enumerate(sizes[1:]):
                    pointers = indptr[first : first + n_out + 1]
                    structures.append((pointers, indices[starts[layer] : starts[layer + 1]]))
                    first += n_out + 1
                worker.adopt(structures, params, velocity)
            self._share_out()
        return {"pruned": int(counts[0]), "replaced": int(counts[1])}

    def _send(self, array: np.ndarray) -> None:
        """Send rank 0's array to all."""
        self._ranks.transfer(lambda: self._ranks.comm.Ibcast([array.view(np.uint8), MPI.BYTE]))
        self._window.moved += array.nbytes
