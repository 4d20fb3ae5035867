"""What the peers train, and the peers without a framework: sparsecore, C, NumPy, scikit-learn.

A peer is a small adapter class. It is made for a `Problem`, which gives all of them the same
network, weights, data and rule, and takes training steps with it. PyTorch and JAX are in
`frameworks`; `registry` lists all peers, and `contest` times them against each other.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from sparsecore import seeds
from sparsecore.compiled.engine import aligned, metrics
from sparsecore.compiled.kernels import Rule
from sparsecore.functions import negative_slope
from sparsecore.mlp import SparseLayer, SparseMLP
from sparsecore.seeds import Purpose

_BATCHES_OF_DATA = 8  # more than one, so that gathering a batch is not flattered by the cache


@dataclass(frozen=True)
class Problem:
    """What every peer trains: network, batch and rule, on random data."""

    sizes: tuple[int, ...]  # neurons per layer
    epsilon: float | None = None
    density: float | None = None
    batch_size: int = 128
    threads: int = 1
    activation: str = "all-relu"
    alpha: float = 0.6
    learning_rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 0.0002
    dropout: float = 0.3
    seed: int = 0

    @cached_property
    def model(self) -> SparseMLP:
        """The network, the same in every process."""
        return SparseMLP.erdos_renyi(
            self.sizes,
            epsilon=self.epsilon,
            density=self.density,
            activation=self.activation,
            alpha=self.alpha,
            random_state=seeds.generator(self.seed, Purpose.TOPOLOGY),
        )

    @cached_property
    def data(self) -> tuple[np.ndarray, np.ndarray]:
        """Inputs, float32, and labels, int64, of eight batches."""
        rng = seeds.generator(self.seed, Purpose.SPLIT)
        n = self.batch_size * _BATCHES_OF_DATA
        inputs = rng.standard_normal((n, self.sizes[0]), np.float32)
        return inputs, rng.integers(self.sizes[-1], size=n)

    @property
    def slopes(self) -> list[float]:
        """Negative slope of each hidden layer."""
        hidden = range(1, len(self.sizes) - 1)
        return [negative_slope(self.activation, layer, self.alpha) for layer in hidden]

    @property
    def layers(self) -> list[SparseLayer]:
        """The network's layers."""
        return [self.model[layer] for layer in range(len(self.model))]

    def dense(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return weights, shape (fan_out, fan_in), and biases of each layer, with zeros."""
        pairs = zip(self.model.to_scipy(), self.layers, strict=True)
        return [(matrix.toarray(), layer.bias.copy()) for matrix, layer in pairs]

    def batches(self, rows: np.ndarray) -> list[np.ndarray]:
        """Cut row numbers into batches."""
        return [rows[i : i + self.batch_size] for i in range(0, len(rows), self.batch_size)]


class Adapter:
    """What a peer does: take training steps on a problem."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem

    def train(self, rows: np.ndarray) -> float | None:
        """Take a step for each batch of `rows`; return the mean of their losses, if they have any.

        A loss is the cross-entropy of the batch before its step.
        """
        losses = [self.step(batch) for batch in self.problem.batches(rows)]
        return None if losses[0] is None else float(np.mean([float(loss) for loss in losses]))

    def step(self, rows: np.ndarray) -> Any:
        """Take a step on one batch; return its loss, a number of the framework, or None."""
        raise NotImplementedError

    def close(self) -> None:
        """Release what is held."""


class SparseCore(Adapter):
    """The package itself."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        problem.model.start_momentum()
        self._engine = problem.model.new_engine(problem.batch_size, problem.threads)
        self._rule = Rule(
            np.float32(problem.learning_rate),
            np.float32(problem.momentum),
            np.float32(problem.weight_decay),
            np.float32(problem.dropout),
            seeds.key(problem.seed, Purpose.DROPOUT),
        )
        self._step = 0

    def train(self, rows: np.ndarray) -> float:
        """Take all steps in one call, as the trainer does."""
        size, sums = self.problem.batch_size, metrics()
        inputs, labels = self.problem.data
        self._engine.train(self._rule, inputs, labels, rows, size, self._step, sums)
        self._step += -(-len(rows) // size)
        return float(sums.loss[0]) / len(rows)

    def close(self) -> None:
        """End the threads."""
        self._engine.close()


class CLoop(Adapter):
    """The yardstick: `c_loop.c`, the sparse work alone, compiled for this CPU.

    `activations` and `gradients` of each layer's neurons have shape (n, 128), `weights` and
    `velocities` are in CSR order; all float32.
    """

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self._library = _compiled_c_loop()
        rng = np.random.default_rng(problem.seed)
        shapes = [(n, problem.batch_size) for n in problem.sizes]
        self.activations = [aligned(a * b, np.float32).reshape(a, b) for a, b in shapes]
        self.gradients = [aligned(a * b, np.float32).reshape(a, b) for a, b in shapes]
        for array in (self.activations[0], self.gradients[-1]):
            array[:] = 0.1 * rng.standard_normal(array.shape, np.float32)
        layers = problem.layers
        self.weights = [aligned(layer.nnz, np.float32) for layer in layers]
        self.velocities = [aligned(layer.nnz, np.float32) for layer in layers]
        for mine, layer in zip(self.weights, layers, strict=True):
            mine[:] = layer.data
        # Held, because C is given their addresses.
        self._biases = [layer.bias.copy() for layer in layers]
        self._structures = [(layer.indptr.copy(), layer.indices.copy()) for layer in layers]
        self._transposed = []
        net, pointers = problem.model.network, 0
        for i, layer in enumerate(layers):
            part = slice(int(net.weight_start[i]), int(net.weight_start[i + 1]))
            indptr = net.out_indptr[pointers : pointers + layer.n_in + 1].copy()
            places = net.out_position[part].astype(np.int32)
            self._transposed.append((indptr, net.out_indices[part].copy(), places))
            pointers += layer.n_in + 1

    def forward(self) -> None:
        """Compute all layers' weighted sums from the first activations."""
        for i, n_out in enumerate(self.problem.sizes[1:]):
            self._library.forward(
                ctypes.c_int64(n_out),
                *_addresses(*self._structures[i], self.weights[i], self._biases[i]),
                *_addresses(self.activations[i], self.activations[i + 1]),
            )

    def backward(self, rate: float, momentum: float, decay: float) -> None:
        """Compute all gradients from the last ones, and update weights and velocities."""
        for i in range(len(self.weights) - 1, -1, -1):
            self._library.backward(
                ctypes.c_int64(self.problem.sizes[i]),
                *_addresses(*self._transposed[i], self.weights[i], self.velocities[i]),
                *_addresses(self.activations[i], self.gradients[i + 1]),
                *_addresses(self.gradients[i] if i else None),
                *map(ctypes.c_float, (rate, momentum, decay)),
            )

    def step(self, rows: np.ndarray) -> None:
        """Do the sparse work of a step; the batch is not read."""
        self.forward()
        # Without a loss nothing would stop the weights from growing: steps of next to nothing.
        self.backward(1e-9, self.problem.momentum, 0)


def _addresses(*arrays: np.ndarray | None) -> list[ctypes.c_void_p]:
    return [ctypes.c_void_p(None if a is None else a.ctypes.data) for a in arrays]


def compiler() -> str | None:
    """Return the path of the C compiler, if there is one."""
    return shutil.which("gcc") or shutil.which("cc")


def _compiled_c_loop() -> ctypes.CDLL:
    source = Path(__file__).with_name("c_loop.c")
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "c_loop.so"
        options = ("-O3", "-march=native", "-funroll-loops", "-shared", "-fPIC")
        subprocess.run([str(compiler()), *options, "-o", str(target), str(source)], check=True)
        return ctypes.CDLL(str(target))  # stays mapped when the file goes


class NumPyDense(Adapter):
    """Dense matrices in NumPy: products by its BLAS, everything in place."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        layers = problem.dense()
        self._weights = [np.ascontiguousarray(w.T) for w, _ in layers]
        self._biases = [b for _, b in layers]
        self._params = [*self._weights, *self._biases]
        self._velocities = [np.zeros_like(p) for p in self._params]
        self._gradients = [np.empty_like(p) for p in self._params]
        self._rng = np.random.default_rng(problem.seed)

    def step(self, rows: np.ndarray) -> float:
        """Take a step on one batch."""
        p, depth = self.problem, len(self._weights)
        inputs, labels = p.data
        x, y, each = [inputs[rows]], labels[rows], np.arange(len(rows))
        factors: list[np.ndarray] = []
        stretch = np.float32(1 / (1 - p.dropout))
        for layer, slope in enumerate(p.slopes):
            z = x[-1] @ self._weights[layer]
            z += self._biases[layer]
            factor = np.where(z > 0, stretch, np.float32(slope) * stretch)
            if p.dropout:
                factor *= self._rng.random(z.shape, np.float32) >= p.dropout
            z *= factor
            factors.append(factor)
            x.append(z)
        z = x[-1] @ self._weights[-1]
        z += self._biases[-1]
        z -= z.max(axis=1, keepdims=True)
        shifted = z[each, y]
        np.exp(z, out=z)
        norm = z.sum(axis=1, keepdims=True)
        loss = float(np.mean(np.log(norm[:, 0]) - shifted))
        z /= norm
        z[each, y] -= 1
        z /= len(rows)
        for layer in range(depth - 1, -1, -1):
            np.matmul(x[layer].T, z, out=self._gradients[layer])
            z.sum(axis=0, out=self._gradients[depth + layer])
            if layer:
                z = z @ self._weights[layer].T
                z *= factors[layer - 1]
        for w, v, g in zip(self._params, self._velocities, self._gradients, strict=True):
            v *= np.float32(p.momentum)
            g *= np.float32(p.learning_rate)
            v -= g
            w *= np.float32(1 - p.weight_decay)
            w += v
        return loss


class ScikitLearn(Adapter):
    """`MLPClassifier.partial_fit`: several batches a call, as its own `fit` does."""

    def __init__(self, problem: Problem) -> None:
        from sklearn.neural_network import MLPClassifier

        super().__init__(problem)
        inputs, labels = problem.data
        size = problem.batch_size
        self._mlp = MLPClassifier(
            problem.sizes[1:-1],
            activation="relu",
            solver="sgd",
            alpha=problem.weight_decay / problem.learning_rate,
            batch_size=size,
            learning_rate_init=problem.learning_rate,
            momentum=problem.momentum,
            nesterovs_momentum=False,
            shuffle=False,
        )
        # It makes its arrays when it first sees data; then they are given our values.
        self._mlp.partial_fit(inputs[:size], labels[:size], classes=np.arange(problem.sizes[-1]))
        for layer, (weights, bias) in enumerate(problem.dense()):
            self._mlp.coefs_[layer][:] = weights.T
            self._mlp.intercepts_[layer][:] = bias
        del self._mlp._optimizer  # with the velocities of that first step

    def train(self, rows: np.ndarray) -> float:
        """Take all steps in one call; the loss includes the penalty on weights."""
        inputs, labels = self.problem.data
        self._mlp.partial_fit(inputs[rows], labels[rows])
        return float(self._mlp.loss_)
