"""The peers written for PyTorch or JAX; a framework is imported when a peer is made."""

import warnings
from typing import Any

import numpy as np
import scipy.sparse as sp

from sparsecore.paper.speed.peers import WHOLE, Adapter, Problem, transposed


class TorchDense(Adapter):
    """`torch.nn.Linear` layers."""

    label = "PyTorch, dense"
    packages: tuple[str, ...] = ("torch",)
    note = f"{WHOLE} (fused SGD), with all weights, the absent ones too."

    def __init__(self, problem: Problem) -> None:
        import torch

        super().__init__(problem)
        self._torch = torch
        torch.set_num_threads(problem.threads)
        torch.manual_seed(problem.seed)
        (inputs, labels), config = problem.data, problem.config
        self._inputs, self._labels = torch.from_numpy(inputs), torch.from_numpy(labels)
        self._layers = torch.nn.ModuleList(
            # A layer with all its weights is dense for sparse peers, too, as users would have it.
            (self._linear if weights.all() else self._sparse)(weights, bias)
            for weights, bias in problem.dense()
        )
        self._optimizer = torch.optim.SGD(
            self._layers.parameters(), lr=config.learning_rate, momentum=config.momentum,
            weight_decay=config.weight_decay / config.learning_rate, fused=True,
        )  # fmt: skip

    def _linear(self, weights: np.ndarray, bias: np.ndarray) -> Any:
        torch = self._torch
        linear = torch.nn.Linear(weights.shape[1], weights.shape[0])
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(weights))
            linear.bias.copy_(torch.from_numpy(bias))
        return linear

    _sparse = _linear

    def _take_step(self, rows: np.ndarray) -> Any:
        chosen, functional = self._torch.from_numpy(rows), self._torch.nn.functional
        self._optimizer.zero_grad(set_to_none=True)
        x = self._inputs[chosen]
        for layer, slope in zip(self._layers, self.problem.slopes, strict=False):
            x = functional.leaky_relu(layer(x), slope)  # with -alpha it is All-ReLU
            x = functional.dropout(x, self.problem.config.dropout)
        loss = functional.cross_entropy(self._layers[-1](x), self._labels[chosen])
        loss.backward()
        self._optimizer.step()
        return loss.detach()


class TorchMasked(TorchDense):
    """Dense layers whose weights are multiplied by a mask after each step."""

    label = "PyTorch, masked"
    note = f"{WHOLE} (fused SGD), dense; after each step the weights are multiplied by 0-1 masks."

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self._masks = [(layer.weight != 0).float() for layer in self._layers]

    def _take_step(self, rows: np.ndarray) -> Any:
        loss = super()._take_step(rows)
        with self._torch.no_grad():
            for layer, mask in zip(self._layers, self._masks, strict=True):
                layer.weight.mul_(mask)
        return loss


class TorchSparseProp(TorchDense):
    """`SparseLinear` layers of the package SparseProp."""

    label, packages = "SparseProp", ("torch", "sparseprop")
    note = f"{WHOLE} (fused SGD); hidden layers are its SparseLinear, built here."

    def _sparse(self, weights: np.ndarray, bias: np.ndarray) -> Any:
        from sparseprop.modules import SparseLinear

        return SparseLinear.from_dense(self._linear(weights, bias))


class TorchSparseLab(TorchDense):
    """`SparseLinear` layers of the package sparselab, with our connections."""

    label, packages = "sparselab", ("torch", "sparselab")
    note = f"{WHOLE} (fused SGD); hidden layers are its SparseLinear (padded CSR, AVX2 or NEON)."

    def _sparse(self, weights: np.ndarray, bias: np.ndarray) -> Any:
        import sparselab

        torch = self._torch
        linear = sparselab.SparseLinear(weights.shape[1], weights.shape[0])
        # It draws its own connections; this is the only way to set others.
        linear._csr = sparselab.PaddedCSR.from_dense(torch.from_numpy(weights))
        linear._values = torch.nn.Parameter(torch.from_numpy(np.asarray(linear._csr.values)))
        with torch.no_grad():
            linear.bias.copy_(torch.from_numpy(bias))
        return linear


class TorchCSR(TorchDense):
    """CSR weights, multiplied by PyTorch's own sparse products (MKL), feature-major."""

    label = "PyTorch, CSR weights"
    note = (
        f"{WHOLE} (fused SGD); hidden layers are sparse products by MKL, in an autograd function "
        "of ours, with a second, transposed matrix for the input gradient."
    )

    def _sparse(self, weights: np.ndarray, bias: np.ndarray) -> Any:
        import torch

        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta", UserWarning)
        csr = sp.csr_array(weights)
        rows = torch.from_numpy(csr.indptr), torch.from_numpy(csr.indices)
        # Transposing the first matrix in every step takes five times as long.
        indptr, indices, places = map(torch.from_numpy, transposed(csr))

        def matrix(indptr: Any, indices: Any, values: Any, shape: tuple[int, int]) -> Any:
            return torch.sparse_csr_tensor(indptr, indices, values, shape, check_invariants=False)

        class Product(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, x: Any, values: Any, bias: Any) -> Any:
                ctx.save_for_backward(x, values)
                return (matrix(*rows, values, csr.shape) @ x).add_(bias[:, None])

            @staticmethod
            def backward(ctx: Any, *gradients: Any) -> Any:
                (dz,), (x, values), dx = gradients, ctx.saved_tensors, None
                dz = dz.contiguous()
                if ctx.needs_input_grad[0]:
                    dx = matrix(indptr, indices, values[places], csr.shape[::-1]) @ dz
                nothing = matrix(*rows, torch.zeros_like(values), csr.shape)
                dw = torch.sparse.sampled_addmm(nothing, dz, x.t(), beta=0.0)
                return dx, dw.values(), dz.sum(dim=1)

        layer = torch.nn.Module()
        layer.values = torch.nn.Parameter(torch.from_numpy(csr.data))
        layer.bias = torch.nn.Parameter(torch.from_numpy(bias))
        layer.forward = lambda x: Product.apply(x.t().contiguous(), layer.values, layer.bias).t()
        return layer


class JaxDense(Adapter):
    """Dense matrices; the whole step is one function compiled by XLA."""

    label, packages = "JAX, dense", ("jax",)
    note = f"{WHOLE}, dense, compiled as one function; noise from XLA's own generator."

    def __init__(self, problem: Problem) -> None:
        import jax
        import jax.numpy as jnp

        super().__init__(problem)
        p = problem.config

        def mean_loss(params: Any, key: Any, x: Any, y: Any) -> Any:
            for (w, b), slope in zip(params, problem.slopes, strict=False):
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
        params = [(jnp.asarray(w.T), jnp.asarray(b)) for w, b in problem.dense()]
        # XLA's own generator: JAX's default costs more than the products.
        key = jax.random.key(problem.seed, impl="unsafe_rbg")
        self._state = [params, jax.tree.map(jnp.zeros_like, params), key]
        self._data = [jnp.asarray(array) for array in problem.data]

    def _take_step(self, rows: np.ndarray) -> Any:
        *self._state, loss = self._step(*self._state, rows, *self._data)
        return loss
