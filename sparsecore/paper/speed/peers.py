"""The peers: what else trains such a network, each driven through full training steps.

A peer is a small adapter class that is made for a `Problem` (the same network, weights, data and
rule for all) and takes training steps with it. Peers are imported when they are used and never
required. Timing them against each other is the business of `contest`.
"""

from __future__ import annotations

import ctypes
import importlib.util
import shutil
import subprocess
import tempfile
import warnings
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from sparsecore import seeds
from sparsecore.compiled.engine import Engine, aligned, metrics
from sparsecore.compiled.kernels import Rule
from sparsecore.compiled.lanes import widest
from sparsecore.functions import negative_slope
from sparsecore.mlp import SparseMLP
from sparsecore.seeds import Purpose

_BATCHES_OF_DATA = 8  # more than one, so that gathering a batch is not flattered by the cache


@dataclass(frozen=True)
class Problem:
    """What every peer trains: network, batch and rule, on random data.

    Attributes
    ----------
    sizes : tuple of int
        Neurons per layer.
    epsilon, density : float, optional
        Sparsity; see `SparseMLP.erdos_renyi`.
    batch_size, threads : int
    activation : str
    alpha, learning_rate, momentum, weight_decay, dropout : float
    seed : int
    """

    sizes: tuple[int, ...]
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

    def dense(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return weights, shape (fan_out, fan_in), and biases of each layer, with zeros."""
        biases = [self.model[layer].bias.copy() for layer in range(len(self.model))]
        matrices = [matrix.toarray() for matrix in self.model.to_scipy()]
        return list(zip(matrices, biases, strict=True))

    def batches(self, rows: np.ndarray) -> list[np.ndarray]:
        """Cut row numbers into batches."""
        return [rows[i : i + self.batch_size] for i in range(0, len(rows), self.batch_size)]


class Trainer:
    """What an adapter does: take training steps on a problem."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem

    def train(self, rows: np.ndarray) -> float | None:
        """Take a step for each batch of `rows`.

        Returns
        -------
        float or None
            Mean cross-entropy over the batches, each before its step; None if it has no loss.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Release what is held."""


# --- sparsecore ----------------------------------------------------------------------------------


class SparseCore(Trainer):
    """The package itself."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self._velocity = problem.model.start_momentum()
        self._engine = Engine(problem.model.network, problem.batch_size, problem.threads)
        self._rule = Rule(
            np.float32(problem.learning_rate),
            np.float32(problem.momentum),
            np.float32(problem.weight_decay),
            np.float32(problem.dropout),
            seeds.key(problem.seed, Purpose.DROPOUT),
        )
        self._step = 0

    def train(self, rows: np.ndarray) -> float:
        """Take a step for each batch of `rows`."""
        size, sums = self.problem.batch_size, metrics()
        inputs, labels = self.problem.data
        self._engine.train(self._velocity, self._rule, inputs, labels, rows, size, self._step, sums)
        self._step += -(-len(rows) // size)
        return float(sums.loss[0]) / len(rows)

    def close(self) -> None:
        """End the threads."""
        self._engine.close()


class CLoop(Trainer):
    """The yardstick: `c_loop.c`, the sparse work alone, compiled for this CPU.

    Attributes
    ----------
    activations, gradients : list of ndarray of float32, shape (n, 128)
        Of each layer's neurons; the caller may set the first and the last.
    weights, velocities : list of ndarray of float32
        Of each layer, in CSR order.
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
        layers = [problem.model[layer] for layer in range(len(problem.model))]
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

    def train(self, rows: np.ndarray) -> None:
        """Do the sparse work of a step for each batch of `rows`, which it does not read."""
        for _ in self.problem.batches(rows):
            self.forward()
            # Without a loss nothing would stop the weights from growing: steps of next to nothing.
            self.backward(1e-9, self.problem.momentum, 0)


def _addresses(*arrays: np.ndarray | None) -> list[ctypes.c_void_p]:
    return [ctypes.c_void_p(None if a is None else a.ctypes.data) for a in arrays]


def _compiler() -> str | None:
    return shutil.which("gcc") or shutil.which("cc")


def _compiled_c_loop() -> ctypes.CDLL:
    compiler = _compiler()
    assert compiler is not None, "whoever comes here has asked `_no_c_loop`"
    source = Path(__file__).with_name("c_loop.c")
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "c_loop.so"
        options = ("-O3", "-march=native", "-funroll-loops", "-shared", "-fPIC")
        subprocess.run([compiler, *options, "-o", str(target), str(source)], check=True)
        return ctypes.CDLL(str(target))  # stays mapped when the file goes


def _compiler_version() -> str:
    command = [str(_compiler()), "-dumpfullversion"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return f"{Path(command[0]).name} {done.stdout.strip()}".strip()


# --- dense, through BLAS -------------------------------------------------------------------------


class NumPyDense(Trainer):
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

    def train(self, rows: np.ndarray) -> float:
        """Take a step for each batch of `rows`."""
        return float(np.mean([self._step(batch) for batch in self.problem.batches(rows)]))

    def _step(self, rows: np.ndarray) -> float:
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


class ScikitLearn(Trainer):
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
        """Take a step for each batch of `rows`; the loss includes its penalty on weights."""
        inputs, labels = self.problem.data
        self._mlp.partial_fit(inputs[rows], labels[rows])
        return float(self._mlp.loss_)


# --- PyTorch -------------------------------------------------------------------------------------


class TorchDense(Trainer):
    """`torch.nn.Linear` layers."""

    def __init__(self, problem: Problem) -> None:
        import torch

        super().__init__(problem)
        self._torch = torch
        torch.set_num_threads(problem.threads)
        torch.manual_seed(problem.seed)
        inputs, labels = problem.data
        self._inputs, self._labels = torch.from_numpy(inputs), torch.from_numpy(labels)
        self._layers = torch.nn.ModuleList(self._make_layers())
        self._optimizer = torch.optim.SGD(
            self._layers.parameters(),
            lr=problem.learning_rate,
            momentum=problem.momentum,
            weight_decay=problem.weight_decay / problem.learning_rate,
            fused=True,
        )

    def _make_layers(self) -> list[Any]:
        return [self._linear(weights, bias) for weights, bias in self.problem.dense()]

    def _linear(self, weights: np.ndarray, bias: np.ndarray) -> Any:
        torch = self._torch
        linear = torch.nn.Linear(weights.shape[1], weights.shape[0])
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(weights))
            linear.bias.copy_(torch.from_numpy(bias))
        return linear

    def _logits(self, x: Any) -> Any:
        functional = self._torch.nn.functional
        for layer, slope in zip(self._layers, self.problem.slopes, strict=False):
            x = functional.leaky_relu(layer(x), slope)  # with -alpha it is All-ReLU
            x = functional.dropout(x, self.problem.dropout)
        return self._layers[-1](x)

    def _after_step(self) -> None:
        """Do what remains after the optimizer's step."""

    def train(self, rows: np.ndarray) -> float:
        """Take a step for each batch of `rows`."""
        losses = []
        for batch in self.problem.batches(rows):
            chosen = self._torch.from_numpy(batch)
            self._optimizer.zero_grad(set_to_none=True)
            logits = self._logits(self._inputs[chosen])
            loss = self._torch.nn.functional.cross_entropy(logits, self._labels[chosen])
            loss.backward()
            self._optimizer.step()
            self._after_step()
            losses.append(loss.detach())
        return float(self._torch.stack(losses).mean())


class TorchMasked(TorchDense):
    """Dense layers whose weights are multiplied by a mask after each step."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        matrices = problem.model.to_scipy()
        for matrix in matrices:
            matrix.data[:] = 1
        self._masks = [self._torch.from_numpy(matrix.toarray()) for matrix in matrices]

    def _after_step(self) -> None:
        with self._torch.no_grad():
            for layer, mask in zip(self._layers, self._masks, strict=True):
                layer.weight.mul_(mask)


class TorchSparseProp(TorchDense):
    """`SparseLinear` layers of the package SparseProp."""

    def _make_layers(self) -> list[Any]:
        from sparseprop.modules import SparseLinear

        return [SparseLinear.from_dense(linear) for linear in super()._make_layers()]


class TorchCSR(TorchDense):
    """CSR weights, multiplied by PyTorch's own sparse products (MKL), feature-major.

    Forward is a product with the CSR matrix, the input gradient one with its transpose, kept as a
    second CSR matrix (the transpose of the first takes five times as long), and the weight gradient
    a sampled product.
    """

    def _make_layers(self) -> list[Any]:
        import torch

        linear = _csr_linear()

        class CsrLinear(torch.nn.Module):
            def __init__(self, matrix: Any, bias: np.ndarray) -> None:
                super().__init__()
                places = matrix.copy()
                places.data = np.arange(1, matrix.nnz + 1, dtype=np.float64)
                transposed = places.T.tocsr()
                self.values = torch.nn.Parameter(torch.from_numpy(matrix.data))
                self.bias = torch.nn.Parameter(torch.from_numpy(bias))
                self.structure = (
                    torch.from_numpy(matrix.indptr.astype(np.int32)),
                    torch.from_numpy(matrix.indices),
                    torch.from_numpy(transposed.indptr.astype(np.int32)),
                    torch.from_numpy(transposed.indices.astype(np.int32)),
                    torch.from_numpy(transposed.data.astype(np.int64) - 1),
                    matrix.shape,
                )

            def forward(self, x: Any) -> Any:
                return linear.apply(x, self.values, self.bias, self.structure)

        layers = zip(self.problem.model.to_scipy(), self.problem.dense(), strict=True)
        return [CsrLinear(matrix, bias) for matrix, (_, bias) in layers]

    def _logits(self, x: Any) -> Any:
        return super()._logits(x.t().contiguous()).t()


def _csr_linear() -> Any:
    """Return the autograd function of `TorchCSR`; torch must be there to define it."""
    import torch

    warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta", UserWarning)

    def matrix(indptr: Any, indices: Any, values: Any, shape: tuple[int, int]) -> Any:
        return torch.sparse_csr_tensor(indptr, indices, values, shape, check_invariants=False)

    class CsrLinear(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any, values: Any, bias: Any, structure: Any) -> Any:
            ctx.save_for_backward(x, values)
            ctx.structure = structure
            z = matrix(structure[0], structure[1], values, structure[5]) @ x
            return z.add_(bias[:, None])

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            (dz,), (x, values) = gradients, ctx.saved_tensors
            indptr, indices, t_indptr, t_indices, places, shape = ctx.structure
            dz = dz.contiguous()
            dx = None
            if ctx.needs_input_grad[0]:
                dx = matrix(t_indptr, t_indices, values[places], shape[::-1]) @ dz
            nothing = matrix(indptr, indices, torch.zeros_like(values), shape)
            dw = torch.sparse.sampled_addmm(nothing, dz, x.t(), beta=0.0)
            return dx, dw.values(), dz.sum(dim=1), None

    return CsrLinear


# --- JAX -----------------------------------------------------------------------------------------


class JaxDense(Trainer):
    """Dense matrices; the whole step is one function compiled by XLA."""

    def __init__(self, problem: Problem) -> None:
        import jax
        import jax.numpy as jnp

        super().__init__(problem)
        p = problem

        def mean_loss(params: Any, key: Any, x: Any, y: Any) -> Any:
            for (w, b), slope in zip(params, p.slopes, strict=False):
                z = x @ w + b
                x = jnp.where(z > 0, z, slope * z)
                if p.dropout:
                    key, now = jax.random.split(key)
                    x = jnp.where(jax.random.bernoulli(now, 1 - p.dropout, x.shape), x, 0)
                    x = x / (1 - p.dropout)
            w, b = params[-1]
            logs = jax.nn.log_softmax(x @ w + b)
            return -jnp.mean(jnp.take_along_axis(logs, y[:, None], axis=1))

        def step(params: Any, velocity: Any, key: Any, rows: Any, x: Any, y: Any) -> Any:
            key, now = jax.random.split(key)
            loss, gradient = jax.value_and_grad(mean_loss)(params, now, x[rows], y[rows])
            velocity = jax.tree.map(
                lambda v, g: p.momentum * v - p.learning_rate * g, velocity, gradient
            )
            params = jax.tree.map(lambda w, v: w + v - p.weight_decay * w, params, velocity)
            return params, velocity, key, loss

        self._step = jax.jit(step, donate_argnums=(0, 1, 2))
        self._params = [(jnp.asarray(w.T), jnp.asarray(b)) for w, b in p.dense()]
        self._velocity = jax.tree.map(jnp.zeros_like, self._params)
        # The generator that XLA has of its own: JAX's default costs more than the products.
        self._key = jax.random.key(p.seed, impl="unsafe_rbg")
        self._data = [jnp.asarray(array) for array in p.data]

    def train(self, rows: np.ndarray) -> float:
        """Take a step for each batch of `rows`."""
        losses = []
        for batch in self.problem.batches(rows):
            self._params, self._velocity, self._key, loss = self._step(
                self._params, self._velocity, self._key, batch, *self._data
            )
            losses.append(loss)
        return float(np.mean([float(loss) for loss in losses]))


# --- which there are -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Peer:
    """A way to train the problem, and what it does and does not do.

    Attributes
    ----------
    label : str
        As figures and tables call it.
    note : str
        What a reader must know to compare fairly.
    trainer : type
        Its adapter.
    packages : tuple of str
        Modules that it needs.
    distribution : str
        What its version is looked up by.
    """

    label: str
    note: str
    trainer: type[Trainer]
    packages: tuple[str, ...] = ()
    distribution: str = "sparsecore"


_WHOLE = "Gather, forward, activation, dropout, loss, backward, momentum, weight decay"

PEERS: dict[str, Peer] = {
    "sparsecore": Peer("sparsecore", f"{_WHOLE}; sparse throughout.", SparseCore),
    "c-loop": Peer(
        "C loop (yardstick)",
        "Forward, backward and momentum over the connections alone, hand-written for AVX-512: no "
        "gather, activation, dropout or loss. One thread, batches of 128.",
        CLoop,
    ),
    "torch-csr": Peer(
        "PyTorch, CSR weights",
        f"{_WHOLE} (fused SGD); sparse products by MKL in an autograd function of ours, with a "
        f"second, transposed matrix for the input gradient.",
        TorchCSR,
        ("torch",),
        "torch",
    ),
    "sparseprop": Peer(
        "SparseProp",
        f"{_WHOLE} (fused SGD); its SparseLinear layers for PyTorch, compiled on this machine.",
        TorchSparseProp,
        ("torch", "sparseprop"),
        "sparseprop",
    ),
    "torch-dense": Peer(
        "PyTorch, dense",
        f"{_WHOLE} (fused SGD), with all weights, the absent ones too.",
        TorchDense,
        ("torch",),
        "torch",
    ),
    "torch-masked": Peer(
        "PyTorch, masked",
        f"{_WHOLE} (fused SGD), dense; after each step the weights are multiplied by 0-1 masks.",
        TorchMasked,
        ("torch",),
        "torch",
    ),
    "jax-dense": Peer(
        "JAX, dense",
        f"{_WHOLE}, dense, compiled as one function; noise from XLA's own generator.",
        JaxDense,
        ("jax",),
        "jax",
    ),
    "numpy-dense": Peer(
        "NumPy, dense",
        f"{_WHOLE}, dense; products by BLAS, the rest element by element.",
        NumPyDense,
        (),
        "numpy",
    ),
    "scikit-learn-dense": Peer(
        "scikit-learn, dense",
        "MLPClassifier: dense, ReLU in place of All-ReLU, no dropout, weight decay as a penalty.",
        ScikitLearn,
        ("sklearn",),
        "scikit-learn",
    ),
}

THROUGH_BLAS = ("numpy-dense", "scikit-learn-dense")  # PyTorch and JAX bring their own


def absent(key: str, problem: Problem) -> str | None:
    """Return why a peer cannot be timed on a problem here, or None if it can.

    Raises
    ------
    ValueError
        If there is no such peer; the message lists them.
    """
    if key not in PEERS:
        raise ValueError(f"peers: expected some of {', '.join(PEERS)}, got {key!r}")
    missing = [m for m in PEERS[key].packages if importlib.util.find_spec(m) is None]
    if missing:
        return f"{' and '.join(missing)} not installed"
    return _no_c_loop(problem) if key == "c-loop" else None


def _no_c_loop(problem: Problem) -> str | None:
    if problem.batch_size != 128 or problem.threads != 1:
        return "written for batches of 128 and one thread"
    if widest() != 128:
        return "this CPU has no AVX-512"
    return None if _compiler() else "no C compiler"


def installed_version(key: str) -> str:
    """Return the version of what a peer is, as far as it can be told."""
    if key == "c-loop":
        return _compiler_version()
    try:
        return version(PEERS[key].distribution)
    except PackageNotFoundError:
        return "unknown"
