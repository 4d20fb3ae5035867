"""The peers' problem, and the peers without a framework: sparsecore, C, BLAS, scikit-learn.

A peer is an adapter: it is made for a `Problem`, the same for all, and takes training steps on it.
"""

import ctypes
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from sparsecore import __version__, seeds
from sparsecore.compiled.engine import aligned, metrics
from sparsecore.compiled.lanes import widest
from sparsecore.config import TrainConfig
from sparsecore.mlp import SparseMLP
from sparsecore.paper.training.dense import DenseMLP
from sparsecore.provenance import installed
from sparsecore.seeds import Purpose
from sparsecore.train import new_network, sgd_rule

WHOLE = "Gather, forward, activation, dropout, loss, backward, momentum, weight decay"
_BATCHES_OF_DATA = 8  # more than one, so that gathering a batch is not flattered by the cache


@dataclass(frozen=True)
class Problem:
    """The training problem of every peer: network, batch size and update rule, on random data."""

    sizes: tuple[int, ...]  # neurons per layer
    config: TrainConfig = field(default_factory=TrainConfig)  # all but the hidden layers
    threads: int = 1
    seed: int = 0

    @cached_property
    def model(self) -> SparseMLP:
        """The network, the same in every process."""
        return new_network(self.sizes, self.config, self.seed)

    @cached_property
    def data(self) -> tuple[np.ndarray, np.ndarray]:
        """Inputs, float32, and labels, int64, of eight batches."""
        rng = seeds.generator(self.seed, Purpose.SPLIT)
        n = self.config.batch_size * _BATCHES_OF_DATA
        inputs = rng.standard_normal((n, self.sizes[0]), np.float32)
        return inputs, rng.integers(self.sizes[-1], size=n)

    @property
    def slopes(self) -> list[float]:
        """Negative slope of each hidden layer."""
        return self.model.network.slopes[:-1].tolist()  # the last is the output layer's

    def dense(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return each layer's dense weights, shape (fan_out, fan_in), and biases."""
        return [(layer.to_scipy().toarray(), layer.bias.copy()) for layer in self.model]


class Adapter:
    """A peer: it takes training steps on a problem."""

    label: str
    note: str  # what its step includes: a reader must know it to compare fairly
    packages: tuple[str, ...] = ()  # that it needs; the last one's version is reported
    _take_step: Any  # on rows, returns the loss; for peers without a `train` of all batches

    def __init__(self, problem: Problem) -> None:
        self.problem = problem

    @classmethod
    def absent(cls, problem: Problem) -> str | None:
        """Return why the peer cannot be timed here on a problem, or None if it can."""
        missing = [name for name in cls.packages if installed(name) is None]
        return f"{' and '.join(missing)} not installed" if missing else None

    @classmethod
    def version(cls) -> str:
        """Return the version of the package that is timed."""
        return str(installed(cls.packages[-1])) if cls.packages else __version__

    def train(self, rows: np.ndarray) -> float:
        """Take a step for each batch of `rows`; return their mean loss before the steps."""
        size = self.problem.config.batch_size
        losses = [self._take_step(rows[i : i + size]) for i in range(0, len(rows), size)]
        return float(np.mean([float(loss) for loss in losses]))

    def close(self) -> None:
        """Release what is held."""


class SparseCore(Adapter):
    """The package itself."""

    label, note = "sparsecore", f"{WHOLE}; sparse throughout."

    def __init__(self, problem: Problem, model: Any = None) -> None:
        super().__init__(problem)
        model = model or problem.model
        model.start_momentum()
        self._engine = model.new_engine(problem.config.batch_size, problem.threads)
        self._rule = sgd_rule(problem.config, problem.seed)
        self._step = 0

    def train(self, rows: np.ndarray) -> float:
        """Take all steps in one call, as the trainer does."""
        size, sums = self.problem.config.batch_size, metrics()
        inputs, labels = self.problem.data
        self._engine.train(self._rule, inputs, labels, rows, size, self._step, sums)
        self._step += -(-len(rows) // size)
        return float(sums.loss[0]) / len(rows)

    def close(self) -> None:
        """End the threads."""
        self._engine.close()


class CLoop(Adapter):
    """The yardstick: `c_loop.c`, the sparse work alone, compiled for this CPU."""

    label = "C loop (yardstick)"
    note = (
        "Forward, backward and momentum over the connections alone, hand-written for AVX-512: no "
        "gather, activation, dropout or loss. One thread, batches of 128."
    )

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        source = Path(__file__).with_name("c_loop.c")
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "c_loop.so"
            options = ("-O3", "-march=native", "-funroll-loops", "-shared", "-fPIC")
            subprocess.run([str(_compiler()), *options, "-o", str(target), str(source)], check=True)
            self._library = ctypes.CDLL(str(target))  # stays mapped when the file is deleted
        rng = np.random.default_rng(problem.seed)
        shapes = [(n, problem.config.batch_size) for n in problem.sizes]
        self.activations = [aligned(a * b, np.float32).reshape(a, b) for a, b in shapes]
        self.gradients = [aligned(a * b, np.float32).reshape(a, b) for a, b in shapes]
        for array in (self.activations[0], self.gradients[-1]):
            array[:] = 0.1 * rng.standard_normal(array.shape, np.float32)
        matrices = problem.model.to_scipy()
        self.weights = [aligned(matrix.nnz, np.float32) for matrix in matrices]
        self.velocities = [aligned(matrix.nnz, np.float32) for matrix in matrices]
        for mine, matrix in zip(self.weights, matrices, strict=True):
            mine[:] = matrix.data
        self._biases = [problem.model[i].bias.copy() for i in range(len(matrices))]
        self._rows = [(m.indptr.astype(np.int64), m.indices.astype(np.int32)) for m in matrices]
        self._columns = [
            (indptr.astype(np.int64), indices.astype(np.int32), places.astype(np.int32))
            for indptr, indices, places in map(transposed, matrices)
        ]

    @classmethod
    def absent(cls, problem: Problem) -> str | None:
        """Return why the peer cannot be timed here on a problem, or None if it can."""
        if problem.config.batch_size != 128 or problem.threads != 1:
            return "written for batches of 128 and one thread"
        if widest() != 128:
            return "this CPU has no AVX-512"
        return None if _compiler() else "no C compiler"

    @classmethod
    def version(cls) -> str:
        """Return the version of the compiler."""
        command = [str(_compiler()), "-dumpfullversion"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return f"{Path(command[0]).name} {done.stdout.strip()}".strip()

    def forward(self) -> None:
        """Compute all layers' weighted sums from the first activations."""
        for i, n_out in enumerate(self.problem.sizes[1:]):
            arrays = *self._rows[i], self.weights[i], self._biases[i], *self.activations[i : i + 2]
            self._library.forward(ctypes.c_int64(n_out), *(array.ctypes for array in arrays))

    def backward(self, rate: float, momentum: float, decay: float) -> None:
        """Compute all gradients from the last ones, and update weights and velocities."""
        for i in range(len(self.weights) - 1, -1, -1):
            arrays = *self._columns[i], self.weights[i], self.velocities[i], self.activations[i]
            self._library.backward(
                ctypes.c_int64(self.problem.sizes[i]),
                *(array.ctypes for array in (*arrays, self.gradients[i + 1])),
                self.gradients[i].ctypes if i else None,
                *map(ctypes.c_float, (rate, momentum, decay)),
            )

    def _take_step(self, rows: np.ndarray) -> float:
        self.forward()
        # Without a loss nothing would stop the weights from growing, so the steps are tiny.
        self.backward(1e-9, self.problem.config.momentum, 0)
        return np.nan


def transposed(matrix: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return pointers and indices of a CSR matrix's transpose, and the places of its values."""
    numbered = matrix.copy()
    numbered.data = np.arange(matrix.nnz)
    found = numbered.T.tocsr()
    return found.indptr, found.indices, found.data


def _compiler() -> str | None:
    return shutil.which("gcc") or shutil.which("cc")


class Dense(SparseCore):
    """The dense network of the main table, whose trainer is the package's own."""

    label, packages = "BLAS, dense", ("numpy",)
    note = (
        f"{WHOLE}: the main table's dense network, here with All-ReLU; products by BLAS, the rest "
        "compiled, on one thread."
    )

    def __init__(self, problem: Problem) -> None:
        config = problem.config.with_values(hidden=problem.sizes[1:-1])
        model = DenseMLP(config, problem.sizes[0], problem.sizes[-1], problem.seed)
        for mine, given in zip(model.layers(model.params), problem.dense(), strict=True):
            for array, values in zip(mine, given, strict=True):
                array[:] = values
        super().__init__(problem, model)


class ScikitLearn(Adapter):
    """`MLPClassifier.partial_fit`: several batches per call, as its own `fit` does."""

    label, packages = "scikit-learn, dense", ("scikit-learn",)
    note = "MLPClassifier: dense, ReLU in place of All-ReLU, no dropout, weight decay as a penalty."

    def __init__(self, problem: Problem) -> None:
        from sklearn.neural_network import MLPClassifier

        super().__init__(problem)
        (inputs, labels), config = problem.data, problem.config
        size = config.batch_size
        self._mlp = MLPClassifier(
            problem.sizes[1:-1], activation="relu", solver="sgd",
            alpha=config.weight_decay / config.learning_rate, batch_size=size,
            learning_rate_init=config.learning_rate, momentum=config.momentum,
            nesterovs_momentum=False, shuffle=False,
        )  # fmt: skip
        # It allocates its arrays at the first call; then they are set to our values.
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
