"""WASSP-SGD's phase 1: the workers' gradients of a step are averaged, and all take the same step.

Every worker holds the whole model and a share of the velocity: it receives its share of all
gradients, sums them in the order of the ranks, takes the momentum step there, and sends its share
of the new parameters to all. The result depends neither on timing nor on how MPI reduces.
With local steps, the workers' parameters are averaged instead, after some steps of each (local SGD,
Stich, 2019).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsecore.compiled import kernels
from sparsecore.config import TrainConfig
from sparsecore.mlp import SparseMLP
from sparsecore.train import change_topology
from sparsecore.wasap.mpi import MPI
from sparsecore.wasap.plan import Plan
from sparsecore.wasap.window import Window


@dataclass(eq=False)
class Lockstep:
    """The synchronous schedule; all workers have the `model`, with its velocity."""

    # Source: "Truly Sparse Neural Networks at Scale", WASSP-SGD; the learning rate is K-fold after
    # a warm-up (Goyal et al., 2017). A step moves 16 (K - 1) / K bytes per parameter.
    window: Window
    model: SparseMLP
    shard_sizes: Sequence[int]
    config: TrainConfig
    plan: Plan

    def __post_init__(self) -> None:
        self.ranks = self.window.ranks
        self._size = self.config.batch_size * self.plan.local_steps  # samples in a worker's step
        self.steps = self.plan.updates(max(self.shard_sizes), self.config)  # per epoch
        self._share_out()

    def _share_out(self) -> None:
        """Divide the parameters among the workers."""
        n, n_workers = len(self.model.params), self.ranks.size
        cuts = n * np.arange(n_workers + 1) // n_workers
        self._starts, self._counts = cuts[:-1], np.diff(cuts)
        self._mine = slice(*cuts[self.ranks.rank : self.ranks.rank + 2].tolist())
        size = int(self._counts[self.ranks.rank])
        self._received = np.empty((n_workers, size), np.float32)
        self._mean, self._term = np.empty(size, np.float32), np.empty(size, np.float32)

    def samples(self, step: int) -> np.ndarray:
        """Return how many samples each worker's batch has in a step; a small shard ends early."""
        done = step % self.steps * self._size
        return np.clip(np.array(self.shard_sizes) - done, 0, self._size)

    def take_step(self, step: int, gradient: np.ndarray | None) -> None:
        """Take step `step` of phase 1 together; `gradient` is None if the batch is empty."""
        params, velocity = self.model.params, self.model.start_momentum()
        if self.plan.local_steps > 1:  # average the parameters; each keeps its own velocity
            self._average(params, self.samples(step))
            return
        sent = np.zeros(len(params), np.float32) if gradient is None else gradient
        self._sum(sent, self.samples(step))
        rate = self.plan.learning_rate(self.config, self.ranks.size, step, self.steps)
        kernels.momentum_step(
            params[self._mine], velocity[self._mine], self._mean, params[self._mine], rate,
            np.float32(self.config.momentum), np.float32(self.config.weight_decay),
        )  # fmt: skip
        self._gather(params)

    def _average(self, vector: np.ndarray, samples: np.ndarray) -> None:
        """Replace the workers' vectors by their average."""
        self._sum(vector, samples)
        vector[self._mine] = self._mean
        self._gather(vector)

    def _sum(self, sent: np.ndarray, samples: np.ndarray) -> None:
        """Average this worker's share of all vectors, weighted by the workers' samples."""
        counts = np.full(self.ranks.size, len(self._mean))
        into = [self._received, counts, counts * np.arange(self.ranks.size), MPI.FLOAT]
        out = [sent, self._counts, self._starts, MPI.FLOAT]
        self._transfer(self.ranks.comm.Ialltoallv, out, into)
        # In the order of the ranks, so that the sum does not depend on who was first.
        shares = (samples / samples.sum()).astype(np.float32)
        np.multiply(self._received[0], shares[0], out=self._mean)
        for received, share in zip(self._received[1:], shares[1:], strict=True):
            np.multiply(received, share, out=self._term)
            self._mean += self._term

    def _gather(self, vector: np.ndarray) -> None:
        """Fill in the other workers' shares of a vector."""
        into = [vector, self._counts, self._starts, MPI.FLOAT]
        self._transfer(self.ranks.comm.Iallgatherv, MPI.IN_PLACE, into)

    def _transfer(self, call: Any, *buffers: Any) -> None:
        self.ranks.transfer(call, *buffers)
        n, mine = len(self.model.params), len(self._mean)
        self.window.moved += 4 * (n - mine + mine * (self.ranks.size - 1))

    def change_topology(self, seed: int, epoch: int) -> dict[str, int]:
        """Prune and evolve the model after an epoch, on rank 0, and send the outcome to all."""
        model, outcome = self.model, None
        if self.plan.local_steps > 1:
            self._average(model.start_momentum(), np.array(self.shard_sizes))
        else:
            self._gather(model.start_momentum())
        if self.ranks.rank == 0:
            changed = change_topology(model, self.config, seed, 0, epoch)
            outcome = changed, model if any(changed.values()) else None
        changed, new = self.ranks.gathered(outcome)[0]
        if new is not None:
            if self.ranks.rank:
                model.adopt(new.structures(), new.params, new.velocity)
            net, velocity = model.network, model.start_momentum()
            sent = (net.indptr, net.indices, model.params, velocity)
            self.window.moved += sum(array.nbytes for array in sent)
            self._share_out()
        return changed
